//! Records of tasks, and what brings each to its end.
//!
//! - [`record`]: a task as it is stored.
//! - [`store`]: the trait [`TaskStore`].
//! - [`compute`]: the trait [`Compute`].
//! - [`reconcile`]: the pure decision: record, what is observed, and the time, to actions.
//! - [`run`]: the loop that applies them.
//!
//! Every action is idempotent under a deterministic name, and results are written **before**
//! what they came from is removed: a crash between any two steps loses nothing. An attempt
//! runs at most once.

pub mod compute;
pub mod reconcile;
pub mod record;
pub mod run;
pub mod store;

pub use compute::{AttemptId, Compute, Observed, Progress, Refusal, Report};
pub use record::{Head, Owner, Record, TaskId};
pub use run::{Scheduler, Settings};
pub use store::{Created, NewTask, Page, Query, StoreError, TaskStore, Update};
