//! Where records of tasks live.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;

use super::record::{Head, Owner, Record, TaskId};
use crate::tes::{Filter, State, TaskLog, UrlSecrets};
use crate::time::Timestamp;

/// A durable store of task records.
///
/// Every promise here is checked by the store suite in `tesk-conformance`. When a call returns
/// `Ok`, what it changed survives a crash of this process and of the machine.
#[async_trait]
pub trait TaskStore: std::fmt::Debug + Send + Sync + 'static {
    /// Stores a new task, QUEUED, with one empty log. One atomic commit; nothing that can
    /// fail follows it. With an idempotency key that was used for the same body before, the
    /// first task's id is answered and nothing is stored; concurrent twins make one task.
    async fn create(&self, task: NewTask) -> Result<Created, StoreError>;

    /// The head of a task.
    async fn head(&self, id: &TaskId) -> Result<Option<Head>, StoreError>;

    /// The head of a task as it is stored now, where [`TaskStore::head`] may not have heard of
    /// another engine's last change.
    async fn head_now(&self, id: &TaskId) -> Result<Option<Head>, StoreError> {
        self.head(id).await
    }

    /// A record without its secrets.
    async fn get(&self, id: &TaskId) -> Result<Option<Record>, StoreError>;

    /// A record with its secrets: for the scheduler only. A store whose compute side reads the
    /// secrets by itself may leave them out.
    async fn get_with_secrets(&self, id: &TaskId) -> Result<Option<Record>, StoreError>;

    /// A record as JSON texts, for a reader that will not look inside: the way of GET. Of a damaged
    /// one whose head can be read it may be what is left; a text that is lost says so.
    async fn get_raw(&self, id: &TaskId) -> Result<Option<RawRecord>, StoreError>;

    /// A page of tasks, newest first (creation time, then id, both descending). What one store has
    /// made one after another has times that differ.
    async fn list(&self, query: &Query) -> Result<Page, StoreError>;

    /// Changes a task whose version is still `expected`; else
    /// [`StoreError::Conflict`]. A terminal state never changes: such an update is
    /// [`StoreError::Conflict`] too.
    async fn update(&self, id: &TaskId, expected: u64, update: Update) -> Result<Head, StoreError>;

    /// Removes a terminal task that ended before `before`; up to `limit` of them, oldest first.
    /// Expired idempotency keys go too. Returns the removed ids.
    async fn sweep(&self, before: Timestamp, limit: usize) -> Result<Vec<TaskId>, StoreError>;

    /// Every task that is not terminal now, all of them at once and without waiting, and from
    /// then on each head that is created or changed. A slow reader may miss intermediate states of
    /// a task, never its last.
    async fn watch(&self) -> Result<BoxStream<'static, Head>, StoreError>;

    /// Bytes of a record's document and logs, as far as that is known without a look: what reading it
    /// takes in memory.
    fn weight(&self, _id: &TaskId) -> usize {
        0
    }

    /// How many tasks are in each state.
    async fn counts(&self) -> Result<Vec<(State, u64)>, StoreError>;

    /// Whether the store can answer reads now.
    async fn check(&self) -> Result<(), StoreError>;

    /// How old the answers to reads may be, if that is worth a word; `None` while they are of
    /// now. Then nothing can be written.
    fn stale(&self) -> Option<Duration> {
        None
    }
}

/// A task to be stored.
#[derive(Clone, Debug)]
pub struct NewTask {
    /// Its id.
    pub id: TaskId,
    /// Whose it is.
    pub owner: Owner,
    /// The strict JSON of the document, passwords masked.
    pub document: Arc<str>,
    /// For the filter `name_prefix`.
    pub name: Option<String>,
    /// For the tag filters.
    pub tags: Vec<(String, String)>,
    /// The passwords cut from the document.
    pub secrets: UrlSecrets,
    /// Warnings of validation; they begin the first log's `system_logs`.
    pub warnings: Vec<String>,
    /// The client's idempotency key.
    pub idempotency: Option<IdempotencyKey>,
}

/// An idempotency key, scoped to the task's owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The `Idempotency-Key` header.
    pub key: String,
    /// A digest of the normalised document.
    pub digest: [u8; 32],
    /// How long the key is remembered.
    pub ttl: Duration,
}

/// The answer to a create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Created {
    /// A new task.
    New(TaskId),
    /// The key was used before for the same body: this is that task.
    Existing(TaskId),
    /// The key was used before for another body.
    KeyReused,
}

/// A change to a record. `None` leaves a part as it is.
#[derive(Clone, Debug, Default)]
pub struct Update {
    /// The new state. The store drops the secrets when it is terminal.
    pub state: Option<State>,
    /// The new number of reserved attempts.
    pub attempt: Option<u32>,
    /// The new back-off: `Some(None)` clears it.
    pub not_before: Option<Option<Timestamp>>,
    /// All logs, replacing what is there.
    pub logs: Option<Vec<TaskLog>>,
}

/// What a list asks for.
#[derive(Clone, Debug)]
pub struct Query {
    /// The client's filters.
    pub filter: Filter,
    /// Only tasks of this owner's user; `None` is everybody's.
    pub user: Option<String>,
    /// Begin after this position; `None` is the newest.
    pub after: Option<Position>,
    /// At most this many.
    pub limit: usize,
    /// Whether documents and logs are wanted, or heads suffice.
    pub documents: bool,
}

/// A place in the order of all tasks: the last one of the page before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// Creation time.
    pub created: Timestamp,
    /// Id.
    pub id: TaskId,
}

/// One page of a list.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The tasks, newest first.
    pub tasks: Vec<RawRecord>,
    /// Where the next page begins, if another task follows.
    pub next: Option<Position>,
}

/// A record whose document and logs are passed on unread. Both texts are strict JSON as the
/// FULL view shows it; empty when the query did not ask for documents.
#[derive(Clone, Debug)]
pub struct RawRecord {
    /// The changing part.
    pub head: Head,
    /// The document: a JSON object.
    pub document: Arc<str>,
    /// The logs: a JSON array.
    pub logs: Arc<str>,
}

/// Why a store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such task.
    #[error("there is no such task")]
    NotFound,
    /// The task is not what the caller thought: read it again.
    #[error("the task was changed by another")]
    Conflict,
    /// A part of the task is more than the store can hold.
    #[error("{what} has {size} bytes; the store holds at most {limit}")]
    TooLarge {
        /// Which part.
        what: &'static str,
        /// Its bytes.
        size: usize,
        /// Bytes the store holds.
        limit: usize,
    },
    /// The store is not there or cannot write at present.
    #[error("the task store is not available: {0}")]
    Unavailable(String),
    /// There is no room for another record at present.
    #[error("the task store has no room: {0}")]
    Full(String),
    /// What is stored cannot be read.
    #[error("the task store holds data that cannot be read: {0}")]
    Corrupt(String),
}

/// For what a store has, but cannot read.
#[cfg(any(feature = "local", feature = "kubernetes"))]
pub(crate) fn corrupt(error: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt(error.to_string())
}

/// Refuses more bytes than a store holds.
#[cfg(any(feature = "local", feature = "kubernetes"))]
pub(crate) fn within(what: &'static str, size: usize, limit: usize) -> Result<(), StoreError> {
    if size > limit {
        return Err(StoreError::TooLarge { what, size, limit });
    }
    Ok(())
}
