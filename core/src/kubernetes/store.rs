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
//! - `index`: all heads, in memory. `follow` keeps it in step by a watch of metadata.
//! - `cache`: texts that were used lately.
//! - `write`: create and update. `key`: idempotency keys. `secret`: passwords. `sweep`:
//!   retention, and what crashes left.

mod cache;
mod follow;
mod index;
mod key;
mod object;
mod secret;
mod sweep;
mod text;
mod write;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Api;
use kube::core::PartialObjectMeta;

use self::cache::Cache;
use self::follow::Freshness;
use self::index::{Index, Known};
use self::object::{Entry, TextRef, head_name};
use self::text::Kind;
use super::cluster::{ApiError, Cluster, Part};
use crate::scheduler::store::{
    Created, NewTask, Page, Position, Query, RawRecord, StoreError, TaskStore, Update,
};
use crate::scheduler::watchers::Watchers;
use crate::scheduler::{Head, Record, TaskId};
use crate::tes::{State, TaskLog, UrlSecrets};
use crate::time::Timestamp;

/// Bytes of a document that are stored at most.
const MAX_DOCUMENT: usize = 16 << 20;
/// Bytes of a task's name and tags together: every replica has them in memory.
const MAX_SEARCH: usize = 16 << 10;
/// Bytes of all logs of a task.
const MAX_LOGS: usize = 64 << 20;
/// Bytes of documents and logs in one page, about: a page of very large tasks ends early.
const PAGE_BYTES: usize = 32 << 20;
/// Records that are read at once for one page.
const PARALLEL: usize = 16;
/// Tasks that are looked at before other work has a turn.
const SCAN: usize = 2048;
/// How often a record that changes while it is read is read anew.
const READS: usize = 5;

/// How the store behaves.
#[derive(Clone, Debug)]
pub struct StoreSettings {
    /// Bytes of documents and logs that are kept in memory.
    pub cache: usize,
    /// How long the API server may be silent before [`TaskStore::check`] says so.
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
            freshness: Mutex::default(),
            swept: Mutex::default(),
        });
        let version = follow::list(&shared)
            .await
            .map_err(|error| failed(&error))?;
        let follower = tokio::spawn(follow::follow(Arc::clone(&shared), version));
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
        self.shared.raw(id).await
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
        // Registered before the look at what is there, so that nothing falls in between.
        let watcher = self.shared.watchers.register();
        let active = self.shared.index().active();
        watcher.merge(active);
        Ok(watcher.into_stream().boxed())
    }

    async fn counts(&self) -> Result<Vec<(State, u64)>, StoreError> {
        Ok(self.shared.index().counts())
    }

    async fn check(&self) -> Result<(), StoreError> {
        if self.follower.is_finished() {
            return Err(StoreError::Unavailable("its watch has stopped".to_owned()));
        }
        let patience = self.shared.settings.patience;
        self.shared.freshness().check(patience)
    }
}

/// A head, and those of its texts that are in it.
struct WholeHead {
    entry: Arc<Entry>,
    document: Option<Arc<str>>,
    logs: Option<Arc<str>>,
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
        let found = self.cluster.answer(api.get_opt(&name)).await;
        if let Some(object) = found.map_err(|error| failed(&error))? {
            return self.taken(id, &object.metadata);
        }
        self.forget(id);
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

    /// A whole record.
    async fn raw(&self, id: &TaskId) -> Result<Option<RawRecord>, StoreError> {
        let Some(mut entry) = self.entry(id).await? else {
            return Ok(None);
        };
        for _ in 0..READS {
            let (mut document, mut logs) = {
                let mut cache = self.cache();
                let document = cache.get(id, &entry.document);
                (document, cache.get(id, &entry.logs))
            };
            let in_head =
                |text: &Option<_>, reference: &TextRef| text.is_none() && reference.parts == 0;
            if in_head(&document, &entry.document) || in_head(&logs, &entry.logs) {
                let Some(whole) = self.whole_head(id).await? else {
                    return Ok(None);
                };
                if whole.entry.logs != entry.logs {
                    logs = None;
                }
                entry = whole.entry;
                document = document.or(whole.document);
                logs = logs.or(whole.logs);
            }
            if document.is_none() && entry.document.parts > 0 {
                document = self.load(id, Kind::Document, &entry.document).await?;
            }
            if logs.is_none() && entry.logs.parts > 0 {
                logs = self.load(id, Kind::Logs, &entry.logs).await?;
            }
            if let (Some(document), Some(logs)) = (document, logs) {
                return Ok(Some(RawRecord {
                    head: entry.head.clone(),
                    document,
                    logs,
                }));
            }
            // A part is not there: the logs were replaced meanwhile, or the task is gone.
            match self.fetch(id).await? {
                Some(newest) => entry = newest,
                None => return Ok(None),
            }
        }
        let reason = format!("parts of the record of task {id} are missing");
        Err(StoreError::Corrupt(reason))
    }

    /// A head with the texts in its data.
    async fn whole_head(&self, id: &TaskId) -> Result<Option<WholeHead>, StoreError> {
        let api = self.cluster.api::<ConfigMap>();
        let name = head_name(id);
        let object = self.cluster.answer(api.get_opt(&name)).await;
        let Some(object) = object.map_err(|error| failed(&error))? else {
            self.forget(id);
            return Ok(None);
        };
        let Some(entry) = self.taken(id, &object.metadata)? else {
            return Ok(None);
        };
        let mut data = object.data.unwrap_or_default();
        let mut text = |kind: Kind, reference: &TextRef| {
            let Some(text) = data.remove(kind.key()).filter(|_| reference.parts == 0) else {
                return Ok(None);
            };
            text::verified(&text, reference)?;
            let text: Arc<str> = text.into();
            self.cache().put(id, reference, &text);
            Ok(Some(text))
        };
        let document = text(Kind::Document, &entry.document)?;
        let logs = text(Kind::Logs, &entry.logs)?;
        Ok(Some(WholeHead {
            entry,
            document,
            logs,
        }))
    }

    async fn load(
        &self,
        id: &TaskId,
        kind: Kind,
        reference: &TextRef,
    ) -> Result<Option<Arc<str>>, StoreError> {
        let text = text::load(&self.cluster, id, kind, reference).await?;
        if let Some(text) = &text {
            self.cache().put(id, reference, text);
        }
        Ok(text)
    }

    async fn page(&self, query: &Query) -> Result<Page, StoreError> {
        let (found, more) = self.matching(query).await;
        let mut page = Page::default();
        let position = |head: &Head| Position {
            created: head.created,
            id: head.id.clone(),
        };
        let last = found.last().map(|entry| position(&entry.head));
        if !query.documents {
            let empty: Arc<str> = "".into();
            page.tasks = found
                .into_iter()
                .map(|entry| RawRecord {
                    head: entry.head.clone(),
                    document: Arc::clone(&empty),
                    logs: Arc::clone(&empty),
                })
                .collect();
            page.next = last.filter(|_| more);
            return Ok(page);
        }
        let mut records = stream::iter(found)
            .map(|entry| async move {
                let raw = self.raw(&entry.head.id).await;
                (position(&entry.head), raw)
            })
            .buffered(PARALLEL);
        let mut bytes = 0;
        while let Some((place, raw)) = records.next().await {
            match raw {
                Ok(Some(task)) => {
                    bytes += task.document.len() + task.logs.len();
                    page.tasks.push(task);
                }
                // It was removed meanwhile.
                Ok(None) => {}
                Err(StoreError::Corrupt(reason)) => {
                    tracing::warn!(task = %place.id, reason, "left out of a list");
                }
                Err(error) => return Err(error),
            }
            let whole = Some(&place) == last.as_ref();
            if bytes > PAGE_BYTES || whole {
                page.next = Some(place).filter(|_| more || !whole);
                break;
            }
        }
        Ok(page)
    }

    /// The entries of one page, and whether another follows. No request is made.
    async fn matching(&self, query: &Query) -> (Vec<Arc<Entry>>, bool) {
        let mut found: Vec<Arc<Entry>> = Vec::new();
        let mut after = query.after.clone();
        loop {
            let candidates = self.index().candidates(query, after.as_ref(), SCAN);
            let Some(last) = candidates.last() else {
                return (found, false);
            };
            after = Some(Position {
                created: last.head.created,
                id: last.head.id.clone(),
            });
            let all = candidates.len() < SCAN;
            for entry in candidates {
                let search = &entry.search;
                let user = query.user.as_ref();
                if user.is_none_or(|user| *user == entry.head.owner.user)
                    && query
                        .filter
                        .matches(search.name.as_deref(), entry.head.state, &search.tags)
                {
                    if found.len() == query.limit {
                        return (found, true);
                    }
                    found.push(entry);
                }
            }
            if all {
                return (found, false);
            }
            tokio::task::yield_now().await;
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

fn corrupt(error: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt(error.to_string())
}
