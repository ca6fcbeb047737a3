//! The options of an entry, checked and completed.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::HeaderMap;
use md5::{Digest as _, Md5};
use opendal::HttpTransporter;
use opendal_http_transport_reqwest::ReqwestTransport;
use reqwest::Url;
use tesk_core::storage::{ConfigError, wait_for_turn};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::bucket::header;
use super::credentials::{self, Identity};
use super::options::{Checksum, Encryption, Options};
use super::transport;
use crate::network::{Networks, Refused, limits};
use crate::secret;

/// Memory for small objects on their way, of which core does not know, in KiB.
const ROOM: u32 = 16 << 10;

/// What all buckets of an entry share.
pub(super) struct Settings {
    /// For the buckets.
    pub(super) client: reqwest::Client,
    /// For the servers that credentials come from.
    pub(super) credentials: reqwest::Client,
    networks: Arc<Networks>,
    pub(super) identity: Identity,
    /// Scheme, host and perhaps a path, without a slash at its end.
    pub(super) endpoint: String,
    aws: bool,
    pub(super) region: String,
    pub(super) path_style: bool,
    pub(super) list_v1: bool,
    pub(super) request_payer: bool,
    pub(super) checksum: Option<Checksum>,
    /// The 32 bytes of SSE-C.
    pub(super) customer_key: Option<Vec<u8>>,
    encryption: Option<Encryption>,
    kms_key_id: Option<String>,
    storage_class: Option<String>,
    room: Semaphore,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

impl Settings {
    pub(super) fn new(options: &Options) -> Result<Self, ConfigError> {
        let profile = credentials::profile(options)?;
        let region = region(options, &profile)?;
        let endpoint = endpoint(options, &profile)?;
        let aws = endpoint.is_none();
        // An endpoint that the environment or a file gives is one as well.
        let options = &Options {
            endpoint: endpoint.clone(),
            ..options.clone()
        };
        let networks = Arc::new(Networks::new(limits!(options))?);
        let client = transport::client(options, Some(&networks))?;
        let credentials = transport::client(options, None)?;
        let transport = HttpTransporter::new(ReqwestTransport::new(credentials.clone()));
        let identity = Identity::new(options, &region, transport)?;
        if options.kms_key_id.is_some() && options.encryption != Some(Encryption::Kms) {
            let message = "`kms_key_id` needs `encryption = \"aws:kms\"`";
            return Err(ConfigError(message.into()));
        }
        let customer_key = customer_key(options)?;
        if customer_key.is_some() && options.encryption.is_some() {
            let message = "`encryption` and a customer key exclude each other";
            return Err(ConfigError(message.into()));
        }
        for (key, value) in [
            ("kms_key_id", &options.kms_key_id),
            ("storage_class", &options.storage_class),
        ] {
            let unusable = |value: &String| header("x", value).is_none();
            if value.as_ref().is_some_and(unusable) {
                return Err(ConfigError(format!("{key}: is no text for a header")));
            }
        }
        let path_style = options.path_style.unwrap_or(!aws);
        let endpoint = endpoint.unwrap_or_else(|| aws_endpoint(&region));
        let is_name = |url: &Url| url.domain().is_some();
        if !path_style && !Url::parse(&endpoint).as_ref().is_ok_and(is_name) {
            let message = "`path_style = false` needs an endpoint with a name, not an address";
            return Err(ConfigError(message.into()));
        }
        Ok(Self {
            client,
            credentials,
            networks,
            identity,
            endpoint,
            aws,
            region,
            path_style,
            list_v1: options.list_v1,
            request_payer: options.request_payer,
            checksum: options.checksum,
            customer_key,
            encryption: options.encryption,
            kms_key_id: options.kms_key_id.clone(),
            storage_class: options.storage_class.clone(),
            room: Semaphore::new(ROOM as usize),
        })
    }

    /// Waits until there is room in memory for an object of `size` bytes.
    pub(super) async fn room(&self, size: u64) -> Option<SemaphorePermit<'_>> {
        let kib = u32::try_from(size.div_ceil(1 << 10)).unwrap_or(ROOM);
        let room = self.room.acquire_many(kib.clamp(1, ROOM));
        wait_for_turn(room).await.ok()
    }

    /// Whether what the server says of a part is compared with what was sent. Not where TLS has
    /// seen to it, which costs the less; not where the server compares a checksum itself; and not
    /// where entity tags are none.
    pub(super) fn compares_parts(&self) -> bool {
        self.endpoint.starts_with("http://")
            && self.checksum.is_none()
            && self.customer_key.is_none()
            && self.encryption != Some(Encryption::Kms)
    }

    /// Whether the server is that of AWS.
    pub(super) fn is_aws(&self) -> bool {
        self.aws
    }

    /// The URL of a bucket, without a slash at its end.
    pub(super) fn base(&self, bucket: &str, in_path: bool) -> String {
        if in_path {
            format!("{}/{bucket}", self.endpoint)
        } else {
            self.endpoint.replacen("://", &format!("://{bucket}."), 1)
        }
    }

    /// Whether the host of a bucket at `base` is reached. Its addresses are checked when it is
    /// resolved; one that is written in the endpoint is the operator's choice.
    pub(super) fn check_host(&self, base: &str) -> Result<(), Refused> {
        let url = Url::parse(base).ok();
        match url.as_ref().and_then(Url::domain) {
            Some(name) => self.networks.check_host(name),
            None => Ok(()),
        }
    }

    /// Headers of every request that OpenDAL does not make.
    pub(super) fn request_headers(&self) -> HeaderMap {
        let payer = self.request_payer.then_some("requester");
        payer
            .and_then(|value| header("x-amz-request-payer", value))
            .into_iter()
            .collect()
    }

    /// Headers of requests that carry content: the customer's own key.
    pub(super) fn content_headers(&self) -> HeaderMap {
        let Some(key) = &self.customer_key else {
            return HeaderMap::new();
        };
        let sum = STANDARD.encode(Md5::digest(key));
        [
            header("x-amz-server-side-encryption-customer-algorithm", "AES256"),
            header(
                "x-amz-server-side-encryption-customer-key",
                &STANDARD.encode(key),
            ),
            header("x-amz-server-side-encryption-customer-key-md5", &sum),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// Headers of requests that begin an object.
    pub(super) fn object_headers(&self) -> HeaderMap {
        let encryption = self.encryption.map(Encryption::as_str);
        let settings = [
            ("x-amz-server-side-encryption", encryption),
            (
                "x-amz-server-side-encryption-aws-kms-key-id",
                self.kms_key_id.as_deref(),
            ),
            ("x-amz-storage-class", self.storage_class.as_deref()),
        ];
        let mut headers = self.content_headers();
        headers.extend(
            settings
                .into_iter()
                .filter_map(|(name, value)| header(name, value?)),
        );
        headers
    }
}

fn variable(names: &[&str]) -> Option<String> {
    let value = |name| std::env::var(name).ok().filter(|v: &String| !v.is_empty());
    names.iter().find_map(value)
}

fn region(options: &Options, profile: &BTreeMap<String, String>) -> Result<String, ConfigError> {
    let region = options
        .region
        .clone()
        .or_else(|| variable(&["AWS_REGION", "AWS_DEFAULT_REGION"]))
        .or_else(|| profile.get("region").cloned())
        .unwrap_or_else(|| "us-east-1".to_owned());
    // It becomes a part of a host's name and of signatures.
    let ordinary = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if region.is_empty() || !region.chars().all(ordinary) {
        return Err(ConfigError(format!("region: `{region}` is none")));
    }
    Ok(region)
}

fn aws_endpoint(region: &str) -> String {
    let china = if region.starts_with("cn-") { ".cn" } else { "" };
    format!("https://s3.{region}.amazonaws.com{china}")
}

fn endpoint(
    options: &Options,
    profile: &BTreeMap<String, String>,
) -> Result<Option<String>, ConfigError> {
    let Some(endpoint) = options
        .endpoint
        .clone()
        .or_else(|| variable(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]))
        .or_else(|| profile.get("endpoint_url").cloned())
    else {
        return Ok(None);
    };
    let refused = || {
        let message = "endpoint: must be a url such as https://minio.example.org:9000, without \
                       credentials and query";
        ConfigError(message.into())
    };
    let url = Url::parse(&endpoint).map_err(|_| refused())?;
    let plain = url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none()
        && !url.path().contains("//");
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() || !plain {
        return Err(refused());
    }
    Ok(Some(url.as_str().trim_end_matches('/').to_owned()))
}

fn customer_key(options: &Options) -> Result<Option<Vec<u8>>, ConfigError> {
    let key = secret::read(
        "customer_key",
        options.customer_key_file.as_deref(),
        options.customer_key_env.as_deref(),
    )?;
    let Some(key) = key else { return Ok(None) };
    match STANDARD.decode(key.trim()) {
        Ok(key) if key.len() == 32 => Ok(Some(key)),
        _ => Err(ConfigError(
            "customer_key: must be the base64 of 32 bytes".into(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(options: &str) -> Result<Settings, ConfigError> {
        Settings::new(&toml::from_str(options).unwrap())
    }

    #[test]
    fn a_bucket_is_in_the_path_or_in_the_host() {
        let custom = settings("endpoint = 'http://MinIO.lab:9000/s3/'").unwrap();
        assert!(custom.path_style);
        assert_eq!(custom.base("b", true), "http://minio.lab:9000/s3/b");
        assert_eq!(custom.base("b", false), "http://b.minio.lab:9000/s3");
        assert!(settings("endpoint = 'http://127.0.0.1:1'\npath_style = false").is_err());
        assert_eq!(
            aws_endpoint("eu-west-1"),
            "https://s3.eu-west-1.amazonaws.com"
        );
        assert_eq!(
            aws_endpoint("cn-north-1"),
            "https://s3.cn-north-1.amazonaws.com.cn"
        );
    }

    #[test]
    fn parts_are_compared_where_nothing_else_sees_to_it() {
        for (options, compared) in [
            ("endpoint = 'http://minio:9000'", true),
            ("endpoint = 'https://minio:9000'", false),
            ("endpoint = 'http://minio:9000'\nchecksum = 'md5'", false),
            (
                "endpoint = 'http://minio:9000'\nencryption = 'aws:kms'",
                false,
            ),
        ] {
            let found = settings(options).unwrap().compares_parts();
            assert_eq!(found, compared, "{options}");
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused_in_words() {
        for (options, word) in [
            ("endpoint = 'minio:9000'", "endpoint"),
            ("endpoint = 'https://me:pw@host'", "endpoint"),
            ("region = 'evil.example.org/'", "region"),
            ("kms_key_id = 'x'", "kms_key_id"),
            ("access_key_id_env = 'PATH'", "secret_access_key"),
            ("anonymous = true\nprofile = 'x'", "exclude"),
            ("web_identity_token_file = '/x'", "role_arn"),
            ("customer_key_env = 'PATH'", "customer_key"),
            ("ca_file = '/nowhere'", "ca_file"),
            ("config_file = '/nowhere'", "config_file"),
        ] {
            let error = settings(options).unwrap_err().to_string();
            assert!(error.contains(word), "{options}: {error}");
            assert!(!error.contains("pw"), "{error}");
        }
    }
}
