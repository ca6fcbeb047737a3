//! The engine of one machine, and the process of an attempt, which is this program again.

use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tesk_core::local::{self, Launcher, LocalSettings};
use tesk_core::scheduler::{Capacity, Engine};
use tesk_core::transfer;

use super::{Storages, install_crypto, registry};
use crate::config::Config;

/// The hidden command that runs one attempt, in a process of its own.
const ATTEMPT: &str = "__attempt";

/// What [`super::attempt`] promises.
pub(super) fn attempt() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next()?.to_str()? {
        ATTEMPT => {}
        local::sandbox::ARGUMENT => return Some(local::sandbox::main()),
        _ => return None,
    }
    let (Some(storages), Some(directory)) = (arguments.next(), arguments.next()) else {
        eprintln!("tesk: this command is for the engine itself");
        return Some(ExitCode::from(2));
    };
    Some(local::attempt::main(Path::new(&directory), || {
        install_crypto();
        let text = std::fs::read(&storages)
            .map_err(|error| format!("cannot read {}: {error}", storages.display()))?;
        let storages: Storages =
            serde_json::from_slice(&text).map_err(|error| error.to_string())?;
        let registry = registry(&storages.storage)?;
        Ok(transfer::Engine::new(
            Arc::new(registry),
            &storages.transfer,
        ))
    }))
}

/// Starts it.
pub(super) async fn start(config: &Config) -> Result<Engine, String> {
    let data = &config.server.data;
    let mut scheduler = config.scheduler();
    if config.local.cores.is_some() || config.local.memory.is_some() {
        let machine = local::machine();
        scheduler.capacity = Some(Capacity {
            cores: config.local.cores.unwrap_or(machine.cores),
            memory: config.local.memory.map_or(machine.memory, |size| size.0),
        });
    }
    let storages = write_storages(config)?;
    let program = std::env::current_exe()
        .map_err(|error| format!("cannot find this program's own file: {error}"))?;
    local::open(LocalSettings {
        data: data.clone(),
        runtime: config.local.runtime,
        container_arguments: config.local.container_arguments.clone(),
        launcher: Launcher {
            program,
            arguments: vec![ATTEMPT.into(), storages.display().to_string()],
        },
        scheduler,
        tail: config.local.log_tail.0 as usize,
    })
    .await
    .map_err(|error| error.to_string())
}

/// Leaves the storages where attempts find them. The name tells the content: an attempt that
/// an earlier configuration started still finds its own, and another engine's is never
/// replaced.
fn write_storages(config: &Config) -> Result<PathBuf, String> {
    let storages = Storages::of(config);
    let data = &config.server.data;
    let text = serde_json::to_vec(&storages).map_err(|error| error.to_string())?;
    let name = hex::encode(&Sha256::digest(&text)[..8]);
    let write = || {
        DirBuilder::new().recursive(true).mode(0o700).create(data)?;
        let path = std::path::absolute(data.join(format!("storages-{name}.json")))?;
        let new = path.with_extension("new");
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&text)?;
        std::fs::rename(&new, &path)?;
        Ok(path)
    };
    write().map_err(|error: std::io::Error| format!("cannot write to {}: {error}", data.display()))
}
