//! Records of tasks, and what brings each to its end.
//!
//! - [`record`]: a task as it is stored.
//! - [`store`]: the trait [`TaskStore`].
//! - [`compute`]: the trait [`Compute`]; [`hints`] is what its implementations watch with.
//! - [`reconcile`]: the pure decision: record, what is observed, and the time, to actions.
//! - [`run`]: the loop that applies them, over `step` (one task, once) and `queue` (whose
//!   turn it is).
//! - [`engine`]: all of it as one thing.
//! - [`term`]: which of several engines schedules, and for how long it may act.
//! - [`cancel()`]: what a client's cancel does to a record.
//!
//! Every action is idempotent under a deterministic name, and results are written **before**
//! what they came from is removed: a crash between any two steps loses nothing. An attempt
//! runs at most once.

mod cancel;
pub mod compute;
pub mod engine;
pub mod hints;
mod queue;
pub mod reconcile;
pub mod record;
pub mod run;
#[cfg(test)]
#[cfg(any(feature = "local", feature = "kubernetes"))]
mod simulation;
mod step;
pub mod store;
pub mod term;
#[cfg(any(feature = "local", feature = "kubernetes"))]
pub(crate) mod watchers;

pub use cancel::cancel;
pub use compute::{AttemptId, Compute, Observed, Progress, Refusal, Report};
pub use engine::{Engine, Handles};
pub use record::{Head, Owner, Record, TaskId};
pub use run::{Capacity, Scheduler, Settings};
pub use store::{Created, NewTask, Page, Query, StoreError, TaskStore, Update};
pub use term::{Election, Office, Term};
