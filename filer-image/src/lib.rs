//! The filer: what runs inside the pod of one attempt, beside and around the executors.
//!
//! ```text
//!  prepare   installs this binary and makes what the other containers mount
//!  inputs    puts the inputs in place                       ─┐
//!  exec      waits for its turn, runs one executor, …        │ hand over through files
//!  exec      … gives the turn on                             │ ([`handover`])
//!  outputs   waits for the last, delivers, reports          ─┘
//!  copy      moves files between any two storages, for people and benchmarks
//! ```
//!
//! All work on files is [`tesk_core::staging`], all work on processes [`tesk_core::process`]:
//! this crate is the order in which they happen, and the truth about it when something dies.
//!
//! - [`main`]: the command, for a binary with storages of its own.
//! - [`handover`]: how a step knows that it is its turn.
//! - [`plan_file`]: the plan, and what executors may see of it.
//! - [`prepare`], [`inputs`], [`exec`], [`outputs`], [`copy`]: the subcommands.
//! - [`storages`]: from the configuration to a transfer engine.
//! - [`progress`]: lines that tell how far transfers are.

mod command;
pub mod copy;
pub mod exec;
pub mod handover;
pub mod inputs;
pub mod outputs;
pub mod plan_file;
pub mod prepare;
pub mod progress;
pub mod storages;

pub use command::main;
