//! The process of one attempt: inputs, executors, outputs, report.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::compute::directory::{Directory, Order, Status, started_ticks};
use super::container::Containers;
use super::inherited;
use super::remove::remove_tree;
use super::runtime::Runtime;
use super::sandbox::{self, Sandbox};
use crate::plan;
use crate::rooted::{Root, Symlinks};
use crate::scheduler::compute::{Outcome, Progress, Report};
use crate::staging;
use crate::storage::cleanup;
use crate::tes::ExecutorLog;
use crate::time::Timestamp;
use crate::transfer::{Counters, Engine};

/// How often a cancel is looked for.
const CANCEL: Duration = Duration::from_millis(100);
/// How often progress is written down.
const PROGRESS: Duration = Duration::from_millis(500);
/// Bytes kept of all streams of all executors together: the status holds them, and is written
/// anew for each executor.
const TAILS: usize = 4 << 20;

/// Runs the attempt whose directory the engine has made, to its end, and writes its report.
///
/// This is the whole of the process that a [`Launcher`](super::Launcher) starts: call it with
/// the last argument before anything else reads standard input, which is the attempt's lock, or
/// starts a thread. `engine` makes what moves the files.
pub fn main(directory: &Path, engine: impl FnOnce() -> Result<Engine, String>) -> ExitCode {
    match start(directory, engine) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The last line of the log becomes the reason.
            say(&error);
            ExitCode::FAILURE
        }
    }
}

fn start(directory: &Path, engine: impl FnOnce() -> Result<Engine, String>) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("cannot start the attempt: {error}");
    let _lock = keep_lock().map_err(|error| failed(&error))?;
    inherited::keep_from_children().map_err(|error| failed(&error))?;
    // A session of its own: what ends the engine's session does not end this.
    rustix::process::setsid().map_err(|error| failed(&error))?;
    let directory = Directory::at(directory);
    let mut order = directory.order().map_err(|error| failed(&error))?;
    if order.plan.version != plan::VERSION {
        return Err(failed(&"its plan is of another version of this program"));
    }
    order.tail = order.tail.min(fair_tail(order.plan.executors.len()));
    let pid = std::process::id();
    let status = Status {
        process: (pid, started_ticks(pid).unwrap_or_default()),
        running: false,
        started: Timestamp::now(),
        executors: Vec::new(),
        notes: Vec::new(),
        progress: None,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| failed(&error))?;
    let done = runtime.block_on(async {
        let engine = engine().map_err(|error| failed(&error))?;
        let attempt = Attempt {
            directory,
            order,
            engine,
            status: Mutex::new(status),
        };
        let report = attempt.run().await;
        attempt
            .write(&report)
            .await
            .map_err(|error| format!("cannot write the report: {error}"))
    });
    runtime.block_on(cleanup::finish());
    // Transfers that were given up may still sit in blocking calls.
    runtime.shutdown_background();
    done
}

/// Moves the lock away from standard input, where no child of this process finds it.
fn keep_lock() -> std::io::Result<File> {
    let lock = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3)?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(lock.into())
}

struct Attempt {
    directory: Directory,
    order: Order,
    engine: Engine,
    status: Mutex<Status>,
}

/// Why an attempt ends before its last executor has.
#[derive(Debug)]
struct Broken {
    outcome: Outcome,
    reason: String,
}

/// How one executor ended, as every runtime says it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct ExecutorEnd {
    pub(super) log: ExecutorLog,
    pub(super) notes: Vec<String>,
    /// Outputs of it that could not be collected.
    pub(super) failures: Vec<staging::Failure>,
    /// Why the file of a stream of it is not whole.
    pub(super) unwritten: Option<staging::Failure>,
}

impl ExecutorEnd {
    pub(super) fn collected(&mut self, collected: staging::Collected) {
        self.notes.extend(collected.notes);
        self.failures.extend(collected.failures);
    }
}

/// An executor could not be started, through no fault of its command.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct NotStarted {
    pub(super) reason: String,
    /// Whether another attempt may succeed.
    pub(super) retryable: bool,
}

impl NotStarted {
    /// For a reason that may be gone at the next attempt.
    pub(super) fn now(what: &str, error: impl std::fmt::Display) -> Self {
        Self {
            reason: format!("{what}: {error}"),
            retryable: true,
        }
    }
}

impl From<NotStarted> for Broken {
    fn from(error: NotStarted) -> Self {
        Self {
            outcome: outcome_of(error.retryable),
            reason: error.reason,
        }
    }
}

impl From<staging::Failure> for Broken {
    fn from(failure: staging::Failure) -> Self {
        Self {
            outcome: outcome_of(failure.retryable),
            reason: failure.message,
        }
    }
}

fn outcome_of(retryable: bool) -> Outcome {
    if retryable {
        Outcome::Retry
    } else {
        Outcome::SystemError
    }
}

impl Attempt {
    async fn run(&self) -> Report {
        self.change(|_| {});
        let stop = CancellationToken::new();
        let canceled = self.wait_for_cancel(&stop);
        let work = self.work(&stop);
        let (outcome, outputs) = tokio::select! {
            // A cancel does not drop the work: executors get their grace.
            never = canceled => never,
            done = work => done,
        };
        let status = self.status().clone();
        Report {
            outcome,
            executors: status.executors,
            outputs,
            notes: status.notes,
            started: status.started,
            ended: Timestamp::now(),
        }
    }

    /// Writes the report. Nothing else is wanted any more: if the disk is full, the task's files
    /// make room.
    async fn write(&self, report: &Report) -> std::io::Result<()> {
        let written = self.directory.set_report(report);
        if !matches!(&written, Err(error) if is_full(error)) {
            return written;
        }
        // What cannot be removed may still have left enough.
        let _ = remove_tree(&self.directory.scratch(), &self.order.runtime).await;
        self.directory.set_report(report)
    }

    async fn work(&self, stop: &CancellationToken) -> (Outcome, Vec<crate::tes::OutputFileLog>) {
        let mut failures = Vec::new();
        let (executor_failed, broken) = match self.until_outputs(stop, &mut failures).await {
            Ok(failed) => (failed, None),
            Err(_) if stop.is_cancelled() => return (Outcome::Canceled, Vec::new()),
            Err(broken) => {
                self.note(broken.reason);
                let started = !self.status().executors.is_empty();
                if !started || broken.outcome == Outcome::Retry {
                    return (broken.outcome, Vec::new());
                }
                // What the executors before it have made is delivered, as after a failure.
                (false, Some(broken.outcome))
            }
        };
        if stop.is_cancelled() {
            return (Outcome::Canceled, Vec::new());
        }
        let scratch = match self.scratch() {
            Ok(scratch) => scratch,
            Err(broken) => {
                self.note(broken.reason);
                return (broken.outcome, Vec::new());
            }
        };
        let outputs = staging::outputs(&self.order.plan, &scratch, &self.engine);
        let outputs = self.with_progress("outputs", outputs);
        let Some(mut delivered) = stop.run_until_cancelled(outputs).await else {
            return (Outcome::Canceled, Vec::new());
        };
        delivered.failures.extend(failures);
        let verdict = staging::verdict(executor_failed, &delivered);
        let outcome = broken.unwrap_or(verdict);
        self.change(|status| {
            status.notes.extend(delivered.notes);
            let failures = delivered.failures.into_iter();
            status.notes.extend(failures.map(|failure| failure.message));
        });
        (outcome, delivered.outputs)
    }

    /// Inputs and executors; whether one of these failed and was not ignored. To `failures` go
    /// outputs of theirs that could not be collected.
    async fn until_outputs(
        &self,
        stop: &CancellationToken,
        failures: &mut Vec<staging::Failure>,
    ) -> Result<bool, Broken> {
        let Order { plan, runtime, .. } = &self.order;
        let scratch = self.scratch()?;
        staging::prepare(plan, &scratch)?;
        let inputs = async {
            let placed = staging::inputs(plan, &scratch, &self.engine);
            self.with_progress("inputs", placed).await?;
            Ok::<_, Broken>(())
        };
        let runner = match runtime {
            Runtime::Host => {
                let images: BTreeSet<_> = plan.executors.iter().map(|e| &e.image).collect();
                let images: Vec<_> = images.into_iter().map(String::as_str).collect();
                let who = if rustix::process::geteuid().is_root() {
                    "; COMMANDS RUN AS ROOT OF THIS MACHINE"
                } else {
                    ""
                };
                self.note(format!(
                    "warning: the runtime is this machine itself: commands use its programs, \
                     and no image is used ({}){who}",
                    images.join(", ")
                ));
                let in_memory = sandbox::in_memory(plan);
                if !in_memory.is_empty() {
                    self.note(format!(
                        "warning: no volume has {}: what is written there lies in memory, with \
                         room for 64 MiB in all, and goes with its executor",
                        in_memory.join(", ")
                    ));
                }
                Runner::Host(Sandbox::new(&self.directory, &self.order))
            }
            Runtime::Container(engine) => {
                let scratch = Arc::clone(&scratch);
                Runner::Containers(Containers::new(
                    engine,
                    &self.directory,
                    &self.order,
                    scratch,
                ))
            }
        };
        let images = async {
            match &runner {
                Runner::Host(_) => Ok(()),
                Runner::Containers(containers) => Ok(containers.pull_images().await?),
            }
        };
        let ready = async { tokio::try_join!(inputs, images) };
        match stop.run_until_cancelled(ready).await {
            Some(ready) => ready.map(drop)?,
            // Before the first executor nothing needs grace.
            None => return Ok(false),
        }

        self.change(|status| status.running = true);
        for (index, executor) in plan.executors.iter().enumerate() {
            if stop.is_cancelled() {
                return Ok(false);
            }
            let grace = || self.directory.cancel().map_or(CANCEL, |(grace, _)| grace);
            let ended = match &runner {
                Runner::Host(sandbox) => sandbox.run(index, stop, grace).await?,
                Runner::Containers(containers) => containers.run(index, stop, grace).await?,
            };
            let exit_code = ended.log.exit_code;
            failures.extend(ended.failures);
            self.change(|status| {
                status.executors.push(ended.log);
                status.notes.extend(ended.notes);
            });
            let failed = exit_code != 0 && !executor.ignore_error;
            match ended.unwritten {
                Some(failure) if failed => self.note(failure.message),
                // No executor is given half a file.
                Some(failure) => return Err(failure.into()),
                None => {}
            }
            if failed {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn scratch(&self) -> Result<Arc<Root>, Broken> {
        Root::open(self.directory.scratch(), Symlinks::InRoot)
            .map(Arc::new)
            .map_err(|error| Broken {
                outcome: Outcome::Retry,
                reason: format!("cannot use scratch: {error}"),
            })
    }

    /// Cancels `stop` when the engine asks for it; never ends.
    async fn wait_for_cancel<T>(&self, stop: &CancellationToken) -> T {
        loop {
            if self.directory.cancel().is_some() {
                stop.cancel();
                return std::future::pending().await;
            }
            tokio::time::sleep(CANCEL).await;
        }
    }

    /// Does `work`, and tells how far its transfers are.
    async fn with_progress<T>(&self, step: &str, work: impl Future<Output = T>) -> T {
        let counters = self.engine.counters();
        let mut told = progress(step, &counters);
        let tell = async {
            loop {
                tokio::time::sleep(PROGRESS).await;
                let now = progress(step, &counters);
                if now != told {
                    told = now.clone();
                    self.change(|status| status.progress = Some(now));
                }
            }
        };
        tokio::select! {
            result = work => result,
            never = tell => never,
        }
    }

    fn note(&self, line: String) {
        self.change(|status| status.notes.push(line));
    }

    /// Changes the status, writes it down and tells the engine to look.
    fn change(&self, change: impl FnOnce(&mut Status)) {
        let mut status = self.status();
        change(&mut status);
        if let Err(error) = self.directory.set_status(&status) {
            // The report comes all the same.
            say(&format_args!("cannot write the status: {error}"));
        }
        // The engine may be gone; the one that comes next looks by itself.
        let mut engine = std::io::stdout();
        let _ = engine.write_all(b".").and_then(|()| engine.flush());
    }

    fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes to standard error, which is the attempt's log. A log on a full disk does without.
pub(super) fn say(message: &dyn std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{message}");
}

fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

/// The share of each of an executor's two streams in [`TAILS`].
fn fair_tail(executors: usize) -> usize {
    TAILS / (2 * executors.max(1))
}

enum Runner<'a> {
    Host(Sandbox<'a>),
    Containers(Containers<'a>),
}

fn progress(step: &str, counters: &Counters) -> Progress {
    use std::sync::atomic::Ordering::Relaxed;
    Progress {
        step: step.to_owned(),
        files_done: counters.files_done.load(Relaxed),
        files_total: counters.files_total.load(Relaxed),
        bytes_done: counters.bytes_done.load(Relaxed),
        bytes_total: counters.bytes_total.load(Relaxed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tails_of_all_executors_together_are_bounded() {
        for executors in [1, 7, 200, 1000, 100_000] {
            assert!(2 * executors * fair_tail(executors) <= TAILS);
        }
        assert!(fair_tail(200) >= 10 << 10);
    }
}
