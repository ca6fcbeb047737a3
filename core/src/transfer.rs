//! The engine that moves files through any [`Storage`](crate::storage::Storage).
//!
//! Plugins speak a protocol; everything that all of them would get wrong in their own way is
//! here, once:
//!
//! - **Retries** with exponential backoff and jitter, for errors that a plugin calls retryable.
//! - **Timeouts** on progress, not on transfers: 1 TB may take a day, silence may not.
//! - **Resume** at the byte reached where a storage reads ranges and tells versions apart; a file
//!   that changes midway is begun anew, never mixed.
//! - **Parallel** files, ranges of large files, and parts of uploads, within limits for memory
//!   and for connections to a host that all transfers of an engine share.
//! - **Nothing half-done is visible**: local files get their name when they are whole;
//!   remote ones too, where a storage writes in place but can rename.
//! - **Verification**: the size always; a checksum where the storage tells one (MD5, SHA-256, CRCs),
//!   with a look at the file or with its bytes, except for copies inside this machine's kernel. One
//!   stream is hashed as it is written; ranges and uploads are read once more, from the local
//!   file. A copy between two storages is hashed as it is read: its last bytes are only sent if
//!   they are right, and parts of it go one after another.
//! - **Hostile names** in listings (`..`, absolute, NUL, twice, below a file) end the transfer
//!   before anything of that name is made.
//! - **No secrets in errors**: credentials and queries are cut from whatever a plugin says.
//!
//! Dropping a transfer's future stops it soon and leaves no partial file behind, except one that
//! is written in place. What a storage has of it under another name is removed a moment later, if
//! the program is still there.

mod copy;
mod directory;
mod fetch;
mod limits;
mod placing;
mod progress;
mod read;
mod retry;
mod settings;
mod store;
mod verify;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::OwnedSemaphorePermit as Permit;
use tokio::task::JoinSet;

use self::directory::{ended, finished};
use self::limits::Limits;
use self::placing::Placing;
use crate::storage::file::{Short, on_one_thread};
use crate::storage::{
    Entry, EntryStream, Error, ErrorKind, LocalPath, Registry, Result, StorageUrl, cleanup,
};

pub use copy::{Copied, End};
pub use limits::STREAM_MIB;
pub use settings::Settings;

/// The mode of every file and directory that is fetched for a task: its inputs are its own copies,
/// to be read, changed and run by whatever user its image has.
pub const FETCHED_MODE: u32 = 0o777;

/// The most small files of this machine that one thread moves one after another.
const IN_TURN: usize = 64;

/// Moves files. Cheap to clone; clones share limits, buffers and progress.
#[derive(Clone, Debug)]
pub struct Engine {
    registry: Arc<Registry>,
    settings: Arc<Settings>,
    limits: Arc<Limits>,
    counters: Arc<Counters>,
    /// For small files of this machine.
    short: Arc<Short>,
}

/// A file that was moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Where it is in the storage, shown form.
    pub url: String,
    /// Bytes.
    pub size: u64,
}

/// Counters that grow while transfers run; read them at any time.
#[derive(Debug, Default)]
pub struct Counters {
    /// Files begun.
    pub files_total: AtomicU64,
    /// Files done.
    pub files_done: AtomicU64,
    /// Bytes known of.
    pub bytes_total: AtomicU64,
    /// Bytes done. What a failed try has moved is taken back.
    pub bytes_done: AtomicU64,
}

impl Counters {
    fn expect_file(&self) {
        self.files_total.fetch_add(1, Ordering::Relaxed);
    }

    fn file_done(&self) {
        self.files_done.fetch_add(1, Ordering::Relaxed);
    }
}

impl Engine {
    /// An engine over the storages of `registry`.
    pub fn new(registry: Arc<Registry>, settings: &Settings) -> Self {
        Self {
            registry,
            limits: Arc::new(Limits::new(settings)),
            settings: Arc::new(settings.clone()),
            counters: Arc::default(),
            short: Arc::default(),
        }
    }

    /// The storages that this engine moves files between.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// The counters of all transfers of this engine.
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// What is at `url`; nothing is `None`.
    pub async fn stat(&self, url: &StorageUrl) -> Result<Option<Entry>> {
        let storage = self.registry.route(url)?;
        self.request(url, || storage.stat(url)).await
    }

    /// Everything below the directory `url`, recursively, as [`Storage::list`] gives it: names
    /// may be hostile. Not tried again when it fails.
    ///
    /// [`Storage::list`]: crate::storage::Storage::list
    pub async fn list(&self, url: &StorageUrl) -> Result<EntryStream> {
        let storage = self.registry.route(url)?;
        if !storage.capabilities().list {
            return Err(Error::unsupported(url, "listing directories"));
        }
        self.open_listing(&storage, url).await
    }

    /// Fetches the file `url` to `to`, with [`FETCHED_MODE`]. Parents are made; a file or symlink
    /// there is replaced, or with `in_place` a file is overwritten and keeps its inode and mode.
    /// A directory at `url` is [`Invalid`](crate::storage::ErrorKind::Invalid).
    pub async fn fetch_file(
        &self,
        url: &StorageUrl,
        to: &LocalPath,
        in_place: bool,
    ) -> Result<Moved> {
        let placing = if in_place {
            Placing::InPlace
        } else {
            Placing::Staged
        };
        self.fetch_one(url, to, placing).await
    }

    async fn fetch_one(&self, url: &StorageUrl, to: &LocalPath, placing: Placing) -> Result<Moved> {
        let storage = self.registry.route(url)?;
        self.counted(self.fetch(&storage, url, None, to, placing))
            .await
    }

    /// Fetches everything below the directory `url` into the directory `to`, with
    /// [`FETCHED_MODE`], empty directories included. A file at `url` is
    /// [`Invalid`](crate::storage::ErrorKind::Invalid). Trees merge. The first failure ends the rest.
    pub async fn fetch_directory(&self, url: &StorageUrl, to: &LocalPath) -> Result<Copied> {
        self.fetch_all(url, to, Placing::Staged).await
    }

    async fn fetch_all(
        &self,
        url: &StorageUrl,
        to: &LocalPath,
        placing: Placing,
    ) -> Result<Copied> {
        let url = url.without_trailing_slash();
        let storage = self.registry.route(&url)?;
        let (engine, shown, to) = (self.clone(), url.clone(), to.clone());
        spawned(&shown, async move {
            engine.fetch_tree(&storage, &url, &to, placing).await
        })
        .await
    }

    /// Delivers the local file `from` to `url`, with its mode where the storage has modes.
    pub async fn store_file(&self, from: &LocalPath, url: &StorageUrl) -> Result<Moved> {
        let (engine, from, to) = (self.clone(), from.clone(), url.clone());
        self.counted(spawned(
            url,
            async move { engine.store_from(&from, &to).await },
        ))
        .await
    }

    /// Makes the directory `url` and its parents where the storage has directories; else does
    /// nothing.
    pub async fn make_directory(&self, url: &StorageUrl) -> Result<()> {
        let storage = self.registry.route(url)?;
        if !storage.capabilities().write {
            return Err(Error::unsupported(url, "writing"));
        }
        if !storage.capabilities().directories {
            return Ok(());
        }
        self.request(url, || storage.make_directory(url)).await
    }

    /// Copies one file from any storage to any other.
    pub async fn copy(&self, from: &StorageUrl, to: &StorageUrl) -> Result<Moved> {
        let (engine, from, target) = (self.clone(), from.clone(), to.clone());
        self.counted(spawned(to, async move {
            engine.copy_between(&from, &target).await
        }))
        .await
    }

    /// Runs the transfer of one file when there is room for another.
    async fn counted(&self, transfer: impl Future<Output = Result<Moved>>) -> Result<Moved> {
        let _permit = self.limits.file().await;
        self.begun(transfer).await
    }

    /// Runs the transfer of one file that there is room for.
    async fn begun(&self, transfer: impl Future<Output = Result<Moved>>) -> Result<Moved> {
        self.counters.expect_file();
        let moved = transfer.await?;
        self.counters.file_done();
        Ok(moved)
    }
}

/// Does small things on this machine one after another on one thread: to wake one takes longer
/// than any of them. `permit` is held meanwhile, and `url` is for messages. Between two of them
/// it is stopped when this is dropped.
async fn in_turn<T, F>(
    url: &StorageUrl,
    permit: Permit,
    works: impl Iterator<Item = F> + Send + 'static,
) -> Result<Vec<T>>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send,
{
    let working = async move {
        let _permit = permit;
        let mut done = Vec::new();
        for work in works {
            done.push(work.await?);
            tokio::task::yield_now().await;
        }
        Ok(done)
    };
    ended(url, on_one_thread(working).await)
}

/// Runs a transfer from or to `url` on the runtime's own threads, where the connections are: from
/// another thread each answer would have to wake it. It is stopped when this is dropped.
async fn spawned<T: Send + 'static>(
    url: &StorageUrl,
    transfer: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let mut task = JoinSet::new();
    task.spawn(cleanup::track(transfer));
    match task.join_next().await {
        Some(done) => finished(url, done),
        None => Err(Error::new(ErrorKind::Other, url, "a transfer was not run")),
    }
}
