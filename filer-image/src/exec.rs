//! `filer exec`: the entry point of an executor's container.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rustix::fs::OFlags;
use serde::Serialize;
use tesk_core::plan::{Plan, PlannedExecutor};
use tesk_core::process::{self, Command, Echo};
use tesk_core::rooted::{Root, Symlinks};
use tesk_core::staging::{self, Collected, Failure};
use tesk_core::time::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::handover::{Record, Signal, Step, StopFile, Turn, Verdict, await_turn};
use crate::plan_file;

/// The exit code of a step that was told to end: 128 and the number of SIGTERM.
pub const TERMINATED: u8 = 143;
/// The exit code when the command was not run: skipped, or the supervisor cannot do its part.
pub const NOT_RUN: u8 = 125;

/// The options of `filer exec`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The part of the plan that executors may see.
    #[arg(long, value_name = "FILE")]
    pub plan: PathBuf,
    /// The number of the executor, from 0.
    #[arg(long, value_name = "N")]
    pub step: usize,
    /// The shared directory through which steps hand over.
    #[arg(long, value_name = "DIR")]
    pub handover: PathBuf,
    /// Where this container shows the part of scratch in which outputs are collected that lie
    /// in no mount: a directory such that `DIR/<collected at>` is that place.
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,
    /// A file that ends the waiting once there is something in it: the reason.
    #[arg(long, value_name = "FILE")]
    pub stop_file: Option<PathBuf>,
    /// How many bytes of the end of each stream are kept.
    #[arg(long, value_name = "BYTES", default_value_t = 10 * 1024)]
    pub tail: usize,
    /// Seconds between SIGTERM and SIGKILL for the command, when this process is told to end.
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    pub grace: u64,
    /// A file for exit code, times and reason as JSON: the container's termination message.
    #[arg(long, value_name = "FILE")]
    pub termination_message: Option<PathBuf>,
}

/// Waits for its turn, runs the command, and records how it went. Gives the exit code: the
/// command's own, [`NOT_RUN`] or [`TERMINATED`].
pub async fn run(options: &Options, terminated: &CancellationToken) -> anyhow::Result<u8> {
    let turn = Turn::take(&options.handover, Step::Executor(options.step))
        .context("cannot take the turn")?;
    let record = match supervise(options, terminated).await {
        Ok(record) => record,
        Err(error) => {
            Record::new(Verdict::FailedForNow, Timestamp::now()).because(format!("{error:#}"))
        }
    };
    if let Some(reason) = &record.reason {
        eprintln!("filer: {reason}");
    }
    if let Some(path) = &options.termination_message
        && let Err(error) = leave_message(path, &record)
    {
        eprintln!("filer: cannot write {}: {error}", path.display());
    }
    let exit_code = match record.exit_code {
        Some(code) => u8::try_from(code).unwrap_or(NOT_RUN),
        None if terminated.is_cancelled() => TERMINATED,
        None => NOT_RUN,
    };
    turn.record(record).context("cannot record how it went")?;
    Ok(exit_code)
}

async fn supervise(options: &Options, terminated: &CancellationToken) -> anyhow::Result<Record> {
    let waiting = Timestamp::now();
    let plan = plan_file::read(&options.plan)?;
    let executor = plan
        .executors
        .get(options.step)
        .with_context(|| format!("the plan has no executor {}", options.step))?;
    let stop = StopFile::new(options.stop_file.clone());
    match await_turn(&options.handover, &plan, options.step, &stop, terminated).await {
        Ok(()) => {}
        Err(Signal::Skip(reason)) => {
            return Ok(Record::new(Verdict::Skipped, waiting).because(reason));
        }
        Err(Signal::Terminated) => {
            return Ok(Record::new(Verdict::Skipped, waiting).because("stopped"));
        }
    }
    let grace = Duration::from_secs(options.grace);
    let command = command(executor, options.tail);
    let killed_before = out_of_memory_kills();
    let ended = process::run(command, terminated.clone(), grace).await;

    let failed = ended.exit_code != 0 && !executor.ignore_error;
    let unwritten = ended.unwritten.as_ref().map(Failure::of_stream);
    let verdict = match &unwritten {
        _ if failed => Verdict::Failed,
        // No executor is given half a file.
        Some(failure) if failure.retryable => Verdict::FailedForNow,
        Some(_) => Verdict::Broken,
        None => Verdict::Done,
    };
    let mut record = Record::new(verdict, ended.started);
    match unwritten {
        Some(failure) if failed => record.notes.push(failure.message),
        unwritten => record.reason = unwritten.map(|failure| failure.message),
    }
    record.ended = ended.ended;
    record.exit_code = Some(ended.exit_code);
    (record.stdout, record.stderr) = (ended.stdout, ended.stderr);
    record.notes.extend(ended.note);
    if out_of_memory_kills() > killed_before {
        record
            .notes
            .push("out of memory: the kernel killed a process of it".to_owned());
    }
    let collected = hand_out(&plan, options);
    record.notes.extend(collected.notes);
    record.failures.extend(collected.failures);
    Ok(record)
}

/// How many processes of this container the kernel has killed because its memory was used up;
/// 0 where it does not tell.
fn out_of_memory_kills() -> u64 {
    // cgroup v2, and v1.
    let files = [
        "/sys/fs/cgroup/memory.events",
        "/sys/fs/cgroup/memory/memory.oom_control",
    ];
    let events = files
        .iter()
        .find_map(|file| std::fs::read_to_string(file).ok())
        .unwrap_or_default();
    let count = events
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "));
    count
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or(0)
}

fn command(executor: &PlannedExecutor, tail: usize) -> Command {
    // The container's environment is the image's; the executor's own goes over it.
    let mut env: Vec<_> = std::env::vars_os()
        .filter(|(name, _)| !executor.env.keys().any(|own| name == own.as_str()))
        .collect();
    env.extend(executor.env.iter().map(|(k, v)| (k.into(), v.into())));
    Command {
        argv: executor.command.clone(),
        env,
        workdir: executor.workdir.clone().map(PathBuf::from),
        stdin: executor.stdin.clone().map(PathBuf::from),
        stdout: executor.stdout.clone().map(PathBuf::from),
        stderr: executor.stderr.clone().map(PathBuf::from),
        echo: Echo::Own,
        tail,
        forward_signals: true,
        ..Command::default()
    }
}

/// Makes what the command has left behind available to the step that delivers it.
fn hand_out(plan: &Plan, options: &Options) -> Collected {
    let container = match Root::open("/", Symlinks::InRoot) {
        Ok(root) => Arc::new(root),
        Err(error) => return Collected::nothing(plan, &error),
    };
    staging::release(plan, &container);
    let Some(scratch) = &options.scratch else {
        return Collected::default();
    };
    match Root::open(scratch, Symlinks::InRoot) {
        Ok(scratch) => staging::collect(plan, &container, &Arc::new(scratch)),
        Err(error) => Collected::nothing(plan, &error),
    }
}

/// A hostile place: the user's command may have put anything there.
fn leave_message(path: &std::path::Path, record: &Record) -> std::io::Result<()> {
    #[derive(Serialize)]
    struct Message<'a> {
        exit_code: Option<i32>,
        started: Timestamp,
        ended: Timestamp,
        reason: Option<&'a str>,
    }
    let message = serde_json::to_vec(&Message {
        exit_code: record.exit_code,
        started: record.started,
        ended: record.ended,
        reason: record.reason.as_deref(),
    })?;
    let mut file = OpenOptions::new()
        .write(true)
        .truncate(true)
        .create(true)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    file.write_all(&message)
}
