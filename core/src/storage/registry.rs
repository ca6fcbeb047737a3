//! Which storage serves a URL: the `[[storage]]` entries of the configuration.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Result, Storage, StorageUrl};

/// One `[[storage]]` entry of the configuration.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Entry {
    /// The plugin's name, such as `http` or `pvc`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The URL prefixes the entry serves, such as `https://data.example.org/` or `file:///data`;
    /// of all entries the longest prefix that matches whole path components wins. A bare
    /// `http://` serves every host.
    pub prefix: Prefixes,
    /// Everything else: read by the plugin's factory, which refuses keys that it does not know.
    #[serde(flatten)]
    pub options: toml::Table,
}

/// One prefix or a list of them.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub enum Prefixes {
    /// `prefix = "…"`
    One(String),
    /// `prefix = ["…", "…"]`
    Many(Vec<String>),
}

/// Builds the storages of one plugin type.
pub trait Factory: fmt::Debug + Send + Sync + 'static {
    /// The schemes the plugin serves; a prefix of another scheme is refused.
    fn schemes(&self) -> &[&str];

    /// Builds a storage from an entry's options. Reads secrets that the options refer to, but
    /// opens no connection.
    fn create(&self, entry: &Entry) -> Result<Arc<dyn Storage>, ConfigError>;
}

/// A configuration that cannot be used, in words that name the key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// Routes URLs to storages.
#[derive(Clone, Debug, Default)]
pub struct Registry {}

/// Collects factories, then builds a [`Registry`] from `[[storage]]` entries.
#[derive(Debug, Default)]
pub struct RegistryBuilder {
    factories: BTreeMap<String, Arc<dyn Factory>>,
}

impl RegistryBuilder {
    /// Adds a plugin under the name that `type = "…"` gives; a later one of the same name wins.
    #[must_use]
    pub fn with(mut self, kind: impl Into<String>, factory: impl Factory) -> Self {
        self.factories.insert(kind.into(), Arc::new(factory));
        self
    }

    /// Builds the storages; all errors together.
    pub fn build(&self, entries: &[Entry]) -> Result<Registry, ConfigError> {
        let _ = entries;
        todo!()
    }
}

impl Registry {
    /// The storage for `url`: the longest prefix that matches. `Invalid` without one, listing
    /// the prefixes that are served; `Denied` for a `file:` path that `..` takes out of its prefix.
    pub fn route(&self, url: &StorageUrl) -> Result<Arc<dyn Storage>> {
        let _ = url;
        todo!()
    }

    /// Every prefix that is served, with what its storage can do, sorted.
    pub fn prefixes(&self) -> Vec<(String, super::Capabilities)> {
        todo!()
    }
}
