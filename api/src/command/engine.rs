//! What `tesk run` and `tesk serve` share: storages, store, scheduler and compute of this
//! machine.

use std::borrow::Cow;
use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tesk_core::kubernetes::{self, ClusterSettings};
use tesk_core::local::{self, Launcher, LocalSettings};
use tesk_core::scheduler::{Capacity, Engine};
use tesk_core::storage::registry::Prefixes;
use tesk_core::storage::{ConfigEntry, Registry, RegistryBuilder, StorageUrl};
use tesk_core::tes::{PrefixRule, Rules};
use tesk_core::transfer;

use crate::auth::users;
use crate::config::{Config, EngineChoice};

/// The storages that this program has, said once, by its `main`.
static PLUGINS: OnceLock<RegistryBuilder> = OnceLock::new();

pub(super) fn use_plugins(plugins: RegistryBuilder) {
    // It fails only if `main` is called twice.
    let _ = PLUGINS.set(plugins);
}

/// TLS by ring, for every client in this process.
pub(super) fn install_crypto() {
    // It fails only if one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// The storages of `entries`, or the default ones.
pub(super) fn registry(entries: &[ConfigEntry]) -> Result<Registry, String> {
    PLUGINS
        .get_or_init(tesk_backends::builtin)
        .build(&or_default(entries))
        .map_err(|error| error.to_string())
}

fn or_default(entries: &[ConfigEntry]) -> Cow<'_, [ConfigEntry]> {
    if entries.is_empty() {
        tesk_backends::default_entries().into()
    } else {
        entries.into()
    }
}

/// Entries that serve `file:` urls below `directory`, as it was given and as it is without
/// symlinks.
pub(super) fn directory_entries(directory: &Path) -> Result<Vec<ConfigEntry>, String> {
    let shown = directory.display();
    let failed = |error| format!("cannot allow the path {shown}: {error}");
    let real = directory.canonicalize().map_err(failed)?;
    if !real.is_dir() {
        return Err(format!(
            "cannot allow the path {shown}: it is not a directory"
        ));
    }
    let mut names = vec![real.clone()];
    let given = std::path::absolute(directory).map_err(failed)?;
    if given.components().all(|part| part != Component::ParentDir) && given != real {
        names.push(given);
    }
    let path = real
        .to_str()
        .ok_or_else(|| format!("{shown} is not UTF-8"))?;
    let entries = names.iter().map(|name| {
        let prefix = url::Url::from_file_path(name)
            .map_err(|()| format!("{shown} cannot be written as a url"))?;
        Ok(ConfigEntry {
            kind: "pvc".into(),
            prefix: Prefixes::One(prefix.into()),
            options: toml::Table::from_iter([("path".into(), path.into())]),
        })
    });
    entries.collect()
}

/// Serves the files of this machine too, with the rights of this process; unless an entry serves
/// all of `file:` already.
pub(super) fn allow_all_files(config: &mut Config) -> Result<(), String> {
    let is_all = |prefix: &String| {
        let url = prefix.parse::<StorageUrl>();
        url.is_ok_and(|url| {
            url.scheme() == "file" && url.file_path().is_some_and(|path| path.is_root())
        })
    };
    let mut entries = config.storage.iter();
    if !entries.any(|entry| entry.prefixes().iter().any(is_all)) {
        config.allow(directory_entries(Path::new("/"))?);
    }
    Ok(())
}

/// What validation needs to know of the storages and limits.
pub(super) fn rules(config: &Config) -> Result<Rules, String> {
    let prefixes = registry(&config.storage)?.prefixes().into_iter();
    Ok(Rules {
        prefixes: prefixes
            .map(|(prefix, can)| PrefixRule {
                prefix,
                write: can.write,
                list: can.list,
            })
            .collect(),
        ..config.rules()
    })
}

/// What the process of an attempt needs to know to move files: nothing secret, as a
/// configuration holds secrets by reference only.
#[derive(Debug, Deserialize, Serialize)]
struct Storages {
    storage: Vec<ConfigEntry>,
    transfer: transfer::Settings,
}

impl Storages {
    fn of(config: &Config) -> Self {
        Self {
            storage: or_default(&config.storage).into_owned(),
            transfer: config.transfer.clone(),
        }
    }
}

/// The hidden command that runs one attempt, in a process of its own.
const ATTEMPT: &str = "__attempt";

/// Runs an attempt or the inside of its sandbox, if that is what this process was started for.
///
/// To be called first of all: an attempt's lock is its standard input, and a sandbox wants a
/// process with one thread.
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

/// Starts the engine of the configuration.
pub(super) async fn start(config: &Config) -> Result<Engine, String> {
    match config.server.engine {
        EngineChoice::Local => start_local(config).await,
        EngineChoice::Kubernetes => {
            let filer_config = toml::to_string(&Storages::of(config)).map_err(|error| {
                format!("the storages cannot be written down for the cluster: {error}")
            })?;
            kubernetes::open(ClusterSettings {
                kubernetes: config.kubernetes.clone(),
                filer_config,
                scheduler: config.scheduler(),
            })
            .await
        }
    }
}

async fn start_local(config: &Config) -> Result<Engine, String> {
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
    let name = users::hex(&Sha256::digest(&text)[..8]);
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
