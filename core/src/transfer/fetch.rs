//! From a storage to a file of this machine.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use futures_util::stream::{FuturesUnordered, TryStreamExt as _};

use super::progress::Progress;
use super::read::{Reader, RemoteFile};
use super::retry::{Retry, with_retries};
use super::verify::Hasher;
use super::{Engine, FETCHED_MODE, Moved};
use crate::rooted::{RelPath, Root, TempFile};
use crate::storage::file::{Shared, Sink as _, Writer, blocking, read_file};
use crate::storage::source::{Meter as _, SMALL};
use crate::storage::{
    ByteRange, EntryKind, Error, ErrorKind, FileInfo, LocalPath, Result, Source, Storage,
    StorageUrl,
};

/// Where a file is written to until it is whole.
enum Target {
    Temp(TempFile),
    InPlace(Arc<File>),
}

impl Target {
    fn file(&self) -> &Arc<File> {
        match self {
            Self::Temp(temp) => temp.file(),
            Self::InPlace(file) => file,
        }
    }

    fn open(LocalPath { root, path }: &LocalPath, in_place: bool) -> io::Result<Self> {
        if !in_place {
            let temp = root.create_replacement(path, FETCHED_MODE, FETCHED_MODE)?;
            return Ok(Self::Temp(temp));
        }
        make_parents(root, path)?;
        let file = root.create_file(path, FETCHED_MODE)?;
        Ok(Self::InPlace(Arc::new(file)))
    }

    /// Compares the size once more, with what the file system says, and gives the file its name.
    fn check_and_keep(self, size: u64) -> io::Result<()> {
        let found = self.file().metadata()?.len();
        if found != size {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("it has {found} bytes, but {size} were written"),
            ));
        }
        match self {
            Self::Temp(temp) => temp.keep().map(drop),
            Self::InPlace(_) => Ok(()),
        }
    }

    async fn place(self, size: u64) -> io::Result<()> {
        blocking(move || self.check_and_keep(size)).await
    }
}

impl Engine {
    /// Fetches one file. `known` is what a listing told of it, which spares a request.
    pub(super) async fn fetch(
        &self,
        storage: &Arc<dyn Storage>,
        url: &StorageUrl,
        mut known: Option<FileInfo>,
        to: &LocalPath,
        in_place: bool,
    ) -> Result<Moved> {
        let mut retry = Retry::new(&self.settings);
        loop {
            match self
                .try_fetch(storage, url, known.take(), to, in_place)
                .await
            {
                Ok(size) => {
                    return Ok(Moved {
                        path: RelPath::default(),
                        url: url.to_string(),
                        size,
                    });
                }
                Err(error) => retry.after(error).await?,
            }
        }
    }

    async fn try_fetch(
        &self,
        storage: &Arc<dyn Storage>,
        url: &StorageUrl,
        known: Option<FileInfo>,
        to: &LocalPath,
        in_place: bool,
    ) -> Result<u64> {
        let progress = Progress::new(&self.counters);
        let cannot_write = |e| Error::io(&to.url(), "cannot be written", e);
        if let Some(from) = storage.local_path(url) {
            let source = blocking(move || Source::local(&from)).await;
            let source = source.map_err(|e| Error::io(url, "cannot be fetched", e))?;
            progress.expect(source.size());
            let source = source.with_meter(progress.clone());
            if let Some(content) = source.content() {
                let written = self.write_small(to, in_place, content.into()).await;
                written.map_err(cannot_write)?;
            } else {
                let target = open_target(to, in_place).await.map_err(cannot_write)?;
                let permit = self.limits.stream(&[]).await;
                source.copy_to(target.file(), &to.url()).await?;
                drop(permit);
                target.place(source.size()).await.map_err(cannot_write)?;
            }
            progress.keep();
            return Ok(source.size());
        }
        let info = match known {
            Some(info) => info,
            None => self.file_info(storage, url).await?,
        };
        progress.expect(info.size.unwrap_or_default());
        let file = Arc::new(RemoteFile {
            storage: storage.clone(),
            url: url.clone(),
            info,
        });
        if file.info.size.is_some_and(|size| size <= SMALL) {
            let content = self.read_small(&file, &progress).await?;
            let size = content.len() as u64;
            let written = self.write_small(to, in_place, content).await;
            written.map_err(cannot_write)?;
            progress.keep();
            return Ok(size);
        }
        let target = open_target(to, in_place).await.map_err(cannot_write)?;
        let into = Shared::new(target.file());
        let size = match file.info.size {
            Some(size) if size >= 2 * self.settings.range_size() && file.is_resumable() => {
                self.fetch_ranges(&file, size, &into, to, &progress).await?;
                self.check_written(&file, size, target.file()).await?;
                size
            }
            _ => {
                let _permit = self.limits.stream(&[url]).await;
                let wanted = file.info.checksum.as_ref().filter(|_| self.settings.verify);
                let reader = Reader::new(&file, &self.settings, ByteRange::FULL);
                let hasher = Hasher::like(wanted);
                let (hasher, size) = self.pump(reader, &into, 0, hasher, to, &progress).await?;
                hasher.check(url, wanted)?;
                size
            }
        };
        if file.info.size.is_none() {
            progress.expect(size);
        }
        target.place(size).await.map_err(cannot_write)?;
        progress.keep();
        Ok(size)
    }

    /// The whole of a small file.
    async fn read_small(&self, file: &Arc<RemoteFile>, progress: &Progress) -> Result<Vec<u8>> {
        let _permit = self.limits.stream(&[&file.url]).await;
        let wanted = file.info.checksum.as_ref().filter(|_| self.settings.verify);
        let mut hasher = Hasher::like(wanted);
        let mut reader = Reader::new(file, &self.settings, ByteRange::FULL);
        let mut content = Vec::new();
        while let Some(chunk) = reader.next().await? {
            progress.moved(chunk.len() as u64);
            hasher.update(&chunk);
            content.extend_from_slice(&chunk);
        }
        hasher.check(&file.url, wanted)?;
        Ok(content)
    }

    /// Writes a file whose whole content is in memory: all at once, because going to another
    /// thread and back takes longer than any step of it.
    async fn write_small(
        &self,
        to: &LocalPath,
        in_place: bool,
        content: Vec<u8>,
    ) -> io::Result<()> {
        let to = to.clone();
        let writing = self.short.blocking(move || {
            let target = Target::open(&to, in_place)?;
            target.file().write_all_at(&content, 0)?;
            target.check_and_keep(content.len() as u64)
        });
        writing.await
    }

    /// What is known of the file at `url`, which must be one.
    pub(super) async fn file_info(
        &self,
        storage: &Arc<dyn Storage>,
        url: &StorageUrl,
    ) -> Result<FileInfo> {
        let entry = with_retries(&self.settings, url, || async {
            let _permit = self.limits.stream(&[url]).await;
            storage.stat(url).await
        });
        match entry.await?.map(|entry| entry.kind) {
            Some(EntryKind::File(info)) => Ok(info),
            Some(EntryKind::Directory) => Err(Error::new(
                ErrorKind::Invalid,
                url,
                "is a directory, but a file is expected",
            )),
            None => Err(Error::new(
                ErrorKind::NotFound,
                url,
                "there is no such file",
            )),
        }
    }

    /// Moves everything that `reader` reads into `file` from `at` on; how much it was.
    async fn pump(
        &self,
        mut reader: Reader,
        file: &Arc<Shared>,
        at: u64,
        hasher: Hasher,
        to: &LocalPath,
        progress: &Progress,
    ) -> Result<(Hasher, u64)> {
        let cannot_write = |e| Error::io(&to.url(), "cannot be written", e);
        let mut writer = Writer::new(file.clone(), at, hasher);
        let mut size = 0;
        loop {
            match reader.next().await {
                Ok(Some(chunk)) => {
                    size += chunk.len() as u64;
                    progress.moved(chunk.len() as u64);
                    writer.push(chunk).await.map_err(cannot_write)?;
                }
                Ok(None) => {
                    let hasher = writer.finish().await.map_err(cannot_write)?;
                    return Ok((hasher, size));
                }
                Err(error) => {
                    // Written in place the next try uses the same file: nothing of this one
                    // may still be on its way there.
                    let _ = writer.finish().await;
                    return Err(error);
                }
            }
        }
    }

    /// Several ranges at the same time, each with its own retries.
    async fn fetch_ranges(
        &self,
        file: &Arc<RemoteFile>,
        size: u64,
        into: &Arc<Shared>,
        to: &LocalPath,
        progress: &Progress,
    ) -> Result<()> {
        let step = self.settings.range_size();
        let mut ranges = (0..size)
            .step_by(usize::try_from(step).unwrap_or(usize::MAX))
            .map(|start| start..size.min(start.saturating_add(step)));
        let one = |range: std::ops::Range<u64>| async move {
            let _permit = self.limits.stream(&[&file.url]).await;
            let at = range.start;
            let reader = Reader::new(file, &self.settings, range.into());
            self.pump(reader, into, at, Hasher::Nothing, to, progress)
                .await
        };
        let mut running = FuturesUnordered::new();
        running.extend(
            ranges
                .by_ref()
                .take(self.settings.parallel_ranges.max(1))
                .map(one),
        );
        while running.try_next().await?.is_some() {
            running.extend(ranges.next().map(one));
        }
        Ok(())
    }

    /// Ranges arrive in no order: a checksum is computed by reading the file again, which is
    /// still in memory for the most part.
    async fn check_written(&self, file: &RemoteFile, size: u64, written: &Arc<File>) -> Result<()> {
        let wanted = file.info.checksum.as_ref().filter(|_| self.settings.verify);
        if wanted.is_none() {
            return Ok(());
        }
        let mut stream = read_file(&file.url, written.clone(), 0..size);
        let mut hasher = Hasher::like(wanted);
        while let Some(chunk) = stream.try_next().await? {
            hasher = blocking(move || {
                hasher.update(&chunk);
                Ok(hasher)
            })
            .await
            .map_err(|e| Error::io(&file.url, "cannot be verified", e))?;
        }
        hasher.check(&file.url, wanted)
    }
}

/// Opens what the file is written to; parents are made.
async fn open_target(to: &LocalPath, in_place: bool) -> io::Result<Target> {
    let to = to.clone();
    blocking(move || Target::open(&to, in_place)).await
}

fn make_parents(root: &Root, path: &RelPath) -> io::Result<()> {
    match path.parent() {
        Some(parent) => root.create_dir_all(&parent, FETCHED_MODE),
        None => Err(io::Error::new(
            io::ErrorKind::IsADirectory,
            "is the root directory",
        )),
    }
}
