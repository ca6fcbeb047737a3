//! The configuration of server and filer: one TOML file, then the environment over it.
//!
//! Every key is described in `tesk.example.toml` at the root of the repository; a test keeps
//! that file and these types together.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tesk_core::config::{ByteSize, Span};
use tesk_core::kubernetes;
use tesk_core::local::{ContainerArguments, RuntimeChoice};
use tesk_core::scheduler;
use tesk_core::storage::ConfigEntry;
use tesk_core::tes::Rules;
use tesk_core::time::Timestamp;
use tesk_core::transfer;

/// The whole file.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The HTTP service and where it keeps its records.
    pub server: Server,
    /// What the service says of itself.
    pub service_info: ServiceInfo,
    /// Who may use it.
    pub auth: Auth,
    /// What a task may ask for and how long it may take.
    pub limits: Limits,
    /// The engine of this machine.
    pub local: Local,
    /// The engine of a cluster.
    pub kubernetes: kubernetes::Settings,
    /// The storages that tasks may name in their URLs.
    pub storage: Vec<ConfigEntry>,
    /// How files are moved.
    pub transfer: transfer::Settings,
}

/// `[server]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// The address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where tasks run.
    pub engine: EngineChoice,
    /// The directory of the database and of running tasks of the local engine.
    pub data: PathBuf,
    /// A path that the API and its page are served below as well, such as `/tesk`; empty is none.
    pub context_path: String,
    /// Allows listening beyond loopback without authentication.
    pub allow_open: bool,
    /// Web origins that may use the service from a browser; their hosts are also accepted as
    /// names of this server.
    pub allowed_origins: Vec<String>,
    /// The largest task document.
    pub max_body: ByteSize,
    /// Connections served at once; more are answered 503, but for `/healthz` and `/readyz`.
    pub max_connections: usize,
    /// The longest wait for the headers of a request, idle connections included, and for a client
    /// to take some of a reply.
    pub header_timeout: Span,
    /// The longest wait for a request's body, and for the reply to one that only reads.
    pub request_timeout: Span,
    /// How long requests may take to end when the server stops.
    pub shutdown_timeout: Span,
    /// Which log lines are written: a level, or `tracing` directives.
    pub log: String,
    /// How they are written.
    pub log_format: LogFormat,
}

/// Where tasks run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum EngineChoice {
    /// On this machine.
    #[default]
    Local,
    /// In one namespace of a Kubernetes cluster.
    Kubernetes,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object in each line.
    Json,
}

impl Default for Server {
    fn default() -> Self {
        let seconds = |s| Span(Duration::from_secs(s));
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            engine: EngineChoice::default(),
            data: "tesk-data".into(),
            context_path: String::new(),
            allow_open: false,
            allowed_origins: Vec::new(),
            max_body: ByteSize(16 << 20),
            max_connections: 4096,
            header_timeout: seconds(60),
            request_timeout: seconds(30),
            shutdown_timeout: seconds(25),
            log: "info".into(),
            log_format: LogFormat::Text,
        }
    }
}

/// `[service_info]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceInfo {
    /// In reverse-domain form.
    pub id: String,
    /// For people.
    pub name: String,
    /// What the service is for.
    pub description: Option<String>,
    /// Who runs it.
    pub organization_name: String,
    /// Their page.
    pub organization_url: String,
    /// Where to ask for help.
    pub contact_url: Option<String>,
    /// Where it is described.
    pub documentation_url: Option<String>,
    /// `prod`, `test`, `dev`, …
    pub environment: Option<String>,
    /// When the service was first offered, a full RFC 3339 date-time.
    pub created_at: Option<Timestamp>,
    /// When it last changed.
    pub updated_at: Option<Timestamp>,
}

impl Default for ServiceInfo {
    fn default() -> Self {
        Self {
            id: "org.example.tesk".into(),
            name: "tesk".into(),
            description: None,
            organization_name: "not configured".into(),
            organization_url: "https://example.org".into(),
            contact_url: None,
            documentation_url: None,
            environment: None,
            created_at: None,
            updated_at: None,
        }
    }
}

/// `[auth]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// The file of users and tokens; without one the service is open to everybody.
    pub users: Option<PathBuf>,
}

/// `[limits]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// The most CPU cores a task may ask for.
    pub max_cpu_cores: Option<u32>,
    /// The most memory a task may ask for, in GiB.
    pub max_ram_gb: Option<f64>,
    /// The most scratch space a task may ask for, in GiB.
    pub max_disk_gb: Option<f64>,
    /// How often a task is tried when infrastructure fails.
    pub attempts: u32,
    /// Tasks that are under way at once; 0 accepts tasks and starts none, for maintenance.
    pub max_active: usize,
    /// Tasks of one user that are under way at once; `None` is no limit of its own.
    pub max_active_per_user: Option<usize>,
    /// Time between the polite and the forced end of a canceled task.
    pub grace: Span,
    /// How long a task may run; zero is for ever.
    pub time_limit: Span,
    /// How long finished tasks are kept; zero is for ever.
    pub retention: Span,
    /// How long an idempotency key is remembered.
    pub idempotency: Span,
}

impl Default for Limits {
    fn default() -> Self {
        let days = |d: u64| Span(Duration::from_secs(d * 86_400));
        Self {
            max_cpu_cores: None,
            max_ram_gb: None,
            max_disk_gb: None,
            attempts: 3,
            max_active: 1000,
            max_active_per_user: None,
            grace: Span(Duration::from_secs(10)),
            time_limit: days(7),
            retention: days(30),
            idempotency: days(1),
        }
    }
}

/// `[local]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Local {
    /// What runs the executors.
    pub runtime: RuntimeChoice,
    /// Further arguments for podman or docker.
    pub container_arguments: ContainerArguments,
    /// CPU cores for all tasks together; `None` is what the machine has.
    pub cores: Option<u32>,
    /// Memory for all tasks together; `None` is what the machine has.
    pub memory: Option<ByteSize>,
    /// Bytes kept of the end of what an executor writes, of each stream.
    pub log_tail: ByteSize,
}

impl Default for Local {
    fn default() -> Self {
        Self {
            runtime: RuntimeChoice::default(),
            container_arguments: ContainerArguments::default(),
            cores: None,
            memory: None,
            log_tail: ByteSize(64 << 10),
        }
    }
}

/// Zero is no limit.
fn for_ever(span: Span) -> Option<Duration> {
    Some(span.0).filter(|duration| !duration.is_zero())
}

impl Config {
    /// Reads `file` (or the defaults), with `variables` over it, and checks it.
    pub fn load(
        file: Option<&Path>,
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, String> {
        let mut table = toml::Table::new();
        if let Some(path) = file {
            let origin = path.display().to_string();
            let text = std::fs::read_to_string(path)
                .map_err(|error| format!("cannot read the configuration {origin}: {error}"))?;
            // Read on its own first: only then does an error know its line.
            tesk_core::config::parse::<Self>(&origin, &text)?;
            table = tesk_core::config::parse(&origin, &text)?;
        }
        tesk_core::config::override_from_env(&mut table, variables);
        let config: Self = table.try_into().map_err(|error: toml::de::Error| {
            tesk_core::config::explain("environment (TESK_SECTION__KEY)", &error.to_string())
        })?;
        config.check()?;
        Ok(config)
    }

    /// What serde cannot see.
    fn check(&self) -> Result<(), String> {
        let path = &self.server.context_path;
        if !path.is_empty()
            && (!path.starts_with('/')
                || path.ends_with('/')
                || path.contains("//")
                || path
                    .bytes()
                    .any(|b| !(b.is_ascii_alphanumeric() || b"/-_.~".contains(&b))))
        {
            return Err(format!(
                "server.context_path: `{path}` must begin with a slash, must not end with one, and may hold letters, digits and -_.~"
            ));
        }
        let taken = ["/healthz", "/readyz", "/metrics", "/docs", "/v1", "/ga4gh"];
        if let Some(taken) = taken.iter().find(|t| Path::new(path).starts_with(t)) {
            return Err(format!(
                "server.context_path: `{path}` collides with {taken}, which is served anyway"
            ));
        }
        for origin in &self.server.allowed_origins {
            let valid = url::Url::parse(origin).is_ok_and(|url| {
                matches!(url.scheme(), "http" | "https")
                    && url.origin().ascii_serialization() == *origin
            });
            if !valid {
                return Err(format!(
                    "server.allowed_origins: `{origin}` is not an origin such as https://tes.example.org"
                ));
            }
        }
        for (key, address) in [
            (
                "organization_url",
                Some(&self.service_info.organization_url),
            ),
            ("contact_url", self.service_info.contact_url.as_ref()),
            (
                "documentation_url",
                self.service_info.documentation_url.as_ref(),
            ),
        ] {
            if let Some(address) = address
                && url::Url::parse(address).is_err()
            {
                return Err(format!(
                    "service_info.{key}: `{address}` is not a url with a scheme"
                ));
            }
        }
        if self.limits.attempts == 0 {
            return Err("limits.attempts: must be at least 1".into());
        }
        self.kubernetes.check()?;
        if self.local.log_tail.0 < 10 << 10 {
            return Err("local.log_tail: must be at least 10KiB".into());
        }
        if self.server.max_connections == 0 {
            return Err("server.max_connections: must be at least 1".into());
        }
        for (key, span) in [
            ("header_timeout", self.server.header_timeout),
            ("request_timeout", self.server.request_timeout),
        ] {
            if span.0.is_zero() {
                return Err(format!("server.{key}: must be more than zero"));
            }
        }
        Ok(())
    }

    /// Whether the service would be open to everybody who can reach it from another machine.
    pub fn refuse_open_to_others(&self) -> Result<(), String> {
        let server = &self.server;
        if server.listen.ip().is_loopback() || self.auth.users.is_some() || server.allow_open {
            return Ok(());
        }
        Err(format!(
            "refusing to listen on {} without authentication: anybody who reaches it could run commands here; set auth.users, or server.allow_open = true if something in front authenticates",
            server.listen
        ))
    }

    /// Serves more storages. Without any configured, the default ones stay.
    pub fn allow(&mut self, entries: Vec<ConfigEntry>) {
        if self.storage.is_empty() {
            self.storage = tesk_backends::default_entries();
        }
        self.storage.extend(entries);
    }

    /// How the scheduler decides.
    pub fn scheduler(&self) -> scheduler::Settings {
        let limits = &self.limits;
        let defaults = scheduler::Settings::default();
        scheduler::Settings {
            // A quota that is used up is asked about by every task that waits for it.
            busy: match self.server.engine {
                EngineChoice::Local => defaults.busy,
                EngineChoice::Kubernetes => Duration::from_secs(5),
            },
            max_active: limits.max_active,
            max_active_per_user: limits.max_active_per_user,
            max_attempts: limits.attempts,
            grace: limits.grace.0,
            time_limit: for_ever(limits.time_limit),
            retention: for_ever(limits.retention),
            ..defaults
        }
    }

    /// The rules that validation applies; the prefixes come from the storages.
    pub fn rules(&self) -> Rules {
        Rules {
            prefixes: Vec::new(),
            max_cpu_cores: self.limits.max_cpu_cores,
            max_ram_gb: self.limits.max_ram_gb,
            max_disk_gb: self.limits.max_disk_gb,
            backend_parameters: match self.server.engine {
                EngineChoice::Local => BTreeMap::new(),
                EngineChoice::Kubernetes => kubernetes::pod::checks(&self.kubernetes.parameters),
            },
        }
    }
}
