//! Runs one command under supervision: own process group, signals, separate capture of its
//! streams, exit codes as a shell would give them. No shell is involved.
//!
//! - [`run`] is the whole of it, over a [`Command`], to an [`Ended`].
//! - `child`: finds the program, starts it, waits for it, and as PID 1 for all that it leaves.
//! - `capture`: drains its streams into tails, files and our own streams.
//! - `open`: its working directory and the files of its streams.

mod capture;
mod child;
mod open;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::process::Signal;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::capture::{Captured, Stream};
use self::child::{Child, Exit, Forwarded};
use self::open::Opener;
use crate::time::Timestamp;

/// How long a command's streams are awaited once it has ended and its group is killed: only a
/// process that left the group can still hold them.
const DRAIN: Duration = Duration::from_secs(2);

/// What to run.
///
/// Paths are opened as this process sees them, symlinks followed; links of the kernel's own, as
/// in `/proc/self/fd`, are refused, for others choose the names, and such a link leads out of
/// what they see. A caller that lets others choose names below a directory opens the file itself
/// and passes `/proc/self/fd/<n>` with `magic_links`.
#[derive(Clone, Debug, Default)]
pub struct Command {
    /// The argument vector; `argv[0]` is looked up in the `PATH` of `env`.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// The working directory; made with its parents.
    pub workdir: Option<PathBuf>,
    /// A file to read from; `None` is empty.
    pub stdin: Option<PathBuf>,
    /// A file to write standard output to as well; truncated, parents made.
    pub stdout: Option<PathBuf>,
    /// The same for standard error; may be the same file.
    pub stderr: Option<PathBuf>,
    /// Whether the paths may be links of the kernel's own: for those that the caller wrote.
    pub magic_links: bool,
    /// Where both streams are passed on to as they come.
    pub echo: Echo,
    /// Bytes kept of the end of each stream.
    pub tail: usize,
    /// Whether to pass on HUP, INT, QUIT, USR1, USR2 and WINCH when this process receives them,
    /// and to take TERM as `stop`. From then on they no longer end this process.
    pub forward_signals: bool,
    /// After this time the command is ended as by `stop`.
    pub time_limit: Option<Duration>,
}

/// Where a command's streams are passed on to.
#[derive(Clone, Debug, Default)]
pub enum Echo {
    /// Nowhere.
    #[default]
    Off,
    /// To our own streams, as container logs need it.
    Own,
    /// Into one file that is open for appending. When it has grown to [`ECHO_SIZE`] it is emptied.
    File(Arc<File>),
}

/// The size at which the file of an [`Echo`] is emptied, in bytes.
pub const ECHO_SIZE: u64 = 8 << 20;

/// How it ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// 127 not found, 126 not executable, 128 + n by signal n; 1 when nothing was started
    /// because a file of it (standard input, working directory, redirect) is not usable.
    pub exit_code: i32,
    /// The tail of its standard output; invalid UTF-8 replaced. At most `tail` bytes; a note says
    /// so if there were more and no file has them.
    pub stdout: String,
    /// The tail of its standard error; says so when nothing was started.
    pub stderr: String,
    /// When it started.
    pub started: Timestamp,
    /// When it had ended.
    pub ended: Timestamp,
    /// A line for the system log.
    pub note: Option<String>,
    /// Why the file of a stream does not hold all that was printed, whatever the command ended
    /// with: it has not noticed.
    pub unwritten: Option<Unwritten>,
}

/// Output of a command that could not be written to its file.
#[derive(Clone, Debug, PartialEq)]
pub struct Unwritten {
    /// Names the file.
    pub what: String,
    /// What kept it from being written.
    pub kind: std::io::ErrorKind,
}

/// Runs `command` to its end. `stop` asks to end it: TERM to its whole group, KILL after
/// `grace`. When it has ended the rest of its group is killed too. As PID 1 it reaps what the
/// command leaves behind, and every other child of this process that `run` did not start.
///
/// Needs a Tokio runtime with I/O and time. Memory does not grow with the command's output.
/// Dropping the future kills the group.
pub async fn run(command: Command, stop: CancellationToken, grace: Duration) -> Ended {
    let started = Timestamp::now();
    let echo = matches!(command.echo, Echo::Own);
    match supervise(command, stop, grace, started).await {
        Ok(ended) => ended,
        Err(refusal) => {
            let line = format!("tesk: {}\n", refusal.reason);
            if echo {
                eprint!("{line}");
            }
            Ended {
                exit_code: refusal.exit_code,
                stdout: String::new(),
                stderr: line,
                started,
                ended: Timestamp::now(),
                note: Some(refusal.reason),
                unwritten: None,
            }
        }
    }
}

/// Why nothing was started.
#[derive(Debug)]
struct Refusal {
    exit_code: i32,
    reason: String,
}

impl Refusal {
    const UNUSABLE_FILE: i32 = 1;
    const NOT_EXECUTABLE: i32 = 126;
    const NOT_FOUND: i32 = 127;

    fn new(exit_code: i32, reason: String) -> Self {
        Self { exit_code, reason }
    }
}

async fn supervise(
    command: Command,
    stop: CancellationToken,
    grace: Duration,
    started: Timestamp,
) -> Result<Ended, Refusal> {
    if stop.is_cancelled() {
        let reason = "stopped before the command was started".to_owned();
        return Err(Refusal::new(128 + Signal::TERM.as_raw(), reason));
    }
    let opener = Opener {
        magic_links: command.magic_links,
    };
    let open_workdir = |workdir: &PathBuf| {
        opener.make_directory(workdir).map_err(|error| {
            let reason = format!(
                "cannot use the working directory {}: {error}",
                show(workdir)
            );
            Refusal::new(Refusal::UNUSABLE_FILE, reason)
        })
    };
    let workdir = command.workdir.as_ref().map(open_workdir).transpose()?;
    let stdin = command.stdin.as_deref();
    let stdin = stdin.map(|path| open_stdin(opener, path)).transpose()?;
    let redirect = |path: &Option<PathBuf>| {
        let path = path.as_deref();
        path.map(|path| open_redirect(opener, path)).transpose()
    };
    let files = [redirect(&command.stdout)?, redirect(&command.stderr)?];
    let forwarded = Forwarded::new(command.forward_signals)
        .map_err(|error| Refusal::new(Refusal::NOT_EXECUTABLE, error.to_string()))?;
    let (mut child, [stdout, stderr]) = Child::start(&command, workdir.as_ref(), stdin)?;
    drop(workdir);

    let [stdout_file, stderr_file] = files;
    let drain = CancellationToken::new();
    let capture = |pipe, file, own| {
        let stream = Stream {
            pipe,
            file,
            echo: capture::Echoed::open(&command.echo, own),
            keep: command.tail,
        };
        AbortOnDropHandle::new(tokio::spawn(stream.capture(drain.clone())))
    };
    let (own_stdout, own_stderr) = (std::io::stdout(), std::io::stderr());
    let stdout = capture(stdout, stdout_file, own_stdout.as_fd());
    let stderr = capture(stderr, stderr_file, own_stderr.as_fd());

    let mut notes = Vec::new();
    let time_limit = command.time_limit;
    let exit = watch(&mut child, forwarded, &stop, grace, time_limit, &mut notes).await;
    let ended = Timestamp::now();

    let streams = async { tokio::join!(stdout, stderr) };
    tokio::pin!(streams);
    let in_time = tokio::time::timeout(DRAIN, &mut streams).await;
    let (stdout, stderr) = if let Ok(both) = in_time {
        both
    } else {
        notes.push("a process that outlived the command held its output open".to_owned());
        drain.cancel();
        streams.await
    };
    let exit_code = exit.code(&mut notes);
    let mut unwritten = None;
    let mut unwrap = |captured: Result<Captured, _>, name: &str| {
        let captured = captured.unwrap_or_else(|error| Captured {
            tail: String::new(),
            cut: None,
            problem: Some(Unwritten {
                what: format!("lost the {name} of the command: {error}"),
                kind: std::io::ErrorKind::Other,
            }),
        });
        unwritten = unwritten.take().or(captured.problem);
        if let Some(printed) = captured.cut {
            let kept = command.tail;
            notes.push(format!(
                "of {printed} bytes of its {name} the log has the last {kept}"
            ));
        }
        captured.tail
    };
    let stdout = unwrap(stdout, "standard output");
    let stderr = unwrap(stderr, "standard error");
    Ok(Ended {
        exit_code,
        stdout,
        stderr,
        started,
        ended,
        note: (!notes.is_empty()).then(|| notes.join("; ")),
        unwritten,
    })
}

/// Waits for the end of `child`, and brings it about when asked to.
async fn watch(
    child: &mut Child,
    mut forwarded: Forwarded,
    stop: &CancellationToken,
    grace: Duration,
    time_limit: Option<Duration>,
    notes: &mut Vec<String>,
) -> Exit {
    let limit = async {
        match time_limit {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(limit);
    let mut asked = false;
    let mut kill_at = None;
    loop {
        let force = async {
            match kill_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            exit = child.wait() => return exit,
            () = stop.cancelled(), if !asked => {}
            () = &mut limit, if !asked => {
                let seconds = time_limit.unwrap_or_default().as_secs_f64();
                notes.push(format!("ended by its time limit of {seconds} s"));
            }
            () = force => {
                kill_at = None;
                child.signal(Signal::KILL);
                continue;
            }
            signal = forwarded.next() => {
                if signal != Signal::TERM {
                    child.signal(signal);
                    continue;
                }
                if asked {
                    continue;
                }
            }
        }
        asked = true;
        kill_at = Instant::now().checked_add(grace);
        child.signal(Signal::TERM);
        // A stopped process would sleep through it.
        child.signal(Signal::CONT);
    }
}

/// Opens standard input. Pipes and sockets are refused: opening one could wait for ever.
fn open_stdin(opener: Opener, path: &Path) -> Result<File, Refusal> {
    let refuse = |why: &dyn std::fmt::Display| {
        Refusal::new(
            Refusal::UNUSABLE_FILE,
            format!("cannot read the standard input {}: {why}", show(path)),
        )
    };
    let file = opener
        .open(path, OFlags::RDONLY | OFlags::NONBLOCK)
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => refuse(&"there is no such file"),
            _ => refuse(&error),
        })?;
    match file.metadata() {
        Ok(metadata) if metadata.is_dir() => Err(refuse(&"it is a directory")),
        Ok(metadata) if !is_plain(&metadata) => Err(refuse(&"it is not a regular file")),
        Ok(_) => Ok(file),
        Err(error) => Err(refuse(&error)),
    }
}

/// Opens the file of a redirect. Both streams may name one file, by whatever names: appending
/// keeps both.
fn open_redirect(opener: Opener, path: &Path) -> Result<(PathBuf, File), Refusal> {
    let refuse = |why: &dyn std::fmt::Display| {
        Refusal::new(
            Refusal::UNUSABLE_FILE,
            format!("cannot write output to {}: {why}", show(path)),
        )
    };
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = opener.create(path, flags).map_err(|error| refuse(&error))?;
    let metadata = file.metadata().map_err(|error| refuse(&error))?;
    if metadata.is_file() {
        file.set_len(0).map_err(|error| refuse(&error))?;
    } else if !is_plain(&metadata) {
        return Err(refuse(&"it is not a regular file"));
    }
    Ok((path.to_owned(), file))
}

fn is_plain(metadata: &std::fs::Metadata) -> bool {
    metadata.is_file() || metadata.file_type().is_char_device()
}

fn show(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
