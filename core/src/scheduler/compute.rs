//! Where attempts run.

use std::time::Duration;
use std::{fmt, io};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};

use super::record::TaskId;
use crate::plan::Plan;
use crate::tes::{ExecutorLog, OutputFileLog};
use crate::time::Timestamp;

/// Something that runs attempts: a cluster, or this machine.
///
/// Every operation is idempotent under the attempt's id, which names everything that is made
/// for it. Once [`Compute::submit`] was called for an attempt, no later call for the same
/// attempt starts it again, whatever crashed in between.
#[async_trait]
pub trait Compute: fmt::Debug + Send + Sync + 'static {
    /// Starts an attempt, or finds that it was started before.
    async fn submit(&self, attempt: &AttemptId, plan: &Plan) -> Result<(), Refusal>;

    /// What is known of an attempt now.
    async fn observe(&self, attempt: &AttemptId) -> Result<Observed, ComputeError>;

    /// Attempts that may have changed, as they do; a reader observes each. It is a hint: the
    /// scheduler also looks at every active attempt from time to time.
    async fn watch(&self) -> Result<BoxStream<'static, AttemptId>, ComputeError>;

    /// Ends whatever runs of an attempt: politely, and after `grace` by force. Returns at
    /// once; [`Observed::phase`] becomes [`Phase::Finished`], [`Phase::Lost`] or
    /// [`Phase::Absent`] when it is gone.
    async fn cancel(&self, attempt: &AttemptId, grace: Duration) -> Result<(), ComputeError>;

    /// Removes all traces of an attempt that has ended. What was there is no longer needed.
    async fn remove(&self, attempt: &AttemptId) -> Result<(), ComputeError>;

    /// Every attempt that has left traces here: for the sweep of orphans at the start.
    async fn attempts(&self) -> Result<Vec<AttemptId>, ComputeError>;

    /// What an executor, counted from 0, prints: from its beginning, as it does, until it ends.
    /// `None` while it has not started, when nothing of it is left, and where there is no way to
    /// tell; then its log has the end of it, once it has ended.
    async fn output(
        &self,
        _attempt: &AttemptId,
        _executor: usize,
    ) -> Result<Option<Output>, ComputeError> {
        Ok(None)
    }
}

/// Both streams of a command in one, in the order in which they were read. Where much was printed
/// before or a reader is slow, parts of it may be missing.
pub type Output = BoxStream<'static, io::Result<Bytes>>;

/// The name of one attempt: `<task>-<number>`, number from 1.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AttemptId {
    /// The task.
    pub task: TaskId,
    /// The attempt, from 1.
    pub number: u32,
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.task, self.number)
    }
}

impl fmt::Debug for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why an attempt was not started.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// There is no room now: try again later.
    #[error("{0}")]
    Busy(String),
    /// It can never run here: the task ends with this reason.
    #[error("{0}")]
    Never(String),
    /// It is not known whether it was started: observe, and try again.
    #[error(transparent)]
    Unknown(#[from] ComputeError),
}

/// The compute side is in trouble; nothing is known of the attempt.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ComputeError(pub String);

/// What is known of an attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    /// How far it is.
    pub phase: Phase,
    /// When a worker took it.
    pub started: Option<Timestamp>,
    /// Executors that have ended, in order.
    pub executors: Vec<ExecutorLog>,
    /// Things worth a line in the system log so far.
    pub notes: Vec<String>,
    /// How far the transfers of the present step are.
    pub progress: Option<Progress>,
}

/// How far an attempt is.
#[derive(Clone, Debug, PartialEq)]
pub enum Phase {
    /// Nothing of it is here.
    Absent,
    /// Accepted; it waits, with the reason if one is known.
    Pending(Option<String>),
    /// On a worker: image and inputs are on their way.
    Initializing,
    /// Inputs are in place; executors run, or outputs are delivered.
    Running,
    /// Over, with its report.
    Finished(Box<Report>),
    /// It ended without a report, through no fault of the task: another attempt may follow.
    Lost {
        /// What is known of the cause.
        reason: String,
        /// Whether it was stopped to make room.
        preempted: bool,
    },
}

impl Observed {
    /// Nothing of it is here.
    pub fn absent() -> Self {
        Self {
            phase: Phase::Absent,
            started: None,
            executors: Vec::new(),
            notes: Vec::new(),
            progress: None,
        }
    }
}

impl Phase {
    /// Whether nothing of it runs or will run.
    pub fn is_over(&self) -> bool {
        matches!(self, Self::Absent | Self::Finished(_) | Self::Lost { .. })
    }
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The verdict.
    pub outcome: Outcome,
    /// Executors that ended, in order.
    pub executors: Vec<ExecutorLog>,
    /// Delivered files.
    pub outputs: Vec<OutputFileLog>,
    /// Lines for the system log.
    pub notes: Vec<String>,
    /// When it began.
    pub started: Timestamp,
    /// When it was over.
    pub ended: Timestamp,
}

/// The verdict on an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All executors succeeded or were ignored; all outputs are delivered.
    Complete,
    /// An executor failed and was not ignored.
    ExecutorError,
    /// The task cannot succeed, whoever tries again: input not found, output missing, …
    SystemError,
    /// Infrastructure failed; another attempt may succeed.
    Retry,
    /// It was ended by [`Compute::cancel`].
    Canceled,
}

/// How far a step's transfers are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// `inputs`, `executor 2`, `outputs`.
    pub step: String,
    /// Files done.
    pub files_done: u64,
    /// Files known of.
    pub files_total: u64,
    /// Bytes done.
    pub bytes_done: u64,
    /// Bytes known of.
    pub bytes_total: u64,
}
