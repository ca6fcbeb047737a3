//! `tesk serve`: the service with its engine.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use tesk_core::local::RuntimeChoice;
use tokio::signal::unix::{Signal, SignalKind};
use tokio_util::sync::CancellationToken;

use super::engine;
use super::{Failure, Outcome, configuration, listen, log_filter, runtime_parser, say};
use crate::auth::{Authenticator, UsersFile};
use crate::config::{Config, EngineChoice, LogFormat, Server};
use crate::service::{App, server};

/// `tesk serve`
#[derive(Debug, Args)]
pub(super) struct Serve {
    /// The address to listen on; port 0 takes a free one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// The directory of the database and of running tasks [default: tesk-data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The configuration file; tesk.example.toml describes it
    #[arg(long, value_name = "FILE", env = "TESK_CONFIG")]
    config: Option<PathBuf>,
    /// A folder that tasks may read and write by file urls; may be repeated
    #[arg(long, value_name = "DIR")]
    allow_path: Vec<PathBuf>,
    /// Where tasks run [default: local, or server.engine of the configuration]
    #[arg(long, value_name = "ENGINE")]
    engine: Option<EngineChoice>,
    /// What runs the executors [default: auto, or local.runtime of the configuration]
    #[arg(long, value_parser = runtime_parser())]
    runtime: Option<RuntimeChoice>,
}

impl Serve {
    pub(super) async fn execute(self) -> Outcome {
        let mut config = configuration(self.config.as_deref())?;
        if let Some(listen) = self.listen {
            config.server.listen = listen;
        }
        if let Some(data) = self.data {
            config.server.data = data;
        }
        if let Some(runtime) = self.runtime {
            config.local.runtime = runtime;
        }
        if let Some(engine) = self.engine {
            config.server.engine = engine;
        }
        for path in &self.allow_path {
            config.allow(engine::directory_entries(path)?);
        }
        config.refuse_open_to_others()?;
        engine::refuse_own_files(&config)?;
        start_log(&config.server)?;
        engine::install_crypto();
        raise_file_limit();

        // The socket first: nothing is touched if the address is taken.
        let listener = server::bind(config.server.listen).await?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        let auth = Arc::new(match &config.auth.users {
            Some(path) => Authenticator::Users(Box::new(UsersFile::open(path)?)),
            None => Authenticator::Open,
        });
        let rules = engine::rules(&config)?;
        // Whoever reads `ready` may send one at once.
        let hup = listen(SignalKind::hangup())?;
        let mut int = listen(SignalKind::interrupt())?;
        let mut term = listen(SignalKind::terminate())?;
        // Boxed: with all requests of a start it is large.
        let engine = tokio::select! {
            engine = Box::pin(engine::start(&config)) => engine?,
            _ = int.recv() => return Err(Failure::Status(130)),
            _ = term.recv() => return Err(Failure::Status(143)),
        };
        let app = App::new(&config, engine.handles(), rules, auth.clone());

        announce(&config, address)?;
        let stop = CancellationToken::new();
        let signals = [term, int, hup];
        tokio::spawn(watch_signals(app.clone(), auth, stop.clone(), signals));
        server::serve(listener, app.router(), &config.server, stop).await;
        engine.stop().await;
        tracing::info!("stopped; tasks that run go on, and the next start looks after them");
        Ok(())
    }
}

fn announce(config: &Config, address: SocketAddr) -> Outcome {
    let root = format!("http://{address}{}", config.server.context_path);
    let is_local = config.server.engine == EngineChoice::Local;
    let place = if is_local {
        format!("data  {}", config.server.data.display())
    } else {
        "tasks run on a Kubernetes cluster".to_owned()
    };
    say(&format!(
        "tesk {}\n  API   {root}/ga4gh/tes/v1\n  docs  {root}/docs/\n  {place}\n",
        env!("CARGO_PKG_VERSION"),
    ))?;
    if is_local && config.local.runtime == RuntimeChoice::Host {
        tracing::warn!("commands run as processes of this machine; images are not used");
    }
    if config.auth.users.is_none() && !address.ip().is_loopback() {
        tracing::warn!(
            "open to everybody who reaches {address}: server.allow_open is set and auth.users is not"
        );
    }
    say("ready\n")
}

/// The first TERM or INT ends politely, the second at once; HUP reads the users file again.
async fn watch_signals(
    app: App,
    auth: Arc<Authenticator>,
    stop: CancellationToken,
    [mut term, mut int, mut hup]: [Signal; 3],
) {
    let follow = async {
        match &*auth {
            Authenticator::Users(users) => users.follow().await,
            Authenticator::Open => std::future::pending().await,
        }
    };
    tokio::pin!(follow);
    loop {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
            _ = hup.recv() => {
                if let Authenticator::Users(users) = &*auth {
                    users.reload();
                }
                continue;
            }
            () = &mut follow => continue,
        }
        if stop.is_cancelled() {
            tracing::warn!("stopping at once");
            std::process::exit(130);
        }
        app.stop();
        stop.cancel();
        tracing::info!("stopping");
    }
}

/// Log lines go to standard error.
fn start_log(server: &Server) -> Result<(), String> {
    let log = tracing_subscriber::fmt()
        .with_env_filter(log_filter("server.log", &server.log)?)
        .with_writer(std::io::stderr)
        // Else a closed standard error turns every line into a panic of whoever wrote it.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    match server.log_format {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    Ok(())
}

/// Connections and containers take file descriptors; the usual soft limit of 1024 is for
/// programs that use `select`.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "cannot raise the limit of open files");
    }
}
