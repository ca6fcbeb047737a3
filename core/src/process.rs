//! Runs one command under supervision: own process group, signals, separate capture of its
//! streams, exit codes as a shell would give them. No shell is involved.
use std::path::PathBuf;
use std::time::Duration;

use crate::time::Timestamp;

/// What to run.
#[derive(Clone, Debug, Default)]
pub struct Command {
    /// The argument vector; `argv[0]` is looked up in the `PATH` of `env`.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(std::ffi::OsString, std::ffi::OsString)>,
    /// The working directory.
    pub workdir: Option<PathBuf>,
    /// A file to read from; `None` is empty.
    pub stdin: Option<PathBuf>,
    /// A file to write standard output to as well; truncated, parents made.
    pub stdout: Option<PathBuf>,
    /// The same for standard error; may be the same file.
    pub stderr: Option<PathBuf>,
    /// Whether to pass both streams on to our own, as container logs need it.
    pub echo: bool,
    /// Bytes kept of the end of each stream.
    pub tail: usize,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// 127 not found, 126 not executable, 128 + n by signal n, 1 for a missing stdin file.
    pub exit_code: i32,
    /// The tail of its standard output; invalid UTF-8 replaced.
    pub stdout: String,
    /// The tail of its standard error.
    pub stderr: String,
    /// When it started.
    pub started: Timestamp,
    /// When it had ended.
    pub ended: Timestamp,
    /// A line for the system log.
    pub note: Option<String>,
}

/// Runs `command` to its end. `stop` asks to end it: TERM to its whole group, KILL after
/// `grace`. When it has ended the rest of its group is killed too. As PID 1 it reaps what the
/// command leaves behind.
pub async fn run(
    command: Command,
    stop: tokio_util::sync::CancellationToken,
    grace: Duration,
) -> Ended {
    let _ = (command, stop, grace);
    todo!()
}
