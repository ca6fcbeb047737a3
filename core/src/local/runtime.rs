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
        Ok(engine)
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
