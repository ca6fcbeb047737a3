//! Which storage serves a URL: the `[[storage]]` entries of the configuration.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Capabilities, Error, ErrorKind, Result, Storage, StorageUrl};
use crate::config;
use crate::rooted::RelPath;

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

impl Entry {
    /// The options as a plugin's own type, which should `deny_unknown_fields`: the error names
    /// an unknown key and suggests the nearest one.
    pub fn options<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        let table = self.options.clone();
        table.try_into().map_err(|error: toml::de::Error| {
            ConfigError(config::explain("options", &error.to_string()))
        })
    }

    /// The prefixes as a list.
    pub fn prefixes(&self) -> &[String] {
        match &self.prefix {
            Prefixes::One(one) => std::slice::from_ref(one),
            Prefixes::Many(many) => many,
        }
    }
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
pub struct Registry {
    /// The most specific first.
    routes: Vec<Route>,
}

#[derive(Clone, Debug)]
struct Route {
    prefix: Prefix,
    storage: Arc<dyn Storage>,
}

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
        let mut registry = Registry::default();
        let mut problems = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            let mut problem = |what: &dyn fmt::Display| {
                problems.push(format!("storage[{index}] (type `{}`): {what}", entry.kind));
            };
            let Some(factory) = self.factories.get(&entry.kind) else {
                problem(&self.unknown_type(&entry.kind));
                continue;
            };
            if entry.prefixes().is_empty() {
                problem(&"has no prefix");
            }
            let mut prefixes = Vec::new();
            for text in entry.prefixes() {
                match Prefix::new(text) {
                    Ok(prefix) if !factory.schemes().contains(&prefix.scheme.as_str()) => {
                        problem(&format_args!(
                            "the prefix `{text}` is not served by this type, but `{}://` is",
                            factory.schemes().join("://`, `")
                        ));
                    }
                    Ok(prefix)
                        if registry.routes.iter().any(|route| route.prefix == prefix)
                            || prefixes.contains(&prefix) =>
                    {
                        problem(&format_args!("the prefix `{text}` is given twice"));
                    }
                    Ok(prefix) => prefixes.push(prefix),
                    Err(error) => problem(&error),
                }
            }
            match factory.create(entry) {
                Ok(storage) => registry.add(prefixes, &storage),
                Err(error) => problem(&error),
            }
        }
        if problems.is_empty() {
            Ok(registry)
        } else {
            Err(ConfigError(problems.join("\n")))
        }
    }

    fn unknown_type(&self, kind: &str) -> String {
        let known: Vec<_> = self.factories.keys().map(String::as_str).collect();
        let hint = config::nearest(kind, known.iter().copied())
            .map(|nearest| format!("; did you mean `{nearest}`?"))
            .unwrap_or_default();
        format!(
            "is unknown; this program has `{}`{hint}",
            known.join("`, `")
        )
    }
}

impl Registry {
    /// The same with `storage` serving `prefix`: for programs and tests that have no
    /// configuration. A prefix that is there is replaced.
    pub fn serving(
        mut self,
        prefix: &str,
        storage: &Arc<dyn Storage>,
    ) -> Result<Self, ConfigError> {
        let prefix = Prefix::new(prefix)?;
        self.routes.retain(|route| route.prefix != prefix);
        self.add(vec![prefix], storage);
        Ok(self)
    }

    fn add(&mut self, prefixes: Vec<Prefix>, storage: &Arc<dyn Storage>) {
        self.routes.extend(prefixes.into_iter().map(|prefix| Route {
            prefix,
            storage: storage.clone(),
        }));
        self.routes
            .sort_by_key(|route| std::cmp::Reverse(route.prefix.specificity()));
    }

    /// The storage for `url`: the longest prefix that matches. [`ErrorKind::Invalid`] without
    /// one, listing the prefixes that are served; [`ErrorKind::Denied`] for a path that `..`
    /// takes out of its prefix.
    pub fn route(&self, url: &StorageUrl) -> Result<Arc<dyn Storage>> {
        let prefixes = self.routes.iter().map(|route| &route.prefix);
        match Prefix::choose(prefixes, url) {
            Ok(index) => Ok(self.routes[index].storage.clone()),
            Err(why) => {
                let (kind, text) = match why {
                    Unserved::Unknown => (ErrorKind::Invalid, format!("{why}; {}", self.served())),
                    Unserved::Nul => (ErrorKind::Invalid, why.to_string()),
                    Unserved::Climbs | Unserved::ClimbsOut => (ErrorKind::Denied, why.to_string()),
                };
                Err(Error::new(kind, url, text))
            }
        }
    }

    /// Every prefix that is served, with what its storage can do, sorted.
    pub fn prefixes(&self) -> Vec<(String, Capabilities)> {
        let mut prefixes: Vec<_> = self
            .routes
            .iter()
            .map(|route| (route.prefix.text.clone(), route.storage.capabilities()))
            .collect();
        prefixes.sort_by(|a, b| a.0.cmp(&b.0));
        prefixes
    }

    fn served(&self) -> String {
        let prefixes: Vec<_> = self.prefixes().into_iter().map(|p| p.0).collect();
        if prefixes.is_empty() {
            "no storage is configured".to_owned()
        } else {
            format!("what is: {}", prefixes.join(", "))
        }
    }
}

/// Why no prefix serves an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unserved {
    #[error("its path has a NUL")]
    Nul,
    #[error("its path must not have a `..` component")]
    Climbs,
    #[error("`..` leads out of what is served here")]
    ClimbsOut,
    #[error("is not served here")]
    Unknown,
}

/// A prefix, taken apart for comparison.
#[derive(Clone, Debug)]
pub(crate) struct Prefix {
    text: String,
    scheme: String,
    /// `None` is every host.
    host: Option<String>,
    /// Without trailing slash; `None` is every path.
    path: Option<Vec<u8>>,
}

impl PartialEq for Prefix {
    fn eq(&self, other: &Self) -> bool {
        (&self.scheme, &self.host, &self.path) == (&other.scheme, &other.host, &other.path)
    }
}

impl Prefix {
    pub(crate) fn new(text: &str) -> Result<Self, ConfigError> {
        let refused = |why: &dyn fmt::Display| Err(ConfigError(format!("the prefix {why}")));
        let url: StorageUrl = match text.parse() {
            Ok(url) => url,
            Err(error) => return refused(&format_args!("`{text}` {error}")),
        };
        if url.user().is_some() || url.password().is_some() {
            return refused(&format_args!(
                "`{url}` must not hold credentials; they have keys of their own"
            ));
        }
        let host = comparable_host(&url);
        if host.is_empty() && url.scheme() != "file" && !url.path_and_rest().is_empty() {
            return refused(&format_args!("`{text}` has a path but no host"));
        }
        let Some(path) = Path::of(&url) else {
            return refused(&format_args!("`{text}` has a NUL"));
        };
        if path.climbs || (!is_object_store(url.scheme()) && url.path() != url.path_and_rest()) {
            return refused(&format_args!("`{url}` must have no `..`, `?` or `#`"));
        }
        let mut path = path.resolved;
        while path.last() == Some(&b'/') {
            path.pop();
        }
        Ok(Self {
            text: text.to_owned(),
            scheme: url.scheme().to_owned(),
            host: (!host.is_empty()).then_some(host),
            path: (!path.is_empty()).then_some(path),
        })
    }

    pub(crate) fn scheme(&self) -> &str {
        &self.scheme
    }

    /// Which of `prefixes` serves `url`, by index; they come the most specific first.
    pub(crate) fn choose<'a>(
        prefixes: impl Iterator<Item = &'a Self> + Clone,
        url: &StorageUrl,
    ) -> std::result::Result<usize, Unserved> {
        let path = Path::of(url).ok_or(Unserved::Nul)?;
        let host = comparable_host(url);
        let mut in_order = prefixes.clone().enumerate();
        let chosen =
            in_order.find(|(_, prefix)| prefix.matches(url.scheme(), &host, &path.resolved));
        if let Some((index, prefix)) = chosen {
            // A server resolves `..` itself, after the prefix has chosen the credentials.
            if path.climbs && url.scheme() != "file" && prefix.path.is_some() {
                return Err(Unserved::Climbs);
            }
            return Ok(index);
        }
        let mut prefixes = prefixes;
        if prefixes.any(|prefix| prefix.matches(url.scheme(), &host, &path.written)) {
            Err(Unserved::ClimbsOut)
        } else {
            Err(Unserved::Unknown)
        }
    }

    /// Greater for a prefix that is to be asked before another.
    pub(crate) fn specificity(&self) -> (bool, usize) {
        let path = self.path.as_ref().map_or(0, Vec::len);
        (self.host.is_some(), path)
    }

    fn matches(&self, scheme: &str, host: &str, path: &[u8]) -> bool {
        let host_matches = match &self.host {
            Some(own) => own == host,
            None => scheme != "file" || host.is_empty(),
        };
        self.scheme == scheme
            && host_matches
            && self.path.as_ref().is_none_or(|prefix| {
                path.strip_prefix(prefix.as_slice())
                    .is_some_and(|rest| match rest.first() {
                        None | Some(b'/') => true,
                        Some(b'?' | b'#') => !is_object_store(scheme) && scheme != "file",
                        Some(_) => false,
                    })
            })
    }
}

/// The path of a URL as prefixes are compared with it.
struct Path {
    /// As it is written; decoded for `file:`.
    written: Vec<u8>,
    /// For `file:` with `.` and `..` resolved, else as it is written.
    resolved: Vec<u8>,
    /// Whether a component is `..`, in any spelling that a server or library may take for it.
    climbs: bool,
}

impl Path {
    /// `None` for a path with a NUL.
    fn of(url: &StorageUrl) -> Option<Self> {
        let decoded = url.decoded_path();
        let is_up = |component: &[u8]| component == b"..";
        if url.scheme() == "file" {
            let path = url.file_path()?;
            return Some(Self {
                climbs: decoded.split(|b| *b == b'/').any(is_up),
                written: decoded,
                resolved: absolute(&path),
            });
        }
        let path = url.path_and_rest().as_bytes().to_vec();
        Some(Self {
            // Keys of object stores are no paths: nobody resolves `..` in them.
            climbs: !is_object_store(url.scheme())
                && decoded.split(|b| matches!(b, b'/' | b'\\')).any(is_up),
            written: path.clone(),
            resolved: path,
        })
    }
}

fn absolute(path: &RelPath) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    let mut absolute = vec![b'/'];
    absolute.extend_from_slice(path.as_path().as_os_str().as_bytes());
    absolute
}

pub(crate) fn is_object_store(scheme: &str) -> bool {
    matches!(scheme, "s3" | "gs")
}

/// The host in lower case, without the scheme's default port; of `file:`, `localhost` is none.
fn comparable_host(url: &StorageUrl) -> String {
    let host = url.host().to_ascii_lowercase();
    let default_port = match url.scheme() {
        "http" => ":80",
        "https" => ":443",
        "ftp" => ":21",
        "ftps" => ":990",
        "sftp" => ":22",
        "file" if host == "localhost" => return String::new(),
        _ => return host,
    };
    let bare = host.strip_suffix(default_port).or(host.strip_suffix(':'));
    bare.unwrap_or(&host).to_owned()
}

#[cfg(test)]
mod tests;
