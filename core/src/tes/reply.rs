//! The replies of the API as types, for clients that read them and for its description. The
//! server itself writes tasks with [`view::write`](super::view::write).

use serde::{Deserialize, Serialize};

use super::{State, Task, TaskLog};
use crate::time::Timestamp;

/// A task in any view.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TaskReply {
    /// The task's id.
    pub id: String,
    /// Where it is in its life.
    pub state: State,
    /// When it was created. Not in MINIMAL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_time: Option<Timestamp>,
    /// What the client asked for. Not in MINIMAL.
    #[serde(flatten)]
    pub task: Option<Task>,
    /// One log for each attempt. Not in MINIMAL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logs: Option<Vec<TaskLog>>,
}

/// The answer to a create.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CreateReply {
    /// The new task's id.
    pub id: String,
}

/// A page of tasks, newest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ListReply {
    /// The tasks, in the view that was asked for.
    pub tasks: Vec<TaskReply>,
    /// Asks for the next page; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_page_token: Option<String>,
}

/// The answer to a cancel: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CancelReply {}

/// The service as it describes itself (GA4GH service-info 1.0 with the members of TES).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ServiceInfo {
    /// Unique, in reverse-domain form.
    pub id: String,
    /// For people.
    pub name: String,
    /// What it speaks.
    #[serde(rename = "type")]
    pub kind: ServiceType,
    /// What it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Who runs it.
    pub organization: Organization,
    /// Where help is: a URL, best one with `https://`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contact_url: Option<String>,
    /// Where the documentation is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub documentation_url: Option<String>,
    /// When the service was first deployed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
    /// When it was last updated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<Timestamp>,
    /// Such as `prod` or `test`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// The version of this server.
    pub version: String,
    /// Prefixes of the URLs that tasks may use.
    #[serde(default)]
    pub storage: Vec<String>,
    /// The keys that `resources.backend_parameters` may hold.
    #[serde(default, rename = "tesResources_backend_parameters")]
    pub backend_parameters: Vec<String>,
}

/// What a service speaks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ServiceType {
    /// The group of the specification.
    pub group: String,
    /// The specification.
    pub artifact: String,
    /// Its version.
    pub version: String,
}

impl ServiceType {
    /// GA4GH TES 1.1.0.
    pub fn tes() -> Self {
        Self {
            group: "org.ga4gh".into(),
            artifact: "tes".into(),
            version: "1.1.0".into(),
        }
    }
}

/// Who runs a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Organization {
    /// For people.
    pub name: String,
    /// Its web site, with a scheme.
    pub url: String,
}
