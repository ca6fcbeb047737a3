//! Any service that OpenDAL knows, by its name and options there: what has no backend of its own.
//!
//! ```toml
//! [[storage]]
//! type = "opendal"
//! prefix = "azblob://lab/"
//! service = "azblob"
//! options.container = "lab"
//! options.endpoint = "https://lab.blob.core.windows.net"
//! options.account_name = "lab"
//! options.account_key = { file = "/run/secrets/azure-key" }
//! ```
//!
//! `options` are those of the service, as OpenDAL's documentation has them; each is a text,
//! `{ file = "…" }` or `{ env = "…" }`. Which services there are is a matter of how the program
//! was built: a cargo feature `opendal-…` for each.
//!
//! # Paths
//!
//! What follows the prefix is the path below the service's `root`, percent-decoded; for `gs://` it
//! is taken as it is. OpenDAL would change some paths, and read or write something else. Those are
//! refused: with an empty component (`//`), with `.` or `..`, that begin or end with white space.
//!
//! # What it does not do
//!
//! It knows of a service what OpenDAL tells, which is less than what a backend of its own knows:
//!
//! - A service that takes files only whole takes none above 64 MiB, the memory for one.
//! - Where it takes them in parts, these are sent one after the other, each held in memory:
//!   `max(8 MiB, size / 10000)`. A write that breaks off begins anew.
//! - No checksum is compared, unless the service tells an MD5.
//! - Ranges are read in parallel only where the service compares entity tags.
//! - Why a request was refused is told in a word: wrong credentials are `access is denied`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use opendal::options::{ListOptions, ReaderOptions, WriteOptions};
use opendal::{
    BytesRange, Capability, HttpTransporter, Metadata, OperationContext, Operator, Writer,
};
use opendal_http_transport_reqwest::ReqwestTransport;
use serde::Deserialize;
use tesk_core::storage::cleanup::Undo;
use tesk_core::storage::{
    ByteRange, Capabilities, Checksum, ConfigEntry, ConfigError, Entry, EntryKind, EntryStream,
    Error, ErrorKind, Factory, FileInfo, Opened, Result, Source, Storage, StorageUrl, Version,
    Written,
};
use tesk_core::time::Timestamp;
use tokio::sync::Mutex;

use crate::client;
use crate::network::{Networks, limits};
pub use crate::secret::Value;

/// A file is sent in parts of at least this.
const PART: u64 = 8 << 20;
/// What is held in memory of one file at most.
const MOST: u64 = 64 << 20;
/// Parts that every service takes.
const PARTS: u64 = 10_000;

/// The schemes of prefixes; each can lead to any service.
const SCHEMES: &[&str] = &[
    "azblob", "azdls", "b2", "cos", "dav", "davs", "gs", "memory", "obs", "oss", "swift", "webdav",
];

/// Services where a file is there as a whole or not at all.
const OBJECT_STORES: &[&str] = &[
    "azblob", "b2", "cos", "gcs", "memory", "obs", "oss", "s3", "swift",
];

/// The metadata services of clouds that have a name: credentials come from there. No task can choose
/// a host.
const METADATA: [&str; 2] = ["metadata.google.internal", "metadata.tencentyun.com"];

/// The keys of a `[[storage]]` entry with `type = "opendal"`.
///
/// Networks and hosts are as with `http`. A server that is written as an address is the operator's
/// own choice, and not checked.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// The service's name in OpenDAL, such as `azblob`.
    pub service: String,
    /// Its options there, each a text, `{ file = "…" }` or `{ env = "…" }`.
    #[serde(default)]
    pub options: BTreeMap<String, Value>,
    /// A file of PEM certificates that are trusted besides those of the system.
    pub ca_file: Option<PathBuf>,
    /// Seconds to wait for a connection. Default 10.
    pub connect_timeout_secs: Option<u64>,
    /// Refuse writing. Default false.
    #[serde(default)]
    pub read_only: bool,
    /// Whether loopback and private networks are reached. Default true.
    pub allow_private: Option<bool>,
    /// Networks that are not reached, such as `10.1.0.0/16`.
    #[serde(default)]
    pub deny_networks: Vec<String>,
    /// Networks that are reached whatever else forbids them.
    #[serde(default)]
    pub allow_networks: Vec<String>,
    /// Hosts that are not reached, such as `azure.example.org` or `*.example.org` for all below it.
    #[serde(default)]
    pub deny_hosts: Vec<String>,
    /// Where there are any, no other hosts are reached.
    #[serde(default)]
    pub allow_hosts: Vec<String>,
}

/// Builds [`OpenDal`]s: `type = "opendal"`.
#[derive(Clone, Copy, Debug)]
pub struct OpenDalFactory;

impl Factory for OpenDalFactory {
    fn schemes(&self) -> &[&str] {
        SCHEMES
    }

    fn create(&self, entry: &ConfigEntry) -> Result<Arc<dyn Storage>, ConfigError> {
        let options: Options = entry.options()?;
        let [prefix] = entry.prefixes() else {
            let message = "must have one prefix, which leads to the root of the service";
            return Err(ConfigError(message.into()));
        };
        let prefix: StorageUrl = prefix
            .parse()
            .map_err(|error| ConfigError(format!("prefix: {error}")))?;
        let mut settings = Vec::new();
        for (key, value) in &options.options {
            let value = value.read(&format!("options.{key}"))?;
            settings.push((key.clone(), value));
        }
        opendal::init_default_registry();
        let operator = Operator::via_iter(&options.service, settings).map_err(|error| {
            // Its text quotes the options.
            ConfigError(match error.kind() {
                opendal::ErrorKind::Unsupported => format!(
                    "service: this program has no `{}`; it is built with the cargo feature \
                     `opendal-{}`, if OpenDAL has such a service",
                    options.service, options.service
                ),
                _ => format!("options: the service `{}` refuses them", options.service),
            })
        })?;
        let networks = Arc::new(Networks::new(limits!(options))?);
        let setup = client::Setup {
            ca_file: options.ca_file.as_deref(),
            connect_timeout_secs: options.connect_timeout_secs,
            networks: Some(&networks),
            anywhere: &METADATA,
            ..client::Setup::default()
        };
        let client = setup.build()?;
        let transport = HttpTransporter::new(ReqwestTransport::new(client));
        let operator =
            operator.with_context(OperationContext::new().with_http_transport(transport));
        let capability = operator.info().capability();
        Ok(Arc::new(OpenDal {
            is_object_store: OBJECT_STORES.contains(&options.service.as_str()),
            operator,
            capability,
            prefix,
            read_only: options.read_only,
        }))
    }
}

/// One service, as one user of it.
#[derive(Debug)]
pub struct OpenDal {
    operator: Operator,
    capability: Capability,
    is_object_store: bool,
    prefix: StorageUrl,
    read_only: bool,
}

impl OpenDal {
    /// The path below the service's root, without slashes at its ends; empty for the root itself.
    fn path(&self, url: &StorageUrl) -> Result<String> {
        let invalid = |message: &str| Error::new(ErrorKind::Invalid, url, message);
        if url.user().is_some() || url.password().is_some() {
            return Err(invalid("urls of this storage hold no credentials"));
        }
        let (path, prefix) = if url.scheme() == "gs" {
            let raw = |url: &StorageUrl| url.path_and_rest().as_bytes().to_vec();
            (raw(url), raw(&self.prefix))
        } else if url.path().len() == url.path_and_rest().len() {
            (url.decoded_path(), self.prefix.decoded_path())
        } else {
            let message = "`?` and `#` in names must be written as %3F and %23";
            return Err(invalid(message));
        };
        let prefix = prefix.strip_suffix(b"/").unwrap_or(&prefix);
        let rest = path
            .strip_prefix(prefix)
            .ok_or_else(|| invalid("is not below the prefix"))?;
        let path = std::str::from_utf8(rest).map_err(|_| invalid("its path is not UTF-8"))?;
        let path = path.strip_prefix('/').unwrap_or(path);
        let path = path.strip_suffix('/').unwrap_or(path);
        let is_odd = |part: &str| matches!(part, "" | "." | "..");
        if path.trim() != path || path.chars().any(char::is_control) {
            let message = "a path with control characters, or white space at an end, cannot be \
                           addressed";
            return Err(invalid(message));
        }
        if !path.is_empty() && path.split('/').any(is_odd) {
            let message = "a path with an empty, `.` or `..` component cannot be addressed";
            return Err(invalid(message));
        }
        Ok(path.to_owned())
    }

    /// The path of a file.
    fn file(&self, url: &StorageUrl) -> Result<String> {
        let path = self.path(url)?;
        if path.is_empty() || url.path_and_rest().ends_with('/') {
            let message = "is the address of a directory, but a file is expected";
            return Err(Error::new(ErrorKind::Invalid, url, message));
        }
        Ok(path)
    }

    fn info(&self, found: &Metadata) -> FileInfo {
        let md5 = found
            .content_md5()
            .and_then(|md5| STANDARD.decode(md5).ok());
        FileInfo {
            size: Some(found.content_length()),
            version: self.version(found),
            checksum: md5.and_then(|md5| md5.try_into().ok()).map(Checksum::Md5),
            mode: None,
            modified: found
                .last_modified()
                .map(|time| Timestamp::from_system(time.into())),
        }
    }

    /// A version, where a read can ask for it.
    fn version(&self, found: &Metadata) -> Option<Version> {
        let etag = found.etag().filter(|_| self.capability.read_with_if_match);
        etag.map(|etag| Version(etag.to_owned()))
    }

    /// What is there: with one request for a file.
    async fn kind(&self, url: &StorageUrl, path: &str) -> Result<Option<EntryKind>> {
        let fail = |error| failure(url, &error);
        if !path.is_empty() && !url.path_and_rest().ends_with('/') {
            match self.operator.stat(path).await {
                Ok(found) if found.is_dir() => return Ok(Some(EntryKind::Directory)),
                Ok(found) => return Ok(Some(EntryKind::File(self.info(&found)))),
                Err(error) if is_nothing(&error) => {}
                Err(error) => return Err(fail(error)),
            }
        }
        if self.is_object_store {
            let there = path.is_empty() || !self.entries(url, path, Some(1)).await?.is_empty();
            return Ok(there.then_some(EntryKind::Directory));
        }
        match self.operator.stat(&directory(path)).await {
            Ok(found) => Ok(found.is_dir().then_some(EntryKind::Directory)),
            Err(error) if is_nothing(&error) => Ok(None),
            Err(error) => Err(fail(error)),
        }
    }

    /// The first entries of a directory, not itself unless it is an object.
    async fn entries(
        &self,
        url: &StorageUrl,
        path: &str,
        limit: Option<usize>,
    ) -> Result<Vec<opendal::Entry>> {
        let options = ListOptions {
            limit,
            ..ListOptions::default()
        };
        let at = directory(path);
        let lister = self.operator.lister_options(&at, options).await;
        let lister = lister.map_err(|error| failure(url, &error))?;
        let found = lister.take(limit.unwrap_or(usize::MAX)).try_collect().await;
        found.map_err(|error| failure(url, &error))
    }

    fn writable(&self, url: &StorageUrl, can: bool, operation: &str) -> Result<()> {
        if self.read_only || !can {
            return Err(Error::unsupported(url, operation));
        }
        Ok(())
    }

    /// Bytes of one part, if a file of `size` can be written.
    fn part(&self, url: &StorageUrl, size: u64) -> Result<u64> {
        let part = if self.capability.write_can_multi {
            let least = self.capability.write_multi_min_size.unwrap_or(0) as u64;
            size.div_ceil(PARTS).max(PART).max(least)
        } else {
            size
        };
        if part > MOST {
            let message = format!("files of {size} bytes cannot be written to this service");
            return Err(Error::new(ErrorKind::Invalid, url, message));
        }
        Ok(part)
    }
}

#[async_trait]
impl Storage for OpenDal {
    fn capabilities(&self) -> Capabilities {
        let can = &self.capability;
        let write = can.write && can.write_can_empty && !self.read_only;
        let mut claims = Capabilities::read_only();
        claims.list = can.list;
        claims.ranges = true;
        claims.write = write;
        claims.atomic_write = write && self.is_object_store;
        // In an object store it would be an object that others stumble over.
        claims.directories = write && can.create_dir && !self.is_object_store;
        claims.rename = write && can.rename;
        claims.remove = write && can.delete && can.list;
        claims.max_file_size = Some(if can.write_can_multi {
            MOST * PARTS
        } else {
            MOST
        });
        claims
    }

    async fn stat(&self, url: &StorageUrl) -> Result<Option<Entry>> {
        let kind = self.kind(url, &self.path(url)?).await?;
        let path = String::new();
        Ok(kind.map(|kind| Entry { path, kind }))
    }

    async fn list(&self, url: &StorageUrl) -> Result<EntryStream> {
        if !self.capabilities().list {
            return Err(Error::unsupported(url, "listing"));
        }
        let path = self.path(url)?;
        match self.kind(url, &path).await? {
            Some(EntryKind::Directory) => {}
            Some(EntryKind::File(_)) => {
                let message = "is a file, but a directory is expected";
                return Err(Error::new(ErrorKind::Invalid, url, message));
            }
            None => {
                let message = "there is no such directory";
                return Err(Error::new(ErrorKind::NotFound, url, message));
            }
        }
        let at = directory(&path);
        let options = ListOptions {
            recursive: true,
            ..ListOptions::default()
        };
        let lister = self.operator.lister_options(&at, options).await;
        let lister = lister.map_err(|error| failure(url, &error))?;
        let url = url.clone();
        // As OpenDAL names the root.
        let base = if path.is_empty() { String::new() } else { at };
        let (can_compare, md5) = (self.capability.read_with_if_match, self.is_object_store);
        let entries = lister.filter_map(move |entry| {
            let entry = match entry {
                Ok(entry) => listed(&base, &entry, can_compare && md5).map(Ok),
                Err(error) => Some(Err(failure(&url, &error))),
            };
            std::future::ready(entry)
        });
        Ok(entries.boxed())
    }

    async fn read(
        &self,
        url: &StorageUrl,
        range: ByteRange,
        version: Option<&Version>,
    ) -> Result<Opened> {
        let path = self.file(url)?;
        let changed = || {
            let message = "another version has taken its place";
            Error::new(ErrorKind::Corrupt, url, message)
        };
        // A read of a directory, of nothing, or beyond the end means something else to each
        // service: what is there is looked at first.
        let found = match self.kind(url, &path).await? {
            Some(EntryKind::File(found)) => found,
            Some(EntryKind::Directory) => {
                let message = "is a directory, but a file is expected";
                return Err(Error::new(ErrorKind::Invalid, url, message));
            }
            None => {
                let message = "there is no such file";
                return Err(Error::new(ErrorKind::NotFound, url, message));
            }
        };
        if version.is_some() && found.version.as_ref() != version {
            return Err(changed());
        }
        let size = found.size.unwrap_or(0);
        let end = range.end.unwrap_or(size);
        if range.start > size || end > size {
            let message = format!("ends before byte {}", range.start.max(end));
            return Err(Error::new(ErrorKind::Corrupt, url, message));
        }
        let checksum = found.checksum;
        if range.start >= end {
            let bytes = stream::empty().boxed();
            return Ok(Opened { bytes, checksum });
        }
        let options = ReaderOptions {
            if_match: found.version.map(|version| version.0),
            ..ReaderOptions::default()
        };
        let reader = self.operator.reader_options(&path, options).await;
        let reader = reader.map_err(|error| failure(url, &error))?;
        let wanted = BytesRange::new(range.start, Some(end - range.start));
        let stream = reader.into_stream(wanted).await;
        let stream = stream.map_err(|error| failure(url, &error))?;
        let url = url.clone();
        let chunks = stream.flat_map(move |buffer| {
            let chunks: Vec<_> = match buffer {
                Ok(buffer) => Iterator::map(buffer, Ok).collect(),
                Err(error) => vec![Err(failure(&url, &error))],
            };
            stream::iter(chunks)
        });
        Ok(Opened {
            bytes: chunks.boxed(),
            checksum,
        })
    }

    async fn write(&self, url: &StorageUrl, source: &Source) -> Result<Written> {
        self.writable(url, self.capability.write, "writing")?;
        let path = self.file(url)?;
        let part = self.part(url, source.size())?;
        let options = WriteOptions {
            chunk: (self.capability.write_can_multi && source.size() > part)
                .then_some(usize::try_from(part).unwrap_or(usize::MAX)),
            ..WriteOptions::default()
        };
        let writer = self.operator.writer_options(&path, options).await;
        let writer = Arc::new(Mutex::new(writer.map_err(|error| failure(url, &error))?));
        // Its parts are thrown away: they cost money.
        let undo = Undo::new({
            let (writer, url) = (writer.clone(), url.clone());
            async move {
                if let Err(error) = writer.lock().await.abort().await {
                    let error = failure(&url, &error);
                    tracing::warn!(%error, "parts of an upload may be left behind");
                }
            }
        });
        let filled = fill(&mut *writer.lock().await, url, source, part).await;
        undo.unless_ok(filled).await.map(|found| Written {
            size: source.size(),
            version: self.version(&found),
            checksum: None,
        })
    }

    async fn make_directory(&self, url: &StorageUrl) -> Result<()> {
        let claimed = self.capabilities().directories;
        self.writable(url, claimed, "making directories")?;
        let path = self.path(url)?;
        if let Some(EntryKind::File(_)) = self.kind(url, &path).await? {
            let message = "is a file, not a directory";
            return Err(Error::new(ErrorKind::Invalid, url, message));
        }
        let made = self.operator.create_dir(&directory(&path)).await;
        made.map_err(|error| failure(url, &error))
    }

    async fn rename(&self, from: &StorageUrl, to: &StorageUrl) -> Result<()> {
        self.writable(from, self.capability.rename, "renaming")?;
        let (source, target) = (self.file(from)?, self.file(to)?);
        let renamed = self.operator.rename(&source, &target).await;
        renamed.map_err(|error| failure(from, &error))
    }

    async fn remove(&self, url: &StorageUrl) -> Result<()> {
        self.writable(url, self.capabilities().remove, "removing")?;
        let path = self.path(url)?;
        let path = match self.kind(url, &path).await? {
            None => return Ok(()),
            Some(EntryKind::File(_)) => path,
            Some(EntryKind::Directory) => {
                let own = directory(&path);
                let inside = self.entries(url, &path, Some(2)).await?;
                if path.is_empty() || inside.iter().any(|entry| entry.path() != own) {
                    let message = "is a directory that is not empty";
                    return Err(Error::new(ErrorKind::Invalid, url, message));
                }
                own
            }
        };
        let removed = self.operator.delete(&path).await;
        removed.map_err(|error| failure(url, &error))
    }
}

/// Writes all of `source`.
async fn fill(
    writer: &mut Writer,
    url: &StorageUrl,
    source: &Source,
    part: u64,
) -> Result<Metadata> {
    let mut bytes = source.read(ByteRange::FULL).await?;
    let whole = source.size() <= part;
    let (mut kept, mut size) = (Vec::new(), 0);
    while let Some(chunk) = bytes.next().await {
        let chunk = chunk?;
        size += chunk.len() as u64;
        if size > source.size() {
            break;
        }
        // A service that takes no parts takes one write.
        if whole {
            kept.push(chunk);
        } else {
            let written = writer.write(chunk).await;
            written.map_err(|error| failure(url, &error))?;
        }
    }
    if size != source.size() {
        let message = format!(
            "{size} bytes came from the source instead of {}",
            source.size()
        );
        return Err(Error::new(ErrorKind::Corrupt, url, message));
    }
    if whole {
        let buffer: opendal::Buffer = kept.into_iter().collect();
        let written = writer.write(buffer).await;
        written.map_err(|error| failure(url, &error))?;
    }
    writer.close().await.map_err(|error| failure(url, &error))
}

/// As OpenDAL writes the path of a directory.
fn directory(path: &str) -> String {
    format!("{path}/")
}

/// An entry of a listing; `None` for the directory itself.
fn listed(base: &str, entry: &opendal::Entry, has_version: bool) -> Option<Entry> {
    let path = entry.path().strip_prefix(base).unwrap_or(entry.path());
    if path.is_empty() || path == "/" {
        return None;
    }
    let found = entry.metadata();
    let kind = if found.is_dir() {
        EntryKind::Directory
    } else {
        let version = found.etag().filter(|_| has_version);
        EntryKind::File(FileInfo {
            size: Some(found.content_length()),
            version: version.map(|etag| Version(etag.to_owned())),
            checksum: None,
            mode: None,
            modified: found
                .last_modified()
                .map(|time| Timestamp::from_system(time.into())),
        })
    };
    Some(Entry {
        path: path.trim_end_matches('/').to_owned(),
        kind,
    })
}

/// Nothing is there, or something that is no directory is on the way.
fn is_nothing(error: &opendal::Error) -> bool {
    use opendal::ErrorKind::{NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory)
}

/// An error of OpenDAL, classified. Its own text is not shown: it holds requests and replies.
fn failure(url: &StorageUrl, error: &opendal::Error) -> Error {
    use opendal::ErrorKind as Kind;
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(error) = inner.downcast_ref::<reqwest::Error>() {
            return client::disconnected(url, error);
        }
        cause = inner.source();
    }
    let (kind, message) = match error.kind() {
        Kind::NotFound => (ErrorKind::NotFound, "there is no such file"),
        Kind::PermissionDenied => (ErrorKind::Denied, "access is denied"),
        Kind::IsADirectory => (ErrorKind::Invalid, "is a directory"),
        Kind::NotADirectory => (ErrorKind::Invalid, "is not a directory"),
        Kind::ConditionNotMatch => (ErrorKind::Corrupt, "another version has taken its place"),
        Kind::RangeNotSatisfied => (ErrorKind::Corrupt, "is shorter than it was"),
        Kind::RateLimited => (ErrorKind::Unavailable, "the service asks to wait"),
        Kind::Unsupported => (ErrorKind::Unsupported, "the service cannot do this"),
        Kind::ConfigInvalid => (
            ErrorKind::Other,
            "the options of its storage entry are wrong",
        ),
        _ if error.is_temporary() => (ErrorKind::Unavailable, "the service is in trouble"),
        _ => (ErrorKind::Other, "the service's reply cannot be understood"),
    };
    Error::new(kind, url, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn created(entry: &str) -> Result<Arc<dyn Storage>, ConfigError> {
        OpenDalFactory.create(&toml::from_str(entry).unwrap())
    }

    fn path(prefix: &str, url: &str) -> Result<String> {
        let storage = OpenDal {
            operator: Operator::new(opendal::services::Memory::default()).unwrap(),
            capability: Capability::default(),
            is_object_store: true,
            prefix: prefix.parse().unwrap(),
            read_only: false,
        };
        storage.path(&url.parse().unwrap())
    }

    #[tokio::test]
    async fn parts_of_a_write_that_is_dropped_are_thrown_away() {
        let (tell, mut asked) = tokio::sync::mpsc::unbounded_channel();
        let answer = move |method: axum::http::Method| {
            let _ = tell.send(method.to_string());
            async move {
                if method == axum::http::Method::PUT {
                    std::future::pending::<()>().await;
                }
                "<InitiateMultipartUploadResult><Bucket>lab</Bucket><Key>x</Key>\
                 <UploadId>up1</UploadId></InitiateMultipartUploadResult>"
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap();
        let router = axum::Router::new().fallback(answer);
        tokio::spawn(async move { axum::serve(listener, router).await });
        let storage = created(&format!(
            "type = 'opendal'\nservice = 's3'\nprefix = 'any://lab/'\noptions.bucket = 'lab'\n\
             options.region = 'r'\noptions.endpoint = 'http://{server}'\n\
             options.access_key_id = 'key'\noptions.secret_access_key = 'key'\n"
        ));
        let (storage, url) = (storage.unwrap(), "any://lab/x".parse().unwrap());
        let source = Source::bytes(vec![0; 20 << 20]);
        let writing = tokio::spawn(async move { storage.write(&url, &source).await });
        let wanted = tokio::time::timeout(std::time::Duration::from_secs(20), async {
            while asked.recv().await.unwrap() != "PUT" {}
            writing.abort();
            while asked.recv().await.unwrap() != "DELETE" {}
        });
        wanted.await.expect("it is asked for");
    }

    #[test]
    fn a_path_is_what_follows_the_prefix() {
        for (prefix, url, expected) in [
            ("azblob://lab/", "azblob://lab/a/b", "a/b"),
            ("azblob://lab", "azblob://lab/a/", "a"),
            ("azblob://lab/in/", "azblob://lab/in", ""),
            ("azblob://lab/in", "azblob://lab/in/a%20b%2523", "a b%23"),
            ("gs://lab/", "gs://lab/a%20b#c?d", "a%20b#c?d"),
        ] {
            assert_eq!(path(prefix, url).unwrap(), expected, "{url}");
        }
    }

    #[test]
    fn a_path_that_opendal_would_change_is_refused() {
        for url in [
            "azblob://lab/a//b",
            "azblob://lab//a",
            "azblob://lab/a/../b",
            "azblob://lab/%2e%2e/b",
            "azblob://lab/./b",
            "azblob://lab/a%20",
            "azblob://lab/a%0Ab",
            "azblob://lab/a?b",
            "azblob://lab/%ff",
            "azblob://me:pw@lab/a",
        ] {
            let error = path("azblob://lab/", url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{url}: {error}");
            assert!(!error.to_string().contains("pw"), "{error}");
        }
    }

    #[test]
    fn a_configuration_that_cannot_work_is_refused_in_words() {
        let entry = "type = 'opendal'\nservice = 'memory'\nprefix = ";
        assert!(created(&format!("{entry}'memory://a/'")).is_ok());
        for (entry, word) in [
            (
                format!("{entry}['memory://a/', 'memory://b/']"),
                "one prefix",
            ),
            (
                entry.replace("memory", "nowhere") + "'dav://a/'",
                "opendal-nowhere",
            ),
            (
                format!("{entry}'dav://a/'\noptions.root = {{ env = 'NO_SUCH' }}"),
                "options.root",
            ),
            (format!("{entry}'dav://a/'\nsecret = 'x'"), "secret"),
            (
                format!("{entry}'dav://a/'\ndeny_networks = ['x']"),
                "deny_networks",
            ),
        ] {
            let error = created(&entry).unwrap_err().to_string();
            assert!(error.contains(word), "{entry}: {error}");
        }
    }

    #[test]
    fn a_file_that_no_memory_holds_is_refused() {
        let size = |write_can_multi, size| {
            let url = "azblob://lab/a".parse().unwrap();
            let storage = OpenDal {
                operator: Operator::new(opendal::services::Memory::default()).unwrap(),
                capability: Capability {
                    write_can_multi,
                    ..Capability::default()
                },
                is_object_store: true,
                prefix: "azblob://lab/".parse().unwrap(),
                read_only: false,
            };
            let claimed = storage.capabilities().max_file_size.unwrap();
            (storage.part(&url, size), claimed)
        };
        for multi in [false, true] {
            let (_, largest) = size(multi, 0);
            assert!(size(multi, largest).0.unwrap() <= MOST);
            assert!(size(multi, largest + PARTS).0.is_err());
        }
        assert_eq!(
            size(true, 100 << 30).0.unwrap(),
            (100_u64 << 30).div_ceil(PARTS)
        );
    }
}
