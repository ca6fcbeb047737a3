//! The GA4GH TES 1.1 document: read leniently, written strictly.
//!
//! - [`document`]: the types of a task, its logs and the service description.
//! - [`read`]: a client's JSON to a [`Task`], forgiving what real clients send.
//! - [`validate`]: the rules of the specification and of this server, every breach reported
//!   at once with the name of its field.
//! - [`state`]: the life of a task as a machine that refuses illegal steps.
//! - [`view`]: MINIMAL, BASIC and FULL, and the JSON replies they stand for.
//! - [`filter`]: what a list request asks for, and where a page begins.

pub mod document;
pub mod filter;
pub mod read;
pub mod state;
pub mod validate;
pub mod view;

pub use document::{
    Executor, ExecutorLog, FileType, Input, Output, OutputFileLog, Resources, Task, TaskLog,
};
pub use filter::Filter;
pub use read::{FieldError, Rejection};
pub use state::{Event, IllegalTransition, State};
pub use validate::{Accepted, Rules, UrlSecrets};
pub use view::View;
