//! The keys of an `ftp` entry.

use std::path::PathBuf;

use serde::Deserialize;

use crate::netrc;

/// The keys of a `[[storage]]` entry with `type = "ftp"`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The user to log in as. Default: what `netrc` says for the host, else `anonymous`.
    /// User and password in a task's URL win over all of these.
    pub username: Option<String>,
    /// A file that holds the password.
    pub password_file: Option<PathBuf>,
    /// An environment variable that holds the password.
    pub password_env: Option<String>,
    /// A `.netrc` file with credentials by host; `true` is the one in the home directory.
    pub netrc: Option<netrc::Location>,
    /// How the connections are encrypted. Default: `none` for `ftp://`, `implicit` for `ftps://`.
    pub tls: Option<Tls>,
    /// Whether TLS 1.3 is spoken too. Default false, because many servers want every data
    /// connection to resume the session of its control connection: a session of TLS 1.2 can be
    /// resumed any number of times, one of TLS 1.3 once.
    pub tls13: bool,
    /// A file of PEM certificates that are trusted besides those of the system.
    pub ca_file: Option<PathBuf>,
    /// How data connections are opened. Default `auto`.
    pub passive: Passive,
    /// Whether to connect to the address in the answer to `PASV`. Default false: data comes from
    /// where the control connection leads, which also works for servers behind NAT that tell an
    /// inner address. A server that is not on a private network never leads into one.
    pub trust_pasv_address: bool,
    /// Connections that read at the same time, and again as many that write, per server and
    /// user. Should not be less than `per_host` of `[transfer]`: transfers that wait here for
    /// long count as stalled. A server that refuses more lowers it. Default 16.
    pub connections: Option<usize>,
    /// Connections for listings and single commands, per server and user. Default 4.
    pub listing_connections: Option<usize>,
    /// Seconds after which an unused connection is closed. Default 30.
    pub idle_secs: Option<u64>,
    /// Seconds to wait for a connection. Default 10.
    pub connect_timeout_secs: Option<u64>,
    /// Seconds to wait for the answer to a command. Default 30. Servers that look up names at
    /// login may need 10 or more.
    pub command_timeout_secs: Option<u64>,
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
    /// Where there are any, no other hosts are reached.
    pub allow_hosts: Vec<String>,
}

/// How connections are encrypted. Control and data connections always alike.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Hash)]
#[serde(rename_all = "lowercase")]
pub enum Tls {
    /// Not at all: the password too is sent as it is.
    None,
    /// After `AUTH TLS` (RFC 4217), on port 21 by default. A server that does not know it is an
    /// error; nothing is sent in the clear.
    Explicit,
    /// From the first byte on, on port 990 by default.
    Implicit,
}

/// How data connections are opened. They always go from here to the server.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Passive {
    /// With `EPSV`, or `PASV` where a server refuses that.
    #[default]
    Auto,
    /// With `EPSV` (RFC 2428) only.
    Epsv,
    /// With `PASV` (RFC 959) only.
    Pasv,
}
