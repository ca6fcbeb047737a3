//! From a storage to a file of this machine.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use futures_util::stream::{FuturesUnordered, TryStreamExt as _};

use super::placing::Placing;
use super::progress::Progress;
use super::read::{Reader, RemoteFile};
use super::retry::Retry;
use super::verify::{Hasher, check};
use super::{Engine, Moved};
use crate::rooted::TempFile;
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

    /// `told` is the mode that the storage tells.
    fn open(to: &LocalPath, placing: Placing, told: Option<u32>) -> io::Result<Self> {
        let LocalPath { root, path } = to;
        let (mode, directory_mode) = (placing.file_mode(told), placing.directory_mode());
        if placing != Placing::InPlace {
            let temp = root.create_replacement(path, mode, directory_mode)?;
            return Ok(Self::Temp(temp));
        }
        let parent = path.parent().ok_or_else(|| {
            let message = "is the root directory";
            io::Error::new(io::ErrorKind::IsADirectory, message)
        })?;
        root.create_dir_all(&parent, directory_mode)?;
        let file = root.create_file(path, mode)?;
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
        placing: Placing,
    ) -> Result<Moved> {
        let mut retry = Retry::new(&self.settings);
        loop {
            match self
                .try_fetch(storage, url, known.take(), to, placing)
                .await
            {
                Ok(size) => {
                    return Ok(Moved {
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
        placing: Placing,
    ) -> Result<u64> {
        let progress = Progress::new(&self.counters);
        let cannot_write = |e| Error::io(&to.url(), "cannot be written", e);
        if let Some(from) = storage.local_path(url) {
            let source = blocking(move || Source::local(&from)).await;
            let source = source.map_err(|e| Error::io(url, "cannot be fetched", e))?;
            progress.expect(source.size());
            let source = source.with_meter(progress.clone());
            if let Some(content) = source.content() {
                let (told, content) = (source.mode(), content.into());
                let written = self.write_small(to, placing, told, content).await;
                written.map_err(cannot_write)?;
            } else {
                let target = open_target(to, placing, source.mode()).await;
                let target = target.map_err(cannot_write)?;
                let permit = self.limits.stream(&[]).await;
                source.copy_to(target.file(), &to.url()).await?;
                drop(permit);
                target.place(source.size()).await.map_err(cannot_write)?;
            }
            progress.keep();
            return Ok(source.size());
        }
        let range_size = self.settings.range_size();
        let in_ranges = |info: &FileInfo| info.size.is_some_and(|size| size >= 2 * range_size);
        // Ranges do not bring the checksum of the whole: one look, which costs little then.
        let is_enough =
            |info: &FileInfo| info.checksum.is_some() || !self.settings.verify || !in_ranges(info);
        let info = match known.filter(is_enough) {
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
            let told = file.info.mode;
            let written = self.write_small(to, placing, told, content).await;
            written.map_err(cannot_write)?;
            progress.keep();
            return Ok(size);
        }
        // A range that is given up may still have a write on its way, which a next try in the same
        // file would not be safe from.
        let may_mix = placing == Placing::InPlace;
        let target = open_target(to, placing, file.info.mode).await;
        let target = target.map_err(cannot_write)?;
        let into = Shared::new(target.file());
        let size = match file.info.size {
            Some(size) if in_ranges(&file.info) && file.is_resumable() && !may_mix => {
                self.fetch_ranges(&file, size, &into, to, &progress).await?;
                self.check_written(&file, size, target.file()).await?;
                size
            }
            _ => {
                let _permit = self.limits.stream(&[url]).await;
                let reader = Reader::new(&file, &self.settings, ByteRange::FULL);
                self.pump(reader, &into, 0, to, &progress).await?
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
        let mut reader = Reader::new(file, &self.settings, ByteRange::FULL);
        let mut content = Vec::new();
        while let Some(chunk) = reader.next().await? {
            progress.moved(chunk.len() as u64);
            content.extend_from_slice(&chunk);
        }
        let mut hasher = Hasher::like(reader.wanted());
        hasher.update(&content);
        hasher.check(&file.url, reader.wanted())?;
        Ok(content)
    }

    /// Writes a file whose whole content is in memory: all at once, because going to another
    /// thread and back takes longer than any step of it.
    async fn write_small(
        &self,
        to: &LocalPath,
        placing: Placing,
        told: Option<u32>,
        content: Vec<u8>,
    ) -> io::Result<()> {
        let to = to.clone();
        let writing = self.short.blocking(move || {
            let target = Target::open(&to, placing, told)?;
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
        let entry = self.request(url, || storage.stat(url)).await?;
        match entry.map(|entry| entry.kind) {
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

    /// Moves everything that `reader` reads into `file` from `at` on; how much it was. A whole
    /// file is compared with its checksum.
    async fn pump(
        &self,
        mut reader: Reader,
        file: &Arc<Shared>,
        at: u64,
        to: &LocalPath,
        progress: &Progress,
    ) -> Result<u64> {
        let cannot_write = |e| Error::io(&to.url(), "cannot be written", e);
        let mut writer: Option<Writer<Hasher>> = None;
        let mut size = 0;
        loop {
            let chunk = match reader.next().await {
                Ok(chunk) => chunk,
                Err(error) => {
                    // Written in place the next try uses the same file: nothing of this one
                    // may still be on its way there.
                    if let Some(writer) = writer {
                        let _ = writer.finish().await;
                    }
                    return Err(error);
                }
            };
            // What the reply tells is known now.
            let wanted = reader.wanted().filter(|_| reader.is_whole());
            let new = || Writer::new(file.clone(), at, Hasher::like(wanted));
            let Some(chunk) = chunk else {
                let hasher = writer.unwrap_or_else(new).finish().await;
                hasher.map_err(cannot_write)?.check(reader.url(), wanted)?;
                return Ok(size);
            };
            size += chunk.len() as u64;
            progress.moved(chunk.len() as u64);
            let writer = writer.get_or_insert_with(new);
            writer.push(chunk).await.map_err(cannot_write)?;
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
            self.pump(reader, into, at, to, progress).await
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
        let wanted = file.wanted(&self.settings);
        if wanted.is_none() {
            return Ok(());
        }
        let stream = read_file(&file.url, written.clone(), 0..size);
        check(&file.url, stream, wanted).await
    }
}

/// Opens what the file is written to; parents are made.
async fn open_target(to: &LocalPath, placing: Placing, told: Option<u32>) -> io::Result<Target> {
    let to = to.clone();
    blocking(move || Target::open(&to, placing, told)).await
}
