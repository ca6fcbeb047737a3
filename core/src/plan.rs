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

pub mod glob;
pub mod mounts;
pub mod paths;

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde::{Deserialize, Serialize};

use self::glob::Pattern;
use self::mounts::Claims;
use crate::storage::StorageUrl;
use crate::tes::{Executor, FileType, Input, Output, Resources, Task, UrlSecrets};

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
    /// The client's hint.
    #[serde(default)]
    pub streamable: bool,
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

impl Plan {
    /// The plan of a task; `secrets` put back the passwords that its URLs show as `***`.
    ///
    /// Fails for a task that needs more than [`mounts::MOST`] mounts, and for one that
    /// [`accept`](crate::tes::accept) would not have let in.
    pub fn new(id: &str, task: &Task, secrets: &UrlSecrets) -> Result<Self, PlanError> {
        let inputs = task.inputs.iter().flatten().enumerate();
        let inputs = inputs
            .map(|(index, input)| PlannedInput::new(index, input, secrets))
            .collect::<Result<Vec<_>, _>>()?;
        let outputs = task.outputs.iter().flatten().enumerate();
        let mut outputs = outputs
            .map(|(index, output)| PlannedOutput::new(index, output, secrets))
            .collect::<Result<Vec<_>, _>>()?;
        let mut seen = HashSet::new();
        outputs.retain(|output| seen.insert((output.url.clone(), output.from.clone())));
        let executors = task.executors.iter().enumerate();
        let executors = executors
            .map(|(index, executor)| PlannedExecutor::new(index, executor))
            .collect::<Result<Vec<_>, _>>()?;
        let volumes = task.volumes.iter().flatten().enumerate();
        let volumes = volumes
            .map(|(index, volume)| normal(volume, || format!("volumes[{index}]")))
            .collect::<Result<Vec<_>, _>>()?;
        let mut plan = Self {
            version: VERSION,
            task: id.to_owned(),
            inputs,
            executors,
            outputs,
            mounts: Vec::new(),
            directories: Vec::new(),
            resources: PlannedResources::new(task.resources.as_ref()),
        };
        plan.mounts = plan.claims(&volumes).merge().map_err(|count| PlanError {
            field: "task".into(),
            msg: format!(
                "its paths need {count} mounts, and at most {} are possible: put files of a \
                 kind into a directory of their own, such as /data",
                mounts::MOST
            ),
        })?;
        plan.directories = plan.directories(volumes);
        for output in &mut plan.outputs {
            let place = match &output.from {
                OutputSource::File(path) | OutputSource::Directory(path) => path.clone(),
                OutputSource::Pattern { pattern, .. } => Pattern::new(pattern).directory(),
            };
            if !shows(&plan.mounts, &place) {
                output.collected_at = Some(format!("{}/{}", paths::COLLECTED, output.index));
            }
        }
        if plan.outputs.iter().any(|o| o.collected_at.is_some()) {
            plan.directories.push(paths::COLLECTED.to_owned());
        }
        Ok(plan)
    }

    /// What has to be mounted for this plan.
    fn claims(&self, volumes: &[String]) -> Claims {
        let mut claims = Claims::default();
        claims.directory("/tmp");
        for volume in volumes {
            claims.directory(volume);
        }
        for input in &self.inputs {
            match input.kind {
                FileType::File => claims.file(&input.path),
                FileType::Directory => claims.directory(&input.path),
            }
        }
        for output in &self.outputs {
            if let OutputSource::Directory(path) = &output.from {
                claims.directory(path);
                continue;
            }
            let directory = output.from.parent();
            if !paths::owned_by_image(&directory) {
                claims.directory(&directory);
            }
        }
        for executor in &self.executors {
            for stream in [&executor.stdout, &executor.stderr].into_iter().flatten() {
                claims.stream(stream);
            }
        }
        claims
    }

    /// The directories to be made, once the mounts are known.
    fn directories(&self, volumes: Vec<String>) -> Vec<String> {
        let mut directories: BTreeSet<String> = volumes.into_iter().collect();
        for mount in &self.mounts {
            directories.insert(match mount.kind {
                MountKind::Directory => mount.path.clone(),
                MountKind::File => paths::parent(&mount.path).to_owned(),
            });
        }
        for input in &self.inputs {
            directories.insert(match input.kind {
                FileType::File => paths::parent(&input.path).to_owned(),
                FileType::Directory => input.path.clone(),
            });
        }
        for output in &self.outputs {
            directories.insert(match &output.from {
                OutputSource::Directory(path) => path.clone(),
                other => other.parent(),
            });
        }
        for executor in &self.executors {
            directories.extend(executor.workdir.clone());
            let streams = [&executor.stdin, &executor.stdout, &executor.stderr];
            let streams = streams.into_iter().flatten();
            directories.extend(streams.map(|stream| paths::parent(stream).to_owned()));
        }
        let of_single_file = |path: &String| {
            let files = self.mounts.iter().filter(|m| m.kind == MountKind::File);
            files.map(|m| paths::parent(&m.path)).any(|p| p == path)
        };
        let mut directories: Vec<String> = directories
            .into_iter()
            .filter(|path| path != "/" && (shows(&self.mounts, path) || of_single_file(path)))
            .collect();
        directories.sort_by(|a, b| paths::order(a, b));
        directories
    }
}

/// Whether one of the mounts (sorted, none in another) is `path` or has it in it.
fn shows(mounts: &[Mount], path: &str) -> bool {
    let after = mounts.partition_point(|mount| paths::order(&mount.path, path).is_le());
    after
        .checked_sub(1)
        .is_some_and(|before| paths::is_within(path, &mounts[before].path))
}

/// The normal form of a path of the task; `field` names it if there is none.
fn normal(path: &str, field: impl Fn() -> String) -> Result<String, PlanError> {
    let refused = |msg: String| PlanError {
        field: field(),
        msg,
    };
    let path = paths::normal(path).map_err(|msg| refused(msg.into()))?;
    match paths::reserved(&path) {
        Some(msg) => Err(refused(msg)),
        None => Ok(path),
    }
}

/// The url of a directory in one form: without trailing slashes.
fn directory_url(url: String) -> String {
    match url.parse::<StorageUrl>() {
        Ok(parsed) if !parsed.path().trim_end_matches('/').is_empty() => {
            parsed.without_trailing_slash().to_secret_string()
        }
        _ => url,
    }
}

impl PlannedInput {
    fn new(index: usize, input: &Input, secrets: &UrlSecrets) -> Result<Self, PlanError> {
        let content = input.content.as_ref();
        let from = match (&input.url, content.filter(|content| !content.is_empty())) {
            (_, Some(content)) => InputSource::Content(content.clone()),
            (None, None) => InputSource::Content(String::new()),
            (Some(url), None) => {
                let url = secrets.restore(&format!("inputs[{index}].url"), url);
                InputSource::Url(match input.kind {
                    FileType::File => url,
                    FileType::Directory => directory_url(url),
                })
            }
        };
        Ok(Self {
            index,
            from,
            path: normal(&input.path, || format!("inputs[{index}].path"))?,
            kind: input.kind,
            streamable: input.streamable == Some(true),
        })
    }
}

impl PlannedOutput {
    fn new(index: usize, output: &Output, secrets: &UrlSecrets) -> Result<Self, PlanError> {
        let field = || format!("outputs[{index}].path");
        let path = normal(&output.path, field)?;
        let pattern = Pattern::new(&path);
        let from = match (pattern.literal(), output.kind) {
            (Some(path), FileType::File) => OutputSource::File(normal(&path, field)?),
            (Some(path), FileType::Directory) => OutputSource::Directory(normal(&path, field)?),
            (None, _) => {
                normal(&pattern.directory(), field)?;
                OutputSource::Pattern {
                    pattern: path,
                    prefix: paths::tidy(output.path_prefix.as_deref().unwrap_or_default()),
                }
            }
        };
        let url = secrets.restore(&format!("outputs[{index}].url"), &output.url);
        Ok(Self {
            index,
            url: match from {
                OutputSource::File(_) => url,
                _ => directory_url(url),
            },
            from,
            collected_at: None,
        })
    }
}

impl OutputSource {
    /// The directory that must exist for the output to come about in.
    fn parent(&self) -> String {
        match self {
            Self::File(path) | Self::Directory(path) => paths::parent(path).to_owned(),
            Self::Pattern { pattern, .. } => Pattern::new(pattern).directory(),
        }
    }
}

/// The name under which a match of a pattern is delivered: below the output's url, which is a
/// directory. It is the match without `prefix` and without leading slashes, for
/// [`StorageUrl::join`]. A match that is nothing but the prefix keeps its own name.
pub fn delivered_name<'a>(matched: &'a str, prefix: &str) -> &'a str {
    let rest = matched.strip_prefix(prefix).unwrap_or(matched);
    let name = rest.trim_start_matches('/');
    if name.is_empty() {
        matched.rsplit('/').next().unwrap_or(matched)
    } else {
        name
    }
}

impl PlannedExecutor {
    fn new(index: usize, executor: &Executor) -> Result<Self, PlanError> {
        let path = |name: &str, path: &Option<String>| {
            let path = path.as_deref().map(paths::normal).transpose();
            path.map_err(|msg| PlanError {
                field: format!("executors[{index}].{name}"),
                msg: msg.into(),
            })
        };
        Ok(Self {
            image: executor.image.clone(),
            command: executor.command.clone(),
            workdir: path("workdir", &executor.workdir)?,
            stdin: path("stdin", &executor.stdin)?,
            stdout: path("stdout", &executor.stdout)?,
            stderr: path("stderr", &executor.stderr)?,
            env: executor.env.clone().unwrap_or_default(),
            ignore_error: executor.ignore_error == Some(true),
        })
    }
}

impl PlannedResources {
    fn new(resources: Option<&Resources>) -> Self {
        let Some(resources) = resources else {
            return Self::default();
        };
        // The cast saturates, which is as good as any number that large.
        let bytes = |gib: f64| (gib * f64::from(1 << 30)).ceil() as u64;
        let parameters = resources.backend_parameters.iter().flatten();
        Self {
            cpu_cores: resources.cpu_cores.and_then(|n| u32::try_from(n).ok()),
            ram_bytes: resources.ram_gb.map(bytes),
            disk_bytes: resources.disk_gb.map(bytes),
            preemptible: resources.preemptible == Some(true),
            zones: resources.zones.clone().unwrap_or_default(),
            backend_parameters: parameters
                .map(|(key, value)| (key.to_ascii_lowercase(), value.clone()))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests;
