//! Both engine traits on one machine.
//!
//! - [`store`]: [`TaskStore`](crate::scheduler::TaskStore) in SQLite.

pub mod store;

pub use store::SqliteStore;
