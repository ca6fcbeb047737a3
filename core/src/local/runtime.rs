//! What runs executors: podman, docker, or this machine itself.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::settings::{ContainerArguments, RuntimeChoice};
use crate::scheduler::compute::AttemptId;

/// How long a container engine may take to say that it works.
const PROBE: Duration = Duration::from_secs(20);

/// A runtime that was found to work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::local) enum Runtime {
    Host,
    Container(Engine),
}

/// A container engine, driven by its command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::local) struct Engine {
    pub(in crate::local) kind: EngineKind,
    pub(in crate::local) arguments: ContainerArguments,
    /// Whether it can limit the CPU time and the memory of a container here.
    pub(in crate::local) limits_cpu: bool,
    pub(in crate::local) limits_memory: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::local) enum EngineKind {
    Podman,
    Docker,
}

impl EngineKind {
    pub(in crate::local) fn program(self) -> &'static str {
        match self {
            Self::Podman => "podman",
            Self::Docker => "docker",
        }
    }
}

impl Runtime {
    /// Finds the runtime that is wanted and asks it whether it works; an error says what can
    /// be done.
    pub(super) async fn find(
        choice: RuntimeChoice,
        arguments: &ContainerArguments,
    ) -> Result<Self, String> {
        let probe = |kind| Engine::probe(kind, arguments);
        match choice {
            RuntimeChoice::Host => Ok(Self::Host),
            RuntimeChoice::Podman => probe(EngineKind::Podman).await.map(Self::Container),
            RuntimeChoice::Docker => probe(EngineKind::Docker).await.map(Self::Container),
            RuntimeChoice::Auto => {
                let podman = match probe(EngineKind::Podman).await {
                    Ok(engine) => return Ok(Self::Container(engine)),
                    Err(error) => error,
                };
                match probe(EngineKind::Docker).await {
                    Ok(engine) => Ok(Self::Container(engine)),
                    Err(docker) => Err(format!(
                        "no container engine works here ({podman}; {docker}): install podman or \
                         docker, or use --runtime host, which runs commands with the programs \
                         of this machine and does not use images"
                    )),
                }
            }
        }
    }

    /// Removes every container of an attempt, and so ends what runs in them.
    pub(super) async fn end_containers(&self, attempt: &AttemptId) -> io::Result<()> {
        let Self::Container(engine) = self else {
            return Ok(());
        };
        let label = format!("label={}", Engine::label(attempt));
        let listed = engine
            .output(&["ps", "--all", "--quiet", "--filter", &label])
            .await?;
        let ids: Vec<&str> = listed.split_whitespace().collect();
        if ids.is_empty() {
            return Ok(());
        }
        engine.remove(&ids).await
    }

    /// Removes the containers of the `server` whose attempts are gone. A command of the container
    /// engine outlives the attempt that started it, and may make its container when those of the
    /// attempt are removed already.
    pub(super) async fn end_strays(
        &self,
        server: &str,
        is_gone: impl Fn(&str) -> bool,
    ) -> io::Result<()> {
        let Self::Container(engine) = self else {
            return Ok(());
        };
        let label = format!("label={}", Engine::server_label(server));
        let list = ["ps", "--all", "--filter", &label, "--format"];
        let listed = engine
            .output(&[&list[..], &["{{.ID}} {{.Names}}"]].concat())
            .await?;
        let strays: Vec<&str> = listed
            .lines()
            .filter_map(|line| {
                let (id, name) = line.split_once(' ')?;
                let attempt = Engine::attempt_of(name.trim())?;
                is_gone(attempt).then_some(id)
            })
            .collect();
        if strays.is_empty() {
            return Ok(());
        }
        tracing::warn!(containers = ?strays, "removing containers whose attempts are gone");
        engine.remove(&strays).await
    }
}

impl Engine {
    async fn probe(kind: EngineKind, arguments: &ContainerArguments) -> Result<Self, String> {
        let program = kind.program();
        let mut engine = Self {
            kind,
            arguments: arguments.clone(),
            limits_cpu: true,
            limits_memory: true,
        };
        let asked = engine.output(&["info", "--format", "{{json .}}"]);
        let info = match tokio::time::timeout(PROBE, asked).await {
            Ok(Ok(info)) => info,
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
                return Err(format!("{program} is not installed"));
            }
            Ok(Err(error)) => return Err(format!("{program} does not work: {error}")),
            Err(_) => {
                return Err(format!(
                    "{program} does not answer within {} s",
                    PROBE.as_secs()
                ));
            }
        };
        // Podman lists the controllers it was given; docker says what is missing.
        let info: serde_json::Value = serde_json::from_str(&info).unwrap_or_default();
        if let Some(controllers) = info["host"]["cgroupControllers"].as_array() {
            let has = |name: &str| controllers.iter().any(|c| c == name);
            engine.limits_cpu = has("cpu");
            engine.limits_memory = has("memory");
        }
        if let Some(can) = info["CpuCfsQuota"].as_bool() {
            engine.limits_cpu = can;
        }
        if let Some(can) = info["MemoryLimit"].as_bool() {
            engine.limits_memory = can;
        }
        if !rustix::process::geteuid().is_root() && engine.leaves_files_of_root(&info) {
            tracing::warn!(
                "docker runs commands as root of this machine, and this program does not run as \
                 root: what they leave in directories of their own cannot be removed, and outputs \
                 that only root can read cannot be delivered; use podman or rootless docker, or \
                 put --user UID:GID into local.container_arguments.run"
            );
        }
        Ok(engine)
    }

    /// Whether what commands make belongs to root of this machine, who need not be us: podman's
    /// belongs to us or to users that we are root over.
    fn leaves_files_of_root(&self, info: &serde_json::Value) -> bool {
        let Some(options) = info["SecurityOptions"].as_array() else {
            return false;
        };
        let is_rootless = options.iter().any(|option| option == "name=rootless");
        let names_user = |argument: &String| argument.starts_with("--user") || argument == "-u";
        self.kind == EngineKind::Docker
            && !is_rootless
            && !self.arguments.run.iter().any(names_user)
    }

    /// Removes containers, and ends at once what runs in them.
    pub(in crate::local) async fn remove(&self, containers: &[&str]) -> io::Result<()> {
        let remove: &[&str] = match self.kind {
            // Else it would ask politely, for ten seconds.
            EngineKind::Podman => &["rm", "--force", "--time", "0", "--volumes"],
            EngineKind::Docker => &["rm", "--force", "--volumes"],
        };
        self.output(&[remove, containers].concat()).await.map(drop)
    }

    /// The label of every container of an attempt.
    pub(in crate::local) fn label(attempt: &AttemptId) -> String {
        format!("tesk.attempt={attempt}")
    }

    /// The label of every container of a server, which may share its container engine.
    pub(in crate::local) fn server_label(server: &str) -> String {
        format!("tesk.server={server}")
    }

    /// The name of the container of an executor.
    pub(in crate::local) fn container_name(attempt: &AttemptId, executor: usize) -> String {
        format!("tesk-{attempt}-{executor}")
    }

    /// Whose executor has the container of this name.
    fn attempt_of(name: &str) -> Option<&str> {
        let (attempt, _) = name.strip_prefix("tesk-")?.rsplit_once('-')?;
        Some(attempt)
    }

    /// The argument vector of a sub-command.
    pub(in crate::local) fn argv(&self, arguments: &[&str]) -> Vec<String> {
        let mut argv = vec![self.kind.program().to_owned()];
        argv.extend_from_slice(&self.arguments.global);
        argv.extend(arguments.iter().map(|a| (*a).to_owned()));
        argv
    }

    /// Runs a sub-command and gives its standard output; an error holds its standard error.
    pub(in crate::local) async fn output(&self, arguments: &[&str]) -> io::Result<String> {
        let argv = self.argv(arguments);
        let output = Command::new(&argv[0])
            .args(&argv[1..])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let errors = String::from_utf8_lossy(&output.stderr);
        // Not the engine's own log of what it tried before it gave up.
        let lines: Vec<&str> = errors
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with("time="))
            .collect();
        Err(io::Error::other(lines.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_container_tells_its_attempt() {
        let attempt = AttemptId {
            task: crate::scheduler::TaskId::random(),
            number: 3,
        };
        let name = Engine::container_name(&attempt, 12);
        assert_eq!(Engine::attempt_of(&name), Some(&*attempt.to_string()));
        assert_eq!(Engine::attempt_of("somebody's"), None);
    }

    #[test]
    fn only_docker_as_root_without_a_user_of_ours_leaves_files_of_root() {
        let engine = |kind, run: &[&str]| Engine {
            kind,
            arguments: ContainerArguments {
                global: Vec::new(),
                run: run.iter().map(|&argument| argument.to_owned()).collect(),
            },
            limits_cpu: false,
            limits_memory: false,
        };
        let rootful = serde_json::json!({ "SecurityOptions": ["name=seccomp,profile=builtin"] });
        let rootless = serde_json::json!({ "SecurityOptions": ["name=rootless"] });
        let podman = serde_json::json!({ "host": { "security": { "rootless": true } } });
        let docker = |run: &[&str]| engine(EngineKind::Docker, run);
        assert!(docker(&["--network=none"]).leaves_files_of_root(&rootful));
        assert!(!docker(&[]).leaves_files_of_root(&rootless));
        assert!(!docker(&["--user", "7:7"]).leaves_files_of_root(&rootful));
        assert!(!docker(&["--user=7"]).leaves_files_of_root(&rootful));
        assert!(!engine(EngineKind::Podman, &[]).leaves_files_of_root(&podman));
    }
}
