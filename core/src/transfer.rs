//! The engine that moves files through any [`Storage`](crate::storage::Storage).
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::rooted::RelPath;
use crate::storage::{self, LocalPath, Registry, StorageUrl};

/// The `[transfer]` section of the configuration.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {}

/// Moves files. Cheap to clone; clones share limits, buffers and progress.
#[derive(Clone, Debug)]
pub struct Engine {}

/// A file that was moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Its path relative to the directory that was moved; empty for a single file.
    pub path: RelPath,
    /// Where it is in the storage, shown form.
    pub url: String,
    /// Bytes.
    pub size: u64,
}

/// Counters that grow while transfers run; read them at any time.
#[derive(Debug, Default)]
pub struct Counters {
    /// Files begun.
    pub files_total: std::sync::atomic::AtomicU64,
    /// Files done.
    pub files_done: std::sync::atomic::AtomicU64,
    /// Bytes known of.
    pub bytes_total: std::sync::atomic::AtomicU64,
    /// Bytes done.
    pub bytes_done: std::sync::atomic::AtomicU64,
}

impl Engine {
    /// An engine over the storages of `registry`.
    pub fn new(registry: Arc<Registry>, settings: &Settings) -> Self {
        let _ = (registry, settings);
        todo!()
    }

    /// The counters of all transfers of this engine.
    pub fn counters(&self) -> Arc<Counters> {
        todo!()
    }

    /// Fetches the file `url` to `to` (parents are made; a file there is replaced, or written
    /// in place with `in_place`). A directory at `url` is `Invalid`.
    pub async fn fetch_file(
        &self,
        url: &StorageUrl,
        to: &LocalPath,
        in_place: bool,
    ) -> storage::Result<Moved> {
        let _ = (url, to, in_place);
        todo!()
    }

    /// Fetches everything below the directory `url` into the directory `to`; a file at `url`
    /// is `Invalid`. Trees merge.
    pub async fn fetch_directory(
        &self,
        url: &StorageUrl,
        to: &LocalPath,
    ) -> storage::Result<Vec<Moved>> {
        let _ = (url, to);
        todo!()
    }

    /// Delivers the local file `from` to `url`.
    pub async fn store_file(&self, from: &LocalPath, url: &StorageUrl) -> storage::Result<Moved> {
        let _ = (from, url);
        todo!()
    }

    /// Makes the directory `url` where the storage has directories; else does nothing.
    pub async fn make_directory(&self, url: &StorageUrl) -> storage::Result<()> {
        let _ = url;
        todo!()
    }

    /// Copies one file from any storage to any other (`filer copy`).
    pub async fn copy(&self, from: &StorageUrl, to: &StorageUrl) -> storage::Result<Moved> {
        let _ = (from, to);
        todo!()
    }
}
