//! The tables, and how they come to be.

use std::path::Path;

use rusqlite::Connection;

use super::{BUSY, OpenError};
use crate::tes::State;

/// Each brings a database from the version of its index to the next. Never edit one that was
/// released: add another.
const MIGRATIONS: &[&str] = &[
    // 1. Heads lie in the order in which they are listed, so that a page is one scan; the bulky
    //    texts lie elsewhere, under an integer that grows with time.
    "
    CREATE TABLE heads (
        created    INTEGER NOT NULL,
        id         TEXT    NOT NULL UNIQUE,
        key        INTEGER NOT NULL,
        state      INTEGER NOT NULL,
        changed    INTEGER NOT NULL,
        attempt    INTEGER NOT NULL,
        not_before INTEGER,
        version    INTEGER NOT NULL,
        user       TEXT    NOT NULL,
        grp        TEXT,
        name       TEXT,
        PRIMARY KEY (created, id)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX heads_by_state ON heads (state, created, id);
    CREATE INDEX heads_by_user ON heads (user, created, id);
    CREATE INDEX ended ON heads (changed) WHERE state IN (5, 6, 7, 8, 9);

    CREATE TABLE documents (key INTEGER PRIMARY KEY, document TEXT NOT NULL) STRICT;
    CREATE TABLE logs (key INTEGER PRIMARY KEY, logs TEXT NOT NULL) STRICT;
    CREATE TABLE secrets (key INTEGER PRIMARY KEY, secrets TEXT NOT NULL) STRICT;

    CREATE TABLE tags (
        created INTEGER NOT NULL,
        id      TEXT NOT NULL,
        tag     TEXT NOT NULL,
        value   TEXT NOT NULL,
        PRIMARY KEY (created, id, tag)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX tags_by_value ON tags (tag, value, created, id);
    CREATE INDEX tags_by_tag ON tags (tag, created, id);

    CREATE TABLE idempotency (
        user    TEXT NOT NULL,
        key     TEXT NOT NULL,
        digest  BLOB NOT NULL,
        id      TEXT NOT NULL,
        expires INTEGER NOT NULL,
        PRIMARY KEY (user, key)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX idempotency_by_expiry ON idempotency (expires);
    ",
];

/// The number a state has in the database: its place in the list of the specification.
pub(super) fn code(state: State) -> u8 {
    State::ALL
        .iter()
        .position(|s| *s == state)
        .map_or(0, |place| place as u8)
}

/// The state with a number.
pub(super) fn state(code: u8) -> Option<State> {
    State::ALL.get(usize::from(code)).copied()
}

pub(super) fn configure_writer(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // A commit waits for the disk: what was acknowledged survives the machine.
    connection.pragma_update(None, "synchronous", "FULL")?;
    // Pages of 4 KiB until the log is folded into the database.
    connection.pragma_update(None, "wal_autocheckpoint", 4_000)?;
    configure(connection)
}

pub(super) fn configure_reader(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "query_only", true)?;
    configure(connection)
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    // KiB, when negative.
    connection.pragma_update(None, "cache_size", -16_384)?;
    connection.pragma_update(None, "mmap_size", 256 << 20)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

/// Brings a database to the newest version; an empty one too.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), OpenError> {
    let failed = |source| OpenError::Database {
        path: path.to_owned(),
        source,
    };
    let found: u32 = connection
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .map_err(failed)?;
    let known = MIGRATIONS.len() as u32;
    if found > known {
        return Err(OpenError::TooNew {
            path: path.to_owned(),
            found,
            known,
        });
    }
    for (version, migration) in (found + 1..).zip(&MIGRATIONS[found as usize..]) {
        let transaction = connection.transaction().map_err(failed)?;
        transaction.execute_batch(migration).map_err(failed)?;
        transaction
            .pragma_update(None, "user_version", version)
            .map_err(failed)?;
        transaction.commit().map_err(failed)?;
    }
    Ok(())
}
