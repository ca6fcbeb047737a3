//! Both engine traits on one machine.
//!
//! - [`engine`]: [`open`], which puts all of it together.
//! - [`store`]: [`TaskStore`](crate::scheduler::TaskStore) in SQLite.
//! - `compute`: [`Compute`](crate::scheduler::Compute); each attempt is a process that
//!   outlives this one.
//! - [`attempt`]: what that process does.
//! - [`runtime`]: which runtime runs its executors: `container` (podman or docker) or
//!   [`sandbox`] (this machine itself).

pub mod attempt;
mod compute;
mod container;
pub mod engine;
mod inherited;
mod remove;
pub mod runtime;
pub mod sandbox;
pub mod store;

pub use compute::Launcher;
pub use engine::{LocalSettings, machine, open};
pub use runtime::{ContainerArguments, RuntimeChoice};
pub use store::SqliteStore;
