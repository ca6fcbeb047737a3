//! The `tesk` command.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    tesk_api::command::Cli::parse().execute()
}
