//! The GA4GH TES 1.1 service and the `tesk` command.
//!
//! - [`service`]: the HTTP service over a [`TaskStore`](tesk_core::scheduler::TaskStore).
//! - [`auth`]: who is calling.
//! - [`config`]: the configuration file.
//! - [`command`]: `tesk run`, `tesk serve`, and the commands of a client.

pub mod auth;
pub mod command;
pub mod config;
pub mod service;

pub use command::main;
