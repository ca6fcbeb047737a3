//! Task records in SQLite.
//!
//! One thread writes. It takes every operation that has queued up meanwhile into one
//! transaction, so that the wait for the disk is shared by all of them, and answers when the
//! transaction is on disk. Readers have connections of their own and never wait for the writer
//! (write-ahead log).

mod query;
mod reserve;
mod schema;
mod writer;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Row};
use tokio::sync::{Semaphore, mpsc, oneshot};

use self::reserve::Reserve;
use self::writer::{Operation, Writer};
use crate::scheduler::store::{
    Created, NewTask, Page, Query, RawRecord, StoreError, TaskStore, Update, corrupt, within,
};
use crate::scheduler::watchers::Watchers;
use crate::scheduler::{Head, Record, TaskId};
use crate::tes::{State, TaskLog, UrlSecrets};
use crate::time::Timestamp;

/// Bytes of a document that are stored at most.
const MAX_DOCUMENT: usize = 256 << 20;
/// Bytes of the logs of a task that are stored at most: those of a report or two.
const MAX_LOGS: usize = 64 << 20;
/// Operations that wait for the writer before callers wait to hand theirs over.
const QUEUE: usize = 4096;
/// How long a connection waits for a lock of SQLite itself; only a checkpoint holds one.
const BUSY: Duration = Duration::from_secs(10);

/// Task records in an SQLite database below a data directory that one process has for itself.
///
/// Every acknowledged change is on disk (`synchronous=FULL`). Clones share everything.
#[derive(Clone)]
pub struct SqliteStore {
    shared: Arc<Shared>,
    operations: mpsc::Sender<Operation>,
}

struct Shared {
    database: PathBuf,
    /// Idle connections for reading; one more is opened when none is idle.
    readers: Mutex<Vec<Connection>>,
    /// Bound the lists and the reads of whole records that run at once, and with them the number
    /// of connections. Neither waits for the other.
    lists: Arc<Semaphore>,
    records: Arc<Semaphore>,
    watchers: Watchers,
    counts: Counts,
    /// Held for life; the lock goes with the process, however it ends.
    _lock: File,
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process works with this data directory.
    #[error(
        "the data directory {directory} is in use by another process{}; stop it, or give this one a data directory of its own",
        .process.as_ref().map(|p| format!(" ({p})")).unwrap_or_default()
    )]
    InUse {
        /// The data directory.
        directory: PathBuf,
        /// The other's process id, as it noted it.
        process: Option<String>,
    },
    /// The directory or a file in it cannot be used.
    #[error("cannot use {path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The database is of a later version of this program.
    #[error(
        "the database {path} was written by a later version of this program (schema {found}; this one knows {known}): use that version again"
    )]
    TooNew {
        /// The database.
        path: PathBuf,
        /// Its schema version.
        found: u32,
        /// The newest schema version known here.
        known: u32,
    },
    /// SQLite cannot use the database.
    #[error("cannot use the database {path}: {source}")]
    Database {
        /// The database.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteStore")
            .field("database", &self.shared.database)
            .finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// Opens the store in `directory`, which is made (for this user only) if it is not there.
    ///
    /// The directory is locked for the life of this process; a second one is refused.
    pub fn open(directory: &Path) -> Result<Self, OpenError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { path, source }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(io(directory))?;
        let lock = lock(directory)?;

        // Made here first: the database holds passwords, and SQLite's own files take its mode.
        let database = directory.join("tasks.sqlite");
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&database)
            .map_err(io(&database))?;
        let failed = |source| OpenError::Database {
            path: database.clone(),
            source,
        };
        let mut connection = Connection::open(&database).map_err(failed)?;
        schema::configure_writer(&connection).map_err(failed)?;
        schema::migrate(&mut connection, &database)?;
        let counts = Counts::read(&connection).map_err(failed)?;

        let at_once = std::thread::available_parallelism().map_or(2, usize::from);
        let shared = Arc::new(Shared {
            readers: Mutex::default(),
            lists: Arc::new(Semaphore::new(at_once)),
            records: Arc::new(Semaphore::new(at_once)),
            watchers: Watchers::default(),
            counts,
            _lock: lock,
            database: database.clone(),
        });
        let (operations, queue) = mpsc::channel(QUEUE);
        let reserve = Reserve::open(directory).map_err(io(directory))?;
        let writer = Writer::new(connection, Arc::clone(&shared), reserve);
        std::thread::Builder::new()
            .name("task-store".to_owned())
            .spawn(move || writer.run(queue))
            .map_err(io(&database))?;
        Ok(Self { shared, operations })
    }

    /// Hands an operation to the writer and waits until it is on disk.
    async fn write<T>(
        &self,
        operation: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Operation,
    ) -> Result<T, StoreError> {
        let gone = || StoreError::Unavailable("its writer has stopped".to_owned());
        let (reply, answer) = oneshot::channel();
        self.operations
            .send(operation(reply))
            .await
            .map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Reads what may take some milliseconds, too long for a thread of the async runtime; no more
    /// at once than `turns` allows.
    async fn read<T: Send + 'static>(
        &self,
        turns: &Arc<Semaphore>,
        read: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let stopped = |error: &dyn std::fmt::Display| StoreError::Unavailable(error.to_string());
        let turn = Arc::clone(turns).acquire_owned().await;
        let turn = turn.map_err(|error| stopped(&error))?;
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || {
            let done = shared.read(read);
            drop(turn);
            done
        })
        .await
        .map_err(|error| stopped(&error))?
    }

    async fn record(&self, id: &TaskId, secrets: bool) -> Result<Option<Record>, StoreError> {
        let id = id.clone();
        let columns = if secrets {
            query::WITH_SECRETS
        } else {
            query::WITH_DOCUMENTS
        };
        let read = move |row: &Row<'_>| {
            let secrets = if secrets {
                row.get::<_, Option<String>>(11).map_err(failed)?
            } else {
                None
            };
            let raw = query::raw_record(row)?;
            let logs: Vec<TaskLog> = serde_json::from_str(&raw.logs).map_err(corrupt)?;
            Ok(Record {
                head: raw.head,
                document: raw.document,
                logs,
                secrets: match secrets {
                    Some(text) => serde_json::from_str(&text).map_err(corrupt)?,
                    None => UrlSecrets::default(),
                },
            })
        };
        let read = move |connection: &Connection| point(connection, columns, &id, read);
        self.read(&self.shared.records, read).await
    }
}

/// What `read` makes of the row of one task.
fn point<T>(
    connection: &Connection,
    columns: &str,
    id: &TaskId,
    read: impl FnOnce(&Row<'_>) -> Result<T, StoreError>,
) -> Result<Option<T>, StoreError> {
    let mut statement = connection
        .prepare_cached(&format!("SELECT {columns} WHERE h.id = ?1"))
        .map_err(failed)?;
    let mut rows = statement.query([id.as_str()]).map_err(failed)?;
    rows.next().map_err(failed)?.map(read).transpose()
}

#[async_trait]
impl TaskStore for SqliteStore {
    async fn create(&self, task: NewTask) -> Result<Created, StoreError> {
        within("the task document", task.document.len(), MAX_DOCUMENT)?;
        let first = TaskLog {
            system_logs: Some(task.warnings.clone()).filter(|w| !w.is_empty()),
            ..TaskLog::default()
        };
        let logs = to_json(&[first])?;
        let secrets = if task.secrets.0.is_empty() {
            None
        } else {
            Some(to_json(&task.secrets)?)
        };
        let task = Box::new(task);
        self.write(|reply| Operation::Create {
            task,
            logs,
            secrets,
            reply,
        })
        .await
    }

    async fn head(&self, id: &TaskId) -> Result<Option<Head>, StoreError> {
        self.shared
            .read(|connection| point(connection, query::HEADS, id, query::head))
    }

    async fn get(&self, id: &TaskId) -> Result<Option<Record>, StoreError> {
        self.record(id, false).await
    }

    async fn get_with_secrets(&self, id: &TaskId) -> Result<Option<Record>, StoreError> {
        self.record(id, true).await
    }

    async fn get_raw(&self, id: &TaskId) -> Result<Option<RawRecord>, StoreError> {
        let id = id.clone();
        let columns = query::WITH_DOCUMENTS;
        let read =
            move |connection: &Connection| point(connection, columns, &id, query::raw_record);
        self.read(&self.shared.records, read).await
    }

    async fn list(&self, query: &Query) -> Result<Page, StoreError> {
        let query = query.clone();
        let read = move |connection: &Connection| query::page(connection, &query);
        self.read(&self.shared.lists, read).await
    }

    async fn update(&self, id: &TaskId, expected: u64, update: Update) -> Result<Head, StoreError> {
        let logs = update.logs.as_deref().map(to_json).transpose()?;
        let size = logs.as_ref().map_or(0, String::len);
        within("the log of the task", size, MAX_LOGS)?;
        let id = id.clone();
        self.write(|reply| Operation::Update {
            id,
            expected,
            update: Box::new(Update {
                logs: None,
                ..update
            }),
            logs,
            reply,
        })
        .await
    }

    async fn sweep(&self, before: Timestamp, limit: usize) -> Result<Vec<TaskId>, StoreError> {
        self.write(|reply| Operation::Sweep {
            before,
            limit,
            reply,
        })
        .await
    }

    async fn watch(&self) -> Result<BoxStream<'static, Head>, StoreError> {
        // Registered before the look at what is there, so that nothing falls in between.
        let watcher = self.shared.watchers.register();
        let active = self.read(&self.shared.lists, query::active).await?;
        watcher.merge(active);
        Ok(watcher.into_stream().boxed())
    }

    async fn counts(&self) -> Result<Vec<(State, u64)>, StoreError> {
        Ok(self.shared.counts.all())
    }

    async fn check(&self) -> Result<(), StoreError> {
        if self.operations.is_closed() {
            return Err(StoreError::Unavailable("its writer has stopped".to_owned()));
        }
        self.shared.read(|connection| {
            connection
                .query_row("SELECT count(*) FROM heads LIMIT 0", [], |_| Ok(()))
                .optional()
                .map(drop)
                .map_err(failed)
        })
    }
}

impl Shared {
    fn read<T>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let idle = self.readers().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => self.open_reader().map_err(failed)?,
        };
        let result = read(&connection);
        self.readers().push(connection);
        result
    }

    fn readers(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_reader(&self) -> rusqlite::Result<Connection> {
        let connection = Connection::open_with_flags(
            &self.database,
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        schema::configure_reader(&connection)?;
        Ok(connection)
    }
}

/// How many tasks are in each state, kept by the writer so that nobody has to count.
#[derive(Debug, Default)]
struct Counts([AtomicU64; State::ALL.len()]);

impl Counts {
    fn read(connection: &Connection) -> rusqlite::Result<Self> {
        let counts = Self::default();
        let mut statement =
            connection.prepare("SELECT state, count(*) FROM heads GROUP BY state")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (state, count): (usize, u64) = (row.get(0)?, row.get(1)?);
            if let Some(counter) = counts.0.get(state) {
                counter.store(count, Ordering::Relaxed);
            }
        }
        Ok(counts)
    }

    fn moved(&self, from: Option<State>, to: Option<State>) {
        if let Some(from) = from {
            self.0[usize::from(schema::code(from))].fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(to) = to {
            self.0[usize::from(schema::code(to))].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn all(&self) -> Vec<(State, u64)> {
        State::ALL
            .into_iter()
            .zip(self.0.iter().map(|c| c.load(Ordering::Relaxed)))
            .collect()
    }
}

fn lock(directory: &Path) -> Result<File, OpenError> {
    let path = directory.join("lock");
    let io = |source| OpenError::Io {
        path: path.clone(),
        source,
    };
    let mut file = OpenOptions::new()
        .create(true)
        .read(true)
        .write(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(io)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => {
            let mut process = String::new();
            let process = file
                .take(32)
                .read_to_string(&mut process)
                .ok()
                .map(|_| process.trim().to_owned())
                .filter(|p| !p.is_empty());
            return Err(OpenError::InUse {
                directory: directory.to_owned(),
                process,
            });
        }
        Err(fs::TryLockError::Error(source)) => return Err(io(source)),
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(io)?;
    Ok(file)
}

fn to_json<T: serde::Serialize + ?Sized>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(corrupt)
}

/// SQLite's trouble in the words of the store.
#[expect(clippy::needless_pass_by_value, reason = "made for map_err")]
fn failed(error: rusqlite::Error) -> StoreError {
    use rusqlite::ErrorCode::{DatabaseCorrupt, DiskFull, NotADatabase};
    match error.sqlite_error_code() {
        Some(DiskFull) => StoreError::Full(error.to_string()),
        Some(DatabaseCorrupt | NotADatabase) => StoreError::Corrupt(error.to_string()),
        _ => StoreError::Unavailable(error.to_string()),
    }
}
