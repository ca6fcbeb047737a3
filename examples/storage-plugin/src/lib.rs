//! Inputs by DRS: `drs://host/id` names an object of a [GA4GH Data Repository Service][drs], and
//! this plugin asks the service where its bytes are and reads them there.
//!
//! ```toml
//! [[storage]]
//! type = "drs"
//! prefix = "drs://drs.example.org/"
//! token_file = "/run/secrets/drs-token"   # optional; sent to the service only
//! ```
//!
//! Read-only: DRS has no way to store. Bundles are refused; name their objects.
//!
//! [drs]: https://ga4gh.github.io/data-repository-service-schemas/

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{StreamExt as _, stream};
use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderValue, RANGE};
use reqwest::{RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use tesk_core::storage::{
    ByteRange, ByteStream, Capabilities, Checksum, ConfigEntry, ConfigError, Entry, EntryKind,
    Error, ErrorKind, Factory, FileInfo, Result, Storage, StorageUrl, Version,
};

/// Builds DRS storages: `builtin().with("drs", DrsFactory)`.
#[derive(Debug)]
pub struct DrsFactory;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// A file with a Bearer token for the service.
    token_file: Option<PathBuf>,
    /// Ask the service over plain HTTP: for tests on loopback.
    #[serde(default)]
    plain_http: bool,
}

impl Factory for DrsFactory {
    fn schemes(&self) -> &[&str] {
        &["drs"]
    }

    fn create(&self, entry: &ConfigEntry) -> Result<Arc<dyn Storage>, ConfigError> {
        let options: Options = entry.options()?;
        let token = options.token_file.as_deref().map(bearer).transpose()?;
        let client = reqwest::Client::builder().retry(reqwest::retry::never());
        let client = client.build().map_err(|e| ConfigError(e.to_string()))?;
        let scheme = if options.plain_http { "http" } else { "https" };
        Ok(Arc::new(Drs {
            client,
            token,
            scheme,
        }))
    }
}

fn bearer(file: &Path) -> Result<HeaderValue, ConfigError> {
    let problem = |e: &str| ConfigError(format!("token_file {}: {e}", file.display()));
    let token = std::fs::read_to_string(file).map_err(|e| problem(&e.to_string()))?;
    let mut header = HeaderValue::try_from(format!("Bearer {}", token.trim()))
        .map_err(|_| problem("holds no token"))?;
    header.set_sensitive(true);
    Ok(header)
}

/// The objects of one service.
#[derive(Debug)]
struct Drs {
    client: reqwest::Client,
    token: Option<HeaderValue>,
    scheme: &'static str,
}

/// What the service says of an object: the part that matters here.
#[derive(Debug, Deserialize)]
struct Object {
    size: u64,
    #[serde(default)]
    checksums: Vec<ObjectChecksum>,
    #[serde(default)]
    access_methods: Vec<AccessMethod>,
    contents: Option<Vec<serde::de::IgnoredAny>>,
}

#[derive(Debug, Deserialize)]
struct ObjectChecksum {
    checksum: String,
    r#type: String,
}

#[derive(Debug, Deserialize)]
struct AccessMethod {
    r#type: String,
    access_url: Option<AccessUrl>,
    access_id: Option<String>,
}

#[derive(Debug, Deserialize)]
struct AccessUrl {
    url: String,
    /// `Name: value`, as curl takes them.
    #[serde(default)]
    headers: Vec<String>,
}

impl Drs {
    async fn ask<T: for<'a> Deserialize<'a>>(&self, url: &StorageUrl, tail: &str) -> Result<T> {
        let id = url.path().trim_start_matches('/');
        let (scheme, host) = (self.scheme, url.host());
        let address = format!("{scheme}://{host}/ga4gh/drs/v1/objects/{id}{tail}");
        let mut request = self.client.get(address);
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token.clone());
        }
        send(url, request).await?.json().await.map_err(|e| {
            let message = "the service's reply is no DRS object";
            Error::new(ErrorKind::Other, url, message).with_source(e.without_url())
        })
    }

    async fn object(&self, url: &StorageUrl) -> Result<Object> {
        let object: Object = self.ask(url, "").await?;
        if object.contents.is_some() {
            return Err(Error::new(
                ErrorKind::Invalid,
                url,
                "is a bundle; name its objects",
            ));
        }
        Ok(object)
    }

    /// Where the bytes are. Asked anew for each read: such addresses are signed and expire.
    async fn access(&self, url: &StorageUrl, object: Object) -> Result<AccessUrl> {
        for method in object.access_methods {
            if method.r#type != "https" && method.r#type != self.scheme {
                continue;
            }
            if let Some(access) = method.access_url {
                return Ok(access);
            }
            if let Some(id) = method.access_id {
                return self.ask(url, &format!("/access/{id}")).await;
            }
        }
        let message = "the service offers no access to this object by https";
        Err(Error::new(ErrorKind::Unsupported, url, message))
    }
}

#[async_trait]
impl Storage for Drs {
    fn capabilities(&self) -> Capabilities {
        let mut claims = Capabilities::read_only();
        claims.ranges = true;
        claims
    }

    async fn stat(&self, url: &StorageUrl) -> Result<Option<Entry>> {
        match self.object(url).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            object => Ok(Some(entry(&object?))),
        }
    }

    async fn read(
        &self,
        url: &StorageUrl,
        range: ByteRange,
        wanted: Option<&Version>,
    ) -> Result<ByteStream> {
        let object = self.object(url).await?;
        if wanted.is_some() && wanted != version(&object).as_ref() {
            return Err(Error::new(
                ErrorKind::Corrupt,
                url,
                "it has changed meanwhile",
            ));
        }
        let end = range.end.unwrap_or(object.size);
        if end > object.size || range.start > end {
            return Err(Error::new(
                ErrorKind::Invalid,
                url,
                "it ends before this range",
            ));
        }
        if range.start == end {
            return Ok(stream::empty().boxed());
        }
        let access = self.access(url, object).await?;
        // Else the size would be that of the compressed bytes.
        let request = self.client.get(&access.url);
        let mut request = request.header(ACCEPT_ENCODING, "identity");
        for header in &access.headers {
            if let Some((name, value)) = header.split_once(':') {
                request = request.header(name.trim(), value.trim());
            }
        }
        let request = request.header(RANGE, format!("bytes={}-{}", range.start, end - 1));
        let reply = send(url, request).await?;
        if reply.status() != StatusCode::PARTIAL_CONTENT && range.start > 0 {
            let message = "the server of the bytes does not serve ranges";
            return Err(Error::new(ErrorKind::Unsupported, url, message));
        }
        Ok(exactly(url.clone(), end - range.start, reply))
    }
}

/// The body, cut to `length` bytes; an earlier end is an error.
fn exactly(url: StorageUrl, length: u64, reply: Response) -> ByteStream {
    let body = reply.bytes_stream().boxed();
    stream::try_unfold((body, length), move |(mut body, left)| {
        let url = url.clone();
        async move {
            if left == 0 {
                return Ok(None);
            }
            let early = || Error::new(ErrorKind::Corrupt, &url, "the body ended early");
            let chunk = body.next().await.ok_or_else(early)?;
            let mut chunk = chunk.map_err(|e| unreachable(&url, e))?;
            chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            let left = left - chunk.len() as u64;
            Ok(Some((chunk, (body, left))))
        }
    })
    .boxed()
}

fn entry(object: &Object) -> Entry {
    let info = FileInfo {
        size: Some(object.size),
        version: version(object),
        checksum: object.checksums.iter().find_map(sha256),
        ..FileInfo::default()
    };
    Entry {
        path: String::new(),
        kind: EntryKind::File(info),
    }
}

fn version(object: &Object) -> Option<Version> {
    let first = object.checksums.first()?;
    Some(Version(format!("{}:{}", first.r#type, first.checksum)))
}

fn sha256(checksum: &ObjectChecksum) -> Option<Checksum> {
    let hex = (checksum.r#type == "sha-256").then_some(checksum.checksum.as_str())?;
    let mut bytes = [0; 32];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    (hex.len() == 64).then_some(Checksum::Sha256(bytes))
}

async fn send(url: &StorageUrl, request: RequestBuilder) -> Result<Response> {
    let reply = request.send().await.map_err(|e| unreachable(url, e))?;
    let kind = match reply.status() {
        status if status.is_success() => return Ok(reply),
        StatusCode::NOT_FOUND | StatusCode::GONE => ErrorKind::NotFound,
        StatusCode::UNAUTHORIZED => ErrorKind::Unauthenticated,
        StatusCode::FORBIDDEN => ErrorKind::Denied,
        status if status == 429 || status.is_server_error() => ErrorKind::Unavailable,
        _ => ErrorKind::Other,
    };
    let message = format!("the service answered {}", reply.status());
    Err(Error::new(kind, url, message))
}

/// `without_url`: the address of the bytes is signed, and must not be seen in a log.
fn unreachable(url: &StorageUrl, error: reqwest::Error) -> Error {
    let message = "the service cannot be reached";
    Error::new(ErrorKind::Unavailable, url, message).with_source(error.without_url())
}
