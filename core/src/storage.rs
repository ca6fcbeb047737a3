//! The [`Storage`] trait: what a storage plugin promises, and the types it speaks in.
//!
//! A plugin speaks one protocol and classifies its errors. Everything that every plugin would
//! otherwise get wrong in its own way belongs to [`transfer`](crate::transfer): retries,
//! timeouts, parallel files and ranges, resume, verification, temporary names, progress and
//! hiding credentials. **A plugin does not retry.**
//!
//! - [`url`]: [`StorageUrl`], an address with its credentials kept apart and hidden.
//! - [`error`]: [`Error`] = kind + retryable + redacted URL + source.
//! - [`cleanup`]: what is still to be removed when a program ends.
//! - [`capabilities`]: what a plugin can do; everything else is refused.
//! - [`mod@file`]: bytes from open files, for plugins that have such.
//! - [`source`]: bytes to be written that can be read again from any offset.
//! - [`wait_for_turn`]: how a plugin says that an operation waits for others of its own.
//! - [`registry`]: `[[storage]]` entries of the configuration, routed by longest prefix.

pub mod capabilities;
pub mod cleanup;
pub mod error;
pub mod file;
pub mod registry;
pub mod source;
pub(crate) mod turns;
pub mod url;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;

pub use capabilities::Capabilities;
pub use error::{Error, ErrorKind, Result};
pub use registry::{ConfigError, Entry as ConfigEntry, Factory, Registry, RegistryBuilder};
pub use source::Source;
pub use turns::wait_for_turn;
pub use url::StorageUrl;

use crate::rooted::{RelPath, Root};
use crate::time::Timestamp;

/// One storage service, or one account of it: the contract of a plugin.
///
/// `capabilities`, `stat` and `read` are required; a strong plugin implements all. Every method must be
/// cancel-safe in this sense: when its future (or a stream it returned) is dropped, nothing
/// that [`stat`](Storage::stat) can see is half-written, and the plugin stays usable.
///
/// An operation of which nothing is heard is given up after a while. One that waits for others of
/// the same plugin, because connections are few, does so in [`wait_for_turn`].
///
/// How this trait may change: see `docs/writing-a-storage-plugin.md`.
#[async_trait]
pub trait Storage: fmt::Debug + Send + Sync + 'static {
    /// What this plugin can do. Must not change over its life.
    ///
    /// Core never calls an operation that is not claimed here, and an unclaimed operation
    /// called anyway must fail with [`ErrorKind::Unsupported`].
    fn capabilities(&self) -> Capabilities;

    /// What is at `url`: a file with its size, a directory, or nothing (`None`).
    ///
    /// "Nothing" is not an error; being refused is.
    async fn stat(&self, url: &StorageUrl) -> Result<Option<Entry>>;

    /// Everything below the directory `url`, recursively, with paths relative to it, in any
    /// order, streamed. A missing directory is [`ErrorKind::NotFound`], a file is
    /// [`ErrorKind::Invalid`]; either may come from this call or as the stream's first item.
    ///
    /// Paths are passed on as the server gave them; core refuses the hostile ones.
    async fn list(&self, url: &StorageUrl) -> Result<EntryStream> {
        Err(Error::unsupported(url, "listing"))
    }

    /// The bytes `range` of the file at `url`.
    ///
    /// An end before the range's end is an error, never a short stream. With `version`, bytes
    /// of any other version are [`ErrorKind::Corrupt`], so that ranges read in parallel never
    /// mix two versions of a file. Reading a directory is [`ErrorKind::Invalid`].
    ///
    /// A checksum that the reply tells comes with the bytes: so a file that is only known from a
    /// listing is compared too.
    async fn read(
        &self,
        url: &StorageUrl,
        range: ByteRange,
        version: Option<&Version>,
    ) -> Result<Opened>;

    /// Writes the whole of `source` to `url`, replacing what file was there; parents are
    /// created. All or nothing that [`stat`](Storage::stat) can see, where
    /// [`Capabilities::atomic_write`] is claimed.
    async fn write(&self, url: &StorageUrl, source: &Source) -> Result<Written> {
        let _ = source;
        Err(Error::unsupported(url, "writing"))
    }

    /// Begins an upload of `size` bytes whose parts core drives, so that core can retry and
    /// run parts in parallel. Claimed by [`Capabilities::parts`].
    async fn begin_upload(&self, url: &StorageUrl, size: u64) -> Result<Box<dyn Upload>> {
        let _ = size;
        Err(Error::unsupported(url, "uploading in parts"))
    }

    /// Makes the directory `url` and its parents; fine if it is there already.
    /// Claimed by [`Capabilities::directories`].
    async fn make_directory(&self, url: &StorageUrl) -> Result<()> {
        Err(Error::unsupported(url, "making directories"))
    }

    /// Renames the file `from` to `to`, replacing a file that is there.
    /// Claimed by [`Capabilities::rename`].
    async fn rename(&self, from: &StorageUrl, to: &StorageUrl) -> Result<()> {
        let _ = to;
        Err(Error::unsupported(from, "renaming"))
    }

    /// Removes the file or the empty directory at `url`; nothing there is fine.
    /// Claimed by [`Capabilities::remove`].
    async fn remove(&self, url: &StorageUrl) -> Result<()> {
        Err(Error::unsupported(url, "removing"))
    }

    /// Where `url` lies in a file system of this machine, if this plugin is one. Core then
    /// copies inside the kernel, or mounts the file instead of copying it.
    fn local_path(&self, url: &StorageUrl) -> Option<LocalPath> {
        let _ = url;
        None
    }
}

/// An upload in parts, begun by [`Storage::begin_upload`].
///
/// Dropping it without [`complete`](Upload::complete) or [`abort`](Upload::abort) may leave
/// parts on the server, but never a visible file.
#[async_trait]
pub trait Upload: fmt::Debug + Send + Sync {
    /// The size of every part but the last, in bytes.
    fn part_size(&self) -> u64;

    /// How many bytes of a part of `source` are held in memory while it is sent, besides the
    /// buffers of a stream. As many parts are sent at once as fit. By default a whole part.
    fn part_memory(&self, source: &Source) -> u64 {
        let _ = source;
        self.part_size()
    }

    /// Sends part `index` (from 0): the bytes `index * part_size ..` of `source`. May be called
    /// for several parts at once, in any order, and again for a part that failed.
    async fn part(&self, index: u64, source: &Source) -> Result<()>;

    /// Makes the whole visible.
    async fn complete(&self) -> Result<Written>;

    /// Throws all parts away.
    async fn abort(&self) -> Result<()>;
}

/// What is at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The path relative to the listed directory, `/`-separated; empty for
    /// [`Storage::stat`]. As the server gave it: hostile.
    pub path: String,
    /// File or directory.
    pub kind: EntryKind,
}

/// File or directory, and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A file.
    File(FileInfo),
    /// A directory.
    Directory,
}

/// What is known of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileInfo {
    /// Bytes; `None` where the server does not say.
    pub size: Option<u64>,
    /// Changes whenever the content does.
    pub version: Option<Version>,
    /// A checksum of the content that the server offers.
    pub checksum: Option<Checksum>,
    /// Unix permission bits, where the storage has them.
    pub mode: Option<u32>,
    /// When the content was changed last, by the server's clock: for people. Transfers go by
    /// the version.
    pub modified: Option<Timestamp>,
}

/// An opaque mark of one version of a file, such as an entity tag.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Version(pub String);

/// A checksum with its algorithm.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Checksum {
    /// MD5 of the whole content.
    Md5([u8; 16]),
    /// SHA-256 of the whole content.
    Sha256([u8; 32]),
    /// CRC-64/NVME of the whole content, as S3 has it.
    Crc64Nvme(u64),
    /// CRC-32C (Castagnoli, RFC 3720) of the whole content.
    Crc32c(u32),
    /// CRC-32 (ISO/HDLC, as in zip) of the whole content.
    Crc32(u32),
}

/// The bytes of a file to read: from `start`, to `end` (exclusive) or the end of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// One past the last byte; `None` is the end of the file.
    pub end: Option<u64>,
}

impl ByteRange {
    /// The whole file.
    pub const FULL: Self = Self {
        start: 0,
        end: None,
    };

    /// Everything from `start` on.
    pub fn from(start: u64) -> Self {
        Self { start, end: None }
    }

    /// Whether this is the whole file.
    pub fn is_full(self) -> bool {
        self == Self::FULL
    }
}

impl From<Range<u64>> for ByteRange {
    fn from(range: Range<u64>) -> Self {
        Self {
            start: range.start,
            end: Some(range.end),
        }
    }
}

/// A reading that has begun.
pub struct Opened {
    /// The bytes that were asked for.
    pub bytes: ByteStream,
    /// The checksum of the whole file, whatever part of it is read, where the reply tells one.
    pub checksum: Option<Checksum>,
}

impl From<ByteStream> for Opened {
    fn from(bytes: ByteStream) -> Self {
        Self {
            bytes,
            checksum: None,
        }
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened")
            .field("checksum", &self.checksum)
            .finish_non_exhaustive()
    }
}

/// What a write reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Bytes written, as counted by the plugin.
    pub size: u64,
    /// The new version, where the server tells.
    pub version: Option<Version>,
    /// The checksum the server computed, where it tells.
    pub checksum: Option<Checksum>,
}

/// A place in a file system of this machine, below a root that it cannot leave.
#[derive(Clone, Debug)]
pub struct LocalPath {
    /// The directory the operator mapped.
    pub root: Arc<Root>,
    /// The path below it.
    pub path: RelPath,
}

impl LocalPath {
    /// Its address as a `file:` URL, for messages.
    pub fn url(&self) -> StorageUrl {
        StorageUrl::from_path(&self.root.path().join(self.path.as_path()))
    }
}

/// Entries as they arrive.
pub type EntryStream = BoxStream<'static, Result<Entry>>;
/// Bytes as they arrive. The stream ends with the range; an early end is an `Err` item.
pub type ByteStream = BoxStream<'static, Result<Bytes>>;
