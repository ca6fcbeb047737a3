//! Task records in `ConfigMap`s: no database, and no right beyond one namespace.
//!
//! A record is one small, changing object, its *head*: the state and all that lists show are in
//! an annotation, a small document and small logs in its data. Larger texts are in objects of
//! their own that never change; they are made before the head that speaks of them, and the ones
//! it no longer speaks of are removed after. So every change is one request that the API server
//! does or does not carry out, and what a crash leaves is found by the sweep.
//!
//! - `object`: a head as labels and annotations.
//! - `text`: documents and logs, in the head or in parts.
//! - `index`: all heads, in memory. `marks` tell nearly always that a filter does not match. `news`
//!   keeps it in step by a watch of metadata.
//! - `cache`: texts that were used lately.
//! - `read`: records and pages. `write`: create and update. `key`: idempotency keys. `secret`: passwords. `sweep`:
//!   retention, and what crashes left.

mod cache;
mod index;
mod key;
mod marks;
mod news;
mod object;
mod read;
mod secret;
mod sweep;
mod text;
mod write;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Api;
use kube::core::PartialObjectMeta;

use self::cache::Cache;
use self::index::{Index, Known};
use self::news::Freshness;
use self::object::{Entry, head_name};
use super::cluster::{ApiError, Cluster, Part};
use super::follow;
use crate::scheduler::store::{
    Created, NewTask, Page, Query, RawRecord, StoreError, TaskStore, Update, corrupt,
};
use crate::scheduler::watchers::Watchers;
use crate::scheduler::{Head, Record, TaskId};
use crate::tes::{State, TaskLog, UrlSecrets};
use crate::time::{Ascending, Timestamp};

/// Bytes of a document that are stored at most.
const MAX_DOCUMENT: usize = 16 << 20;
/// Bytes of a task's name and tags together: every replica has them in memory.
const MAX_SEARCH: usize = 16 << 10;
/// Bytes of all logs of a task.
const MAX_LOGS: usize = 64 << 20;

/// How the store behaves.
#[derive(Clone, Debug)]
pub struct StoreSettings {
    /// Bytes of documents and logs that are kept in memory.
    pub cache: usize,
    /// How long the watch may be broken before [`TaskStore::stale`] says so; it says at once that
    /// the API server is away.
    pub patience: Duration,
    /// How old an object must be before it counts as left over. More than the longest a create
    /// can take, by far, and than clocks differ.
    pub orphan_age: Duration,
    /// How often left-over objects are looked for at most, as part of a sweep.
    pub orphan_interval: Duration,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            cache: 64 << 20,
            patience: Duration::from_secs(20),
            orphan_age: Duration::from_mins(30),
            orphan_interval: Duration::from_mins(10),
        }
    }
}

/// Task records in one namespace of a cluster. Any number of replicas may be open at once.
#[derive(Debug)]
pub struct ConfigMapStore {
    shared: Arc<Shared>,
    follower: tokio::task::JoinHandle<()>,
}

struct Shared {
    cluster: Cluster,
    settings: StoreSettings,
    index: RwLock<Index>,
    cache: Mutex<Cache>,
    watchers: Watchers,
    clock: Ascending,
    freshness: Mutex<Freshness>,
    /// When left-over objects were last looked for.
    swept: Mutex<Option<Instant>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

impl Drop for ConfigMapStore {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

impl ConfigMapStore {
    /// Reads the list of all tasks, and follows it from then on. Needs a Tokio runtime.
    pub async fn open(cluster: Cluster, settings: StoreSettings) -> Result<Self, StoreError> {
        let shared = Arc::new(Shared {
            cluster,
            index: RwLock::default(),
            cache: Mutex::new(Cache::new(settings.cache)),
            settings,
            watchers: Watchers::default(),
            clock: Ascending::default(),
            freshness: Mutex::default(),
            swept: Mutex::default(),
        });
        let version = follow::list(&shared.cluster, &*shared)
            .await
            .map_err(|error| failed(&error))?;
        let followed = Arc::clone(&shared);
        let follower = tokio::spawn(async move {
            follow::follow(&followed.cluster, &*followed, Some(version)).await;
        });
        Ok(Self { shared, follower })
    }

    /// What makes an object go with a task's record; `None` for a task that is not known here.
    pub fn owner_reference(&self, id: &TaskId) -> Option<OwnerReference> {
        match self.shared.index().get(id) {
            Known::Task(entry) => Some(OwnerReference {
                api_version: "v1".to_owned(),
                kind: "ConfigMap".to_owned(),
                name: head_name(id),
                uid: entry.uid.clone(),
                controller: Some(true),
                block_owner_deletion: None,
            }),
            _ => None,
        }
    }
}

#[async_trait]
impl TaskStore for ConfigMapStore {
    async fn create(&self, task: NewTask) -> Result<Created, StoreError> {
        self.shared.create(task).await
    }

    async fn head(&self, id: &TaskId) -> Result<Option<Head>, StoreError> {
        Ok(self.shared.entry(id).await?.map(|entry| entry.head.clone()))
    }

    async fn head_now(&self, id: &TaskId) -> Result<Option<Head>, StoreError> {
        Ok(self.shared.fetch(id).await?.map(|entry| entry.head.clone()))
    }

    async fn get(&self, id: &TaskId) -> Result<Option<Record>, StoreError> {
        let Some(raw) = self.shared.raw(id).await? else {
            return Ok(None);
        };
        let logs: Vec<TaskLog> = serde_json::from_str(&raw.logs).map_err(corrupt)?;
        Ok(Some(Record {
            head: raw.head,
            document: raw.document,
            logs,
            secrets: UrlSecrets::default(),
        }))
    }

    /// The secrets are left out: they lie in the task's [secret](super::secret_name), which pods mount
    /// and this engine has no right to read.
    async fn get_with_secrets(&self, id: &TaskId) -> Result<Option<Record>, StoreError> {
        self.get(id).await
    }

    async fn get_raw(&self, id: &TaskId) -> Result<Option<RawRecord>, StoreError> {
        self.shared.shown(id).await
    }

    async fn list(&self, query: &Query) -> Result<Page, StoreError> {
        self.shared.page(query).await
    }

    async fn update(&self, id: &TaskId, expected: u64, update: Update) -> Result<Head, StoreError> {
        self.shared.update(id, expected, update).await
    }

    async fn sweep(&self, before: Timestamp, limit: usize) -> Result<Vec<TaskId>, StoreError> {
        self.shared.sweep(before, limit).await
    }

    async fn watch(&self) -> Result<BoxStream<'static, Head>, StoreError> {
        if let Err(error) = self.shared.warm().await {
            tracing::warn!(%error, "cannot read the tasks under way by a list");
        }
        // Registered before the look at what is there, so that nothing falls in between.
        let watcher = self.shared.watchers.register();
        let active = self.shared.index().active();
        watcher.merge(active);
        Ok(watcher.into_stream().boxed())
    }

    fn weight(&self, id: &TaskId) -> usize {
        match self.shared.index().get(id) {
            Known::Task(entry) => entry.document.bytes.saturating_add(entry.logs.bytes),
            Known::Broken(_) | Known::Removed | Known::No => 0,
        }
    }

    async fn counts(&self) -> Result<Vec<(State, u64)>, StoreError> {
        Ok(self.shared.index().counts())
    }

    async fn check(&self) -> Result<(), StoreError> {
        if self.follower.is_finished() {
            return Err(StoreError::Unavailable("its watch has stopped".to_owned()));
        }
        Ok(())
    }

    fn stale(&self) -> Option<Duration> {
        let contact = self.shared.cluster.contact();
        let patience = self.shared.settings.patience;
        self.shared.freshness().stale(patience, contact)
    }
}

impl Shared {
    fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn freshness(&self) -> MutexGuard<'_, Freshness> {
        self.freshness
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a head in, and tells those who watch.
    fn apply(&self, entry: Entry) {
        // Told under the lock: nobody hears of two changes in the wrong order.
        let mut index = self.index_mut();
        if let Some(head) = index.apply(entry) {
            self.watchers.publish(&[head]);
        }
    }

    /// Takes in that a head cannot be read.
    fn broke(&self, id: &TaskId, reason: &str) {
        if self.index_mut().broke(id, reason) {
            tracing::warn!(task = %id, reason, "the record of a task cannot be read");
        }
    }

    /// What the API server has of a task now. Taken into the index too.
    async fn fetch(&self, id: &TaskId) -> Result<Option<Arc<Entry>>, StoreError> {
        let api: Api<PartialObjectMeta<ConfigMap>> = self.cluster.api();
        let name = head_name(id);
        let was_known = !matches!(self.index().get(id), Known::No);
        let found = self.cluster.answer(api.get_opt(&name)).await;
        if let Some(object) = found.map_err(|error| failed(&error))? {
            return self.taken(id, &object.metadata);
        }
        // One that was not known may have been made since the server looked: it is not gone.
        if was_known {
            self.forget(id);
        }
        Ok(None)
    }

    /// Takes the metadata of a head into the index, if it is one of this engine.
    fn taken(
        &self,
        id: &TaskId,
        metadata: &kube::core::ObjectMeta,
    ) -> Result<Option<Arc<Entry>>, StoreError> {
        let labels = metadata.labels.clone().unwrap_or_default();
        let ours = self.cluster.labels(Part::Record);
        if !ours
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
        {
            return Ok(None);
        }
        match Entry::read(id, metadata) {
            Ok(entry) => {
                self.apply(entry.clone());
                Ok(Some(Arc::new(entry)))
            }
            Err(reason) => {
                self.broke(id, &reason);
                Err(StoreError::Corrupt(reason))
            }
        }
    }

    /// A task that was known and is not there any more.
    fn forget(&self, id: &TaskId) {
        let known = !matches!(self.index().get(id), Known::No);
        if known {
            self.index_mut().remove(id);
        }
    }

    /// What is known of a task. The API server is asked only for one that the index does not
    /// know: it may be another replica's and quite new.
    async fn entry(&self, id: &TaskId) -> Result<Option<Arc<Entry>>, StoreError> {
        let known = self.index().get(id);
        match known {
            Known::Task(entry) => Ok(Some(entry)),
            Known::Broken(reason) => Err(StoreError::Corrupt(reason)),
            Known::Removed => Ok(None),
            Known::No => self.fetch(id).await,
        }
    }
}

/// The API server's trouble in the words of the store.
fn failed(error: &ApiError) -> StoreError {
    if error.is_quota() {
        return StoreError::Full(error.to_string());
    }
    StoreError::Unavailable(error.to_string())
}
