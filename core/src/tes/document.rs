//! The types of a TES 1.1 task, as they are kept and shown.
//!
//! Serialising writes what the strict side of the API promises: no `null`, integers without
//! decimals, sizes as strings of digits. Deserialising (derived) reads back what was written
//! here; what *clients* send goes through [`accept`](super::accept) instead.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// What a client asks for. Holds exactly what was sent, less nulls, unknown and read-only
/// fields, plus the filled-in `type` of inputs and outputs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Task {
    /// A name for people; need not be unique.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Free text for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Files and directories put in place before the first executor starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inputs: Option<Vec<Input>>,
    /// Files and directories delivered after the last executor has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outputs: Option<Vec<Output>>,
    /// What the task needs of a machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Commands, run one after another; the first failure that is not ignored ends the task.
    pub executors: Vec<Executor>,
    /// Directories that are empty at the start and shared by all executors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volumes: Option<Vec<String>>,
    /// Labels of the client's own; lists can be filtered by them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<BTreeMap<String, String>>,
}

/// FILE or DIRECTORY.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "UPPERCASE")]
pub enum FileType {
    /// A single file.
    #[default]
    File,
    /// A directory with everything below it.
    Directory,
}

/// A file or directory to be put in place before the first executor starts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Input {
    /// A name for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Free text for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Where the data is. Not used when `content` is not empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Absolute path inside the executors.
    pub path: String,
    /// Whether `url` is a file or a directory.
    #[serde(rename = "type", default)]
    pub kind: FileType,
    /// The file's content itself, instead of a `url`; if empty, and there is a
    /// `url`, that counts. Shown in the FULL view only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// A hint that the input is read once, front to back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streamable: Option<bool>,
}

/// A file, directory or pattern to be delivered after the last executor has ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Output {
    /// A name for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Free text for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Where to deliver. With a pattern in `path` this is a directory.
    pub url: String,
    /// Absolute path inside the executors; may hold the wildcards of POSIX XCU 2.13.
    pub path: String,
    /// With a pattern: the leading part of `path` that is left out of the delivered names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_prefix: Option<String>,
    /// Whether `path` is a file or a directory; not needed with a pattern.
    #[serde(rename = "type", default)]
    pub kind: FileType,
}

/// One command in one container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Executor {
    /// The container image.
    pub image: String,
    /// The argument vector; it replaces the image's entry point, and no shell is involved.
    pub command: Vec<String>,
    /// Absolute path of the working directory; created if it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Absolute path of a file that is piped to the command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// Absolute path of a file that receives the standard output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdout: Option<String>,
    /// Absolute path of a file that receives the standard error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr: Option<String>,
    /// Environment variables, over those of the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, String>>,
    /// Whether the task goes on when this command fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ignore_error: Option<bool>,
}

/// What a task needs of a machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Resources {
    /// CPU cores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_cores: Option<i32>,
    /// Whether the task may run where it can be stopped at any time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preemptible: Option<bool>,
    /// Memory in GiB.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "integral_without_decimals"
    )]
    pub ram_gb: Option<f64>,
    /// Scratch space in GiB.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "integral_without_decimals"
    )]
    pub disk_gb: Option<f64>,
    /// Zones the task may run in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zones: Option<Vec<String>>,
    /// Wishes to this server's engine; the service description lists the keys it knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_parameters: Option<BTreeMap<String, String>>,
    /// Whether an unknown key in `backend_parameters` is an error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_parameters_strict: Option<bool>,
}

/// What happened in one attempt at a task.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TaskLog {
    /// One entry for each executor that has ended, in order.
    pub logs: Vec<ExecutorLog>,
    /// Facts of this server about the attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
    /// When a worker took the attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Timestamp>,
    /// When the attempt was over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_time: Option<Timestamp>,
    /// One entry for each delivered file.
    pub outputs: Vec<OutputFileLog>,
    /// What the engine has to say: reasons, warnings. Shown in the FULL view only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_logs: Option<Vec<String>>,
}

/// What one executor did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ExecutorLog {
    /// When the command was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Timestamp>,
    /// When it had ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_time: Option<Timestamp>,
    /// The tail of its standard output. Shown in the FULL view only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdout: Option<String>,
    /// The tail of its standard error. Shown in the FULL view only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr: Option<String>,
    /// 0 is success; 127 not found, 126 not executable, 128 + n ended by signal n.
    pub exit_code: i32,
}

/// One delivered file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct OutputFileLog {
    /// Where it was delivered, without user information and query.
    pub url: String,
    /// Its path inside the executors.
    pub path: String,
    /// Its size in bytes, as a string of digits.
    #[serde(with = "digits")]
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub size_bytes: u64,
}

#[expect(clippy::ref_option, reason = "the signature serde asks for")]
fn integral_without_decimals<S: serde::Serializer>(
    value: &Option<f64>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    // Beyond 2^53 a float has no decimals to hide, and a cast could saturate.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value {
        Some(v) if v.fract() == 0.0 && v.abs() <= EXACT => serializer.serialize_i64(*v as i64),
        Some(v) => serializer.serialize_f64(*v),
        None => serializer.serialize_none(),
    }
}

mod digits {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "the signature serde asks for"
    )]
    pub(super) fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}
