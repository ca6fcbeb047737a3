//! A task as an ordered plan: inputs, executors, outputs, and where their files lie.
//!
//! Pure data and pure functions: nothing here knows of Kubernetes, processes or protocols. A
//! plan is what crosses to the filer and to an attempt's process, as versioned JSON.
//!
//! # Scratch
//!
//! Scratch mirrors container paths: the file that executors see at `/work/a` lies at `work/a`
//! below the scratch root. [`Plan::mounts`] says which parts of it executors see, and where:
//!
//! - `/tmp`, every volume, and every DIRECTORY input or output;
//! - the directory of each FILE input and output, unless it belongs to the image (see
//!   [`paths`]). There an input is mounted as a single file, and an output is collected from
//!   the container ([`PlannedOutput::collected_at`]);
//! - each file that a stream is redirected to, alone, unless one of these directories has it.
//!
//! Mounts inside others are merged into those. Above [`mounts::WANTED`] of them neighbours are
//! replaced by their deepest common ancestor, as long as that does not belong to the image.

mod build;
pub mod glob;
pub mod mounts;
pub mod packed;
pub mod paths;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::tes::{self, FileType, UrlSecrets};

/// The version of the plan's JSON; a reader refuses others.
pub const VERSION: u32 = 1;

/// What one attempt at a task does, in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// [`VERSION`].
    pub version: u32,
    /// The task's id.
    pub task: String,
    /// Put in place in this order; a later one wins over an earlier.
    pub inputs: Vec<PlannedInput>,
    /// Run one after another.
    pub executors: Vec<PlannedExecutor>,
    /// Delivered after the last executor.
    pub outputs: Vec<PlannedOutput>,
    /// What executors see of scratch. No mount lies inside another, and none is twice.
    pub mounts: Vec<Mount>,
    /// Absolute container paths of directories that exist in scratch, writable, before the first
    /// executor: directory mounts, volumes, DIRECTORY inputs and outputs, parents of all other
    /// files, and working directories as far as a mount has them. Parents come before children,
    /// but a parent that only leads to a child is not listed.
    pub directories: Vec<String>,
    /// What the attempt needs of a machine.
    pub resources: PlannedResources,
}

impl Plan {
    /// Whether an address misses its password, which is to be had from somewhere else:
    /// [`Plan::restore`].
    pub fn is_masked(&self) -> bool {
        let inputs = self.inputs.iter().filter_map(|input| match &input.from {
            InputSource::Url(url) => Some(url),
            InputSource::Content(_) => None,
        });
        let outputs = self.outputs.iter().map(|output| &output.url);
        inputs.chain(outputs).any(|url| tes::is_masked(url))
    }

    /// Puts the passwords back into the addresses that were masked.
    pub fn restore(&mut self, secrets: &UrlSecrets) {
        for input in &mut self.inputs {
            if let InputSource::Url(url) = &mut input.from {
                *url = secrets.restore(&format!("inputs[{}].url", input.index), url);
            }
        }
        for output in &mut self.outputs {
            output.url = secrets.restore(&format!("outputs[{}].url", output.index), &output.url);
        }
    }
}

/// One input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedInput {
    /// Its index in the task's document, for messages.
    pub index: usize,
    /// Where it comes from.
    pub from: InputSource,
    /// Absolute container path, normalised: no trailing slash, no `.` or empty component.
    pub path: String,
    /// File or directory.
    pub kind: FileType,
    /// The client's hint, where nothing else of the task touches the path: an engine may mount
    /// the input there, read-only, instead of copying it.
    #[serde(default)]
    pub streamable: bool,
    /// Where the filer sees what an engine mounts for this input; `None` is copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mounted: Option<String>,
}

/// Where an input comes from.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InputSource {
    /// An address, **with** its credentials.
    Url(String),
    /// The content itself.
    Content(String),
}

impl std::fmt::Debug for InputSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Url(url) => match url.parse::<crate::storage::StorageUrl>() {
                Ok(url) => write!(f, "Url({url})"),
                Err(_) => f.write_str("Url(?)"),
            },
            Self::Content(content) => write!(f, "Content({} bytes)", content.len()),
        }
    }
}

/// One executor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedExecutor {
    /// The image reference.
    pub image: String,
    /// The argument vector.
    pub command: Vec<String>,
    /// Absolute, normalised; `None` is the image's own.
    pub workdir: Option<String>,
    /// Absolute, normalised.
    pub stdin: Option<String>,
    /// Absolute, normalised.
    pub stdout: Option<String>,
    /// Absolute, normalised.
    pub stderr: Option<String>,
    /// Over the image's environment.
    pub env: BTreeMap<String, String>,
    /// Whether a failure lets the task go on.
    pub ignore_error: bool,
}

/// One output.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct PlannedOutput {
    /// Its index in the task's document, for messages.
    pub index: usize,
    /// Where to, **with** credentials; a directory when `pattern` is given.
    pub url: String,
    /// What is collected.
    pub from: OutputSource,
    /// For an output that lies outside every mount (its directory belongs to the image): the
    /// executors' supervisors copy it here, an absolute path in scratch that no mount shows. It
    /// stands for the file or, for a pattern, for [`Pattern::directory`](glob::Pattern::directory):
    /// matches are copied with their paths below that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collected_at: Option<String>,
}

impl std::fmt::Debug for PlannedOutput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PlannedOutput")
            .field("from", &self.from)
            .finish_non_exhaustive()
    }
}

/// What is collected of an output.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputSource {
    /// The file at this path (quoting removed).
    File(String),
    /// The directory at this path (quoting removed).
    Directory(String),
    /// Everything that matches.
    Pattern {
        /// The POSIX pattern, as the client wrote it, slashes normalised.
        pattern: String,
        /// What is cut from a match to make its delivered name.
        prefix: String,
    },
}

/// A part of scratch that every executor sees at the same path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute container path; in scratch it is the same path below the scratch root.
    pub path: String,
    /// A directory, or a single file whose directory belongs to the image.
    pub kind: MountKind,
}

/// What is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountKind {
    /// A directory of scratch.
    Directory,
    /// One file of scratch, written in place (a rename would leave the old one mounted).
    File,
}

/// What an attempt needs of a machine; `None` leaves it to the operator's defaults.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PlannedResources {
    /// CPU cores.
    pub cpu_cores: Option<u32>,
    /// Bytes of memory.
    pub ram_bytes: Option<u64>,
    /// Bytes of scratch space.
    pub disk_bytes: Option<u64>,
    /// May run where it can be stopped at any time.
    pub preemptible: bool,
    /// Zones.
    pub zones: Vec<String>,
    /// Supported keys only, in lower case.
    pub backend_parameters: BTreeMap<String, String>,
}

/// Why a valid task has no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {msg}")]
pub struct PlanError {
    /// The field of the task.
    pub field: String,
    /// What is wrong with it.
    pub msg: String,
}

/// The name under which a match of a pattern is delivered: below the output's url, which is a
/// directory. It is the match without `prefix` and without leading slashes, for
/// [`StorageUrl::join`](crate::storage::StorageUrl::join). A match that is nothing but the prefix keeps its own name.
pub fn delivered_name<'a>(matched: &'a str, prefix: &str) -> &'a str {
    let rest = matched.strip_prefix(prefix).unwrap_or(matched);
    let name = rest.trim_start_matches('/');
    if name.is_empty() {
        matched.rsplit('/').next().unwrap_or(matched)
    } else {
        name
    }
}

#[cfg(test)]
mod tests;
