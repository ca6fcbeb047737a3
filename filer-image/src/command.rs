//! The `filer` command: its arguments, and its process.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tesk_core::storage::{RegistryBuilder, cleanup};
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{copy, exec, inputs, outputs, prepare};

/// Stages inputs and outputs and supervises executors inside a task's pod.
#[derive(Debug, Parser)]
#[command(name = "filer", version, max_term_width = 100)]
struct Command {
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    /// Makes what must be there before any other container starts. Exit code: 0, or 1.
    Prepare(prepare::Options),
    /// Waits for `prepare` and puts the inputs in place. Exit code: 0 when all are, 1, or 143 when told to end.
    Inputs(inputs::Options),
    /// Waits for its turn and runs one executor. Exit code: that of the command (127 not found,
    /// 126 not executable, 128 + n by signal n); 125 when it was not run; 143 when told to end.
    Exec(exec::Options),
    /// Waits for the last executor, delivers the outputs and reports. Exit code: 0 when there is
    /// a report, whatever it says, 1, or 143 when told to end.
    Outputs(outputs::Options),
    /// Copies a file or directory. Exit code: 0, 1, or 143 when told to end and 130 when interrupted:
    /// then what it had begun at a server is removed first.
    Copy(copy::Options),
}

/// The exit code of what a person has stopped.
const INTERRUPTED: u8 = 130;

/// The whole `filer` command, with these storages.
pub fn main(plugins: &RegistryBuilder) -> ExitCode {
    let command = Command::parse().command;
    let level = std::env::var("FILER_LOG").ok();
    tracing_subscriber::fmt()
        .with_max_level(
            level
                .and_then(|level| level.parse().ok())
                .unwrap_or(tracing::Level::WARN),
        )
        .with_writer(std::io::stderr)
        .init();
    match run(&command, plugins) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("filer: {error:#}");
            match command {
                Subcommands::Exec(_) => ExitCode::from(exec::NOT_RUN),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn run(command: &Subcommands, plugins: &RegistryBuilder) -> anyhow::Result<u8> {
    let mut runtime = match command {
        Subcommands::Prepare(options) => return prepare::run(options, plugins).map(|()| 0),
        // It mostly waits, beside a command that wants the processor for itself.
        Subcommands::Exec(_) => runtime::Builder::new_current_thread(),
        _ => runtime::Builder::new_multi_thread(),
    };
    let runtime = runtime.enable_all().build()?;
    let code = runtime.block_on(async {
        let terminated = on_term()?;
        match command {
            Subcommands::Prepare(_) => Ok(0),
            Subcommands::Inputs(options) => inputs::run(options, plugins, &terminated).await,
            Subcommands::Exec(options) => exec::run(options, &terminated).await,
            Subcommands::Outputs(options) => outputs::run(options, plugins, &terminated).await,
            Subcommands::Copy(options) => tokio::select! {
                copied = copy::run(options, plugins) => copied,
                () = terminated.cancelled() => Ok(exec::TERMINATED),
                interrupted = tokio::signal::ctrl_c() => interrupted.map(|()| INTERRUPTED).map_err(Into::into),
            },
        }
    });
    runtime.block_on(cleanup::finish());
    // A write that hangs in a dead file system must not keep us.
    runtime.shutdown_background();
    code
}

/// A token that SIGTERM cancels. As PID 1 a process gets only the signals that it handles.
fn on_term() -> anyhow::Result<CancellationToken> {
    let terminated = CancellationToken::new();
    let mut term = signal(SignalKind::terminate())?;
    let token = terminated.clone();
    tokio::spawn(async move {
        term.recv().await;
        token.cancel();
    });
    Ok(terminated)
}
