//! From a task to its plan.

use std::collections::{BTreeSet, HashSet};

use super::glob::{HIDDEN_DOTS, Pattern};
use super::mounts::{self, Claims};
use super::{
    InputSource, Mount, MountKind, OutputSource, Plan, PlanError, PlannedExecutor, PlannedInput,
    PlannedOutput, PlannedResources, VERSION, paths,
};
use crate::storage::StorageUrl;
use crate::tes::{Executor, FileType, Input, Output, Resources, Task, UrlSecrets};

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
        let origins: Vec<String> = plan.outputs.iter().map(|o| o.from.directory()).collect();
        plan.mounts = plan
            .claims(&volumes, &origins)
            .merge()
            .map_err(|count| PlanError {
                field: "task".into(),
                msg: format!(
                    "its paths need {count} mounts, and at most {} are possible: put files of a \
                 kind into a directory of their own, such as /data",
                    mounts::MOST
                ),
            })?;
        plan.mark_streamable(&volumes);
        plan.directories = plan.directories(volumes, &origins);
        for (output, origin) in plan.outputs.iter_mut().zip(&origins) {
            let place = match &output.from {
                // The file alone may be mounted.
                OutputSource::File(path) => path,
                _ => origin,
            };
            if !shows(&plan.mounts, place) {
                output.collected_at = Some(format!("{}/{}", paths::COLLECTED, output.index));
            }
        }
        if plan.outputs.iter().any(|o| o.collected_at.is_some()) {
            plan.directories.push(paths::COLLECTED.to_owned());
        }
        Ok(plan)
    }

    /// What has to be mounted for this plan; `origins` are the directories of its outputs.
    fn claims(&self, volumes: &[String], origins: &[String]) -> Claims {
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
        for (output, origin) in self.outputs.iter().zip(origins) {
            let asked_for = matches!(output.from, OutputSource::Directory(_));
            if asked_for || !paths::owned_by_image(origin) {
                claims.directory(origin);
            }
        }
        for executor in &self.executors {
            for stream in [&executor.stdout, &executor.stderr].into_iter().flatten() {
                claims.stream(stream);
            }
        }
        claims
    }

    /// Takes the hint from inputs that something else of the task touches: a command may have to
    /// write there, and outputs are looked for in scratch.
    fn mark_streamable(&mut self, volumes: &[String]) {
        let hinted = self.inputs.iter().enumerate();
        let hinted = hinted.filter(|(_, input)| input.streamable);
        // Each is compared with everything: more are not worth it, as they are not mounted.
        let untouched: Vec<usize> = hinted
            .take(mounts::MOST)
            .filter(|(_, input)| self.is_untouched(input, volumes))
            .map(|(number, _)| number)
            .collect();
        for input in &mut self.inputs {
            input.streamable = false;
        }
        for number in untouched {
            self.inputs[number].streamable = true;
        }
    }

    fn is_untouched(&self, input: &PlannedInput, volumes: &[String]) -> bool {
        let inside = |path: &str| paths::is_within(path, &input.path);
        let overlaps = |path: &str| inside(path) || paths::is_within(&input.path, path);
        let mut others = self.inputs.iter().filter(|o| o.index != input.index);
        let collects = |output: &PlannedOutput| match &output.from {
            OutputSource::File(path) => overlaps(path),
            from => overlaps(&from.directory()),
        };
        let writes = |executor: &PlannedExecutor| {
            let paths = [&executor.workdir, &executor.stdout, &executor.stderr];
            paths.into_iter().flatten().any(|path| inside(path))
        };
        matches!(input.from, InputSource::Url(_))
            && !others.any(|other| overlaps(&other.path))
            && !self.outputs.iter().any(collects)
            && !self.executors.iter().any(writes)
            && !volumes.iter().any(|volume| inside(volume))
            && !inside("/tmp")
    }

    /// The directories to be made, once the mounts are known.
    fn directories(&self, volumes: Vec<String>, origins: &[String]) -> Vec<String> {
        let mut directories: BTreeSet<String> = volumes.into_iter().collect();
        directories.extend(origins.iter().cloned());
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
            mounted: None,
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
                if pattern.hides_dots() {
                    return Err(PlanError {
                        field: field(),
                        msg: HIDDEN_DOTS.into(),
                    });
                }
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
    fn directory(&self) -> String {
        match self {
            Self::File(path) => paths::parent(path).to_owned(),
            Self::Directory(path) => path.clone(),
            Self::Pattern { pattern, .. } => Pattern::new(pattern).directory(),
        }
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
