//! The suite for storages is judged itself.
//!
//! - `memory`: a storage that keeps every promise, and passes.
//! - `defects`: the same with one defect each.
//! - `mutations`: which cases find which defect.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

#[path = "integration/defects.rs"]
mod defects;
#[path = "integration/memory.rs"]
mod memory;
#[path = "integration/mutations.rs"]
mod mutations;
