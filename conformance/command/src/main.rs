//! The `tesk-conformance` command: runs the storage suite against servers of a configuration.
//!
//! A command with more storage plugins is this file with another [`plugins`].

mod judge;
mod junit;
mod table;
mod text;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tesk_core::storage::RegistryBuilder;

/// Runs the suites that every backend of tesk passes against servers of your own.
#[derive(Debug, Parser)]
#[command(name = "tesk-conformance", version, max_term_width = 100)]
struct Command {
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    /// Judge storages: each case of the suite against each scratch url
    ///
    /// Every run works in a new directory below the scratch url and removes it at its end, where
    /// the storage can remove. Exit status: 0 if every case passed or was ignored with a reason;
    /// 1 if one failed, or if none ran.
    Storage(judge::Options),
    /// Make the table of the docs from reports (lines of JSON)
    #[command(hide = true)]
    Table(table::Options),
}

/// The storages this command knows.
fn plugins() -> RegistryBuilder {
    tesk_backends::builtin()
}

fn main() -> ExitCode {
    let command = Command::parse().command;
    let level = std::env::var("TESK_LOG").ok();
    tracing_subscriber::fmt()
        .with_max_level(
            level
                .and_then(|level| level.parse().ok())
                .unwrap_or(tracing::Level::ERROR),
        )
        .with_writer(std::io::stderr)
        .init();
    let ended = match command {
        Subcommands::Storage(options) => judge::run(&options, &plugins()),
        Subcommands::Table(options) => table::run(&options).map(|()| true),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("tesk-conformance: {error:#}");
            ExitCode::FAILURE
        }
    }
}
