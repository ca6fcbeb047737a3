//! The local engine, put together.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::compute::{self, Launcher, LocalCompute};
use super::runtime::Runtime;
use super::sandbox;
use super::settings::{ContainerArguments, RuntimeChoice};
use super::store::{self, SqliteStore};
use crate::scheduler::{self, Capacity, Engine};

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

/// Opens the data directory, finds the runtime, and starts the scheduler on the present
/// Tokio runtime. Attempts that an engine before this one started are adopted.
pub async fn open(settings: LocalSettings) -> Result<Engine, OpenError> {
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
    let mut scheduler = settings.scheduler;
    scheduler.capacity.get_or_insert_with(machine);
    Ok(Engine::start(store, Arc::new(compute), scheduler))
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
