//! What `tesk run` and `tesk serve` share: storages, store, scheduler and compute of this
//! machine.

use std::path::Path;
use std::sync::Arc;

use tesk_core::local::SqliteStore;
use tesk_core::scheduler::TaskStore;
use tesk_core::storage::registry::Prefixes;
use tesk_core::storage::{ConfigEntry, Registry};
use tesk_core::tes::{PrefixRule, Rules};

use crate::config::Config;

/// TLS by ring, for every client in this process.
pub(super) fn install_crypto() {
    // It fails only if one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// The storages of `entries`, or the default ones.
pub(super) fn registry(entries: &[ConfigEntry]) -> Result<Registry, String> {
    let default;
    let entries = if entries.is_empty() {
        default = tesk_backends::default_entries();
        &default
    } else {
        entries
    };
    tesk_backends::builtin()
        .build(entries)
        .map_err(|error| error.to_string())
}

/// An entry that serves `file:` urls below `directory`.
pub(super) fn directory_entry(directory: &Path) -> Result<ConfigEntry, String> {
    let shown = directory.display();
    let directory = std::fs::canonicalize(directory)
        .map_err(|error| format!("cannot allow the path {shown}: {error}"))?;
    if !directory.is_dir() {
        return Err(format!(
            "cannot allow the path {shown}: it is not a directory"
        ));
    }
    let prefix = url::Url::from_directory_path(&directory)
        .map_err(|()| format!("{shown} cannot be written as a url"))?;
    let path = directory
        .to_str()
        .ok_or_else(|| format!("{shown} is not UTF-8"))?;
    Ok(ConfigEntry {
        kind: "pvc".into(),
        prefix: Prefixes::One(prefix.into()),
        options: toml::Table::from_iter([("path".into(), path.into())]),
    })
}

/// What validation needs to know of the storages.
fn rules(config: &Config, registry: &Registry) -> Rules {
    let prefixes = registry.prefixes().into_iter();
    Rules {
        prefixes: prefixes
            .map(|(prefix, can)| PrefixRule {
                prefix,
                write: can.write,
                list: can.list,
            })
            .collect(),
        ..config.rules()
    }
}

/// The rules of a configuration, without starting anything.
pub(super) fn rules_of(config: &Config) -> Result<Rules, String> {
    Ok(rules(config, &registry(&config.storage)?))
}

/// The engine of this machine.
#[derive(Debug)]
pub(super) struct Engine {
    store: Arc<SqliteStore>,
    rules: Rules,
}

impl Engine {
    pub(super) async fn start(config: &Config) -> Result<Self, String> {
        let registry = registry(&config.storage)?;
        let store = SqliteStore::open(&config.server.data).map_err(|error| error.to_string())?;
        Ok(Self {
            store: Arc::new(store),
            rules: rules(config, &registry),
        })
    }

    pub(super) fn store(&self) -> Arc<dyn TaskStore> {
        self.store.clone()
    }

    pub(super) fn rules(&self) -> &Rules {
        &self.rules
    }

    pub(super) fn runtime(&self) -> &str {
        "?"
    }

    pub(super) async fn stop(self) {}
}
