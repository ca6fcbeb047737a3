//! Puts a plan's inputs in place and collects its outputs.
use std::sync::Arc;

use crate::plan::Plan;
use crate::rooted::Root;
use crate::scheduler::compute::Outcome;
use crate::tes::OutputFileLog;
use crate::transfer::Engine;

/// An input that is not in place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Names the input and its URL (credentials hidden), and says why.
    pub message: String,
    /// Whether another attempt may succeed.
    pub retryable: bool,
}

/// What became of the outputs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delivered {
    /// One for each delivered file.
    pub outputs: Vec<OutputFileLog>,
    /// Lines for the system log: unmatched patterns, refused symlinks.
    pub notes: Vec<String>,
    /// Outputs that are missing or could not be delivered.
    pub failures: Vec<Failure>,
}

/// Makes the plan's directories in scratch, and placeholders for its single-file mounts, all
/// usable by any user.
pub fn prepare(plan: &Plan, scratch: &Root) -> Result<(), Failure> {
    let _ = (plan, scratch);
    todo!()
}

/// Puts every input in place, in parallel where order does not matter. The first failure ends
/// the rest.
pub async fn inputs(plan: &Plan, scratch: &Arc<Root>, engine: &Engine) -> Result<(), Failure> {
    let _ = (plan, scratch, engine);
    todo!()
}

/// Collects and delivers every output; one failure does not stop the others.
pub async fn outputs(plan: &Plan, scratch: &Arc<Root>, engine: &Engine) -> Delivered {
    let _ = (plan, scratch, engine);
    todo!()
}

/// The verdict on an attempt whose executors have ended, in the words of TES: an executor
/// failure stays EXECUTOR_ERROR whatever the outputs did.
pub fn verdict(executor_failed: bool, delivered: &Delivered) -> Outcome {
    let _ = (executor_failed, delivered);
    todo!()
}
