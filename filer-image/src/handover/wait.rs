//! Waiting for a turn.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tesk_core::plan::Plan;
use tokio_util::sync::CancellationToken;

use super::{Seen, Step, Verdict, Watch};

/// How often a waiting step looks. Two system calls each time.
pub const POLL: Duration = Duration::from_millis(50);

/// A file that ends all waiting once there is something in it: the reason. In a pod it is an
/// annotation, seen through the downward API.
#[derive(Clone, Debug, Default)]
pub struct StopFile(Option<PathBuf>);

impl StopFile {
    /// No path: nothing ever stops the waiting.
    pub fn new(path: Option<PathBuf>) -> Self {
        Self(path)
    }

    /// The reason to stop, if there is one by now.
    pub fn reason(&self) -> Option<String> {
        const MAX_REASON: u64 = 1024;
        let mut reason = Vec::new();
        let file = File::open(self.0.as_ref()?).ok()?;
        file.take(MAX_REASON).read_to_end(&mut reason).ok()?;
        let reason = String::from_utf8_lossy(&reason).trim().to_owned();
        (!reason.is_empty()).then_some(reason)
    }
}

/// What ends a step before its time.
#[derive(Clone, Debug)]
pub enum Signal {
    /// A step before it failed, was skipped or died, or waiting makes no sense any more.
    Skip(String),
    /// This process was told to end.
    Terminated,
}

/// Waits until it is the turn of executor `number`: the step before it has ended, and the
/// executor is to be run. The step must have begun ([`Turn::take`](super::Turn::take)): from then
/// on it is waited for.
pub async fn await_turn(
    handover: &Path,
    plan: &Plan,
    number: usize,
    stop: &StopFile,
    terminated: &CancellationToken,
) -> Result<(), Signal> {
    let before = match number.checked_sub(1) {
        Some(before) => Step::Executor(before),
        None => Step::Inputs,
    };
    let stopped = || match stop.reason() {
        Some(reason) => Err(Signal::Skip(format!("stopped: {reason}"))),
        None => Ok(()),
    };
    // Before the first look: nobody waits for an executor that comes after the stop, and what
    // there is is delivered meanwhile.
    stopped()?;
    let mut watch = Watch::new(handover, before);
    loop {
        if terminated.is_cancelled() {
            return Err(Signal::Terminated);
        }
        match watch.look() {
            Seen::NotStarted | Seen::Running => {}
            Seen::Over(record) => {
                return match record.verdict {
                    Verdict::Done => Ok(()),
                    Verdict::Failed | Verdict::FailedForNow | Verdict::Broken => {
                        Err(Signal::Skip(format!("{before} failed")))
                    }
                    Verdict::Skipped => Err(Signal::Skip(match record.reason {
                        Some(reason) => clip(&reason),
                        None => format!("{before} was skipped"),
                    })),
                };
            }
            Seen::Died(_) if ignores_errors(plan, before) => return Ok(()),
            Seen::Died(why) => return Err(Signal::Skip(format!("{before} died: {why}"))),
        }
        // After the look: what has ended has ended, stop or not.
        stopped()?;
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            () = terminated.cancelled() => {}
        }
    }
}

/// Whether the task goes on whatever becomes of `step`.
pub(crate) fn ignores_errors(plan: &Plan, step: Step) -> bool {
    match step {
        Step::Executor(number) => plan.executors.get(number).is_some_and(|e| e.ignore_error),
        Step::Inputs | Step::Outputs => false,
    }
}

/// A hostile line, short enough to show.
pub(crate) fn clip(line: &str) -> String {
    const MAX_LINE: usize = 1000;
    line.chars()
        .filter(|c| !c.is_control())
        .take(MAX_LINE)
        .collect()
}
