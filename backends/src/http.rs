//! Web servers: `http:` and `https:` URLs, with GET, HEAD and PUT.
//!
//! ```toml
//! [[storage]]
//! type = "http"
//! prefix = "https://data.example.org/"
//! username = "me"
//! password_file = "/run/secrets/data"
//! ```
//!
//! All keys are those of [`Options`]. Credentials in a task's URL win over those of the entry,
//! and those over `.netrc`. They are sent to the origin they are meant for and to no other,
//! wherever it redirects to.
//!
//! # WebDAV
//!
//! With `webdav = true` servers are asked for their directories (RFC 4918), never otherwise. A file
//! is written with `PUT` under another name in the same directory, looked at for its size, and
//! moved to its own. With `atomic_put = true` it is put at its own name, and looked at. Links in listings are never followed: of each only the last name is taken,
//! and only if the rest is the directory that was asked for. `DELETE` takes a directory with all
//! that is in it, so directories are looked at first; what somebody writes there in that moment is
//! lost. The same holds for a directory that takes the place of a file while the file is replaced.
//! Properties and locks are not used.
//!
//! # Which servers are reached
//!
//! The address that is connected to is the one that was checked, at every redirect too. Never
//! reached, because a task could steal the machine's own credentials there, are link-local
//! addresses, the metadata services of clouds, unspecified and multicast addresses.
//! `allow_networks` lets single ones through. Loopback and private networks are reached unless
//! `allow_private = false`, because that is where data lies. Through a proxy only addresses
//! that are written in a URL can be checked: the proxy resolves names.
//!
//! # What is relied on
//!
//! A server that says `Accept-Ranges: bytes` and gives a strong `ETag` or a `Last-Modified` has
//! versions: reads resume and run in parallel. Others are read in one piece. Content is asked for
//! and stored as it is: a `Content-Encoding` that a server applies regardless is kept, not undone.

mod client;
mod dav;
mod options;
mod reply;

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use reqwest::header::{
    CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_UNMODIFIED_SINCE, RANGE,
};
use reqwest::{Method, Response, StatusCode};
use tesk_core::storage::{
    ByteRange, ByteStream, Capabilities, ConfigEntry, ConfigError, Entry, EntryKind, EntryStream,
    Error, ErrorKind, Factory, FileInfo, Opened, Result, Source, Storage, StorageUrl, Version,
    Written,
};

use self::client::Client;
use self::dav::{Dav, Kind};
pub use self::options::Options;
pub use crate::secret::Value;

/// Some servers tell a digest only to those who ask for it (RFC 9530, 4).
const WANT_DIGEST: (HeaderName, HeaderValue) = (
    HeaderName::from_static("want-repr-digest"),
    HeaderValue::from_static("sha-256=1"),
);

/// Builds [`Http`]s: `type = "http"`.
#[derive(Clone, Copy, Debug)]
pub struct HttpFactory;

impl Factory for HttpFactory {
    fn schemes(&self) -> &[&str] {
        &["http", "https"]
    }

    fn create(&self, entry: &ConfigEntry) -> Result<Arc<dyn Storage>, ConfigError> {
        let options: Options = entry.options()?;
        let client = Arc::new(Client::new(&options)?);
        if options.atomic_put && !options.webdav {
            let message =
                "atomic_put: is for `webdav = true`; else a file is put at its own name anyway";
            return Err(ConfigError(message.into()));
        }
        let dav = || Arc::new(Dav::new(client.clone(), options.atomic_put));
        Ok(Arc::new(Http {
            dav: options.webdav.then(dav),
            client,
            read_only: options.read_only,
        }))
    }
}

/// One or many web servers that share their settings.
#[derive(Debug)]
pub struct Http {
    client: Arc<Client>,
    /// Where servers speak WebDAV.
    dav: Option<Arc<Dav>>,
    read_only: bool,
}

#[async_trait]
impl Storage for Http {
    fn capabilities(&self) -> Capabilities {
        let write = !self.read_only;
        let dav = self.dav.is_some();
        let mut claims = Capabilities::read_only();
        claims.list = dav;
        claims.ranges = true;
        claims.write = write;
        claims.atomic_write = dav && write;
        claims.directories = dav && write;
        claims.rename = dav && write;
        claims.remove = dav && write;
        claims
    }

    async fn stat(&self, url: &StorageUrl) -> Result<Option<Entry>> {
        let path = String::new();
        let Some(dav) = &self.dav else {
            let info = head(&self.client, url).await?;
            return Ok(info.map(|info| Entry {
                path,
                kind: EntryKind::File(info),
            }));
        };
        let kind = match dav.kind(url).await? {
            None => None,
            Some(Kind::Directory) => Some(EntryKind::Directory),
            Some(Kind::File) => {
                // Headers tell more than properties do, and what a read will tell.
                let info = head(&self.client, &dav::plain(url)?).await?;
                info.map(EntryKind::File)
            }
        };
        Ok(kind.map(|kind| Entry { path, kind }))
    }

    async fn list(&self, url: &StorageUrl) -> Result<EntryStream> {
        match &self.dav {
            Some(dav) => dav.list(url).await,
            None => Err(Error::unsupported(url, "listing")),
        }
    }

    async fn read(
        &self,
        url: &StorageUrl,
        range: ByteRange,
        version: Option<&Version>,
    ) -> Result<Opened> {
        let nothing = || Opened::from(stream::empty().boxed());
        if range.end == Some(range.start) {
            return Ok(nothing());
        }
        let (name, value) = if range.is_full() {
            WANT_DIGEST
        } else {
            (RANGE, range_header(range))
        };
        let mut headers = HeaderMap::from_iter([(name, value)]);
        if let Some(Version(version)) = version {
            let name = if version.starts_with('"') {
                IF_MATCH
            } else {
                IF_UNMODIFIED_SINCE
            };
            let value = HeaderValue::try_from(version).map_err(|e| {
                Error::new(ErrorKind::Invalid, url, "not a version of this storage").with_source(e)
            })?;
            headers.insert(name, value);
        }
        let reply = self.client.send(url, &Method::GET, &headers, None).await?;
        if let Some(dav) = &self.dav
            && reply::may_be_directory(&reply)
            && matches!(dav.kind(url).await, Ok(Some(Kind::Directory)))
        {
            let message = "is a directory, not a file";
            return Err(Error::new(ErrorKind::Invalid, url, message));
        }
        if reply.status() == StatusCode::RANGE_NOT_SATISFIABLE
            && range.end.is_none()
            && reply::unsatisfied_total(reply.headers()).is_none()
        {
            // Not every server says with it how long the file is: it may end where the range
            // begins.
            let found = look(&self.client, url).await?;
            let is_same = version.is_none_or(|wanted| reply::is_version(found.headers(), wanted));
            if is_same && reply::content_length(found.headers()) == Some(range.start) {
                return Ok(nothing());
            }
        }
        let body = expected_body(url, range, &reply)?;
        // A server that knows no conditions still tells what it sends.
        if version.is_some_and(|wanted| !reply::is_version(reply.headers(), wanted)) {
            let message = "another version has taken its place";
            return Err(Error::new(ErrorKind::Corrupt, url, message));
        }
        // Of a part, some headers tell the checksum of that part.
        let is_whole = reply.status() == StatusCode::OK;
        let checksum = reply::checksum(reply.headers()).filter(|_| is_whole);
        let bytes = exactly(url, reply, body);
        Ok(Opened { bytes, checksum })
    }

    async fn write(&self, url: &StorageUrl, source: &Source) -> Result<Written> {
        if self.read_only {
            return Err(Error::unsupported(url, "writing"));
        }
        if let Some(dav) = &self.dav {
            return dav.write(url, source).await;
        }
        let reply = put(&self.client, url, source).await?;
        match reply.status() {
            StatusCode::OK | StatusCode::CREATED | StatusCode::NO_CONTENT => Ok(Written {
                size: source.size(),
                version: reply::version(reply.headers()),
                checksum: None,
            }),
            _ => Err(reply::refusal(url, &reply)),
        }
    }

    async fn make_directory(&self, url: &StorageUrl) -> Result<()> {
        let dav = self.changing(url, "making directories")?;
        dav.make_directory(url).await
    }

    async fn rename(&self, from: &StorageUrl, to: &StorageUrl) -> Result<()> {
        self.changing(from, "renaming")?.rename(from, to).await
    }

    async fn remove(&self, url: &StorageUrl) -> Result<()> {
        self.changing(url, "removing")?.remove(url).await
    }
}

impl Http {
    /// What changes more than one file.
    fn changing(&self, url: &StorageUrl, operation: &str) -> Result<&Arc<Dav>> {
        match &self.dav {
            Some(dav) if !self.read_only => Ok(dav),
            _ => Err(Error::unsupported(url, operation)),
        }
    }
}

/// Sends a file.
async fn put(client: &Client, url: &StorageUrl, source: &Source) -> Result<Response> {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_LENGTH, HeaderValue::from(source.size()));
    client.send(url, &Method::PUT, &headers, Some(source)).await
}

/// Asks for the headers of a file.
async fn look(client: &Client, url: &StorageUrl) -> Result<Response> {
    let headers = HeaderMap::from_iter([WANT_DIGEST]);
    client.send(url, &Method::HEAD, &headers, None).await
}

/// What is known of the file at `url`, if it is there.
async fn head(client: &Client, url: &StorageUrl) -> Result<Option<FileInfo>> {
    let reply = look(client, url).await?;
    info(client, url, &reply).await
}

async fn info(client: &Client, url: &StorageUrl, reply: &Response) -> Result<Option<FileInfo>> {
    match reply.status() {
        StatusCode::OK | StatusCode::NO_CONTENT => Ok(Some(reply::file_info(reply.headers()))),
        StatusCode::NOT_FOUND | StatusCode::GONE => Ok(None),
        // Not every server answers HEAD: a signed URL is good for one method only.
        StatusCode::BAD_REQUEST
        | StatusCode::FORBIDDEN
        | StatusCode::METHOD_NOT_ALLOWED
        | StatusCode::NOT_IMPLEMENTED => info_by_get(client, url).await,
        _ => Err(reply::refusal(url, reply)),
    }
}

async fn info_by_get(client: &Client, url: &StorageUrl) -> Result<Option<FileInfo>> {
    let mut headers = HeaderMap::from_iter([WANT_DIGEST]);
    headers.insert(RANGE, HeaderValue::from_static("bytes=0-0"));
    let reply = client.send(url, &Method::GET, &headers, None).await?;
    match reply.status() {
        StatusCode::OK => Ok(Some(reply::file_info(reply.headers()))),
        StatusCode::PARTIAL_CONTENT => {
            let total = reply::content_range(reply.headers()).and_then(|range| range.total);
            Ok(Some(FileInfo {
                size: total,
                version: reply::version(reply.headers())
                    .filter(|_| reply::unsettled(reply.headers()).is_none()),
                checksum: reply::repr_digest(reply.headers()),
                modified: reply::modified(reply.headers()),
                ..FileInfo::default()
            }))
        }
        // Of an empty file there is no first byte.
        StatusCode::RANGE_NOT_SATISFIABLE => Ok(Some(FileInfo {
            size: Some(0),
            ..FileInfo::default()
        })),
        StatusCode::NOT_FOUND | StatusCode::GONE => Ok(None),
        _ => Err(reply::refusal(url, &reply)),
    }
}

fn range_header(range: ByteRange) -> HeaderValue {
    let text = match range.end {
        Some(end) => format!("bytes={}-{}", range.start, end - 1),
        None => format!("bytes={}-", range.start),
    };
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("bytes=0-"))
}

/// What is wanted of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    /// Bytes to drop before it begins.
    skip: u64,
    /// Bytes to give; `None` is to the end.
    take: Option<u64>,
}

/// Compares what a reply promises with what was asked for.
fn expected_body(url: &StorageUrl, range: ByteRange, reply: &Response) -> Result<Wanted> {
    let length = range.end.map(|end| end - range.start);
    let corrupt = |message: String| Error::new(ErrorKind::Corrupt, url, message);
    match reply.status() {
        // The server does not know ranges: the wanted part is in the whole.
        StatusCode::OK => Ok(Wanted {
            skip: range.start,
            take: length.or_else(|| {
                let whole = reply::content_length(reply.headers())?;
                whole.checked_sub(range.start)
            }),
        }),
        StatusCode::PARTIAL_CONTENT if !range.is_full() => {
            let Some(sent) = reply::content_range(reply.headers()) else {
                return Err(corrupt("a part was sent without its place".into()));
            };
            if sent.start != range.start || range.end.is_some_and(|end| sent.end > end) {
                let message = format!("bytes {}..{} came instead", sent.start, sent.end);
                return Err(corrupt(message));
            }
            Ok(Wanted {
                skip: 0,
                take: length.or(sent.total.map(|total| total.saturating_sub(range.start))),
            })
        }
        StatusCode::RANGE_NOT_SATISFIABLE
            if reply::unsatisfied_total(reply.headers()) == Some(range.start)
                && range.end.is_none() =>
        {
            Ok(Wanted {
                skip: 0,
                take: Some(0),
            })
        }
        StatusCode::RANGE_NOT_SATISFIABLE => Err(corrupt(format!(
            "it does not have the bytes from {} on",
            range.start
        ))),
        StatusCode::PRECONDITION_FAILED => {
            Err(corrupt("another version has taken its place".into()))
        }
        _ => Err(reply::refusal(url, reply)),
    }
}

/// The wanted bytes of a body; too few are an error.
fn exactly(url: &StorageUrl, reply: Response, wanted: Wanted) -> ByteStream {
    if wanted.take == Some(0) {
        return stream::empty().boxed();
    }
    let url = url.clone();
    let body = reply.bytes_stream().boxed();
    stream::try_unfold(
        (body, wanted, 0),
        move |(mut body, mut wanted, mut given)| {
            let url = url.clone();
            async move {
                loop {
                    if wanted.take == Some(0) {
                        return Ok(None);
                    }
                    let mut chunk: Bytes = match body.next().await {
                        Some(chunk) => chunk.map_err(|e| client::failure(&url, e))?,
                        None if wanted.take.is_none() && wanted.skip == 0 => return Ok(None),
                        None => {
                            let message = format!("the reply ended after {given} bytes of it");
                            return Err(Error::new(ErrorKind::Corrupt, &url, message));
                        }
                    };
                    let skip = wanted.skip.min(chunk.len() as u64);
                    wanted.skip -= skip;
                    chunk = chunk.split_off(skip as usize);
                    if let Some(left) = &mut wanted.take {
                        chunk.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                        *left -= chunk.len() as u64;
                    }
                    if !chunk.is_empty() {
                        given += chunk.len() as u64;
                        return Ok(Some((chunk, (body, wanted, given))));
                    }
                }
            }
        },
    )
    .boxed()
}

/// A source as the body of a request. What goes wrong with it is kept in `failed`, because the
/// client only passes on its text.
fn body_of(source: ByteStream, failed: Arc<Mutex<Option<Error>>>) -> reqwest::Body {
    reqwest::Body::wrap_stream(source.map(move |chunk| {
        chunk.map_err(|error| {
            let text = error.to_string();
            *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            text
        })
    }))
}
