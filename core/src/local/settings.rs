//! What a configuration says of this engine, whether or not the program has it.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which runtime is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuntimeChoice {
    /// Podman if it works, else docker if it works; never the host.
    #[default]
    Auto,
    /// Containers of podman.
    Podman,
    /// Containers of docker.
    Docker,
    /// Processes in a sandboxed view of this machine's files; images are not used.
    Host,
}

impl FromStr for RuntimeChoice {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "auto" => Ok(Self::Auto),
            "podman" => Ok(Self::Podman),
            "docker" => Ok(Self::Docker),
            "host" => Ok(Self::Host),
            _ => Err("must be auto, podman, docker or host".to_owned()),
        }
    }
}

/// Arguments for the container engine beyond those of every run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContainerArguments {
    /// Before the sub-command, such as `--root` or `--runtime`.
    pub global: Vec<String>,
    /// After `run`, such as `--network` or `--device`.
    pub run: Vec<String>,
}
