//! The local engine as one thing: store, compute and scheduler.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::compute::{self, Launcher, LocalCompute};
use super::runtime::{ContainerArguments, Runtime, RuntimeChoice};
use super::sandbox;
use super::store::{self, SqliteStore};
use crate::scheduler::compute::{Compute as _, ComputeError, Observed};
use crate::scheduler::{self, Capacity, Scheduler, StoreError, TaskId, TaskStore};

/// How the local engine works.
#[derive(Clone, Debug)]
pub struct LocalSettings {
    /// The directory that holds everything; made if it is not there. One engine at a time.
    pub data: PathBuf,
    /// What runs executors.
    pub runtime: RuntimeChoice,
    /// For the container engine's command.
    pub container_arguments: ContainerArguments,
    /// What is started for each attempt.
    pub launcher: Launcher,
    /// How the scheduler decides. Without a capacity it is that of this machine.
    pub scheduler: scheduler::Settings,
    /// Bytes kept of the end of each stream of an executor.
    pub tail: usize,
}

/// The engine of one machine. Dropping it stops the scheduler; attempts go on.
#[derive(Debug)]
pub struct Engine {
    store: Arc<SqliteStore>,
    compute: Arc<LocalCompute>,
    scheduler: Scheduler,
}

/// Why the engine does not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] store::OpenError),
    /// Nothing can run executors, for this reason.
    #[error("{0}")]
    Runtime(String),
    /// The directory of the attempts cannot be used.
    #[error("cannot use {path}: {source}")]
    Io {
        /// The data directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl Engine {
    /// Opens the data directory, finds the runtime, and starts the scheduler on the present
    /// Tokio runtime. Attempts that an engine before this one started are adopted.
    pub async fn open(settings: LocalSettings) -> Result<Self, OpenError> {
        let store = Arc::new(SqliteStore::open(&settings.data)?);
        let io = |source| OpenError::Io {
            path: settings.data.clone(),
            source,
        };
        // As sandboxes see it.
        let data = settings.data.canonicalize().map_err(io)?;
        let runtime = Runtime::find(settings.runtime, &settings.container_arguments)
            .await
            .map_err(OpenError::Runtime)?;
        if runtime == Runtime::Host {
            sandbox::check().await.map_err(OpenError::Runtime)?;
        }
        let compute = LocalCompute::open(compute::Settings {
            data,
            launcher: settings.launcher,
            runtime,
            tail: settings.tail,
        })
        .map_err(io)?;
        let compute = Arc::new(compute);
        let mut scheduler = settings.scheduler;
        scheduler.capacity.get_or_insert_with(machine);
        let scheduler = Scheduler::start(
            Arc::clone(&store) as Arc<dyn TaskStore>,
            Arc::clone(&compute) as Arc<_>,
            scheduler,
        );
        Ok(Self {
            store,
            compute,
            scheduler,
        })
    }

    /// The records of its tasks.
    pub fn store(&self) -> Arc<dyn TaskStore> {
        Arc::clone(&self.store) as Arc<_>
    }

    /// The current attempt at a task as it is now, with the progress of its transfers; `None`
    /// for a task that is not known or has no attempt under way.
    pub async fn observe(&self, id: &TaskId) -> Result<Option<Observed>, ObserveError> {
        let head = self.store.head(id).await?;
        let attempt = head
            .filter(|head| !head.state.is_terminal())
            .and_then(|head| head.current_attempt());
        Ok(match attempt {
            Some(attempt) => Some(self.compute.observe(&attempt).await?),
            None => None,
        })
    }

    /// Stops the scheduler and waits until it has. Attempts go on.
    pub async fn stop(self) {
        self.scheduler.stop().await;
    }
}

/// Nothing can be said about a task now.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// The store does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The attempt cannot be looked at.
    #[error(transparent)]
    Compute(#[from] ComputeError),
}

/// What this machine has.
pub fn machine() -> Capacity {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let info = rustix::system::sysinfo();
    Capacity {
        cores: u32::try_from(cores).unwrap_or(u32::MAX),
        memory: (info.totalram as u64).saturating_mul(u64::from(info.mem_unit)),
    }
}
