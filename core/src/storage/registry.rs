//! Which storage serves a URL: the `[[storage]]` entries of the configuration.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Capabilities, Error, ErrorKind, Result, Storage, StorageUrl};
use crate::config;

/// One `[[storage]]` entry of the configuration.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Entry {
    /// The plugin's name, such as `http` or `pvc`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The URL prefixes the entry serves, such as `https://data.example.org/` or `file:///data`;
    /// of all entries the longest prefix that matches whole path components wins, in whatever
    /// spelling of the URL. A bare `http://` serves every host.
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
        let hint = match config::nearest(kind, known.iter().copied()) {
            Some(nearest) => format!("did you mean `{nearest}`?"),
            None => "others may have been left out when it was built (cargo features)".to_owned(),
        };
        format!(
            "is unknown; this program has `{}`; {hint}",
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
    /// takes out of its prefix, or that a server may read as one of another prefix, and for a host
    /// that may be read as that of one.
    pub fn route(&self, url: &StorageUrl) -> Result<Arc<dyn Storage>> {
        let prefixes = self.routes.iter().map(|route| &route.prefix);
        match Prefix::choose(prefixes, url) {
            Ok(index) => Ok(self.routes[index].storage.clone()),
            Err(why) => {
                let (kind, text) = match why {
                    Unserved::Unknown => (ErrorKind::Invalid, format!("{why}; {}", self.served())),
                    Unserved::Nul => (ErrorKind::Invalid, why.to_string()),
                    Unserved::Climbs
                    | Unserved::ClimbsOut
                    | Unserved::Ambiguous
                    | Unserved::OddHost => (ErrorKind::Denied, why.to_string()),
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
    #[error("its path has an escaped slash or a backslash that could lead to another storage")]
    Ambiguous,
    #[error(
        "its host must be written plainly: letters, digits, `-`, `_` and dots (other letters as \
         `xn--`), or an address in its usual form, and a port without zeros before it"
    )]
    OddHost,
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
    /// Without components it is every path.
    path: Path,
}

impl PartialEq for Prefix {
    fn eq(&self, other: &Self) -> bool {
        (&self.scheme, &self.host, &self.path.names)
            == (&other.scheme, &other.host, &other.path.names)
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
        let Some(host) = comparable_host(&url) else {
            return refused(&format_args!("`{text}` {}", Unserved::OddHost));
        };
        // The host is another machine (RFC 8089), and what is left, often no path, all of this one.
        if url.scheme() == "file" && !host.is_empty() {
            let (host, path) = (url.host(), url.path());
            return refused(&format_args!(
                "`{url}` must have three slashes: did you mean file:///{host}{path}?"
            ));
        }
        if host.is_empty() && url.scheme() != "file" && !url.path_and_rest().is_empty() {
            return refused(&format_args!("`{text}` has a path but no host"));
        }
        let Some(path) = Path::of(&url) else {
            return refused(&format_args!("`{text}` has a NUL"));
        };
        if path.climbs || (!is_object_store(url.scheme()) && url.path() != url.path_and_rest()) {
            return refused(&format_args!("`{url}` must have no `..`, `?` or `#`"));
        }
        Ok(Self {
            text: text.to_owned(),
            scheme: url.scheme().to_owned(),
            host: (!host.is_empty()).then_some(host),
            path,
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
        let of_scheme = prefixes
            .enumerate()
            .filter(|(_, p)| p.scheme == url.scheme());
        let host = match comparable_host(url) {
            Some(host) => host,
            None if of_scheme.clone().any(|(_, prefix)| prefix.host.is_some()) => {
                return Err(Unserved::OddHost);
            }
            None => url.host().to_owned(),
        };
        let mut here = of_scheme.filter(|(_, prefix)| prefix.is_at(&host));
        let first = |form: fn(&Path) -> &Components| {
            let mut here = here.clone();
            here.find(|(_, prefix)| form(&path).starts_with(form(&prefix.path)))
                .map(|(index, _)| index)
        };
        let chosen = first(|path| &path.names);
        if chosen != first(|path| &path.loose) {
            return Err(Unserved::Ambiguous);
        }
        let is_file = url.scheme() == "file";
        let Some(index) = chosen else {
            let written = components(&url.decoded_path(), is_slash);
            let out = is_file && here.any(|(_, prefix)| written.starts_with(&prefix.path.names));
            return Err(if out {
                Unserved::ClimbsOut
            } else {
                Unserved::Unknown
            });
        };
        // A server resolves `..` itself, after the prefix has chosen the credentials.
        if path.climbs && !is_file && here.any(|(_, prefix)| !prefix.path.names.is_empty()) {
            return Err(Unserved::Climbs);
        }
        Ok(index)
    }

    /// Greater for a prefix that is to be asked before another.
    pub(crate) fn specificity(&self) -> (bool, usize) {
        (self.host.is_some(), self.path.names.len())
    }

    fn is_at(&self, host: &str) -> bool {
        match &self.host {
            Some(own) => own == host,
            None => self.scheme != "file" || host.is_empty(),
        }
    }
}

type Components = Vec<Vec<u8>>;

/// The path of a URL as prefixes are compared with it: in components.
#[derive(Clone, Debug)]
struct Path {
    /// Decoded, without those that are empty or `.`, as servers take them; of `file:` with `..`
    /// resolved. Keys of object stores are no paths: theirs are as they are written.
    names: Components,
    /// The same where all is a slash that some server or library takes for one: an escaped one,
    /// and a backslash.
    loose: Components,
    /// Whether a component is `..`, in any such spelling.
    climbs: bool,
}

impl Path {
    /// `None` for a path of `file:` with a NUL.
    fn of(url: &StorageUrl) -> Option<Self> {
        if is_object_store(url.scheme()) {
            let key = url.path_and_rest().trim_end_matches('/').as_bytes();
            let names = match key {
                b"" => Components::new(),
                key => key.split(|b| is_slash(*b)).map(<[u8]>::to_vec).collect(),
            };
            return Some(Self {
                loose: names.clone(),
                names,
                climbs: false,
            });
        }
        let decoded = url.decoded_path();
        if url.scheme() == "file" {
            let path = url.file_path()?;
            let names = components(path.as_path().as_os_str().as_encoded_bytes(), is_slash);
            return Some(Self {
                loose: names.clone(),
                names,
                climbs: decoded.split(|b| is_slash(*b)).any(|name| name == b".."),
            });
        }
        let written = url.path().split('/');
        let loose = components(&decoded, |b| matches!(b, b'/' | b'\\'));
        Some(Self {
            names: written
                .map(|name| percent_decode_str(name).collect())
                .filter(|name: &Vec<u8>| is_name(name))
                .collect(),
            climbs: loose.iter().any(|name| name == b".."),
            loose,
        })
    }
}

fn components(path: &[u8], is_slash: fn(u8) -> bool) -> Components {
    let names = path.split(|b| is_slash(*b)).filter(|name| is_name(name));
    names.map(<[u8]>::to_vec).collect()
}

fn is_name(component: &[u8]) -> bool {
    !matches!(component, b"" | b".")
}

fn is_slash(byte: u8) -> bool {
    byte == b'/'
}

pub(crate) fn is_object_store(scheme: &str) -> bool {
    matches!(scheme, "s3" | "gs")
}

/// The host in the one way in which prefixes are compared: in lower case, an address in its usual
/// form, without the scheme's default port and a dot at the end; of `file:`, `localhost` is none.
///
/// `None` for a host that clients read in more than one way: escapes, other letters than those of
/// names, numbers that mean addresses.
fn comparable_host(url: &StorageUrl) -> Option<String> {
    let written = url.host().to_ascii_lowercase();
    let default_port = match url.scheme() {
        "http" | "dav" => 80,
        "https" | "davs" => 443,
        "ftp" => 21,
        "ftps" => 990,
        "sftp" => 22,
        "file" if written == "localhost" => return Some(String::new()),
        _ => return Some(written),
    };
    let (name, port) = if let Some(bracketed) = written.strip_prefix('[') {
        let (address, port) = bracketed.split_once(']')?;
        let address: Ipv6Addr = address.parse().ok()?;
        (address.to_canonical().to_string(), port)
    } else {
        let (name, port) = written.split_at(written.find(':').unwrap_or(written.len()));
        let name = name.strip_suffix('.').unwrap_or(name);
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let last = name.rsplit('.').next().unwrap_or_default();
        let is_number = last.starts_with(|c: char| c.is_ascii_digit())
            && (last.starts_with("0x") || last.bytes().all(|b| b.is_ascii_digit()));
        if !name.chars().all(is_plain) || is_number && name.parse::<Ipv4Addr>().is_err() {
            return None;
        }
        (name.to_owned(), port)
    };
    let digits = port.strip_prefix(':').unwrap_or_default();
    match digits.parse() {
        _ if port.is_empty() || port == ":" => Some(name),
        Ok(number) if digits != u16::to_string(&number) => None,
        Ok(number) if number == default_port => Some(name),
        Ok(number) => Some(format!("{name}:{number}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
