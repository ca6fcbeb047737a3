//! The service as its clients see it, over real connections.
//!
//! - `support`: a server in this process, over a real SQLite store, with nothing that runs
//!   tasks.
//! - `paths`: where things are, which methods they answer, what errors look like.
//! - `create`, `views`, `lists`, `cancel`: the operations of TES.
//! - `output`: what an executor prints.
//! - `auth`, `origin`: who may do what.
//! - `failures`: a store in trouble, and a server about to end.
//! - `replicas`: several servers of one cluster, and one that has lost it.
//! - `process`: the program itself: `tesk serve`, `tesk run`, the commands of a client.
//! - `description`: replies against the OpenAPI document, and the page that shows it.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

mod auth;
mod cancel;
mod create;
mod description;
mod failures;
mod lists;
mod origin;
mod output;
mod paths;
mod process;
mod replicas;
mod storage;
mod support;
mod views;
