//! Both engine traits on one machine.
//!
//! - [`engine`]: [`open`], which puts all of it together.
//! - [`ContainerArguments`], [`RuntimeChoice`]: what a configuration says of it, which is there
//!   without the feature `local` too.
//! - [`store`]: [`TaskStore`](crate::scheduler::TaskStore) in SQLite.
//! - `compute`: [`Compute`](crate::scheduler::Compute); each attempt is a process that
//!   outlives this one.
//! - [`attempt`]: what that process does.
//! - [`runtime`]: which runtime runs its executors: `container` (podman or docker) or
//!   [`sandbox`] (this machine itself).

#[cfg(feature = "local")]
pub mod attempt;
#[cfg(feature = "local")]
mod compute;
#[cfg(feature = "local")]
mod container;
#[cfg(feature = "local")]
pub mod engine;
#[cfg(feature = "local")]
mod inherited;
#[cfg(feature = "local")]
mod remove;
#[cfg(feature = "local")]
pub mod runtime;
#[cfg(feature = "local")]
pub mod sandbox;
mod settings;
#[cfg(feature = "local")]
pub mod store;

#[cfg(feature = "local")]
pub use compute::Launcher;
#[cfg(feature = "local")]
pub use engine::{LocalSettings, machine, open};
pub use settings::{ContainerArguments, RuntimeChoice};
#[cfg(feature = "local")]
pub use store::SqliteStore;
