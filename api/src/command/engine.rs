//! What `tesk run` and `tesk serve` share: storages, store, scheduler and compute.

#[cfg(feature = "local")]
mod local;

use std::borrow::Cow;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use tesk_backends::pvc;
use tesk_core::kubernetes::{self, ClusterSettings};
use tesk_core::scheduler::Engine;
use tesk_core::storage::registry::Prefixes;
use tesk_core::storage::{ConfigEntry, Registry, RegistryBuilder, StorageUrl};
use tesk_core::tes::{PrefixRule, Rules};
use tesk_core::transfer;

use super::note;
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

/// Refuses a server whose own files tasks could reach through a storage of this machine: the
/// database holds what belongs to others, and the users file says who they are.
///
/// `tesk run` has one user, whose files they are anyhow; and on a cluster the directories of
/// storages are those of pods.
pub(super) fn refuse_own_files(config: &Config) -> Result<(), String> {
    if config.server.engine != EngineChoice::Local {
        return Ok(());
    }
    let data = real(&config.server.data)?;
    let users = config.auth.users.as_deref().map(real).transpose()?;
    for entry in config.storage.iter().filter(|entry| entry.kind == "pvc") {
        let path = pvc::directory(entry).map_err(|error| error.to_string())?;
        let path = real(&path)?;
        let (shown, open) = (data.display(), path.display());
        let open = format!("{open}, which tasks can read (--allow-path, or a storage)");
        let elsewhere = "another directory with --data or server.data";
        if data.starts_with(&path) {
            return Err(format!(
                "the data directory {shown} lies in {open}: name {elsewhere}"
            ));
        }
        if path.starts_with(&data) {
            return Err(format!(
                "the data directory {shown} contains {open}: name {elsewhere}"
            ));
        }
        if let Some(users) = users.as_ref().filter(|users| users.starts_with(&path)) {
            let users = users.display();
            return Err(format!(
                "the users file {users} lies in {open}: move it, and name its place in auth.users"
            ));
        }
    }
    Ok(())
}

/// A path without symlinks; what is not there yet is taken as it is written.
fn real(path: &Path) -> Result<PathBuf, String> {
    let failed = |error: std::io::Error| format!("cannot find {}: {error}", path.display());
    let path = std::path::absolute(path).map_err(failed)?;
    for there in path.ancestors() {
        match there.canonicalize() {
            Ok(real) => {
                let rest = path.strip_prefix(there).unwrap_or(Path::new(""));
                // With nothing to join there would be a slash at the end.
                let is_all = rest.as_os_str().is_empty();
                return Ok(if is_all { real } else { real.join(rest) });
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(path)
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

/// Runs an attempt or the inside of its sandbox, if that is what this process was started for.
///
/// To be called first of all: an attempt's lock is its standard input, and a sandbox wants a
/// process with one thread.
#[cfg(feature = "local")]
pub(super) fn attempt() -> Option<ExitCode> {
    local::attempt()
}

/// A program without the local engine is never started for that.
#[cfg(not(feature = "local"))]
pub(super) fn attempt() -> Option<ExitCode> {
    None
}

/// Starts the engine of the configuration.
pub(super) async fn start(config: &Config) -> Result<Engine, String> {
    match config.server.engine {
        #[cfg(feature = "local")]
        EngineChoice::Local => local::start(config).await,
        #[cfg(not(feature = "local"))]
        EngineChoice::Local => Err(
            "this program was built for a cluster only: set server.engine to \"kubernetes\"".into(),
        ),
        EngineChoice::Kubernetes => kubernetes::open(cluster_settings(config)?).await,
    }
}

fn cluster_settings(config: &Config) -> Result<ClusterSettings, String> {
    let filer_config = toml::to_string(&Storages::of(config))
        .map_err(|error| format!("the storages cannot be written down for the cluster: {error}"))?;
    Ok(ClusterSettings {
        kubernetes: config.kubernetes.clone(),
        filer_config,
        scheduler: config.scheduler(),
    })
}

/// An engine for one task, beside whatever servers there are. On a cluster it leaves nothing.
#[derive(Debug)]
pub(super) struct Alone {
    pub(super) engine: Engine,
    /// Of the cluster, with the instance of this engine.
    cluster: Option<kubernetes::Settings>,
    data: PathBuf,
}

impl Alone {
    /// Starts it. If `stopped` comes first, there is none, and what was begun is removed.
    pub(super) async fn start(
        mut config: Config,
        stopped: impl Future<Output = ()>,
    ) -> Result<Option<Self>, String> {
        let data = config.server.data.clone();
        let cluster = match config.server.engine {
            EngineChoice::Local => None,
            EngineChoice::Kubernetes => {
                let instance = &mut config.kubernetes.instance;
                *instance = kubernetes::instance_of_one(instance);
                Some(config.kubernetes.clone())
            }
        };
        let started = async {
            match &cluster {
                None => start(&config).await,
                Some(_) => kubernetes::open_alone(cluster_settings(&config)?).await,
            }
        };
        let engine = tokio::select! {
            engine = started => Some(engine?),
            () = stopped => None,
        };
        let Some(engine) = engine else {
            purge(cluster.as_ref()).await;
            return Ok(None);
        };
        Ok(Some(Self {
            engine,
            cluster,
            data,
        }))
    }

    /// Where what remains is, if it is left now.
    pub(super) fn remains(&self) -> String {
        match &self.cluster {
            None => format!("what remains of the task is in {}", self.data.display()),
            Some(settings) => labelled(settings),
        }
    }

    /// Stops, and removes what is not wanted any more.
    pub(super) async fn end(self) {
        self.engine.stop().await;
        purge(self.cluster.as_ref()).await;
    }
}

/// Removes from a cluster, if there is one, what an engine for one task has made.
async fn purge(cluster: Option<&kubernetes::Settings>) {
    if let Some(settings) = cluster
        && let Err(error) = kubernetes::purge_alone(settings).await
    {
        note(&format!("tesk: {error}; {}", labelled(settings)));
    }
}

fn labelled(settings: &kubernetes::Settings) -> String {
    format!(
        "what remains of the task has the label app.kubernetes.io/instance={}",
        settings.instance
    )
}
