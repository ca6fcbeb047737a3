//! The rules of the specification and of this server.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Rejection, Task};

/// Passwords cut from a document's URLs, by the field they came from (`inputs[0].url`).
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UrlSecrets(pub BTreeMap<String, String>);

impl std::fmt::Debug for UrlSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UrlSecrets({} hidden)", self.0.len())
    }
}

/// What this server allows, as far as validation goes.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// URL prefixes that are served, as configured; a url outside them is refused. For
    /// `file:` whole components are compared, `.` and `..` resolved.
    pub prefixes: Vec<PrefixRule>,
    /// The most CPU cores a task may ask for.
    pub max_cpu_cores: Option<u32>,
    /// The most memory, in GiB.
    pub max_ram_gb: Option<f64>,
    /// The most scratch space, in GiB.
    pub max_disk_gb: Option<f64>,
    /// Backend parameters that are known, in canonical spelling, each with a check of its
    /// value that answers what is wrong.
    pub backend_parameters: BTreeMap<String, fn(&str) -> Result<(), String>>,
}

/// One URL prefix that is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixRule {
    /// Such as `s3://bucket/`, `http://` or `file:///data`.
    pub prefix: String,
    /// Whether outputs can be delivered there.
    pub write: bool,
    /// Whether directories can be fetched from there.
    pub list: bool,
}

/// A document that may be stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Accepted {
    /// The document, passwords in URLs masked as `***`.
    pub task: Task,
    /// The passwords.
    pub secrets: UrlSecrets,
    /// What was dropped or is odd, for the first system log.
    pub warnings: Vec<String>,
}

/// Reads and validates a client's document.
pub fn accept(body: &[u8], rules: &Rules) -> Result<Accepted, Rejection> {
    let _ = (body, rules);
    todo!()
}
