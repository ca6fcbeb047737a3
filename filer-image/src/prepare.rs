//! `filer prepare`: what must be there before any other container of the pod starts.

use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use rustix::fs::{FlockOperation, flock};
use tesk_core::plan::Plan;
use tesk_core::rooted::{Root, Symlinks};
use tesk_core::staging;
use tesk_core::storage::RegistryBuilder;

use crate::handover::Step;
use crate::{plan_file, storages};

/// The options of `filer prepare`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The plan: a file with JSON, or a directory with the parts of a packed one.
    #[arg(long, value_name = "PATH")]
    pub plan: PathBuf,
    /// The scratch directory.
    #[arg(long, value_name = "DIR")]
    pub scratch: PathBuf,
    /// The shared directory through which steps hand over; each gets its own in it.
    #[arg(long, value_name = "DIR")]
    pub handover: PathBuf,
    /// Installs this binary, and the part of the plan that executors may see, in this directory.
    #[arg(long, value_name = "DIR")]
    pub install: Option<PathBuf>,
    /// The configuration file with the storages, for a plan whose inputs are mounted.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where to write the reason of a failure: the output of a container's hook is lost.
    #[arg(long, value_name = "FILE")]
    pub reason: Option<PathBuf>,
}

/// Makes directories, placeholders and hand-over directories, installs the binary, and looks at
/// inputs that are mounted. May be run again.
pub fn run(options: &Options, plugins: &RegistryBuilder) -> anyhow::Result<()> {
    let done = prepare(options, plugins);
    if let (Err(error), Some(reason)) = (&done, &options.reason) {
        std::fs::write(reason, format!("{error:#}"))
            .with_context(|| format!("cannot write {}", reason.display()))?;
    }
    done
}

fn prepare(options: &Options, plugins: &RegistryBuilder) -> anyhow::Result<()> {
    let done = Done::begin(&options.handover).context("cannot use the hand-over directory")?;
    let plan = plan_file::read(&options.plan)?;
    let scratch = Root::open(&options.scratch, Symlinks::InRoot)
        .with_context(|| format!("cannot open scratch {}", options.scratch.display()))?;
    staging::prepare(&plan, &scratch).map_err(|failure| anyhow!(failure))?;
    if plan.inputs.iter().any(|input| input.mounted.is_some()) {
        let registry = storages::registry(plugins, options.config.as_deref())?;
        staging::check_mounted(&plan, &registry).map_err(|failure| anyhow!(failure))?;
    }
    for step in steps(&plan) {
        let directory = options.handover.join(step.to_string());
        open_directory(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
    }
    if let Some(directory) = &options.install {
        install(directory, plan)
            .with_context(|| format!("cannot install in {}", directory.display()))?;
    }
    done.say().context("cannot say that all is prepared")
}

/// The file that appears once all is prepared. It is locked as long as this process lives: a
/// container that ends while a hook still runs in it has a hook that failed.
struct Done {
    path: PathBuf,
    temporary: PathBuf,
    _lock: File,
}

impl Done {
    fn begin(handover: &Path) -> io::Result<Self> {
        let temporary = handover.join(format!(".prepared-{}", std::process::id()));
        let lock = File::create(&temporary)?;
        lock.set_permissions(Permissions::from_mode(0o644))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self {
            path: handover.join(PREPARED),
            temporary,
            _lock: lock,
        })
    }

    fn say(self) -> anyhow::Result<()> {
        std::fs::rename(&self.temporary, &self.path)?;
        // Until the end of the process, and not of this function.
        std::mem::forget(self);
        Ok(())
    }
}

const PREPARED: &str = "prepared";

/// Waits until all is prepared and whoever did it is gone.
pub async fn done(handover: &Path) -> io::Result<()> {
    loop {
        match File::open(handover.join(PREPARED)) {
            Ok(file) => match flock(&file, FlockOperation::NonBlockingLockShared) {
                Ok(()) => return Ok(()),
                Err(rustix::io::Errno::WOULDBLOCK) => {}
                Err(error) => return Err(error.into()),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// How often that is looked for.
const LOOK: std::time::Duration = std::time::Duration::from_millis(10);

/// All steps of a plan, in order.
pub fn steps(plan: &Plan) -> impl Iterator<Item = Step> {
    let executors = (0..plan.executors.len()).map(Step::Executor);
    [Step::Inputs]
        .into_iter()
        .chain(executors)
        .chain([Step::Outputs])
}

/// A directory that whatever user an image has can write to.
fn open_directory(directory: &Path) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o777)
        .create(directory)?;
    std::fs::set_permissions(directory, Permissions::from_mode(0o777))
}

fn install(directory: &Path, plan: Plan) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory)?;
    let mut binary = File::open("/proc/self/exe")?;
    publish(&directory.join("filer"), 0o755, |file| {
        io::copy(&mut binary, file).map(drop)
    })?;
    let plan = serde_json::to_vec(&plan_file::for_executors(plan))?;
    publish(&directory.join(plan_file::FOR_EXECUTORS), 0o644, |file| {
        file.write_all(&plan)
    })?;
    Ok(())
}

/// Writes a file that appears whole.
fn publish(
    path: &Path,
    mode: u32,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = File::create(&temporary).and_then(|mut file| {
        write(&mut file)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        drop(file);
        std::fs::rename(&temporary, path)
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}
