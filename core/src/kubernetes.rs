//! Both engine traits on a Kubernetes cluster, with rights in one namespace only.
//!
//! - [`cluster`]: the connection, and the names and labels of everything that is made.
//! - [`store`]: task records in `ConfigMap`s.

pub mod cluster;
pub mod compute;
mod engine;
pub mod pod;
mod settings;
pub mod status;
pub mod store;

pub use cluster::{Cluster, secret_name};
pub use compute::KubernetesCompute;
pub use engine::{ClusterSettings, open};
pub use settings::*;
pub use store::ConfigMapStore;
