//! The one thread that changes the database.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension as _, params};
use tokio::sync::{mpsc, oneshot};

use super::query::{self, HEADS};
use super::reserve::Reserve;
use super::{Shared, corrupt, failed, schema};
use crate::scheduler::store::{Created, NewTask, StoreError, Update};
use crate::scheduler::{Head, TaskId};
use crate::tes::State;
use crate::time::{Ascending, Timestamp};

/// Operations in one transaction at most, so that the first of them does not wait for ever.
const BATCH: usize = 256;

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// A change to the database; texts are made by the caller, to leave the writer little to do.
pub(super) enum Operation {
    Create {
        task: Box<NewTask>,
        logs: String,
        secrets: Option<String>,
        reply: Reply<Created>,
    },
    Update {
        id: TaskId,
        expected: u64,
        update: Box<Update>,
        logs: Option<String>,
        reply: Reply<Head>,
    },
    Sweep {
        before: Timestamp,
        limit: usize,
        reply: Reply<Vec<TaskId>>,
    },
}

/// An answer that waits for its transaction to be on disk.
enum Pending {
    Create(Reply<Created>, Result<Created, StoreError>),
    Update(Reply<Head>, Result<Head, StoreError>),
    Sweep(Reply<Vec<TaskId>>, Result<Vec<TaskId>, StoreError>),
}

/// What a transaction changes outside the database once it is on disk.
#[derive(Default)]
struct Effects {
    heads: Vec<Head>,
    moves: Vec<(Option<State>, Option<State>)>,
}

pub(super) struct Writer {
    connection: Connection,
    shared: Arc<Shared>,
    reserve: Reserve,
    clock: Ascending,
}

impl Writer {
    pub(super) fn new(connection: Connection, shared: Arc<Shared>, reserve: Reserve) -> Self {
        Self {
            connection,
            shared,
            reserve,
            clock: Ascending::default(),
        }
    }

    /// Works until every sender is gone and the queue is empty.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Operation>) {
        let mut batch = Vec::with_capacity(BATCH);
        while queue.blocking_recv_many(&mut batch, BATCH) > 0 {
            self.commit(batch.drain(..));
        }
    }

    fn commit(&mut self, batch: impl Iterator<Item = Operation>) {
        if self.reserve.is_spent() {
            self.reserve.restore();
        }
        let mut effects = Effects::default();
        let mut pending = Vec::new();
        let begun = self.connection.execute_batch("BEGIN IMMEDIATE");
        let mut fate = begun.map_err(failed);
        for operation in batch {
            pending.push(self.apply(operation, &mut fate, &mut effects));
        }
        if fate.is_ok() {
            fate = self.connection.execute_batch("COMMIT").map_err(failed);
        }
        if fate.is_err() && !self.connection.is_autocommit() {
            // Nothing to be done about a failure: the next BEGIN will report it.
            let _ = self.connection.execute_batch("ROLLBACK");
        }
        if let Err(error) = &fate {
            tracing::error!(%error, "the task store could not commit");
            // What failed is tried again, and then has the room.
            if matches!(error, StoreError::Full(_)) && self.reserve.give_up() {
                tracing::error!("the disk is full: no task is taken until there is room");
            }
        } else {
            for (from, to) in effects.moves {
                self.shared.counts.moved(from, to);
            }
            self.shared.watchers.publish(&effects.heads);
        }
        for answer in pending {
            answer.send(&fate);
        }
    }

    /// Applies one operation inside the transaction. One that fails leaves no trace and does
    /// not harm the others, unless it took the whole transaction with it, as a full disk does:
    /// then that is everybody's `fate`.
    fn apply(
        &self,
        operation: Operation,
        fate: &mut Result<(), StoreError>,
        effects: &mut Effects,
    ) -> Pending {
        match operation {
            Operation::Create {
                task,
                logs,
                secrets,
                reply,
            } => {
                let result = self.guarded(fate, effects, |writer, effects| {
                    writer.create(&task, &logs, secrets.as_deref(), effects)
                });
                Pending::Create(reply, result)
            }
            Operation::Update {
                id,
                expected,
                update,
                logs,
                reply,
            } => {
                let result = self.guarded(fate, effects, |writer, effects| {
                    writer.update(&id, expected, &update, logs.as_deref(), effects)
                });
                Pending::Update(reply, result)
            }
            Operation::Sweep {
                before,
                limit,
                reply,
            } => {
                let result = self.guarded(fate, effects, |writer, effects| {
                    writer.sweep(before, limit, effects)
                });
                Pending::Sweep(reply, result)
            }
        }
    }

    fn guarded<T>(
        &self,
        fate: &mut Result<(), StoreError>,
        effects: &mut Effects,
        apply: impl FnOnce(&Self, &mut Effects) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if let Err(error) = fate {
            return Err(again(error));
        }
        let run = |sql| {
            self.connection
                .prepare_cached(sql)
                .and_then(|mut statement| statement.execute([]))
                .map_err(failed)
        };
        let mut own = Effects::default();
        let result = run("SAVEPOINT operation").and_then(|_| apply(self, &mut own));
        match result {
            Ok(value) => match run("RELEASE operation") {
                Ok(_) => {
                    effects.heads.append(&mut own.heads);
                    effects.moves.append(&mut own.moves);
                    Ok(value)
                }
                Err(error) => {
                    *fate = Err(again(&error));
                    Err(error)
                }
            },
            Err(error) => {
                let undone = !self.connection.is_autocommit()
                    && run("ROLLBACK TO operation").is_ok()
                    && run("RELEASE operation").is_ok();
                if !undone {
                    *fate = Err(again(&error));
                }
                Err(error)
            }
        }
    }

    fn create(
        &self,
        task: &NewTask,
        logs: &str,
        secrets: Option<&str>,
        effects: &mut Effects,
    ) -> Result<Created, StoreError> {
        if self.reserve.is_spent() {
            return Err(StoreError::Full("no space is left".to_owned()));
        }
        let now = Timestamp::now();
        let user = &task.owner.user;
        if let Some(idempotency) = &task.idempotency {
            let known: Option<(Vec<u8>, String)> = self
                .connection
                .prepare_cached(
                    "SELECT digest, id FROM idempotency WHERE user = ?1 AND key = ?2 AND expires > ?3",
                )
                .and_then(|mut statement| {
                    statement
                        .query_row(params![user, idempotency.key, now.as_millis()], |row| {
                            Ok((row.get(0)?, row.get(1)?))
                        })
                        .optional()
                })
                .map_err(failed)?;
            match known {
                Some((digest, id)) if digest == idempotency.digest => {
                    return Ok(Created::Existing(id.parse().map_err(corrupt)?));
                }
                Some(_) => return Ok(Created::KeyReused),
                None => {
                    self.execute(
                        "INSERT OR REPLACE INTO idempotency (user, key, digest, id, expires) \
                         VALUES (?1, ?2, ?3, ?4, ?5)",
                        params![
                            user,
                            idempotency.key,
                            idempotency.digest,
                            task.id.as_str(),
                            now.after(idempotency.ttl).as_millis()
                        ],
                    )?;
                }
            }
        }

        self.execute(
            "INSERT INTO documents (document) VALUES (?1)",
            params![task.document.as_ref()],
        )?;
        let key = self.connection.last_insert_rowid();
        let head = Head::queued(task.id.clone(), task.owner.clone(), self.clock.now());
        self.execute(
            "INSERT INTO heads \
             (created, id, key, state, changed, attempt, not_before, version, user, grp, name) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, NULL, ?7, ?8, ?9, ?10)",
            params![
                head.created.as_millis(),
                head.id.as_str(),
                key,
                schema::code(head.state),
                head.changed.as_millis(),
                head.attempt,
                head.version,
                user,
                head.owner.group,
                task.name,
            ],
        )?;
        self.execute(
            "INSERT INTO logs (key, logs) VALUES (?1, ?2)",
            params![key, logs],
        )?;
        if let Some(secrets) = secrets {
            self.execute(
                "INSERT INTO secrets (key, secrets) VALUES (?1, ?2)",
                params![key, secrets],
            )?;
        }
        for (tag, value) in &task.tags {
            self.execute(
                "INSERT INTO tags (created, id, tag, value) VALUES (?1, ?2, ?3, ?4)",
                params![head.created.as_millis(), head.id.as_str(), tag, value],
            )?;
        }
        effects.moves.push((None, Some(head.state)));
        effects.heads.push(head);
        Ok(Created::New(task.id.clone()))
    }

    fn update(
        &self,
        id: &TaskId,
        expected: u64,
        update: &Update,
        logs: Option<&str>,
        effects: &mut Effects,
    ) -> Result<Head, StoreError> {
        let (mut head, key) = self.head_and_key(id)?.ok_or(StoreError::NotFound)?;
        if head.version != expected || head.state.is_terminal() {
            return Err(StoreError::Conflict);
        }
        head.version += 1;
        if let Some(state) = update.state
            && state != head.state
        {
            effects.moves.push((Some(head.state), Some(state)));
            head.state = state;
            head.changed = Timestamp::now().max(head.changed);
        }
        if let Some(attempt) = update.attempt {
            head.attempt = attempt;
        }
        if let Some(not_before) = update.not_before {
            head.not_before = not_before;
        }
        self.execute(
            "UPDATE heads SET state = ?3, changed = ?4, attempt = ?5, not_before = ?6, \
             version = ?7 WHERE created = ?1 AND id = ?2",
            params![
                head.created.as_millis(),
                id.as_str(),
                schema::code(head.state),
                head.changed.as_millis(),
                head.attempt,
                head.not_before.map(Timestamp::as_millis),
                head.version,
            ],
        )?;
        if let Some(logs) = logs {
            self.execute(
                "UPDATE logs SET logs = ?2 WHERE key = ?1",
                params![key, logs],
            )?;
        }
        if head.state.is_terminal() {
            self.execute("DELETE FROM secrets WHERE key = ?1", params![key])?;
        }
        effects.heads.push(head.clone());
        Ok(head)
    }

    fn sweep(
        &self,
        before: Timestamp,
        limit: usize,
        effects: &mut Effects,
    ) -> Result<Vec<TaskId>, StoreError> {
        self.execute(
            "DELETE FROM idempotency WHERE expires <= ?1",
            params![Timestamp::now().as_millis()],
        )?;
        let old: Vec<String> = self
            .connection
            .prepare_cached(
                "SELECT id FROM heads INDEXED BY ended WHERE state IN (5, 6, 7, 8, 9) \
                 AND changed < ?1 ORDER BY changed LIMIT ?2",
            )
            .and_then(|mut statement| {
                statement
                    .query_map(params![before.as_millis(), limit as i64], |row| row.get(0))?
                    .collect()
            })
            .map_err(failed)?;
        let mut removed = Vec::with_capacity(old.len());
        for id in old {
            let id: TaskId = id.parse().map_err(corrupt)?;
            let Some((head, key)) = self.head_and_key(&id)? else {
                continue;
            };
            let place = params![head.created.as_millis(), id.as_str()];
            self.execute("DELETE FROM heads WHERE created = ?1 AND id = ?2", place)?;
            self.execute("DELETE FROM tags WHERE created = ?1 AND id = ?2", place)?;
            for table in ["documents", "logs", "secrets"] {
                self.execute(&format!("DELETE FROM {table} WHERE key = ?1"), params![key])?;
            }
            effects.moves.push((Some(head.state), None));
            removed.push(id);
        }
        Ok(removed)
    }

    fn head_and_key(&self, id: &TaskId) -> Result<Option<(Head, i64)>, StoreError> {
        let columns = HEADS.replace(" FROM ", ", h.key FROM ");
        let mut statement = self
            .connection
            .prepare_cached(&format!("SELECT {columns} WHERE h.id = ?1"))
            .map_err(failed)?;
        let mut rows = statement.query([id.as_str()]).map_err(failed)?;
        let Some(row) = rows.next().map_err(failed)? else {
            return Ok(None);
        };
        Ok(Some((query::head(row)?, row.get(9).map_err(failed)?)))
    }

    fn execute(&self, sql: &str, values: impl rusqlite::Params) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute(values))
            .map(drop)
            .map_err(|error| match error.sqlite_error_code() {
                // Nothing but an id that is there already.
                Some(rusqlite::ErrorCode::ConstraintViolation) => StoreError::Conflict,
                _ => failed(error),
            })
    }
}

impl Pending {
    fn send(self, fate: &Result<(), StoreError>) {
        fn result<T>(
            own: Result<T, StoreError>,
            fate: &Result<(), StoreError>,
        ) -> Result<T, StoreError> {
            match fate {
                Ok(()) => own,
                Err(error) => Err(again(error)),
            }
        }
        // A caller that went away does not want the answer.
        match self {
            Self::Create(reply, own) => drop(reply.send(result(own, fate))),
            Self::Update(reply, own) => drop(reply.send(result(own, fate))),
            Self::Sweep(reply, own) => drop(reply.send(result(own, fate))),
        }
    }
}

/// The same trouble, for one more caller.
fn again(error: &StoreError) -> StoreError {
    match error {
        StoreError::Corrupt(text) => StoreError::Corrupt(text.clone()),
        StoreError::Unavailable(text) => StoreError::Unavailable(text.clone()),
        StoreError::Full(text) => StoreError::Full(text.clone()),
        other => StoreError::Unavailable(other.to_string()),
    }
}
