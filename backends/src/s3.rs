//! Object stores that speak S3: AWS, MinIO, Ceph and others, addressed by `s3://bucket/key`.
//!
//! ```toml
//! [[storage]]
//! type = "s3"
//! prefix = "s3://"                    # AWS, with whatever credentials the machine has
//! region = "eu-west-1"
//!
//! [[storage]]
//! type = "s3"
//! prefix = ["s3://lab-data/", "s3://lab-results/"]
//! endpoint = "https://minio.example.org:9000"
//! access_key_id_file = "/run/secrets/minio-id"
//! secret_access_key_file = "/run/secrets/minio-key"
//! ```
//!
//! All keys are those of [`Options`]. The endpoint comes from the configuration only: a task
//! names a bucket and a key, never a server.
//!
//! # Keys
//!
//! Everything after `s3://bucket/` is the key, taken as it is: nothing is percent-decoded, and
//! `?`, `#` and `%` are characters as any other. Refused, because they would mean another key to
//! a library or a proxy on the way, are keys with an empty component (`//`, a leading `/`), with
//! `.` or `..` as a component, that begin or end with white space, that have control characters,
//! or that are longer than 1024 bytes.
//!
//! # Directories
//!
//! A directory is whatever keys have in common up to a `/`. It is there as long as a key is in it,
//! so empty ones cannot be made. Those that consoles make, which are empty objects whose keys end
//! with `/`, are shown as directories, and removed. An object and a directory of the same name
//! can be there both; the address means the object.
//!
//! # Uploads
//!
//! An object of up to 5 MiB is sent in one request, a larger one in parts, of which core sends
//! several at the same time and each again when it fails. Nothing is visible before the last
//! request. An upload that fails or is dropped is aborted; one whose program was killed is not,
//! so give buckets a lifecycle rule that aborts incomplete uploads.
//!
//! A small object is read into memory first, and signed with its hash; all of an entry together
//! take 16 MiB. A part is `max(5 MiB, size / 10000)` large, rounded up to whole MiB, and read as it
//! is sent. With `checksum` a file of this machine is read twice, first for the checksum; a part
//! that comes from elsewhere is kept in memory up to 16 MiB, and a larger one fetched twice. So
//! memory is bounded whatever the size; `docs/backends.md` has a table.
//!
//! Without `checksum`, what arrived is compared by entity tags, where they are MD5s: of an object in
//! one request always; of parts where the endpoint is `http:`, and a part that differs is sent
//! again. With TLS nothing changes on the way, and the sum would take several times the processor time of
//! sending.
//!
//! # Versions and checksums
//!
//! A version is the entity tag; ranges are read with `If-Match`, and what arrives is compared
//! with it, because not every server knows that condition. An entity tag counts as an MD5 only
//! where it can be one: not of uploads in parts, nor with SSE-KMS or a customer's key. A SHA-256 that
//! the server keeps of a whole object is preferred; where there is neither, a CRC is used, as AWS
//! computes by default. Sums of the sums of parts are not used.

mod address;
mod bucket;
mod credentials;
mod options;
mod reply;
mod settings;
mod transport;
mod upload;

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::stream::{self, StreamExt as _};
use opendal::options::{ListOptions, ReaderOptions};
use opendal::{BufferStream, BytesRange, Lister, Metadata};
use tesk_core::storage::{
    ByteRange, ByteStream, Capabilities, Checksum, ConfigEntry, ConfigError, Entry, EntryKind,
    EntryStream, Error, ErrorKind, Factory, FileInfo, Opened, Result, Source, Storage, StorageUrl,
    Upload, Version, Written,
};

use tesk_core::time::Timestamp;

use self::address::Address;
use self::bucket::{Bucket, Buckets};
pub use self::options::{Checksum as UploadChecksum, Encryption, Options};
use self::settings::Settings;
use self::transport::failure;

/// Builds [`S3`]s: `type = "s3"`.
#[derive(Clone, Copy, Debug)]
pub struct S3Factory;

impl Factory for S3Factory {
    fn schemes(&self) -> &[&str] {
        &["s3"]
    }

    fn create(&self, entry: &ConfigEntry) -> Result<Arc<dyn Storage>, ConfigError> {
        let options: Options = entry.options()?;
        Ok(Arc::new(S3 {
            settings: Arc::new(Settings::new(&options)?),
            buckets: Buckets::default(),
            read_only: options.read_only,
        }))
    }
}

/// The buckets of one server, reached with one identity.
#[derive(Debug)]
pub struct S3 {
    settings: Arc<Settings>,
    buckets: Buckets,
    read_only: bool,
}

/// A URL, and the bucket it is in.
struct Place {
    url: StorageUrl,
    address: Address,
    bucket: Arc<Bucket>,
}

impl S3 {
    fn place(&self, url: &StorageUrl) -> Result<Place> {
        let address = Address::of(url)?;
        let bucket = self.buckets.get(&self.settings, &address.bucket, url)?;
        Ok(Place {
            url: url.clone(),
            address,
            bucket,
        })
    }

    fn writable(&self, url: &StorageUrl, operation: &str) -> Result<Place> {
        if self.read_only {
            return Err(Error::unsupported(url, operation));
        }
        self.place(url)
    }
}

impl Place {
    fn failure(&self, error: &opendal::Error) -> Error {
        failure(&self.url, error)
    }

    /// The object at the address, if it is the address of one.
    async fn object(&self) -> Result<Option<FileInfo>> {
        let Ok(key) = self.address.file(&self.url) else {
            return Ok(None);
        };
        match self.bucket.head(&self.url, key).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn lister(&self, limit: Option<usize>) -> Result<Lister> {
        let options = ListOptions {
            recursive: true,
            limit,
            ..ListOptions::default()
        };
        let prefix = self.address.prefix();
        let lister = self.bucket.operator.lister_options(&prefix, options).await;
        lister.map_err(|error| self.failure(&error))
    }

    /// The first keys of the directory at the address, its own marker among them.
    async fn first_keys(&self, count: usize) -> Result<Vec<String>> {
        let mut lister = self.lister(Some(count)).await?;
        let mut keys = Vec::new();
        while keys.len() < count
            && let Some(entry) = lister.next().await
        {
            let entry = entry.map_err(|error| self.failure(&error))?;
            keys.push(entry.path().to_owned());
        }
        Ok(keys)
    }

    /// Whether the address is that of a directory. A bucket is one, even an empty one.
    async fn is_directory(&self) -> Result<bool> {
        let keys = self.first_keys(1).await?;
        Ok(!keys.is_empty() || self.address.key.is_empty())
    }

    async fn kind(&self) -> Result<Option<EntryKind>> {
        if let Some(info) = self.object().await? {
            return Ok(Some(EntryKind::File(info)));
        }
        Ok(self.is_directory().await?.then_some(EntryKind::Directory))
    }

    fn invalid(&self, message: &str) -> Error {
        Error::new(ErrorKind::Invalid, &self.url, message)
    }

    fn changed(&self) -> Error {
        let message = "another version has taken its place";
        Error::new(ErrorKind::Corrupt, &self.url, message)
    }
}

fn info(found: &Metadata) -> FileInfo {
    FileInfo {
        size: Some(found.content_length()),
        version: found.etag().and_then(reply::version),
        checksum: found
            .content_md5()
            .and_then(reply::md5_of_content_md5)
            .map(Checksum::Md5),
        mode: None,
        modified: found
            .last_modified()
            .map(|time| Timestamp::from_system(time.into())),
    }
}

#[async_trait]
impl Storage for S3 {
    fn capabilities(&self) -> Capabilities {
        let write = !self.read_only;
        let mut claims = Capabilities::read_only();
        claims.list = true;
        claims.ranges = true;
        claims.write = write;
        claims.atomic_write = write;
        claims.parts = write;
        claims.remove = write;
        claims.max_file_size = Some(upload::MAX_SIZE);
        claims
    }

    async fn stat(&self, url: &StorageUrl) -> Result<Option<Entry>> {
        let kind = self.place(url)?.kind().await?;
        let path = String::new();
        Ok(kind.map(|kind| Entry { path, kind }))
    }

    async fn list(&self, url: &StorageUrl) -> Result<EntryStream> {
        let place = self.place(url)?;
        let prefix = place.address.prefix();
        let mut lister = place.lister(None).await?;
        let first = lister.next().await;
        if let Some(Err(error)) = &first {
            return Err(place.failure(error));
        }
        if first.is_none() && !prefix.is_empty() {
            return Err(match place.object().await? {
                Some(_) => place.invalid("is a file, but a directory is expected"),
                None => Error::new(ErrorKind::NotFound, url, "there is no such directory"),
            });
        }
        let entries = stream::iter(first).chain(lister).filter_map(move |entry| {
            let entry = match entry {
                Ok(entry) => listed(&prefix, &entry).map(Ok),
                Err(error) => Some(Err(place.failure(&error))),
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
        let place = self.place(url)?;
        let key = place.address.file(url)?;
        if range.end == Some(range.start) {
            let bytes = nothing(&place, range.start, version).await?;
            let checksum = None;
            return Ok(Opened { bytes, checksum });
        }
        let options = ReaderOptions {
            if_match: version.map(|version| version.0.clone()),
            ..ReaderOptions::default()
        };
        let reader = place.bucket.operator.reader_options(key, options).await;
        let reader = reader.map_err(|error| place.failure(&error))?;
        let size = range.end.map(|end| end.saturating_sub(range.start));
        let opened = reader.into_stream(BytesRange::new(range.start, size)).await;
        let opened = match opened {
            Ok(mut stream) => stream.metadata().await.map(|found| (stream, found)),
            Err(error) => Err(error),
        };
        let (stream, found) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let bytes = refused(&place, range, version, place.failure(&error)).await?;
                let checksum = None;
                return Ok(Opened { bytes, checksum });
            }
        };
        // Not every server knows the condition, but every one tells what it sends.
        let found = info(&found);
        if version.is_some() && found.version.as_ref() != version {
            return Err(place.changed());
        }
        Ok(Opened {
            bytes: bytes_of(place, stream),
            checksum: found.checksum,
        })
    }

    /// In parts, as core drives them, one after the other.
    async fn write(&self, url: &StorageUrl, source: &Source) -> Result<Written> {
        let upload = self.begin_upload(url, source.size()).await?;
        let parts = source.size().div_ceil(upload.part_size()).max(1);
        for index in 0..parts {
            upload.part(index, source).await?;
        }
        upload.complete().await
    }

    async fn begin_upload(&self, url: &StorageUrl, size: u64) -> Result<Box<dyn Upload>> {
        let place = self.writable(url, "writing")?;
        let key = place.address.file(url)?.to_owned();
        upload::begin(place.bucket, url, key, size).await
    }

    async fn remove(&self, url: &StorageUrl) -> Result<()> {
        let place = self.writable(url, "removing")?;
        let key = match place.kind().await? {
            None => return Ok(()),
            Some(EntryKind::File(_)) => place.address.key.clone(),
            Some(EntryKind::Directory) => {
                let marker = place.address.prefix();
                if place.first_keys(2).await?.iter().any(|key| *key != marker) {
                    return Err(place.invalid("is a directory that is not empty"));
                }
                if marker.is_empty() {
                    return Err(place.invalid("is a bucket, which is not removed"));
                }
                marker
            }
        };
        let removed = place.bucket.operator.delete(&key).await;
        removed.map_err(|error| place.failure(&error))
    }
}

/// An entry of a listing; `None` for the directory itself.
fn listed(prefix: &str, entry: &opendal::Entry) -> Option<Entry> {
    let path = entry.path().strip_prefix(prefix).unwrap_or(entry.path());
    if path.is_empty() || (prefix.is_empty() && path == "/") {
        return None;
    }
    let kind = if path.ends_with('/') {
        EntryKind::Directory
    } else {
        // A listing does not tell how an object is encrypted.
        EntryKind::File(FileInfo {
            checksum: None,
            ..info(entry.metadata())
        })
    };
    Some(Entry {
        path: path.trim_end_matches('/').to_owned(),
        kind,
    })
}

/// No bytes at all, which no request can ask for.
async fn nothing(place: &Place, at: u64, version: Option<&Version>) -> Result<ByteStream> {
    match place.kind().await? {
        Some(EntryKind::File(found)) => {
            if version.is_some() && found.version.as_ref() != version {
                return Err(place.changed());
            }
            if found.size.is_some_and(|size| at > size) {
                let message = format!("ends before byte {at}");
                return Err(Error::new(ErrorKind::Corrupt, &place.url, message));
            }
            Ok(stream::empty().boxed())
        }
        Some(EntryKind::Directory) => Err(place.invalid(DIRECTORY)),
        None => {
            let message = "there is no such object";
            Err(Error::new(ErrorKind::NotFound, &place.url, message))
        }
    }
}

const DIRECTORY: &str = "is a directory, but a file is expected";

/// What a refused read means: there may be a directory, or exactly no byte left.
async fn refused(
    place: &Place,
    range: ByteRange,
    version: Option<&Version>,
    error: Error,
) -> Result<ByteStream> {
    match error.kind() {
        // Who may not list keeps the first error.
        ErrorKind::NotFound if place.is_directory().await.unwrap_or(false) => {
            Err(place.invalid(DIRECTORY))
        }
        ErrorKind::Corrupt if range.end.is_none() && range.start > 0 => {
            let found = place.object().await.ok().flatten().filter(|found| {
                found.size == Some(range.start)
                    && (version.is_none() || found.version.as_ref() == version)
            });
            found.map(|_| stream::empty().boxed()).ok_or(error)
        }
        _ => Err(error),
    }
}

/// The bytes of an opened object. OpenDAL counts them, against the range that was asked for and
/// what the server said it sends.
fn bytes_of(place: Place, stream: BufferStream) -> ByteStream {
    let chunks = stream.flat_map(move |buffer| {
        let chunks: Vec<_> = match buffer {
            Ok(buffer) => Iterator::map(buffer, Ok).collect(),
            Err(error) => vec![Err(match place.failure(&error) {
                error if error.kind() == ErrorKind::Other => {
                    let message = "it is shorter or longer than what was asked for";
                    Error::new(ErrorKind::Corrupt, &place.url, message)
                }
                error => error,
            })],
        };
        stream::iter(chunks)
    });
    chunks.boxed()
}
