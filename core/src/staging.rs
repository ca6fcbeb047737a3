//! Puts a plan's inputs in place and collects its outputs.
//!
//! - [`prepare`] and [`inputs`] before the first executor, [`outputs`] after the last, and
//!   [`verdict`] on the whole.
//! - [`check_mounted`]: whether inputs can be seen where they are, instead of a copy.
//! - [`release`] and [`collect`] inside an executor's container, for what others could not
//!   read or see.
//! - `tree`: scratch through the task's eyes: which symlinks count, and which do not.
//! - `find`: what a declared output means in such a tree.

mod deliver;
mod find;
mod mounted;
mod place;
pub mod report;
mod supervised;
#[cfg(test)]
mod tests;
mod tree;

use std::io;

use serde::{Deserialize, Serialize};

pub use self::deliver::outputs;
pub use self::mounted::check_mounted;
pub use self::place::{inputs, prepare};
#[cfg(feature = "local")]
pub(crate) use self::supervised::collect_copied;
pub use self::supervised::{Collected, collect, release};
use crate::process::Unwritten;
use crate::scheduler::compute::Outcome;
use crate::storage;
use crate::tes::OutputFileLog;

/// An input that is not in place, or an output that is not delivered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Names the input or output and its URL (credentials hidden), and says why.
    pub message: String,
    /// Whether another attempt may succeed.
    pub retryable: bool,
}

impl Failure {
    fn definite(message: String) -> Self {
        Self {
            message,
            retryable: false,
        }
    }

    /// Of a storage, at `what`.
    fn of_storage(what: &str, error: &storage::Error) -> Self {
        Self {
            message: format!("{what}: {error}"),
            retryable: error.is_retryable(),
        }
    }

    /// Of a command whose output is not whole in its file.
    pub fn of_stream(unwritten: &Unwritten) -> Self {
        Self::of_scratch(&unwritten.what, &unwritten.kind.into())
    }

    /// Of scratch, at `what`. A full or misused scratch is the task's own doing, and rights do
    /// not change by themselves; else it is the machine that has trouble.
    pub fn of_scratch(what: &str, error: &io::Error) -> Self {
        use io::ErrorKind as Kind;
        let own_doing = matches!(
            error.kind(),
            Kind::StorageFull
                | Kind::QuotaExceeded
                | Kind::FileTooLarge
                | Kind::NotADirectory
                | Kind::IsADirectory
                | Kind::AlreadyExists
                | Kind::InvalidFilename
                | Kind::PermissionDenied
        );
        Self {
            message: format!("{what}: {error}"),
            retryable: !own_doing,
        }
    }
}

/// What became of the outputs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delivered {
    /// One for each delivered file, sorted by path.
    pub outputs: Vec<OutputFileLog>,
    /// Lines for the system log: unmatched patterns, refused symlinks. Bounded.
    pub notes: Vec<String>,
    /// Outputs that are missing or could not be delivered as a whole. Bounded.
    pub failures: Vec<Failure>,
}

/// The verdict on an attempt whose executors have ended, in the words of TES: an executor
/// failure stays `EXECUTOR_ERROR` whatever the outputs did.
pub fn verdict(executor_failed: bool, delivered: &Delivered) -> Outcome {
    if executor_failed {
        Outcome::ExecutorError
    } else if delivered.failures.is_empty() {
        Outcome::Complete
    } else if delivered.failures.iter().all(|failure| failure.retryable) {
        Outcome::Retry
    } else {
        Outcome::SystemError
    }
}
