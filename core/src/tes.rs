//! The GA4GH TES 1.1 document: read leniently, written strictly.
//!
//! - [`document`]: the types of a task, its logs and the service description.
//! - `read`: a client's JSON to a [`Task`], forgiving what real clients send.
//! - [`validate`]: the rules of the specification and of this server, every breach reported
//!   at once with the name of its field.
//! - [`state`]: the life of a task as a machine that refuses illegal steps.
//! - [`rejection`]: why a document is refused.
//! - [`secrets`]: passwords in URLs, kept apart from the document.
//! - [`view`]: MINIMAL, BASIC and FULL, and the JSON replies they stand for.
//! - [`reply`]: the replies as types, for clients and for the API's description.
//! - [`filter`]: what a list request asks for.
//! - [`page`]: where its page begins.

pub mod document;
pub mod filter;
pub mod page;
mod read;
pub mod rejection;
pub mod reply;
pub mod secrets;
pub mod state;
pub mod validate;
pub mod view;

pub use document::{
    Executor, ExecutorLog, FileType, Input, Output, OutputFileLog, Resources, Task, TaskLog,
};
pub use filter::{Filter, ListRequest};
pub use rejection::{FieldError, Rejection};
pub use reply::{ServiceInfo, TaskReply};
pub use secrets::UrlSecrets;
pub(crate) use secrets::is_masked;
pub use state::{Event, IllegalTransition, State};
pub use validate::{Accepted, ParameterCheck, PrefixRule, Rules, accept};
pub use view::View;

#[cfg(test)]
mod tests;
