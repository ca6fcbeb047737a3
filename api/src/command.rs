//! The `tesk` command.
//!
//! - [`run`]: one task here and now, with no server.
//! - [`serve`]: the service with its engine.
//! - [`client`] and [`tasks`]: what a client asks of a server.
//! - [`storage`]: looks at storages, and copies between them.
//! - [`admin`]: credentials, configuration, shell completions.

mod admin;
mod client;
mod document;
mod engine;
mod run;
mod serve;
mod show;
mod storage;
mod tasks;

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use tesk_core::config::nearest;
use tesk_core::local::RuntimeChoice;
use tesk_core::storage::{RegistryBuilder, cleanup};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::config::Config;

const EXAMPLES: &str = "\
Examples:
  tesk run examples/orchids/task.json --runtime host    one task, here and now
  tesk serve --allow-path /data                         a server on 127.0.0.1:8080
  tesk submit task.json --wait                          a task for that server
  tesk list --state running
  tesk storage check --config tesk.toml                 can its storages be used?";

/// The whole `tesk` command, with these storages: call it before anything reads standard input or
/// starts a thread.
pub fn main(plugins: RegistryBuilder) -> ExitCode {
    engine::use_plugins(plugins);
    engine::attempt().unwrap_or_else(|| {
        let matches = without_empty_variables(Cli::command()).get_matches();
        Cli::from_arg_matches(&matches)
            .unwrap_or_else(|error| error.exit())
            .execute()
    })
}

/// A variable that is set to nothing counts as one that is not set.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |arg: &clap::Arg| {
        let value = arg.get_env().and_then(std::env::var_os);
        value.is_some_and(|value| value.is_empty())
    };
    command
        .mut_args(|arg| {
            if is_empty(&arg) {
                arg.env(None::<&str>)
            } else {
                arg
            }
        })
        .mut_subcommands(without_empty_variables)
}

/// GA4GH TES 1.1 task execution: run tasks on this machine, serve them, or talk to a server.
#[derive(Debug, Parser)]
#[command(
    name = "tesk",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    after_help = EXAMPLES
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one task, with no server
    ///
    /// Relative urls are made absolute: of inputs against the folder of the task file, of
    /// outputs against --output-dir. The exit status is 0 only when the task ends COMPLETE.
    Run(run::Run),
    /// Serve the TES API
    ///
    /// Without a configuration it listens on 127.0.0.1:8080, keeps its records in ./tesk-data
    /// and serves http(s) and ftp(s) urls; --allow-path adds folders for file urls.
    Serve(serve::Serve),
    /// Create tasks on a server and print their ids
    ///
    /// A server that is away for a while is asked again for five minutes, with the same
    /// Idempotency-Key; with --wait even where nobody listens yet. The first file that is refused
    /// is the last that is sent, and --wait then waits for the tasks of those before it.
    Submit(tasks::Submit),
    /// Show tasks
    Get(tasks::Get),
    /// List tasks, newest first
    List(tasks::List),
    /// Cancel tasks
    Cancel(tasks::Cancel),
    /// Show what the executors of a task wrote
    Logs(tasks::Logs),
    /// Wait until tasks have ended; the exit status is 0 only when all are COMPLETE
    Wait(tasks::Wait),
    /// Look at storages and copy between them, with the configuration of a server
    #[command(subcommand)]
    Storage(storage::Storage),
    /// Remove everything that the Kubernetes engine has made in its namespace, records included
    ///
    /// Pods of running tasks are ended. No server may be left that would go on with them.
    Purge(admin::Purge),
    /// Make entries for the users file of a server
    #[command(subcommand)]
    Auth(admin::Auth),
    /// Check the configuration of a server
    #[command(subcommand)]
    Config(admin::ConfigCommand),
    /// Print the completions of a shell, to be read by it at its start
    Completions(admin::Completions),
}

/// Which server, and who asks.
#[derive(Clone, Debug, Args)]
struct Remote {
    /// The address of the server; a user and password in it are used, and never shown
    #[arg(
        long,
        env = "TESK_SERVER",
        // It may hold a password.
        hide_env_values = true,
        default_value = "http://127.0.0.1:8080",
        value_name = "URL"
    )]
    server: String,
    /// A file that holds a bearer token
    #[arg(
        long,
        value_name = "FILE",
        help = "A file that holds a bearer token; TESK_TOKEN is the token itself, TESK_USER and \
                TESK_PASSWORD are for servers with passwords"
    )]
    token_file: Option<PathBuf>,
}

/// `--runtime`
fn runtime_parser() -> impl TypedValueParser<Value = RuntimeChoice> {
    use clap::builder::PossibleValue;
    let value = |name: &'static str, help: &'static str| PossibleValue::new(name).help(help);
    PossibleValuesParser::new([
        value("auto", "podman if it works, else docker"),
        value("podman", "containers by podman"),
        value("docker", "containers by docker"),
        value("host", "processes of this machine; images are not used"),
    ])
    .try_map(|name| name.parse())
}

/// What a command ends with when it does not succeed.
#[derive(Debug)]
enum Failure {
    /// Something went wrong: said in one line, exit status 1.
    Error(String),
    /// All is said; this is the exit status.
    Status(u8),
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self::Error(text)
    }
}

impl From<client::Refused> for Failure {
    fn from(refused: client::Refused) -> Self {
        Self::Error(refused.into())
    }
}

/// What a command comes to.
type Outcome = Result<(), Failure>;

impl Cli {
    /// Runs the command on a runtime of its own.
    fn execute(self) -> ExitCode {
        let runtime = match tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
        {
            Ok(runtime) => runtime,
            Err(error) => return fail(&format!("cannot start: {error}")),
        };
        let outcome = runtime.block_on(self.command.execute());
        runtime.block_on(cleanup::finish());
        // Blocking reads, such as of standard input, must not keep the process.
        runtime.shutdown_background();
        match outcome {
            Ok(()) => ExitCode::SUCCESS,
            Err(Failure::Status(status)) => ExitCode::from(status),
            Err(Failure::Error(text)) => fail(&text),
        }
    }
}

/// The configuration that a command was given, with the environment over it.
fn configuration(file: Option<&Path>) -> Result<Config, String> {
    let mut variables = Vec::new();
    for (name, value) in std::env::vars_os() {
        // Others need not be text.
        let of_ours = |name: &&str| name.starts_with("TESK_") && name.contains("__");
        if let Some(name) = name.to_str().filter(of_ours) {
            variables.push((name.to_owned(), utf8(name, value)?));
        }
    }
    Config::load(file, variables.into_iter())
}

/// A variable of the environment, unless it is empty.
fn variable(name: &str) -> Result<Option<String>, String> {
    let value = std::env::var_os(name).filter(|value| !value.is_empty());
    value.map(|value| utf8(name, value)).transpose()
}

/// The value of a variable, which may be secret.
fn utf8(name: &str, value: OsString) -> Result<String, String> {
    let text = value.into_string();
    text.map_err(|_| format!("the environment variable {name} is not UTF-8"))
}

/// Which log lines are written, as `text` says, the value of `origin`: a level, or directives.
fn log_filter(origin: &str, text: &str) -> Result<EnvFilter, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    for word in text.split(',').filter(|word| !word.is_empty()) {
        // It would be taken for a module, and all others would be silent.
        if !word.contains('=') && word.parse::<LevelFilter>().is_err() {
            let levels = LEVELS.join(", ");
            let hint = nearest(word, LEVELS)
                .map(|level| format!("; did you mean `{level}`?"))
                .unwrap_or_default();
            return Err(format!(
                "{origin}: `{word}` is not a level ({levels}), and that of one module is written \
                 as module=level{hint}"
            ));
        }
    }
    EnvFilter::try_new(text)
        .map_err(|error| format!("{origin}: `{text}` is not a log filter: {error}"))
}

/// What is worth knowing goes to standard error, from `level` on unless `TESK_LOG` says.
fn start_log(level: &str) -> Result<(), String> {
    let filter = match variable("TESK_LOG")? {
        Some(text) => log_filter("TESK_LOG", &text)?,
        None => EnvFilter::new(level),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Else a closed standard error turns every line into a panic of whoever wrote it.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    Ok(())
}

/// Signals of this kind, which do not end the process any more.
fn listen(kind: SignalKind) -> Result<Signal, String> {
    signal(kind).map_err(|error| format!("cannot listen for signals: {error}"))
}

fn fail(text: &str) -> ExitCode {
    complain(text);
    ExitCode::FAILURE
}

/// Says what is wrong; some of it can be the words of a server or a file.
fn complain(text: &str) {
    note(&format!("tesk: {}", show::harmless(text)));
}

/// A line on standard error, which nobody needs to read.
fn note(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

impl Command {
    async fn execute(self) -> Outcome {
        match self {
            Self::Run(command) => command.execute().await,
            Self::Serve(command) => command.execute().await,
            Self::Submit(command) => command.execute().await,
            Self::Get(command) => command.execute().await,
            Self::List(command) => command.execute().await,
            Self::Cancel(command) => command.execute().await,
            Self::Logs(command) => command.execute().await,
            Self::Wait(command) => command.execute().await,
            Self::Purge(command) => command.execute().await,
            Self::Auth(command) => command.execute(),
            Self::Storage(command) => command.execute().await,
            Self::Config(command) => command.execute().await,
            Self::Completions(command) => command.execute(),
        }
    }
}

/// Prints to standard output; a reader that has gone away (`tesk list | head`) ends the
/// command quietly. For what is only shown.
fn print(text: &str) -> Outcome {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::Status(0)),
        Err(error) => Err(Failure::Error(format!("cannot write: {error}"))),
    }
}

/// Prints to standard output where more is to be done, or the exit status says more: a reader that
/// has gone away changes neither.
fn say(text: &str) -> Outcome {
    match print(text) {
        Err(Failure::Status(0)) => Ok(()),
        said => said,
    }
}
