//! Engines, tasks and waiting for them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tesk_backends::pvc::PvcFactory;
use tesk_core::local::{self, ContainerArguments, Launcher, LocalSettings, RuntimeChoice};
use tesk_core::scheduler::Engine;
use tesk_core::scheduler::{Capacity, NewTask, Owner, Record, Settings, TaskId, TaskStore, cancel};
use tesk_core::storage::ConfigEntry;
use tesk_core::storage::registry::{Prefixes, RegistryBuilder};
use tesk_core::tes::{Rules, State, accept};
use tesk_core::transfer;

/// How long a task may take in these tests.
const PATIENCE: Duration = Duration::from_secs(30);

/// A data directory, and one with files that tasks may fetch and deliver.
#[derive(Debug)]
pub(crate) struct Place {
    root: tempfile::TempDir,
}

/// An engine in a place.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) engine: Engine,
    pub(crate) store: Arc<dyn TaskStore>,
}

impl Place {
    pub(crate) fn new() -> Result<Self> {
        let root = tempfile::Builder::new()
            .disable_cleanup(std::env::var("KEEP").is_ok())
            .tempdir()?;
        fs::create_dir(root.path().join("files"))?;
        Ok(Self { root })
    }

    pub(crate) fn path(&self) -> &Path {
        self.root.path()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.root.path().join("files").join(name)
    }

    pub(crate) fn url(&self, name: &str) -> String {
        format!("file://{}", self.file(name).display())
    }

    pub(crate) fn read(&self, name: &str) -> Result<String> {
        fs::read_to_string(self.file(name)).with_context(|| format!("file {name}"))
    }

    /// What attempts have left.
    pub(crate) fn attempts(&self) -> Result<Vec<String>> {
        let directory = self.path().join("data/attempts");
        let names = fs::read_dir(directory)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect()
    }

    pub(crate) async fn start(&self) -> Result<Running> {
        self.start_with(|_| {}).await
    }

    pub(crate) async fn start_with(
        &self,
        change: impl FnOnce(&mut LocalSettings),
    ) -> Result<Running> {
        let mut settings = settings(self.path())?;
        change(&mut settings);
        // The process before, or the engine before in this one, may still be going.
        let begun = Instant::now();
        let engine = loop {
            match local::open(settings.clone()).await {
                Err(error)
                    if error.to_string().contains("in use") && begun.elapsed() < PATIENCE =>
                {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                other => break other?,
            }
        };
        let store = engine.store();
        Ok(Running { engine, store })
    }
}

pub(crate) fn settings(place: &Path) -> Result<LocalSettings> {
    let files = place.join("files").to_string_lossy().into_owned();
    Ok(LocalSettings {
        data: place.join("data"),
        runtime: RuntimeChoice::Host,
        container_arguments: ContainerArguments::default(),
        launcher: Launcher {
            program: std::env::current_exe()?,
            arguments: vec!["__attempt".to_owned(), files],
        },
        scheduler: Settings {
            capacity: Some(Capacity {
                cores: 4,
                memory: 1 << 33,
            }),
            back_off: Duration::from_millis(50),
            grace: Duration::from_secs(1),
            ..Settings::default()
        },
        tail: 10_240,
    })
}

/// What moves the files of an attempt: `file:` URLs below `files`.
pub(crate) fn transfer_engine(files: &Path) -> Result<transfer::Engine, String> {
    let entry = ConfigEntry {
        kind: "pvc".to_owned(),
        prefix: Prefixes::One(format!("file://{}", files.display())),
        options: toml::Table::new(),
    };
    let registry = RegistryBuilder::default()
        .with("pvc", PvcFactory)
        .build(&[entry])
        .map_err(|error| error.to_string())?;
    let settings = transfer::Settings::default();
    Ok(transfer::Engine::new(Arc::new(registry), &settings))
}

/// A task of one shell command.
pub(crate) fn shell(script: &str) -> Value {
    json!({ "executors": [executor(script)] })
}

pub(crate) fn executor(script: &str) -> Value {
    json!({ "image": "busybox", "command": ["sh", "-c", script] })
}

pub(crate) fn new_task(document: &Value, place: &Path) -> Result<NewTask> {
    let rules = Rules {
        prefixes: vec![tesk_core::tes::validate::PrefixRule {
            prefix: format!("file://{}", place.join("files").display()),
            write: true,
            list: true,
        }],
        ..Rules::default()
    };
    let accepted = accept(document.to_string().as_bytes(), &rules)?;
    Ok(NewTask {
        id: TaskId::random(),
        owner: Owner::default(),
        document: serde_json::to_string(&accepted.task)?.into(),
        name: accepted.task.name.clone(),
        tags: Vec::new(),
        secrets: accepted.secrets,
        warnings: accepted.warnings,
        idempotency: None,
    })
}

impl Running {
    pub(crate) async fn submit(&self, place: &Place, document: &Value) -> Result<TaskId> {
        let task = new_task(document, place.path())?;
        let id = task.id.clone();
        self.store.create(task).await?;
        Ok(id)
    }

    /// Runs a task to its end.
    pub(crate) async fn run(&self, place: &Place, document: &Value) -> Result<Record> {
        let id = self.submit(place, document).await?;
        self.end(&id).await
    }

    pub(crate) async fn end(&self, id: &TaskId) -> Result<Record> {
        self.until(id, State::is_terminal).await
    }

    pub(crate) async fn until(
        &self,
        id: &TaskId,
        wanted: impl Fn(State) -> bool,
    ) -> Result<Record> {
        let begun = Instant::now();
        loop {
            let record = self.store.get(id).await?.context("the task is gone")?;
            if wanted(record.head.state) {
                return Ok(record);
            }
            if record.head.state.is_terminal() || begun.elapsed() > PATIENCE {
                bail!("{id} is {}: {:?}", record.head.state, record.logs);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub(crate) async fn cancel(&self, id: &TaskId) -> Result<()> {
        cancel(&*self.store, id).await?;
        Ok(())
    }
}

/// All lines of all system logs.
pub(crate) fn system_logs(record: &Record) -> String {
    let lines = record
        .logs
        .iter()
        .flat_map(|log| log.system_logs.iter().flatten());
    lines.cloned().collect::<Vec<_>>().join("\n")
}

/// Checks a task's end.
pub(crate) fn ended(record: &Record, state: State) -> Result<()> {
    ensure!(
        record.head.state == state,
        "{} instead of {state}: {:#?}",
        record.head.state,
        record.logs
    );
    Ok(())
}

/// Waits until something holds.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !holds()? {
        ensure!(begun.elapsed() < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}
