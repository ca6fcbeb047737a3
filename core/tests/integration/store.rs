//! The SQLite store: the promises of every store, and what is its own.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use libtest_mimic::Trial;
use tesk_conformance::store::{CASES, Fixture};
use tesk_core::local::SqliteStore;
use tesk_core::local::store::OpenError;
use tesk_core::scheduler::{Created, NewTask, Owner, StoreError, TaskId, TaskStore, Update};
use tesk_core::tes::{State, TaskLog, UrlSecrets};

use crate::{trial, trials};

pub(crate) fn trials() -> Vec<Trial> {
    let suite = CASES.iter().map(|case| {
        trial(format!("sqlite::{}", case.name), || async {
            let directory = tempfile::tempdir()?;
            (case.run)(Arc::new(Directory(directory))).await
        })
    });
    let own = trials![
        "sqlite":
        a_second_process_is_refused_and_told_who_has_the_directory,
        nobody_else_can_read_the_database,
        a_database_of_a_later_version_is_left_alone,
        what_was_acknowledged_survives_a_kill,
        a_record_is_not_read_on_a_thread_of_the_async_runtime,
        logs_that_are_too_large_are_refused_and_leave_the_task_as_it_was,
    ];
    suite.chain(own).collect()
}

struct Directory(tempfile::TempDir);

impl Fixture for Directory {
    fn open(&self) -> BoxFuture<'_, Result<Arc<dyn TaskStore>>> {
        async {
            // The lock of a store goes with its last reader and writer, in their own time.
            let store = reopen(self.0.path()).await?;
            Ok(Arc::new(store) as Arc<dyn TaskStore>)
        }
        .boxed()
    }
}

async fn reopen(directory: &Path) -> Result<SqliteStore> {
    for _ in 0..1000 {
        match SqliteStore::open(directory) {
            Err(OpenError::InUse { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
            other => return Ok(other?),
        }
    }
    anyhow::bail!("the store is not closed")
}

pub(super) fn task(id: TaskId) -> NewTask {
    NewTask {
        id,
        owner: Owner::default(),
        document: r#"{"executors":[{"image":"i","command":["c"]}]}"#.into(),
        name: None,
        tags: vec![("k".to_owned(), "v".to_owned())],
        secrets: UrlSecrets::default(),
        warnings: Vec::new(),
        idempotency: None,
    }
}

async fn a_second_process_is_refused_and_told_who_has_the_directory() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let _first = SqliteStore::open(directory.path())?;
    let refused = SqliteStore::open(directory.path())
        .err()
        .context("it was let in")?
        .to_string();
    ensure!(
        refused.contains(&directory.path().display().to_string()),
        "{refused}"
    );
    ensure!(
        refused.contains(&std::process::id().to_string()),
        "{refused}"
    );
    Ok(())
}

async fn nobody_else_can_read_the_database() -> Result<()> {
    let parent = tempfile::tempdir()?;
    let directory = parent.path().join("new/data");
    let store = SqliteStore::open(&directory)?;
    store.create(task(TaskId::random())).await?;
    ensure!(directory.metadata()?.permissions().mode() & 0o777 == 0o700);
    for file in directory.read_dir()? {
        let file = file?;
        let mode = file.metadata()?.permissions().mode();
        ensure!(
            mode.trailing_zeros() >= 6,
            "{} has mode {mode:o}",
            file.path().display()
        );
    }
    Ok(())
}

async fn a_database_of_a_later_version_is_left_alone() -> Result<()> {
    let directory = tempfile::tempdir()?;
    drop(SqliteStore::open(directory.path())?);
    rusqlite::Connection::open(directory.path().join("tasks.sqlite"))?
        .execute_batch("PRAGMA user_version = 999")?;
    let refused = loop {
        match SqliteStore::open(directory.path()) {
            Err(OpenError::InUse { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
            other => break other.err().context("it was opened")?.to_string(),
        }
    };
    ensure!(refused.contains("later version"), "{refused}");
    Ok(())
}

/// Creates tasks until it is killed and prints the id of each that was acknowledged.
pub(crate) fn writer(directory: &str) -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let store = SqliteStore::open(Path::new(directory)).expect("a store");
        let writers = (0..8).map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                loop {
                    match store.create(task(TaskId::random())).await {
                        Ok(Created::New(id)) => println!("{id}"),
                        other => panic!("{other:?}"),
                    }
                }
            })
        });
        futures_util::future::join_all(writers).await;
    });
    ExitCode::FAILURE
}

async fn what_was_acknowledged_survives_a_kill() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut acknowledged = Vec::new();
    for round in 0..4 {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("__store-writer")
            .arg(directory.path())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
        for _ in 0..50 + round * 37 {
            acknowledged.push(lines.next().context("a line")??);
        }
        child.kill()?;
        // What it had printed before it died was acknowledged too.
        acknowledged.extend(lines.map_while(Result::ok).filter(|l| l.len() == 20));
        child.wait()?;
    }
    let store = reopen(directory.path()).await?;
    for id in &acknowledged {
        let id: TaskId = id.parse()?;
        ensure!(store.get(&id).await?.is_some(), "{id} is lost");
    }
    Ok(())
}

async fn a_record_is_not_read_on_a_thread_of_the_async_runtime() -> Result<()> {
    let test = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(1)
            .build()?;
        let (go_on, wait) = std::sync::mpsc::channel::<()>();
        runtime.block_on(async {
            let directory = tempfile::tempdir()?;
            let store = SqliteStore::open(directory.path())?;
            let id = TaskId::random();
            store.create(task(id.clone())).await?;
            // The only thread there is for what takes its time.
            let busy = tokio::task::spawn_blocking(move || wait.recv());
            ensure!(store.get(&id).now_or_never().is_none());
            ensure!(store.get_raw(&id).now_or_never().is_none());
            ensure!(store.get_with_secrets(&id).now_or_never().is_none());
            ensure!(store.watch().now_or_never().is_none());
            drop(go_on);
            let _ = busy.await?;
            // Reads that were given up leave their turns to others.
            for _ in 0..10 {
                ensure!(store.get(&id).await?.is_some() && store.get_raw(&id).await?.is_some());
            }
            Ok(())
        })
    };
    let test = std::thread::spawn(test).join();
    test.map_err(|_| anyhow::anyhow!("it panicked"))?
}

async fn logs_that_are_too_large_are_refused_and_leave_the_task_as_it_was() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = SqliteStore::open(directory.path())?;
    let id = TaskId::random();
    store.create(task(id.clone())).await?;
    let update = |line: String| Update {
        state: Some(State::SystemError),
        logs: Some(vec![TaskLog {
            system_logs: Some(vec![line]),
            ..TaskLog::default()
        }]),
        ..Update::default()
    };
    let refused = store.update(&id, 1, update("x".repeat(64 << 20))).await;
    ensure!(
        matches!(refused, Err(StoreError::TooLarge { .. })),
        "{:?}",
        refused.map(|head| head.version)
    );
    let head = store.update(&id, 1, update("x".to_owned())).await?;
    ensure!(head.state == State::SystemError);
    Ok(())
}
