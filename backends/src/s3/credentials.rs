//! Where credentials come from, and what the AWS files say besides.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use opendal::HttpTransporter;
use reqsign_aws_v4::{
    AssumeRoleCredentialProvider, AssumeRoleWithWebIdentityCredentialProvider, Credential,
    DefaultCredentialProvider, ProfileCredentialProvider, RequestSigner, StaticCredentialProvider,
};
use reqsign_core::{Context, OsEnv, ProvideCredentialChain, Signer};
use reqsign_file_read_tokio::TokioFileRead;
use tesk_core::storage::ConfigError;

use super::options::Options;
use crate::secret;

/// Who an entry is.
#[derive(Clone)]
pub(super) enum Identity {
    Anonymous,
    /// Asked again when its credentials expire.
    Known(Arc<ProvideCredentialChain<Credential>>),
}

/// What signing needs of this machine.
pub(super) fn context(transport: HttpTransporter) -> Context {
    Context::new()
        .with_file_read(TokioFileRead)
        .with_env(OsEnv)
        .with_http_send(transport)
}

impl Identity {
    /// As the options say; `transport` is for requests for credentials.
    pub(super) fn new(
        options: &Options,
        region: &str,
        transport: HttpTransporter,
    ) -> Result<Self, ConfigError> {
        let chain = ProvideCredentialChain::new();
        let path = |path: &Path| path.display().to_string();
        let keys = keys(options)?;
        let files = options.profile.is_some()
            || options.config_file.is_some()
            || options.credentials_file.is_some();
        let token = options.web_identity_token_file.as_deref();
        let ways = [options.anonymous, keys.is_some(), files, token.is_some()];
        if ways.into_iter().filter(|way| *way).count() > 1 {
            return Err(ConfigError(
                "`anonymous`, an access key, the AWS files and a web identity exclude each other"
                    .into(),
            ));
        }
        if options.anonymous {
            return Ok(Self::Anonymous);
        }
        let session = options.role_session_name.as_deref().unwrap_or("tesk");
        let chain = if let Some(keys) = keys {
            chain.push(keys)
        } else if let Some(token) = token {
            let Some(role) = &options.role_arn else {
                return Err(ConfigError(
                    "`web_identity_token_file` needs `role_arn`".into(),
                ));
            };
            let provider = AssumeRoleWithWebIdentityCredentialProvider::new()
                .with_role_arn(role)
                .with_web_identity_token_file(token)
                .with_role_session_name(session.to_owned())
                .with_region(region.to_owned())
                .with_regional_sts_endpoint();
            return Ok(Self::Known(Arc::new(chain.push(provider))));
        } else if files {
            let mut provider = ProfileCredentialProvider::new();
            if let Some(profile) = &options.profile {
                provider = provider.with_profile(profile);
            }
            if let Some(file) = &options.config_file {
                provider = provider.with_config_file(path(file));
            }
            if let Some(file) = &options.credentials_file {
                provider = provider.with_credentials_file(path(file));
            }
            chain.push(provider)
        } else {
            // Running a program that a file names is more than the entry asked for.
            let mut provider = DefaultCredentialProvider::builder().no_process();
            if !options
                .instance_role
                .unwrap_or_else(|| options.endpoint.is_none())
            {
                provider = provider.no_ecs().no_imds();
            }
            chain.push(provider.build())
        };
        let Some(role) = &options.role_arn else {
            return Ok(Self::Known(Arc::new(chain)));
        };
        let signer = RequestSigner::new("sts", region);
        let signer = Signer::new(context(transport), chain, signer);
        let mut provider = AssumeRoleCredentialProvider::new(role.clone(), signer)
            .with_role_session_name(session.to_owned())
            .with_region(region.to_owned())
            .with_regional_sts_endpoint();
        if let Some(id) = &options.role_external_id {
            provider = provider.with_external_id(id.clone());
        }
        Ok(Self::Known(Arc::new(
            ProvideCredentialChain::new().push(provider),
        )))
    }
}

fn keys(options: &Options) -> Result<Option<StaticCredentialProvider>, ConfigError> {
    let id = secret::read(
        "access_key_id",
        options.access_key_id_file.as_deref(),
        options.access_key_id_env.as_deref(),
    )?;
    let key = secret::read(
        "secret_access_key",
        options.secret_access_key_file.as_deref(),
        options.secret_access_key_env.as_deref(),
    )?;
    let token = secret::read(
        "session_token",
        options.session_token_file.as_deref(),
        options.session_token_env.as_deref(),
    )?;
    match (id, key, token) {
        (None, None, None) => Ok(None),
        (Some(id), Some(key), None) => Ok(Some(StaticCredentialProvider::new(&id, &key))),
        (Some(id), Some(key), Some(token)) => Ok(Some(
            StaticCredentialProvider::new(&id, &key).with_session_token(&token),
        )),
        _ => Err(ConfigError(
            "`access_key_id` and `secret_access_key` are needed both".into(),
        )),
    }
}

/// What the AWS `config` file says about the profile: `region`, `endpoint_url` and so on. A file
/// that the options name must be there.
pub(super) fn profile(options: &Options) -> Result<BTreeMap<String, String>, ConfigError> {
    let variable = |name| std::env::var(name).ok().filter(|v| !v.is_empty());
    let path = match &options.config_file {
        Some(path) => path.clone(),
        None => match (variable("AWS_CONFIG_FILE"), std::env::home_dir()) {
            (Some(path), _) => PathBuf::from(path),
            (None, Some(home)) => home.join(".aws/config"),
            (None, None) => return Ok(BTreeMap::new()),
        },
    };
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if options.config_file.is_some() => {
            let path = path.display();
            return Err(ConfigError(format!(
                "config_file: cannot read `{path}`: {error}"
            )));
        }
        Err(_) => return Ok(BTreeMap::new()),
    };
    let name = options.profile.clone().or_else(|| variable("AWS_PROFILE"));
    Ok(section(&text, name.as_deref().unwrap_or("default")))
}

/// The keys of a profile in the text of an AWS `config` file; nested keys (`s3 =` and indented
/// lines) as those around them.
fn section(text: &str, profile: &str) -> BTreeMap<String, String> {
    let mut keys = BTreeMap::new();
    let mut inside = false;
    for line in text.lines() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            let name = name.trim();
            let name = name.strip_prefix("profile").map_or(name, str::trim_start);
            inside = name == profile;
        } else if inside
            && !line.starts_with(['#', ';'])
            && let Some((key, value)) = line.split_once('=')
        {
            keys.insert(key.trim().to_owned(), value.trim().to_owned());
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_util::stream;
    use http::header::AUTHORIZATION;
    use http::{Request, Response};
    use opendal::{Buffer, HttpBody, HttpTransport};
    use reqsign_core::ProvideCredential as _;

    use super::*;

    /// The token service of AWS. It notes what it is asked: the URL, who signed it, and the body.
    #[derive(Clone, Default)]
    struct TokenService(Arc<Mutex<Vec<[String; 3]>>>);

    impl HttpTransport for TokenService {
        async fn fetch(&self, request: Request<Buffer>) -> opendal::Result<Response<HttpBody>> {
            let signed = request.headers().get(AUTHORIZATION);
            let signed = signed.and_then(|v| v.to_str().ok()).unwrap_or_default();
            let body = String::from_utf8(request.body().to_vec()).unwrap();
            let asked = [request.uri().to_string(), signed.to_owned(), body];
            let action = if asked.concat().contains("Action=AssumeRoleWithWebIdentity") {
                "AssumeRoleWithWebIdentity"
            } else {
                "AssumeRole"
            };
            self.0.lock().unwrap().push(asked);
            let reply = format!(
                "<{action}Response><{action}Result><Credentials><AccessKeyId>ASIAOFTHEROLE0000</AccessKeyId>\
                 <SecretAccessKey>key</SecretAccessKey><SessionToken>session</SessionToken>\
                 <Expiration>2999-01-01T00:00:00Z</Expiration></Credentials></{action}Result>\
                 </{action}Response>"
            );
            let size = reply.len() as u64;
            let body = stream::iter([Ok(Buffer::from(reply))]);
            Ok(Response::new(HttpBody::new(body, Some(size))))
        }
    }

    impl TokenService {
        async fn credential(&self, options: &str) -> Credential {
            let options: Options = toml::from_str(options).unwrap();
            let transport = HttpTransporter::new(self.clone());
            let Identity::Known(chain) =
                Identity::new(&options, "eu-west-1", transport.clone()).unwrap()
            else {
                panic!("anonymous");
            };
            let credential = chain.provide_credential(&context(transport)).await;
            credential.unwrap().unwrap()
        }

        fn asked(&self) -> [String; 3] {
            self.0.lock().unwrap().pop().unwrap()
        }
    }

    #[tokio::test]
    async fn the_token_of_a_pod_is_exchanged_for_its_role() {
        let token = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(token.path(), "token-of-the-pod").unwrap();
        let service = TokenService::default();
        let options = format!(
            "web_identity_token_file = '{}'\nrole_arn = 'arn:aws:iam::123456789012:role/reader'",
            token.path().display()
        );
        let credential = service.credential(&options).await;
        assert_eq!(credential.access_key_id, "ASIAOFTHEROLE0000");
        assert_eq!(credential.session_token.as_deref(), Some("session"));
        let [url, signed, body] = service.asked();
        assert_eq!(url, "https://sts.eu-west-1.amazonaws.com/");
        assert!(
            signed.is_empty() && body.contains("WebIdentityToken=token-of-the-pod"),
            "{body}"
        );
        assert!(body.contains("RoleSessionName=tesk"), "{body}");
    }

    #[tokio::test]
    async fn whoever_has_a_key_assumes_the_role_with_it() {
        let (id, key) = (
            tempfile::NamedTempFile::new().unwrap(),
            tempfile::NamedTempFile::new().unwrap(),
        );
        std::fs::write(id.path(), "LAB").unwrap();
        std::fs::write(key.path(), "secret-of-the-lab").unwrap();
        let service = TokenService::default();
        let options = format!(
            "access_key_id_file = '{}'\nsecret_access_key_file = '{}'\nrole_external_id = 'ours'\n\
             role_arn = 'arn:aws:iam::123456789012:role/reader'\nrole_session_name = 'night'",
            id.path().display(),
            key.path().display()
        );
        let credential = service.credential(&options).await;
        assert_eq!(credential.access_key_id, "ASIAOFTHEROLE0000");
        let asked = service.asked();
        assert!(
            asked[0].starts_with("https://sts.eu-west-1.amazonaws.com/"),
            "{asked:?}"
        );
        assert!(asked[1].contains("Credential=LAB/"), "{asked:?}");
        let asked = asked.concat();
        for told in ["ExternalId=ours", "RoleSessionName=night", "role%2Freader"] {
            assert!(asked.contains(told), "{told}: {asked}");
        }
        assert!(!asked.contains("secret-of-the-lab"), "{asked}");
    }

    #[test]
    fn the_profile_of_an_aws_file_says_where_the_server_is() {
        let text = "[default]\nregion = eu-west-1\n\n[profile lab]\n# ours\n\
            region=us-west-2\ns3 =\n  endpoint_url = http://minio.local:9000\n[other]\nregion=x\n";
        assert_eq!(section(text, "default")["region"], "eu-west-1");
        let lab = section(text, "lab");
        assert_eq!(lab["region"], "us-west-2");
        assert_eq!(lab["endpoint_url"], "http://minio.local:9000");
        assert!(section(text, "none").is_empty());
    }
}
