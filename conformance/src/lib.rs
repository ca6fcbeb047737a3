//! Conformance suites for the traits of `tesk-core`, as a library that a plugin's own tests run.
//!
//! - [`storage`]: what [`Storage`](tesk_core::storage::Storage) promises.
//! - [`store`]: what [`TaskStore`](tesk_core::scheduler::TaskStore) promises.
//! - [`fake_api`]: a stand-in for the API server of Kubernetes.
//! - [`proxy`]: a TCP proxy that cuts, stalls, slows, refuses and garbles, for these suites and
//!   for tests of any client.

pub mod fake_api;
pub mod proxy;
pub mod storage;
pub mod store;
