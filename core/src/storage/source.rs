//! Bytes to be written that can be read again, from any offset, as often as needed.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};

use super::file::{self, CHUNK, Shared, Writer};
use super::{
    ByteRange, ByteStream, Error, ErrorKind, LocalPath, Result, Storage, StorageUrl, Version,
};
use crate::rooted::copy_contents;

/// The most bytes of a file that are read together with its opening.
pub(crate) const SMALL: u64 = 64 << 10;

/// What a plugin is asked to write: of known size, and reopenable, so that a failed write can
/// be tried again.
#[derive(Clone, Debug)]
pub struct Source {
    size: u64,
    mode: Option<u32>,
    origin: Origin,
    meter: Option<Arc<dyn Meter>>,
    inspected: bool,
}

#[derive(Clone, Debug)]
enum Origin {
    Bytes(Bytes),
    Local {
        file: Arc<File>,
        url: StorageUrl,
        /// Of a small one.
        content: Option<Bytes>,
    },
    Storage {
        storage: Arc<dyn Storage>,
        url: StorageUrl,
        version: Option<Version>,
    },
}

/// Hears how many bytes were handed out, as they are.
pub(crate) trait Meter: std::fmt::Debug + Send + Sync {
    /// So many more.
    fn moved(&self, bytes: u64);

    /// So many were looked at, and come again.
    fn inspected(&self, bytes: u64);
}

impl Source {
    /// Bytes in memory.
    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self::new(bytes.len() as u64, Origin::Bytes(bytes))
    }

    /// A file of this machine, of the size and mode it has now. It stays open, so that every
    /// reading is of the same file, even if another takes its name. A small one is read now, and
    /// stays as it is.
    pub fn local(path: &LocalPath) -> io::Result<Self> {
        let (file, found) = path.root.open_regular(&path.path)?;
        let content = if found.len() <= SMALL {
            let mut content = vec![0; found.len() as usize];
            file.read_exact_at(&mut content, 0)?;
            Some(content.into())
        } else {
            None
        };
        let origin = Origin::Local {
            file: Arc::new(file),
            url: path.url(),
            content,
        };
        let mode = Some(found.permissions().mode() & 0o7777);
        Ok(Self {
            mode,
            ..Self::new(found.len(), origin)
        })
    }

    /// A file in another storage.
    pub fn storage(
        storage: Arc<dyn Storage>,
        url: StorageUrl,
        size: u64,
        version: Option<Version>,
    ) -> Self {
        let origin = Origin::Storage {
            storage,
            url,
            version,
        };
        Self::new(size, origin)
    }

    fn new(size: u64, origin: Origin) -> Self {
        Self {
            size,
            mode: None,
            origin,
            meter: None,
            inspected: false,
        }
    }

    /// The same with other permission bits.
    #[must_use]
    pub fn with_mode(self, mode: Option<u32>) -> Self {
        Self { mode, ..self }
    }

    pub(crate) fn with_meter(self, meter: Arc<dyn Meter>) -> Self {
        let meter = Some(meter);
        Self { meter, ..self }
    }

    /// The same for a plugin that has to look at the bytes before it sends them: what is read of
    /// it shows that the transfer is alive, but does not count as moved.
    #[must_use]
    pub fn inspected(&self) -> Self {
        Self {
            inspected: true,
            ..self.clone()
        }
    }

    /// Bytes in all.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Unix permission bits, where they are known.
    pub fn mode(&self) -> Option<u32> {
        self.mode
    }

    /// The whole content, where it is in memory already: of what is small. Counts as read.
    pub fn content(&self) -> Option<Bytes> {
        let content = match &self.origin {
            Origin::Bytes(bytes) => bytes,
            Origin::Local { content, .. } => content.as_ref()?,
            Origin::Storage { .. } => return None,
        };
        if let Some(meter) = &self.meter {
            meter.moved(content.len() as u64);
        }
        Some(content.clone())
    }

    /// The open local file, if it is one.
    pub fn local_file(&self) -> Option<&Arc<File>> {
        match &self.origin {
            Origin::Local { file, .. } => Some(file),
            _ => None,
        }
    }

    /// The bytes `range`, in chunks of 1 MiB at most. A source that has become shorter, or has
    /// changed where its storage can tell, is [`ErrorKind::Corrupt`]; so is a range beyond
    /// [`Source::size`].
    pub async fn read(&self, range: ByteRange) -> Result<ByteStream> {
        let range = range.start..range.end.unwrap_or(self.size);
        if range.start > range.end || range.end > self.size {
            return Err(Error::new(
                ErrorKind::Corrupt,
                self.origin.url().unwrap_or(&StorageUrl::nowhere()),
                format!(
                    "the bytes {}..{} of {} were asked for",
                    range.start, range.end, self.size
                ),
            )
            .with_retryable(false));
        }
        let stream = match &self.origin {
            Origin::Bytes(bytes)
            | Origin::Local {
                content: Some(bytes),
                ..
            } => {
                let bytes = bytes.slice(range.start as usize..range.end as usize);
                chunks(bytes).boxed()
            }
            Origin::Local { file, url, .. } => file::read_file(url, file.clone(), range),
            // Some plugins would have to open a connection for no bytes at all.
            Origin::Storage { .. } if range.is_empty() => stream::empty().boxed(),
            Origin::Storage {
                storage,
                url,
                version,
            } => {
                let opened = storage.read(url, range.into(), version.as_ref()).await?;
                opened
                    .bytes
                    .flat_map(|chunk| match chunk {
                        Ok(chunk) => chunks(chunk).left_stream(),
                        Err(error) => stream::iter([Err(error)]).right_stream(),
                    })
                    .boxed()
            }
        };
        let Some(meter) = self.meter.clone() else {
            return Ok(stream);
        };
        let inspected = self.inspected;
        Ok(stream
            .inspect(move |chunk| match chunk {
                Ok(chunk) if inspected => meter.inspected(chunk.len() as u64),
                Ok(chunk) => meter.moved(chunk.len() as u64),
                Err(_) => {}
            })
            .boxed())
    }

    /// Writes the whole to the start of the open, empty file `to` (for plugins whose storage is
    /// a file system): inside the kernel where the source is a local file.
    ///
    /// `url` is where `to` lies, for messages. Stops soon after its future is dropped.
    pub async fn copy_to(&self, to: &Arc<File>, url: &StorageUrl) -> Result<()> {
        let cannot_write = |e| Error::io(url, "cannot be written", e);
        if let Some(content) = self.content() {
            let to = to.clone();
            let written = tokio::task::spawn_blocking(move || to.write_all_at(&content, 0)).await;
            return written
                .unwrap_or_else(|e| Err(io::Error::other(e)))
                .map_err(cannot_write);
        }
        let Some(from) = self.local_file().cloned() else {
            let mut writer = Writer::new(Shared::new(to), 0, ());
            let mut stream = self.read(ByteRange::FULL).await?;
            while let Some(chunk) = stream.next().await {
                writer.push(chunk?).await.map_err(cannot_write)?;
            }
            writer.finish().await.map_err(cannot_write)?;
            return Ok(());
        };
        let dropped = StopOnDrop(Arc::default());
        let (stop, meter) = (dropped.0.clone(), self.meter.clone());
        let (to, size) = (to.clone(), self.size);
        tokio::task::spawn_blocking(move || {
            copy_contents(&from, &to, size, |bytes| {
                if let Some(meter) = &meter {
                    meter.moved(bytes);
                }
                if stop.load(Ordering::Relaxed) {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })
        })
        .await
        .unwrap_or_else(|e| Err(io::Error::other(e)))
        .map_err(cannot_write)
    }
}

impl Origin {
    fn url(&self) -> Option<&StorageUrl> {
        match self {
            Self::Bytes(_) => None,
            Self::Local { url, .. } | Self::Storage { url, .. } => Some(url),
        }
    }
}

struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn chunks(mut bytes: Bytes) -> impl stream::Stream<Item = Result<Bytes>> + Send + use<> {
    stream::iter(std::iter::from_fn(move || {
        let chunk = bytes.split_to(bytes.len().min(CHUNK));
        (!chunk.is_empty()).then_some(Ok(chunk))
    }))
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt as _;

    use super::*;
    use crate::rooted::{RelPath, Root, Symlinks};

    async fn read(source: &Source, range: impl Into<ByteRange>) -> Result<Vec<u8>> {
        let mut stream = source.read(range.into()).await?;
        let mut all = Vec::new();
        while let Some(chunk) = stream.try_next().await? {
            assert!(chunk.len() <= CHUNK);
            all.extend_from_slice(&chunk);
        }
        Ok(all)
    }

    fn local(content: &[u8]) -> (tempfile::TempDir, LocalPath) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), content).unwrap();
        let root = Arc::new(Root::open(dir.path(), Symlinks::Beneath).unwrap());
        let path = RelPath::new("f").unwrap();
        (dir, LocalPath { root, path })
    }

    #[tokio::test]
    async fn any_range_can_be_read_again_and_again() {
        let content: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
        let (_dir, path) = local(&content);
        for source in [
            Source::bytes(content.clone()),
            Source::local(&path).unwrap(),
        ] {
            for range in [
                0..0,
                0..1,
                1_048_575..1_048_577,
                2_999_999..3_000_000,
                0..3_000_000,
            ] {
                let expected = &content[range.start as usize..range.end as usize];
                assert!(
                    read(&source, range.clone()).await.unwrap() == expected,
                    "{range:?}"
                );
            }
            assert!(read(&source, 0..3_000_001).await.is_err());
        }
    }

    #[tokio::test]
    async fn a_local_file_that_became_shorter_is_an_error() {
        let (dir, path) = local(&vec![7; SMALL as usize + 1]);
        let source = Source::local(&path).unwrap();
        std::fs::write(dir.path().join("f"), "01234").unwrap();
        let error = read(&source, ByteRange::FULL).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }

    #[tokio::test]
    async fn a_local_file_that_was_replaced_is_still_read_as_it_was() {
        for size in [3, SMALL as usize + 1] {
            let old = vec![7; size];
            let (dir, path) = local(&old);
            let source = Source::local(&path).unwrap();
            std::fs::write(dir.path().join("new"), "NEW").unwrap();
            std::fs::rename(dir.path().join("new"), dir.path().join("f")).unwrap();
            assert!(
                read(&source, ByteRange::FULL).await.unwrap() == old,
                "{size}"
            );
        }
    }

    #[tokio::test]
    async fn a_source_is_copied_whole_into_an_open_file() {
        let content = vec![7; 2_500_000];
        let (dir, path) = local(&content);
        let to = "/to".parse().unwrap();
        for source in [
            Source::bytes(content.clone()),
            Source::local(&path).unwrap(),
        ] {
            let file = Arc::new(File::create(dir.path().join("to")).unwrap());
            source.copy_to(&file, &to).await.unwrap();
            assert!(std::fs::read(dir.path().join("to")).unwrap() == content);
        }
    }
}
