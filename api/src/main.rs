//! The `tesk` command.

use std::process::ExitCode;

use clap::Parser;
use tesk_api::command::{self, Cli};

fn main() -> ExitCode {
    // Before anything reads standard input or starts a thread.
    if let Some(status) = command::attempt() {
        return status;
    }
    Cli::parse().execute()
}
