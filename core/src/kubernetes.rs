//! Both engine traits on a Kubernetes cluster, with rights in one namespace only.
//!
//! - [`cluster`]: the connection, and the names and labels of everything that is made.
//! - [`store`]: [`TaskStore`](crate::scheduler::TaskStore) in `ConfigMap`s.
//! - [`compute`]: [`Compute`](crate::scheduler::Compute), a pod for each attempt: [`pod`] makes
//!   its manifest of a plan, [`status`] reads what became of it. Both are pure functions.
//! - [`lease`]: which of several engines schedules.
//! - [`open()`]: all of it put together.
//! - [`purge()`]: all of it removed.
//! - [`Settings`]: the operator's choices.

pub mod cluster;
pub mod compute;
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
pub use engine::{ClusterSettings, open, open_on};
pub use purge::purge;
pub use settings::*;
pub use store::ConfigMapStore;
