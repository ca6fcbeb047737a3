//! Attempts as processes of this machine.
//!
//! Each attempt is a process of its own, in a session of its own, which outlives this one: it
//! is started by the [`Launcher`] and does all the work ([`attempt`](super::attempt)). What is
//! known of it is what lies in its [directory](directory). A service manager that stops the
//! engine must leave the processes alone that it started (`KillMode=process` in systemd).
//!
//! CPU cores and memory count for admission, and containers are limited to them where the
//! container engine can; `disk_gb` is not enforced: a full disk is the error of the step that
//! meets it.

pub(in crate::local) mod directory;

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::process::{Child, Command};

use self::directory::{Claim, Directory, Order, Seen, started_ticks};
use super::remove::remove_tree;
use super::runtime::Runtime;
use crate::plan::Plan;
use crate::scheduler::TaskId;
use crate::scheduler::compute::{
    AttemptId, Compute, ComputeError, Observed, Output, Phase, Refusal,
};
use crate::scheduler::hints::Hints;

/// How often an attempt that an earlier process of the engine started is looked at.
const ADOPTED: Duration = Duration::from_millis(200);
/// Bytes of an output that are read at a time.
const OUTPUT: usize = 64 << 10;
/// How long an attempt may take beyond its grace before its process is killed.
const OVERDUE: Duration = Duration::from_secs(30);
/// How long a container engine may take to remove what it made too late.
const STRAYS: Duration = Duration::from_mins(1);

/// The program that is started for each attempt: with `arguments` and then the attempt's
/// directory. It has to call [`attempt::main`](super::attempt::main) at once.
#[derive(Clone, Debug)]
pub struct Launcher {
    /// The program; usually the engine's own.
    pub program: PathBuf,
    /// What comes before the directory.
    pub arguments: Vec<String>,
}

/// How attempts are run.
#[derive(Debug)]
pub(super) struct Settings {
    /// The data directory.
    pub(super) data: PathBuf,
    pub(super) launcher: Launcher,
    pub(super) runtime: Runtime,
    /// Bytes kept of the end of each stream.
    pub(super) tail: usize,
}

/// Runs attempts on this machine.
#[derive(Clone, Debug)]
pub(super) struct LocalCompute {
    settings: Arc<Settings>,
    attempts: PathBuf,
    /// What tells this server from others.
    server: String,
    hints: Hints,
    /// What could not be removed, to be tried again.
    left: Arc<Mutex<Vec<PathBuf>>>,
}

impl LocalCompute {
    /// Needs a Tokio runtime: it watches over the attempts that run already.
    pub(super) fn open(settings: Settings) -> io::Result<Self> {
        let attempts = settings.data.join("attempts");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&attempts)?;
        let compute = Self {
            server: server_name(&settings.data)?,
            settings: Arc::new(settings),
            attempts,
            hints: Hints::default(),
            left: Arc::default(),
        };
        compute.remove_drafts()?;
        for attempt in compute.list()? {
            let (directory, hints) = (compute.directory(&attempt), compute.hints.clone());
            tokio::spawn(watch_adopted(directory, attempt, hints));
        }
        Ok(compute)
    }

    fn directory(&self, attempt: &AttemptId) -> Directory {
        Directory::at(self.attempts.join(attempt.to_string()))
    }

    fn list(&self) -> io::Result<Vec<AttemptId>> {
        let mut attempts = Vec::new();
        for entry in fs::read_dir(&self.attempts)? {
            let name = entry?.file_name();
            attempts.extend(name.to_str().and_then(attempt_id));
        }
        Ok(attempts)
    }

    /// Removes what an earlier process was making or removing when it died.
    fn remove_drafts(&self) -> io::Result<()> {
        let mut drafts = Vec::new();
        for entry in fs::read_dir(&self.attempts)? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                drafts.push(entry.path());
            }
        }
        self.discard_later(drafts);
        Ok(())
    }

    fn discard_later(&self, paths: Vec<PathBuf>) {
        let compute = self.clone();
        tokio::spawn(async move {
            for path in paths {
                if let Err(error) = compute.discard(&path).await {
                    tracing::warn!(path = %path.display(), %error, "cannot remove");
                }
            }
        });
    }

    fn end_strays_later(&self) {
        let compute = self.clone();
        tokio::spawn(async move {
            // An attempt has its directory before it has a container: one that is listed and has
            // none has it no more.
            let is_gone = |attempt: &str| {
                let directory = compute.attempts.join(attempt);
                matches!(directory.try_exists(), Ok(false))
            };
            let runtime = &compute.settings.runtime;
            let ended = runtime.end_strays(&compute.server, is_gone);
            // A container engine that hangs is asked again by the next sweep.
            let ended = tokio::time::timeout(STRAYS, ended).await;
            if let Err(error) = ended.map_err(io::Error::other).flatten() {
                tracing::warn!(%error, "cannot look for containers whose attempts are gone");
            }
        });
    }

    /// Removes what nobody looks for any more; what cannot be removed is tried again when the
    /// attempts are listed.
    async fn discard(&self, path: &Path) -> io::Result<()> {
        let removed = remove_tree(path, &self.settings.runtime).await;
        if removed.is_err() {
            self.left().push(path.to_owned());
        }
        removed
    }

    fn left(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn claim(&self, attempt: &AttemptId, plan: &Plan) -> io::Result<Option<Claim>> {
        let order = Order {
            attempt: attempt.clone(),
            plan: plan.clone(),
            runtime: self.settings.runtime.clone(),
            tail: self.settings.tail,
            data: self.settings.data.clone(),
            server: self.server.clone(),
        };
        let parent = self.attempts.clone();
        tokio::task::spawn_blocking(move || {
            Directory::claim(&parent, &order.attempt.to_string(), &order)
        })
        .await
        .map_err(io::Error::other)?
    }

    /// Starts the attempt's process, which inherits the lock as its standard input.
    fn launch(&self, claim: Claim) -> io::Result<(Child, Directory)> {
        let Claim { directory, lock } = claim;
        let launcher = &self.settings.launcher;
        let child = Command::new(&launcher.program)
            .args(&launcher.arguments)
            .arg(directory.path())
            .current_dir("/")
            .stdin(Stdio::from(lock))
            .stdout(Stdio::piped())
            .stderr(Stdio::from(directory.open_log()?))
            .spawn()?;
        Ok((child, directory))
    }
}

#[async_trait]
impl Compute for LocalCompute {
    async fn submit(&self, attempt: &AttemptId, plan: &Plan) -> Result<(), Refusal> {
        let failed = |error: io::Error| ComputeError(format!("cannot start {attempt}: {error}"));
        let Some(claim) = self.claim(attempt, plan).await.map_err(failed)? else {
            return Ok(());
        };
        // If this fails the lock is free from here on: the attempt is lost, and another follows.
        let (child, directory) = self.launch(claim).map_err(failed)?;
        tokio::spawn(watch_child(
            child,
            directory,
            attempt.clone(),
            self.hints.clone(),
        ));
        Ok(())
    }

    async fn observe(&self, attempt: &AttemptId) -> Result<Observed, ComputeError> {
        let failed = |error: io::Error| ComputeError(format!("cannot look at {attempt}: {error}"));
        let directory = self.directory(attempt);
        // A report is up to some MiB, too much for a thread of the async runtime.
        let look = tokio::task::spawn_blocking(move || directory.look());
        let seen = look.await.map_err(io::Error::other).flatten();
        let Some(Seen { status, end }) = seen.map_err(failed)? else {
            return Ok(Observed::absent());
        };
        let phase = match (&status, end) {
            (None, None) => Phase::Pending(None),
            (Some(status), None) if status.running => Phase::Running,
            (Some(_), None) => Phase::Initializing,
            (_, Some(Ok(report))) => Phase::Finished(Box::new(report)),
            (_, Some(Err(reason))) => {
                // Executors in containers outlive the attempt's process.
                if let Err(error) = self.settings.runtime.end_containers(attempt).await {
                    return Err(ComputeError(format!("cannot end {attempt}: {error}")));
                }
                Phase::Lost {
                    reason,
                    preempted: false,
                }
            }
        };
        let (started, executors, notes, progress) = match status {
            Some(s) => (Some(s.started), s.executors, s.notes, s.progress),
            None => (None, Vec::new(), Vec::new(), None),
        };
        Ok(Observed {
            phase,
            started,
            executors,
            notes,
            progress,
        })
    }

    async fn watch(&self) -> Result<BoxStream<'static, AttemptId>, ComputeError> {
        Ok(self.hints.subscribe())
    }

    async fn cancel(&self, attempt: &AttemptId, grace: Duration) -> Result<(), ComputeError> {
        let failed = |error: io::Error| ComputeError(format!("cannot cancel {attempt}: {error}"));
        let directory = self.directory(attempt);
        if !directory.exists().map_err(failed)? {
            return Ok(());
        }
        match directory.cancel() {
            None => directory.set_cancel(grace).map_err(failed),
            Some((grace, ago)) if ago > grace + OVERDUE => kill(&directory).map_err(failed),
            Some(_) => Ok(()),
        }
    }

    async fn remove(&self, attempt: &AttemptId) -> Result<(), ComputeError> {
        let failed = |error: io::Error| ComputeError(format!("cannot remove {attempt}: {error}"));
        let directory = self.directory(attempt);
        if !directory.exists().map_err(failed)? {
            return Ok(());
        }
        if directory.is_locked().map_err(failed)? {
            return Err(ComputeError(format!("{attempt} still runs")));
        }
        // Gone for everyone at once; a crash meanwhile leaves a draft, which the next start
        // removes, and a failure one that the next sweep does.
        let gone = self
            .attempts
            .join(format!(".gone-{attempt}-{:08x}", rand::random::<u32>()));
        fs::rename(directory.path(), &gone).map_err(failed)?;
        self.discard(&gone).await.map_err(failed)
    }

    async fn attempts(&self) -> Result<Vec<AttemptId>, ComputeError> {
        let left = std::mem::take(&mut *self.left());
        if !left.is_empty() {
            self.discard_later(left);
        }
        self.end_strays_later();
        self.list()
            .map_err(|error| ComputeError(format!("cannot list attempts: {error}")))
    }

    async fn output(
        &self,
        attempt: &AttemptId,
        executor: usize,
    ) -> Result<Option<Output>, ComputeError> {
        let directory = self.directory(attempt);
        match tokio::fs::File::open(directory.output(executor)).await {
            Ok(file) => {
                let printed = Printed {
                    directory,
                    executor,
                    file,
                    at: 0,
                    ended: false,
                };
                Ok(Some(stream::try_unfold(printed, Printed::next).boxed()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ComputeError(format!(
                "cannot read the output of {attempt}: {error}"
            ))),
        }
    }
}

/// Reads what an executor prints.
struct Printed {
    directory: Directory,
    executor: usize,
    file: tokio::fs::File,
    at: u64,
    /// All is there that will be.
    ended: bool,
}

impl Printed {
    /// What comes next; `None` after the end.
    async fn next(mut self) -> io::Result<Option<(Bytes, Self)>> {
        loop {
            if self.file.metadata().await?.len() < self.at {
                self.at = 0;
                self.file.rewind().await?;
            }
            let mut bytes = BytesMut::with_capacity(OUTPUT);
            let read = self.file.read_buf(&mut bytes).await?;
            if read > 0 {
                self.at += read as u64;
                return Ok(Some((bytes.freeze(), self)));
            }
            if self.ended {
                return Ok(None);
            }
            self.ended = self.has_ended()?;
            if !self.ended {
                tokio::time::sleep(ADOPTED).await;
            }
        }
    }

    fn has_ended(&self) -> io::Result<bool> {
        if !self.directory.is_locked().unwrap_or(false) {
            return Ok(true);
        }
        let status = self.directory.status()?;
        Ok(status.is_some_and(|status| status.executors.len() > self.executor))
    }
}

/// Tells of a child's changes: it writes a byte for each, and its end closes the pipe.
async fn watch_child(mut child: Child, directory: Directory, attempt: AttemptId, hints: Hints) {
    if let Some(mut stdout) = child.stdout.take() {
        let mut buffer = [0; 256];
        while stdout.read(&mut buffer).await.is_ok_and(|read| read > 0) {
            hints.send(&attempt);
        }
    }
    if let Err(error) = child.wait().await {
        tracing::warn!(%attempt, %error, "cannot wait for an attempt");
    }
    // A sandbox ends a little after the attempt that it lost.
    while directory.is_locked().unwrap_or(false) {
        tokio::time::sleep(ADOPTED / 4).await;
    }
    hints.send(&attempt);
}

/// Tells of the changes of an attempt that is not our child.
async fn watch_adopted(directory: Directory, attempt: AttemptId, hints: Hints) {
    let modified = |path: &Path| path.join("status.json").metadata()?.modified();
    let mut seen = None;
    while directory.is_locked().unwrap_or(false) {
        let now = modified(directory.path()).ok();
        if now != seen {
            seen = now;
            hints.send(&attempt);
        }
        tokio::time::sleep(ADOPTED).await;
    }
    hints.send(&attempt);
}

/// Kills the process of an attempt that did not heed its cancel. Its sandbox ends with it.
fn kill(directory: &Directory) -> io::Result<()> {
    let Some(status) = directory.status()? else {
        return Ok(());
    };
    let (pid, started) = status.process;
    let Some(process) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Ok(());
    };
    match pidfd_open(process, PidfdFlags::empty()) {
        // Looked at after it was opened: it is this process, or an other with the same number.
        Ok(handle) if started_ticks(pid) == Some(started) => {
            tracing::warn!(pid, directory = %directory.path().display(), "killing an attempt that does not end");
            Ok(pidfd_send_signal(handle, Signal::KILL)?)
        }
        _ => Ok(()),
    }
}

/// What tells the server of a data directory from all others: made at its first start. The file
/// tells its own inode too: a copy of the directory is another server's, which must not take the
/// containers of the first for its own.
fn server_name(data: &Path) -> io::Result<String> {
    let path = data.join("id");
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)?;
    let inode = file.metadata()?.ino().to_string();
    let mut text = String::new();
    // Cut short by a full disk, it is not UTF-8 at worst.
    let known = file
        .read_to_string(&mut text)
        .ok()
        .and(text.split_once(' '));
    if let Some((id, of)) = known
        && of == inode
        && id.len() == 32
    {
        return Ok(id.to_owned());
    }
    let id = format!("{:032x}", rand::random::<u128>());
    // On a full disk this start has one of its own.
    if let Err(error) = fs::write(&path, format!("{id} {inode}")) {
        tracing::warn!(path = %path.display(), %error, "cannot keep the name of this server");
    }
    Ok(id)
}

/// Reads `<task>-<number>`.
fn attempt_id(name: &str) -> Option<AttemptId> {
    let (task, number) = name.rsplit_once('-')?;
    let number = number.parse().ok().filter(|number| *number > 0)?;
    let task: TaskId = task.parse().ok()?;
    Some(AttemptId { task, number })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_keeps_its_name_and_no_other_has_it() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let name = server_name(one.path()).unwrap();
        assert_eq!(server_name(one.path()).unwrap(), name);
        assert_ne!(server_name(two.path()).unwrap(), name);
        // A copy is of another server.
        fs::copy(one.path().join("id"), two.path().join("new")).unwrap();
        fs::rename(two.path().join("new"), two.path().join("id")).unwrap();
        assert_ne!(server_name(two.path()).unwrap(), name);
        assert_eq!(server_name(one.path()).unwrap(), name);
        // As a full disk leaves it.
        fs::write(one.path().join("id"), "").unwrap();
        let new = server_name(one.path()).unwrap();
        assert_eq!(server_name(one.path()).unwrap(), new);
    }

    #[tokio::test]
    async fn what_could_not_be_removed_is_tried_again_when_attempts_are_listed() {
        let data = tempfile::tempdir().unwrap();
        let compute = LocalCompute::open(Settings {
            data: data.path().to_owned(),
            launcher: Launcher {
                program: "none".into(),
                arguments: Vec::new(),
            },
            runtime: Runtime::Host,
            tail: 0,
        })
        .unwrap();
        let place = data.path().join("place");
        let gone = place.join("gone");
        // In the way: no directory can be looked into here.
        fs::write(&place, "").unwrap();
        compute.discard(&gone).await.unwrap_err();
        compute.attempts().await.unwrap();
        fs::remove_file(&place).unwrap();
        fs::create_dir_all(gone.join("deep")).unwrap();
        let begun = std::time::Instant::now();
        while gone.exists() {
            assert!(begun.elapsed() < Duration::from_secs(10));
            compute.attempts().await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
