//! The keys of an `http` entry.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use crate::netrc;
use crate::secret::Value;

/// The keys of a `[[storage]]` entry with `type = "http"`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The user name of basic authentication.
    pub username: Option<String>,
    /// A file that holds its password.
    pub password_file: Option<PathBuf>,
    /// An environment variable that holds its password.
    pub password_env: Option<String>,
    /// A file that holds a bearer token.
    pub bearer_file: Option<PathBuf>,
    /// An environment variable that holds a bearer token.
    pub bearer_env: Option<String>,
    /// Further headers of every request, each a text, `{ file = "…" }` or `{ env = "…" }`. They
    /// are secret as credentials are, and go to the same origin only.
    pub headers: BTreeMap<String, Value>,
    /// A `.netrc` file with credentials by host; `true` is the one in the home directory.
    pub netrc: Option<netrc::Location>,
    /// The proxy for all requests, such as `http://proxy:3128`, or `environment` for what
    /// `HTTPS_PROXY` and the like say. Default: none, also when those are set.
    pub proxy: Option<String>,
    /// A file of PEM certificates that are trusted besides those of the system.
    pub ca_file: Option<PathBuf>,
    /// Seconds to wait for a connection. Default 10.
    pub connect_timeout_secs: Option<u64>,
    /// Whether the servers speak WebDAV (RFC 4918): directories are listed and made, files
    /// renamed and removed, and written under another name first. Default false.
    pub webdav: bool,
    /// Whether what is put appears only when it is whole, as with nginx and Apache: with `webdav`,
    /// files are then put at their own name. Default false.
    pub atomic_put: bool,
    /// Refuse writing. Default false.
    pub read_only: bool,
    /// Whether loopback and private networks are reached. Default true.
    pub allow_private: Option<bool>,
    /// Networks that are not reached, such as `10.1.0.0/16`.
    pub deny_networks: Vec<String>,
    /// Networks that are reached whatever else forbids them.
    pub allow_networks: Vec<String>,
    /// Hosts that are not reached, such as `ftp.example.org` or `*.example.org` for all below it.
    pub deny_hosts: Vec<String>,
    /// Where there are any, no other hosts are reached, after redirects neither.
    pub allow_hosts: Vec<String>,
}
