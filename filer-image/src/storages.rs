//! From the configuration to a transfer engine.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use serde::Deserialize;
use tesk_core::storage::registry::Prefixes;
use tesk_core::storage::{ConfigEntry, Registry, RegistryBuilder};
use tesk_core::transfer::{Engine, Settings};

/// What the filer reads of the configuration, which it shares with the server.
#[derive(Debug, Deserialize)]
struct Config {
    #[serde(default)]
    storage: Vec<ConfigEntry>,
    #[serde(default)]
    transfer: Settings,
}

/// An engine over the storages of the configuration file; without one, over those that need
/// none and the files of this machine.
pub fn engine(plugins: &RegistryBuilder, config: Option<&Path>) -> anyhow::Result<Engine> {
    let config = read(config)?;
    let registry = plugins.build(&config.storage)?;
    Ok(Engine::new(Arc::new(registry), &config.transfer))
}

/// The storages alone.
pub fn registry(plugins: &RegistryBuilder, config: Option<&Path>) -> anyhow::Result<Registry> {
    Ok(plugins.build(&read(config)?.storage)?)
}

fn read(config: Option<&Path>) -> anyhow::Result<Config> {
    Ok(match config {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            tesk_core::config::parse(&path.to_string_lossy(), &text).map_err(|e| anyhow!(e))?
        }
        None => Config {
            storage: without_configuration(),
            transfer: Settings::default(),
        },
    })
}

fn without_configuration() -> Vec<ConfigEntry> {
    let mut entries = tesk_backends::default_entries();
    entries.push(ConfigEntry {
        kind: "pvc".into(),
        prefix: Prefixes::One("file:///".into()),
        options: toml::Table::from_iter([("path".to_owned(), "/".into())]),
    });
    entries
}
