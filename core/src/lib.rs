//! The heart of `tesk`: what a task is, how it is planned, how its files move,
//! and how it is brought to its end.
//!
//! The way of a task, and the module that owns each step:
//!
//! ```text
//!  JSON ──[tes]──▶ Task ──────────────▶ [scheduler::TaskStore]   record: QUEUED
//!                                              │ watch
//!                                              ▼
//!                  [scheduler] reconcile(record, observed, now) ─▶ actions
//!                                              │ submit / cancel / collect
//!                                              ▼
//!              Task ──[plan]──▶ Plan ──▶ [scheduler::Compute]
//!   one attempt:  inputs ─▶ executor 0 ─▶ … ─▶ executor n-1 ─▶ outputs
//!               [staging]         [process]                 [staging]
//!                   │                                           │
//!                   └────▶ [transfer] over [storage] plugins ◀──┘
//! ```
//!
//! - [`tes`]: the TES 1.1 document, read leniently and written strictly.
//! - [`plan`]: a task as steps, mounts and directories; no processes, no Kubernetes.
//! - [`storage`]: the [`Storage`](storage::Storage) trait that plugins implement, and the
//!   registry that routes a URL to one.
//! - [`transfer`]: moves files through any `Storage`: retries, ranges, resume, verification.
//! - [`staging`]: puts a plan's inputs in place and collects its outputs.
//! - [`process`]: runs one command under supervision.
//! - [`scheduler`]: records, the pure `reconcile`, its loop, and the traits
//!   [`TaskStore`](scheduler::TaskStore) and [`Compute`](scheduler::Compute).
//! - [`local`] (feature `local`): both traits on one machine, with SQLite and
//!   podman, docker or plain processes.
//! - [`kubernetes`] (feature `kubernetes`): both traits in one namespace of a cluster.
//! - [`config`]: reading TOML with errors that a person can act on.
//! - [`rooted`]: a directory that no path and no symlink leaves.
//!
//! Without features this crate is what a storage plugin depends on: no database,
//! no Kubernetes, no HTTP.

pub mod config;
mod crash;
pub mod local;
pub mod plan;
pub mod process;
pub mod rooted;
pub mod scheduler;
pub mod staging;
pub mod storage;
pub mod tes;
pub mod time;
pub mod transfer;

#[cfg(feature = "kubernetes")]
pub mod kubernetes;
