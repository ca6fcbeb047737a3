//! Both engine traits on a Kubernetes cluster, with rights in one namespace only.
//!
//! - [`cluster`]: the connection, and the names and labels of everything that is made.
//! - [`store`]: [`TaskStore`](crate::scheduler::TaskStore) in `ConfigMap`s.
//! - [`compute`]: [`Compute`](crate::scheduler::Compute), a pod for each attempt: [`pod`] makes
//!   its manifest of a plan, [`status`] reads what became of it. Both are pure functions.
//! - [`lease`]: which of several engines schedules.
//! - [`open()`]: all of it put together; [`open_alone()`] for one task.
//! - [`purge()`]: all of it removed; [`purge_alone()`] after one task.
//! - [`Settings`]: the operator's choices.

pub mod cluster;
pub mod compute;
#[cfg(test)]
mod crashes;
mod engine;
mod follow;
pub mod lease;
pub mod pod;
mod purge;
mod settings;
pub mod status;
pub mod store;

pub use cluster::{Cluster, secret_name};
pub use compute::KubernetesCompute;
pub use engine::{ClusterSettings, instance_of_one, open, open_alone, open_on};
pub use purge::{purge, purge_alone};
pub use settings::*;
pub use store::ConfigMapStore;
