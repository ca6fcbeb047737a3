//! Inputs by DRS: `drs://host/id` names an object of a [GA4GH Data Repository Service][drs], and
//! this plugin asks the service where its bytes are and reads them there.
//!
//! ```toml
//! [[storage]]
//! type = "drs"
//! prefix = "drs://drs.example.org/"
//! bearer_file = "/run/secrets/drs-token"   # optional; sent to the service only
//! ```
//!
//! The other keys are those of `type = "http"`, through which both are reached. It checks every
//! address and redirect: tasks name the service, and the service names the server of the bytes, so
//! private networks are not reached unless `allow_private` is set.
//!
//! Read-only, as DRS has no way to store. Bundles are refused; name their objects.
//!
//! [drs]: https://ga4gh.github.io/data-repository-service-schemas/

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use tesk_backends::http::HttpFactory;
use tesk_core::storage::{
    ByteRange, Capabilities, Checksum, ConfigEntry, ConfigError, Entry, EntryKind, Error,
    ErrorKind, Factory, FileInfo, Opened, Result, Storage, StorageUrl, Version,
};

/// Where a service has its objects.
const OBJECTS: &str = "/ga4gh/drs/v1/objects";
/// The longest reply of a service, in bytes.
const LONGEST: usize = 4 << 20;
/// The keys that hold for the servers of the bytes too. No credentials are among them.
const SHARED: &str = "allow_hosts allow_networks allow_private ca_file connect_timeout_secs \
                      deny_hosts deny_networks proxy";

/// Builds DRS storages: `builtin().with("drs", DrsFactory)`.
#[derive(Debug)]
pub struct DrsFactory;

impl Factory for DrsFactory {
    fn schemes(&self) -> &[&str] {
        &["drs"]
    }

    fn create(&self, entry: &ConfigEntry) -> Result<Arc<dyn Storage>, ConfigError> {
        let mut entry = entry.clone();
        // For tests on loopback.
        let plain = entry.options.remove("plain_http") == Some(true.into());
        let near = entry.options.entry("allow_private");
        near.or_insert(false.into());
        let service = HttpFactory.create(&entry)?;
        let shared = |key: &str| SHARED.split(' ').any(|shared| shared == key);
        entry.options.retain(|key, _| shared(key));
        Ok(Arc::new(Drs {
            scheme: if plain { "http" } else { "https" },
            service,
            bytes: HttpFactory.create(&entry)?,
            entry,
        }))
    }
}

/// The objects of one service.
#[derive(Debug)]
struct Drs {
    scheme: &'static str,
    service: Arc<dyn Storage>,
    bytes: Arc<dyn Storage>,
    /// What `bytes` was made of.
    entry: ConfigEntry,
}

/// What the service says of an object: the part that matters here.
#[derive(Debug, Deserialize)]
struct Object {
    size: u64,
    #[serde(default)]
    checksums: Vec<ObjectChecksum>,
    #[serde(default)]
    access_methods: Vec<AccessMethod>,
    contents: Option<Vec<IgnoredAny>>,
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
    /// What the service says of an object, or at a path below it.
    async fn ask<T: DeserializeOwned>(&self, url: &StorageUrl, tail: &str) -> Result<T> {
        let address = format!("{}{OBJECTS}{}{tail}", url.host(), url.path());
        let address = self.address(url, &format!("{}://{address}", self.scheme))?;
        // The token must not go to other paths of the host. A task says a part of this one, and
        // the service, who may let others make its objects, another.
        let path = address.decoded_path();
        let mut parts = path.split(|byte| matches!(byte, b'/' | b'\\'));
        if url.path().is_empty() || parts.any(|part| matches!(part, b"." | b"..")) {
            return fail(ErrorKind::Invalid, url, "is not the name of an object");
        }
        let mut reply = self.service.read(&address, ByteRange::FULL, None).await?;
        let mut text = Vec::new();
        while let Some(chunk) = reply.bytes.try_next().await? {
            text.extend_from_slice(&chunk);
            if text.len() > LONGEST {
                return fail(ErrorKind::Other, url, "the reply is too long");
            }
        }
        let told = serde_json::from_slice(&text);
        told.or_else(|_| fail(ErrorKind::Other, url, "the reply is no DRS object"))
    }

    async fn object(&self, url: &StorageUrl) -> Result<Object> {
        let object: Object = self.ask(url, "").await?;
        if object.contents.is_some() {
            return fail(ErrorKind::Invalid, url, "is a bundle; name its objects");
        }
        Ok(object)
    }

    /// Where the bytes are. Asked anew for each read: such addresses are signed and expire.
    async fn access(&self, url: &StorageUrl, object: Object) -> Result<AccessUrl> {
        let methods = object.access_methods.into_iter();
        for method in methods.filter(|method| method.r#type == self.scheme) {
            if let Some(access) = method.access_url {
                return Ok(access);
            }
            if let Some(id) = method.access_id {
                // As `file:` URLs escape a name: one segment of the path, whatever is in it.
                let id = StorageUrl::from_path(id.as_ref());
                let id = id.path().replace('/', "%2F");
                return self.ask(url, &format!("/access/{id}")).await;
            }
        }
        fail(ErrorKind::Unsupported, url, "offers no access by https")
    }

    /// An address that somebody else made up.
    fn address(&self, url: &StorageUrl, text: &str) -> Result<StorageUrl> {
        match text.parse::<StorageUrl>() {
            Ok(address) if address.scheme() == self.scheme => Ok(address),
            _ => fail(ErrorKind::Denied, url, "leads to where it is not read"),
        }
    }

    /// The storage of the bytes, where every request needs these headers.
    fn with_headers(&self, url: &StorageUrl, headers: &[String]) -> Result<Arc<dyn Storage>> {
        if headers.is_empty() {
            return Ok(self.bytes.clone());
        }
        let headers = headers.iter().filter_map(|header| header.split_once(':'));
        let headers = headers.map(|(name, value)| (name.trim().into(), value.trim().into()));
        let (mut entry, headers) = (self.entry.clone(), headers.collect::<toml::Table>());
        entry.options.insert("headers".into(), headers.into());
        let made = HttpFactory.create(&entry);
        made.or_else(|_| fail(ErrorKind::Other, url, "the service asks for odd headers"))
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
        let object = match self.object(url).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            object => object?,
        };
        let kind = EntryKind::File(FileInfo {
            size: Some(object.size),
            version: version(&object),
            checksum: object.checksums.iter().find_map(sha256),
            ..FileInfo::default()
        });
        Ok(Some(Entry {
            path: String::new(),
            kind,
        }))
    }

    async fn read(
        &self,
        url: &StorageUrl,
        range: ByteRange,
        wanted: Option<&Version>,
    ) -> Result<Opened> {
        let object = self.object(url).await?;
        if wanted.is_some() && wanted != version(&object).as_ref() {
            return fail(ErrorKind::Corrupt, url, "it has changed meanwhile");
        }
        let end = range.end.unwrap_or(object.size);
        if end > object.size || range.start > end {
            return fail(ErrorKind::Invalid, url, "it ends before this range");
        }
        if range.start == end {
            return Ok(stream::empty().boxed().into());
        }
        let access = self.access(url, object).await?;
        let address = self.address(url, &access.url)?;
        let bytes = self.with_headers(url, &access.headers)?;
        bytes.read(&address, (range.start..end).into(), None).await
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

fn fail<T>(kind: ErrorKind, url: &StorageUrl, message: &str) -> Result<T> {
    Err(Error::new(kind, url, message))
}
