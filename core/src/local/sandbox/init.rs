//! Process 1 of a sandbox.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Pid, Signal, WaitOptions, getpid, kill_process_group, set_dumpable_behavior,
    wait,
};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_capabilities_secure_bits,
    set_no_new_privs,
};
use tokio_util::sync::CancellationToken;

use super::parked::Parked;
use super::{Answer, Request, answer, read_request, unmade, view};
use crate::local::attempt::{ExecutorEnd, NotStarted};
use crate::local::compute::directory::append;
use crate::local::inherited;
use crate::plan::PlannedExecutor;
use crate::process::{self, Command, Echo};
use crate::rooted::{Root, Symlinks};
use crate::staging;
use crate::tes::ExecutorLog;

/// Longer than any command runs.
const FOR_EVER: Duration = Duration::from_hours(100 * 365 * 24);
/// The variables of the engine that commands see: none that could hold a secret.
const PASSED_ON: [&str; 8] = [
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ",
];

pub(super) fn main() -> ExitCode {
    let result = inherited::keep_from_children()
        .map_err(|error| NotStarted::now("cannot close what was inherited", error))
        .and_then(|()| {
            read_request().map_err(|error| NotStarted::now("cannot read the request", error))
        })
        .and_then(|request| run(&request));
    match result {
        Ok(Some(done)) => answer(&done),
        // Nobody is left to tell.
        Ok(None) => ExitCode::FAILURE,
        Err(error) => answer(&Answer::Failed(error)),
    }
}

fn run(request: &Request) -> Result<Option<Answer>, NotStarted> {
    let _lock = lock(&request.lock).map_err(|error| NotStarted::now("cannot lock", error))?;
    // Only if the attempt lives now, with our lock held, has it never been taken for dead.
    if attempt_is_gone() {
        return Ok(None);
    }
    let scratch = Root::open(&request.scratch, Symlinks::InRoot)
        .and_then(|scratch| Parked::new(scratch.as_fd()))
        .map_err(|error| NotStarted::now("cannot use scratch", error))?;
    // A full disk is no reason not to run.
    let output = append(&request.output).ok();
    view::build(request).map_err(|error| unmade(&error))?;
    drop_privileges().map_err(|error| unmade(&error.into()))?;
    let Some(executor) = &request.executor else {
        return Ok(Some(Answer::Ended(ExecutorEnd::default())));
    };

    let stop = CancellationToken::new();
    let grace = Arc::new(Mutex::new(request.grace));
    std::thread::spawn({
        let (stop, grace) = (stop.clone(), Arc::clone(&grace));
        move || {
            // A number is the grace; the end without one keeps what was asked first.
            let mut line = String::new();
            let _ = std::io::stdin().lock().read_line(&mut line);
            if let Ok(seconds) = line.trim().parse::<f64>() {
                *grace.lock().unwrap_or_else(PoisonError::into_inner) =
                    Duration::try_from_secs_f64(seconds).unwrap_or_default();
            }
            stop.cancel();
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| NotStarted::now("cannot start", error))?;
    let supervised = supervise(request, executor, output, &stop, &grace);
    let mut end = runtime.block_on(supervised);
    // Nothing writes any more to what is collected here and, once the lock is free, elsewhere.
    end_all();
    end.collected(
        collect(request, scratch)
            .unwrap_or_else(|error| staging::Collected::nothing(&request.plan, &error)),
    );
    Ok(Some(Answer::Ended(end)))
}

fn lock(path: &Path) -> io::Result<File> {
    let lock = File::open(path)?;
    lock.lock_shared()?;
    Ok(lock)
}

/// Copies outputs that lie beside the mounts into scratch.
fn collect(request: &Request, scratch: Parked) -> io::Result<staging::Collected> {
    let scratch = scratch.take()?;
    let scratch = format!("/proc/self/fd/{}", scratch.as_raw_fd());
    let scratch = Root::open(scratch, Symlinks::InRoot)?;
    // Symlinks count as the command saw them.
    let root = Root::open("/", Symlinks::InRoot)?;
    Ok(staging::collect(
        &request.plan,
        &Arc::new(root),
        &Arc::new(scratch),
    ))
}

async fn supervise(
    request: &Request,
    executor: &PlannedExecutor,
    output: Option<File>,
    stop: &CancellationToken,
    grace: &Mutex<Duration>,
) -> ExecutorEnd {
    let path = |path: &Option<String>| path.as_ref().map(PathBuf::from);
    let mut env: Vec<(OsString, OsString)> = std::env::vars_os()
        .filter(|(name, _)| name.to_str().is_some_and(|name| PASSED_ON.contains(&name)))
        .filter(|(name, _)| name.to_str().is_none_or(|n| !executor.env.contains_key(n)))
        .collect();
    env.extend(executor.env.iter().map(|(k, v)| (k.into(), v.into())));
    let command = Command {
        argv: executor.command.clone(),
        env,
        workdir: Some(path(&executor.workdir).unwrap_or_else(|| "/".into())),
        stdin: path(&executor.stdin),
        stdout: path(&executor.stdout),
        stderr: path(&executor.stderr),
        echo: output.map_or(Echo::Off, |file| Echo::File(Arc::new(file))),
        tail: request.tail,
        ..Command::default()
    };
    // The grace is not known before the cancel: so the polite end is asked for here, and the
    // forced one is below.
    let run = process::run(command, stop.clone(), FOR_EVER);
    tokio::pin!(run);
    let forced = async {
        stop.cancelled().await;
        let grace = *grace.lock().unwrap_or_else(PoisonError::into_inner);
        tokio::time::sleep(grace).await;
    };
    let (ended, killed) = tokio::select! {
        ended = &mut run => (ended, None),
        () = forced => {
            kill_all();
            let note = "killed: it did not end within its grace time";
            (run.await, Some(note.to_owned()))
        }
    };
    ExecutorEnd {
        log: ExecutorLog {
            start_time: Some(ended.started),
            end_time: Some(ended.ended),
            stdout: Some(ended.stdout),
            stderr: Some(ended.stderr),
            exit_code: ended.exit_code,
        },
        notes: ended.note.into_iter().chain(killed).collect(),
        unwritten: ended.unwritten.as_ref().map(staging::Failure::of_stream),
        ..ExecutorEnd::default()
    }
}

/// Kills every other process of this name space.
fn kill_all() {
    // Outside of one it would be every process of this machine.
    if getpid().is_init() {
        let _ = kill_process_group(Pid::INIT, Signal::KILL);
    }
}

/// Ends what the command has left, and waits until it is gone.
fn end_all() {
    kill_all();
    // Whatever its parent was, it is ours now.
    while matches!(wait(WaitOptions::empty()), Ok(Some(_)) | Err(Errno::INTR)) {}
}

/// Whether the other end of standard input is closed.
fn attempt_is_gone() -> bool {
    let stdin = std::io::stdin();
    let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&now)).is_err() || fds[0].revents().contains(PollFlags::HUP)
}

/// Nothing that this process starts gets a privilege, not even over its own name spaces: it
/// could make the machine's files writable again.
fn drop_privileges() -> rustix::io::Result<()> {
    // Rights over one's own files; they reach nobody else's, for no other user exists here.
    let harmless = CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::FOWNER
        | CapabilitySet::FSETID
        | CapabilitySet::KILL;
    clear_ambient_capability_set()?;
    for capability in CapabilitySet::all().difference(harmless).iter() {
        match remove_capability_from_bounding_set(capability) {
            // One that this kernel does not have.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error),
        }
    }
    set_capabilities_secure_bits(
        CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED,
    )?;
    let mut sets = capabilities(None)?;
    sets.permitted &= harmless;
    sets.effective &= harmless;
    sets.inheritable = CapabilitySet::empty();
    set_capabilities(None, sets)?;
    set_no_new_privs(true)?;
    // The command runs as the same user, and may not look into this process.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}
