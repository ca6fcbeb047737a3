//! How the steps of an attempt hand the turn on: through files in a small shared directory.
//!
//! Each step has a directory of its own there. In a pod it is writable only in the step's own
//! container; but the supervisor of an executor and the user's command may be one user, so
//! everything that is read here is hostile. In a step's directory lie
//!
//! - `alive`: appears, already locked (`flock`), when the step begins. The lock is let go when
//!   the step ends, however it ends.
//! - `record`: appears, whole, when the step has something to say: a [`Record`].
//!
//! So the others can tell: not started (no `alive`), running (locked), over (a `record`), and
//! died (neither lock nor record).

mod take;
mod wait;
mod watch;

use std::fmt;

use serde::{Deserialize, Serialize};
use tesk_core::staging::Failure;
use tesk_core::time::Timestamp;

pub use self::take::Turn;
pub use self::wait::{POLL, Signal, StopFile, await_turn};
pub(crate) use self::wait::{clip, ignores_errors};
pub use self::watch::{Seen, Watch};

/// The version of a [`Record`]'s JSON.
pub const VERSION: u32 = 1;
/// The largest record, in bytes: two tails of text, escaped, and lines for the system log.
pub const MAX_RECORD: u64 = 4 * 1024 * 1024;

/// A step of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Puts inputs in place.
    Inputs,
    /// Runs the executor of this number.
    Executor(usize),
    /// Delivers outputs.
    Outputs,
}

impl fmt::Display for Step {
    /// Its directory's name, and its container's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inputs => f.write_str("inputs"),
            Self::Executor(number) => write!(f, "executor-{number}"),
            Self::Outputs => f.write_str("outputs"),
        }
    }
}

/// What a step has to say at its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// What it means for the steps that follow.
    pub verdict: Verdict,
    /// When the step's own work began.
    pub started: Timestamp,
    /// When it was over.
    pub ended: Timestamp,
    /// Why it failed or was skipped, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Of an executor that was run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The tail of an executor's standard output.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stdout: String,
    /// The tail of an executor's standard error.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stderr: String,
    /// Lines for the system log.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Outputs that an executor has left and that could not be collected.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<Failure>,
}

/// What a step's end means for the steps that follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The next one goes on: it succeeded, or its failure is to be ignored.
    Done,
    /// It failed: whatever follows is skipped.
    Failed,
    /// It failed through no fault of the task: another attempt may succeed.
    FailedForNow,
    /// It failed through no fault of its command, and no other attempt will do better.
    Broken,
    /// It did nothing, because of a step before it or because it was told to stop.
    Skipped,
}

impl Record {
    /// A record of work that began at `started` and ends now.
    pub fn new(verdict: Verdict, started: Timestamp) -> Self {
        Self {
            version: VERSION,
            verdict,
            started,
            ended: Timestamp::now(),
            reason: None,
            exit_code: None,
            stdout: String::new(),
            stderr: String::new(),
            notes: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// The same with a reason.
    #[must_use]
    pub fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }
}
