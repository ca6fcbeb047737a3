//! Both engine traits on a Kubernetes cluster, with rights in one namespace only.
//!
//! - [`cluster`]: the connection, and the names and labels of everything that is made.

pub mod cluster;

pub use cluster::Cluster;
