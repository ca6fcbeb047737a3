//! From a file, or another storage, to a storage.

use std::sync::Arc;

use futures_util::stream::{FuturesUnordered, TryStreamExt as _};

use super::placing::Placing;
use super::progress::Progress;
use super::read::{RemoteFile, Resuming};
use super::retry::{Retry, in_time, watched};
use super::verify::{Hasher, check};
use super::{Engine, Moved, Settings};
use crate::rooted::{RelPath, Root, Symlinks, temp_name};
use crate::storage::cleanup::Undo;
use crate::storage::turns::Turns;
use crate::storage::{
    ByteRange, Entry, EntryKind, Error, ErrorKind, LocalPath, Result, Source, Storage, StorageUrl,
    Upload, Written,
};

impl Engine {
    /// Writes `source` to `url` and makes sure that it arrived. `from` is where the source lies,
    /// if that is another storage.
    pub(super) async fn store(
        &self,
        source: &Source,
        from: Option<&Resuming>,
        storage: &Arc<dyn Storage>,
        url: &StorageUrl,
    ) -> Result<Moved> {
        let claims = storage.capabilities();
        if !claims.write {
            return Err(Error::unsupported(url, "writing"));
        }
        let size = source.size();
        if let Some(most) = claims.max_file_size.filter(|most| size > *most) {
            let message = format!("{size} bytes are more than this storage can hold ({most})");
            return Err(Error::new(ErrorKind::Invalid, url, message));
        }
        let mut retry = Retry::new(&self.settings);
        loop {
            match self.try_store(source, from, storage, url).await {
                Ok(()) => break,
                Err(error) => retry.after(error.scrubbed(url)).await?,
            }
        }
        Ok(Moved {
            url: url.to_string(),
            size,
        })
    }

    async fn try_store(
        &self,
        source: &Source,
        from: Option<&Resuming>,
        storage: &Arc<dyn Storage>,
        url: &StorageUrl,
    ) -> Result<()> {
        let claims = storage.capabilities();
        // What others can see of a write that is not atomic is a file of another name.
        let is_seen = claims.rename && !claims.atomic_write;
        let temporary = is_seen.then(|| url.sibling(&temp_name()));
        let undo = temporary.as_ref().filter(|_| claims.remove).map(|url| {
            let remove = || {
                let (storage, settings) = (storage.clone(), self.settings.clone());
                let url = url.clone();
                async move { remove(&*storage, &url, &settings).await }
            };
            Undo::new(remove()).and_late(remove())
        });
        let target = temporary.as_ref().unwrap_or(url);
        let progress = Progress::new(&self.counters);
        progress.expect(source.size());
        let done = async {
            let written = self.write(source, from, storage, target, &progress).await?;
            self.check_stored(source, storage, target, &written).await?;
            if is_seen {
                in_time(&self.settings, url, storage.rename(target, url)).await?;
            }
            Ok(())
        }
        .await;
        if done.is_ok() {
            progress.keep();
        }
        match undo {
            Some(undo) => undo.unless_ok(done).await,
            None => done,
        }
    }

    async fn write(
        &self,
        source: &Source,
        from: Option<&Resuming>,
        storage: &Arc<dyn Storage>,
        url: &StorageUrl,
        progress: &Arc<Progress>,
    ) -> Result<Written> {
        let mut hosts = vec![url];
        hosts.extend(from.map(Resuming::url));
        if storage.capabilities().parts {
            let upload = self.request(url, || storage.begin_upload(url, source.size()));
            let upload = upload.await?;
            let together = match from {
                Some(from) if from.is_in_order() => 1,
                _ => self.settings.parallel_ranges.max(1),
            };
            let upload_all = self.upload(&*upload, source, url, &hosts, together, progress);
            let done = upload_all.await;
            if done.is_err()
                && let Err(error) = in_time(&self.settings, url, upload.abort()).await
            {
                tracing::warn!(%error, "parts of an upload were left behind");
            }
            return done;
        }
        let _permit = self.limits.stream(&hosts).await;
        let metered = source.clone().with_meter(progress.clone());
        let writing = storage.write(url, &metered);
        self.watched(url, source.size(), progress, writing).await
    }

    /// Sends all parts, so many at the same time, each with its own retries.
    async fn upload(
        &self,
        upload: &dyn Upload,
        source: &Source,
        url: &StorageUrl,
        hosts: &[&StorageUrl],
        together: usize,
        progress: &Arc<Progress>,
    ) -> Result<Written> {
        let size = upload.part_size().max(1);
        let memory = upload.part_memory(source);
        let one = |index: u64| async move {
            let mut retry = Retry::new(&self.settings);
            loop {
                let _permit = self.limits.buffered(hosts, memory).await;
                let progress = progress.part();
                let metered = source.clone().with_meter(progress.clone());
                let expected = size.min(source.size().saturating_sub(index * size));
                let sending = upload.part(index, &metered);
                match self.watched(url, expected, &progress, sending).await {
                    Ok(()) => {
                        progress.keep();
                        return Ok(());
                    }
                    Err(error) => {
                        drop((metered, progress));
                        retry.after(error).await?;
                    }
                }
            }
        };
        // An empty file has one part, which is empty.
        let mut parts = 0..source.size().div_ceil(size).max(1);
        let mut running = FuturesUnordered::new();
        running.extend(parts.by_ref().take(together).map(one));
        while running.try_next().await?.is_some() {
            running.extend(parts.next().map(one));
        }
        let mut retry = Retry::new(&self.settings);
        loop {
            // Some uploads send everything only now.
            let permit = self.limits.buffered(hosts, memory).await;
            let completing = upload.complete();
            let done = self.watched(url, source.size(), progress, completing);
            let done = done.await;
            drop(permit);
            match done {
                Ok(written) => return Ok(written),
                Err(error) => retry.after(error).await?,
            }
        }
    }

    /// Runs a write as long as bytes move, and then as long as a commit may take.
    async fn watched<T>(
        &self,
        url: &StorageUrl,
        size: u64,
        progress: &Progress,
        writing: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let limit = || {
            if progress.so_far() >= size {
                self.settings.commit_timeout()
            } else {
                self.settings.progress_timeout()
            }
        };
        watched(&Turns::current(), url, limit, || progress.life(), writing).await
    }

    async fn check_stored(
        &self,
        source: &Source,
        storage: &Arc<dyn Storage>,
        url: &StorageUrl,
        written: &Written,
    ) -> Result<()> {
        let corrupt = |found: u64| {
            let size = source.size();
            let message = format!("{found} bytes are there, but {size} were to be written");
            Err(Error::new(ErrorKind::Corrupt, url, message))
        };
        if written.size != source.size() {
            return corrupt(written.size);
        }
        let mut checksum = written.checksum.clone();
        if !storage.capabilities().atomic_write {
            // The protocol itself does not tell a whole file from a part of one.
            match in_time(&self.settings, url, storage.stat(url)).await {
                Ok(Some(Entry {
                    kind: EntryKind::File(info),
                    ..
                })) => {
                    if let Some(found) = info.size.filter(|found| *found != source.size()) {
                        return corrupt(found);
                    }
                    checksum = checksum.or(info.checksum);
                }
                Ok(_) => return corrupt(0),
                // Who may write may not always look: a signed address is good for one thing.
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::Denied | ErrorKind::Unauthenticated | ErrorKind::Unsupported
                    ) => {}
                Err(error) => return Err(error),
            }
        }
        let wanted = checksum.as_ref().filter(|_| self.settings.verify);
        if wanted.is_none() {
            return Ok(());
        }
        check(url, source.read(ByteRange::FULL).await?, wanted).await
    }

    pub(super) async fn copy_between(&self, from: &StorageUrl, to: &StorageUrl) -> Result<Moved> {
        let source = self.registry.route(from)?;
        let target = self.registry.route(to)?;
        if !target.capabilities().write {
            return Err(Error::unsupported(to, "writing"));
        }
        if let Some(local) = source.local_path(from) {
            return self.store_local(&local, from, &target, to).await;
        }
        let info = self.file_info(&source, from).await?;
        let Some(size) = info.size else {
            // Protocols want to know the size before the first byte.
            let directory = Root::open(std::env::temp_dir(), Symlinks::Beneath);
            let local = LocalPath {
                root: Arc::new(directory.map_err(|e| Error::io(from, "cannot be kept", e))?),
                path: RelPath::new(temp_name()).unwrap_or_default(),
            };
            let _removed = RemoveOnDrop(local.clone());
            let mode = info.mode;
            self.fetch(&source, from, Some(info), &local, Placing::Kept)
                .await?;
            let source = self.open_local(&local, from).await?;
            return self.store(&source.with_mode(mode), None, &target, to).await;
        };
        let (mode, version) = (info.mode, info.version.clone());
        let file = RemoteFile {
            storage: source,
            url: from.clone(),
            info,
        };
        if size == 0 {
            // Nothing is read, but something may be told.
            let wanted = file.wanted(&self.settings);
            Hasher::like(wanted).check(from, wanted)?;
        }
        let resuming = Arc::new(Resuming::new(file, &self.settings));
        let source = Source::storage(resuming.clone(), from.clone(), size, version);
        self.store(&source.with_mode(mode), Some(&resuming), &target, to)
            .await
    }

    pub(super) async fn store_from(&self, from: &LocalPath, url: &StorageUrl) -> Result<Moved> {
        let storage = self.registry.route(url)?;
        self.store_local(from, &from.url(), &storage, url).await
    }

    /// `named` is the address of the local file in messages.
    pub(super) async fn store_local(
        &self,
        from: &LocalPath,
        named: &StorageUrl,
        storage: &Arc<dyn Storage>,
        url: &StorageUrl,
    ) -> Result<Moved> {
        let source = self.open_local(from, named).await?;
        self.store(&source, None, storage, url).await
    }

    async fn open_local(&self, from: &LocalPath, named: &StorageUrl) -> Result<Source> {
        let local = from.clone();
        let opening = self.short.blocking(move || Source::local(&local));
        let source = opening.await;
        source.map_err(|e| Error::io(named, "cannot be read", e))
    }
}

/// The first error is the one to tell; this one is only logged.
async fn remove(storage: &dyn Storage, url: &StorageUrl, settings: &Settings) {
    if let Err(error) = in_time(settings, url, storage.remove(url)).await {
        tracing::warn!(%error, "a temporary file was left behind");
    }
}

struct RemoveOnDrop(LocalPath);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        let _ = self.0.root.remove(&self.0.path);
    }
}
