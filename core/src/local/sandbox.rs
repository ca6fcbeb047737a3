//! Executors as processes of this machine, in a view of its files that is their own.
//!
//! Two processes stand between an attempt and a command, both this same program, started with
//! [`ARGUMENT`]. The first makes name spaces (user, mount, process ids, System V IPC) and waits for
//! the second, which is started inside, as process 1: it builds the [`view`], runs the command
//! under supervision, ends all that the command has left, and collects.
//!
//! The attempt writes the request to standard input, which process 1 reads, and keeps it open: when
//! it closes, be it by a cancel or by the attempt's death, the command is ended. Process 1 holds the
//! attempt's lock until nothing else is left in its name space, so an attempt whose lock is free has
//! nothing left that runs. Where process 1 is killed itself, the kernel ends the others with it.
//!
//! The command sees this machine's files read-only, except what the plan mounts, which is
//! scratch; `/proc`, `/dev` and `/run` are its own. It has the rights of the user who runs the
//! engine, and less: no other users, no privileges. Limits on CPU time and memory are not
//! enforced, and the network is the machine's.

mod init;
mod parked;
mod view;

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, capabilities, configure_capability_in_ambient_set, set_capabilities,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use super::attempt::{ExecutorEnd, NotStarted};
use super::compute::directory::{Directory, Order};
use crate::plan::{InputSource, OutputSource, Plan, PlannedExecutor, paths};

/// The hidden sub-command: a program that runs attempts on the host has to call [`main`] when
/// this is its first argument, before it starts a thread.
pub const ARGUMENT: &str = "__sandbox";
/// What follows in the second process.
const INIT: &str = "init";
/// What begins the reason when there is no sandbox for want of something.
const UNMADE: &str = "cannot make a sandbox";

/// What to run, and the view to run it in.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    /// An empty directory to build the view in.
    root: PathBuf,
    scratch: PathBuf,
    /// Not to be seen.
    hidden: PathBuf,
    lock: PathBuf,
    /// What is printed goes there as well.
    output: PathBuf,
    /// For its mounts and for the outputs to be collected; it holds no address.
    plan: Plan,
    executor: Option<PlannedExecutor>,
    tail: usize,
    grace: Duration,
}

/// How it went.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// The command ended, or could not be started through its own fault.
    Ended(ExecutorEnd),
    /// The sandbox could not be made.
    Failed(NotStarted),
}

/// The executors of one attempt.
pub(super) struct Sandbox<'a> {
    directory: &'a Directory,
    order: &'a Order,
}

impl<'a> Sandbox<'a> {
    pub(super) fn new(directory: &'a Directory, order: &'a Order) -> Self {
        Self { directory, order }
    }

    pub(super) async fn run(
        &self,
        index: usize,
        stop: &CancellationToken,
        grace: impl Fn() -> Duration,
    ) -> Result<ExecutorEnd, NotStarted> {
        let failed = |error| NotStarted::now(UNMADE, error);
        let root = self.directory.path().join("root");
        match std::fs::create_dir(&root) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(failed(error));
            }
            _ => {}
        }
        let request = Request {
            root,
            scratch: self.directory.scratch(),
            hidden: self.order.data.clone(),
            lock: self.directory.lock_path(),
            output: self.directory.output(index),
            plan: without_addresses(&self.order.plan),
            executor: Some(self.order.plan.executors[index].clone()),
            tail: self.order.tail,
            grace: grace(),
        };
        match ask(&request, Some((stop, &grace))).await.map_err(failed)? {
            Answer::Ended(end) => Ok(end),
            Answer::Failed(error) => Err(error),
        }
    }
}

/// Whether sandboxes can be made here; an error names what forbids it.
pub(super) async fn check() -> Result<(), String> {
    let root = tempdir().map_err(|error| format!("cannot make a directory: {error}"))?;
    let request = Request {
        root: root.clone(),
        scratch: root.clone(),
        hidden: root.clone(),
        lock: root.join("lock"),
        output: root.join("output"),
        plan: without_addresses(&Plan {
            version: crate::plan::VERSION,
            task: String::new(),
            inputs: Vec::new(),
            executors: Vec::new(),
            outputs: Vec::new(),
            mounts: Vec::new(),
            directories: Vec::new(),
            resources: crate::plan::PlannedResources::default(),
        }),
        executor: None,
        tail: 0,
        grace: Duration::ZERO,
    };
    let answer = ask(&request, None).await;
    let _ = std::fs::remove_dir_all(&root);
    match answer {
        Ok(Answer::Ended(_)) => Ok(()),
        Ok(Answer::Failed(error)) => Err(error.reason),
        Err(error) => Err(format!("{UNMADE}: {error}")),
    }
}

fn tempdir() -> std::io::Result<PathBuf> {
    let path = std::env::temp_dir().join(format!("tesk-check-{:016x}", rand::random::<u64>()));
    std::fs::create_dir(&path)?;
    std::fs::File::create(path.join("lock"))?;
    Ok(path)
}

/// Runs one request in a sandbox of its own.
async fn ask(
    request: &Request,
    stop: Option<(&CancellationToken, &dyn Fn() -> Duration)>,
) -> std::io::Result<Answer> {
    let mut child = tokio::process::Command::new("/proc/self/exe")
        .arg(ARGUMENT)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut control = child.stdin.take();
    if let Some(control) = &mut control {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        control.write_all(&line).await?;
    }
    let mut answer = Vec::new();
    if let Some(mut stdout) = child.stdout.take() {
        let read = stdout.read_to_end(&mut answer);
        tokio::pin!(read);
        let stopped = async {
            match stop {
                Some((stop, grace)) => {
                    stop.cancelled().await;
                    grace()
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            done = &mut read => drop(done?),
            grace = stopped => {
                if let Some(mut control) = control.take() {
                    // What the client's cancel allows; a closed pipe is the sign.
                    let _ = control.write_all(format!("{}\n", grace.as_secs_f64()).as_bytes()).await;
                }
                read.await?;
            }
        }
    }
    drop(control);
    let status = child.wait().await?;
    if answer.is_empty() {
        return Err(std::io::Error::other(format!("it ended with {status}")));
    }
    Ok(serde_json::from_slice(&answer)?)
}

/// Working directories and outputs that lie in none of a plan's mounts: in memory, that is, and not
/// for long.
pub(super) fn in_memory(plan: &Plan) -> Vec<&str> {
    let is_mounted = |path: &str| {
        let mut mounts = plan.mounts.iter();
        mounts.any(|mount| paths::is_within(path, &mount.path))
    };
    let workdirs = plan.executors.iter().filter_map(|e| e.workdir.as_deref());
    // What this machine has is read-only there.
    let workdirs = workdirs.filter(|path| !is_mounted(path) && !Path::new(path).exists());
    let outputs = plan.outputs.iter().filter(|o| o.collected_at.is_some());
    let outputs = outputs.map(|output| match &output.from {
        OutputSource::File(path) | OutputSource::Directory(path) => path.as_str(),
        OutputSource::Pattern { pattern, .. } => pattern,
    });
    let mut all: Vec<_> = workdirs.chain(outputs).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// A plan without anything that its command must not know.
fn without_addresses(plan: &Plan) -> Plan {
    let mut plan = plan.clone();
    for input in &mut plan.inputs {
        input.from = InputSource::Content(String::new());
    }
    for output in &mut plan.outputs {
        output.url.clear();
    }
    plan.executors.clear();
    plan
}

/// The two processes around a command: what a program does whose first argument is
/// [`ARGUMENT`].
pub fn main() -> ExitCode {
    if std::env::args().nth(2).as_deref() == Some(INIT) {
        return init::main();
    }
    match enter() {
        Ok(code) => code,
        Err(error) => answer(&Answer::Failed(error)),
    }
}

/// Makes name spaces and starts process 1 in them.
fn enter() -> Result<ExitCode, NotStarted> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    unshare(
        CloneFlags::CLONE_NEWUSER
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWIPC,
    )
    .map_err(|error| unmade(&error.into()))?;
    let map = |name: &str, text: String| {
        std::fs::write(format!("/proc/self/{name}"), text).map_err(|error| forbidden(&error))
    };
    map("setgroups", "deny".to_owned())?;
    map("uid_map", format!("{uid} {uid} 1"))?;
    map("gid_map", format!("{gid} {gid} 1"))?;
    keep_privileges().map_err(|error| unmade(&error.into()))?;
    let mut init = std::process::Command::new("/proc/self/exe")
        .args([ARGUMENT, INIT])
        .spawn()
        .map_err(|error| unmade(&error))?;
    // It has standard input and output from here on.
    let devnull = std::fs::File::open("/dev/null").map_err(|error| unmade(&error))?;
    rustix::stdio::dup2_stdin(&devnull).map_err(|error| unmade(&error.into()))?;
    let status = init.wait().map_err(|error| unmade(&error))?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Hands what process 1 needs to build the view over to it: the privileges that come with new
/// name spaces do not survive the start of a program by a user who is not root.
fn keep_privileges() -> rustix::io::Result<()> {
    let needed = CapabilitySet::SYS_ADMIN | CapabilitySet::SETPCAP;
    let mut sets = capabilities(None)?;
    sets.inheritable = needed;
    set_capabilities(None, sets)?;
    for capability in needed.iter() {
        configure_capability_in_ambient_set(capability, true)?;
    }
    Ok(())
}

/// Why there is no sandbox: this machine has none or forbids it, or there was no room for it at
/// present, as for a process where another task makes too many.
fn unmade(error: &std::io::Error) -> NotStarted {
    let none_allowed = || setting("user/max_user_namespaces").as_deref() == Some("0");
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        _ if error.kind() == std::io::ErrorKind::PermissionDenied => forbidden(error),
        Some(Errno::NOSYS | Errno::INVAL | Errno::USERS) => forbidden(error),
        // That so many are there already, as well.
        Some(Errno::NOSPC) if none_allowed() => forbidden(error),
        _ => NotStarted::now(UNMADE, error),
    }
}

/// The value of a setting of the kernel, by its path below `/proc/sys`.
fn setting(name: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/sys/{name}")).ok()?;
    Some(text.trim().to_owned())
}

/// The same where this machine forbids it for good, naming the setting.
fn forbidden(error: &dyn std::fmt::Display) -> NotStarted {
    let cause = if setting("kernel/unprivileged_userns_clone").as_deref() == Some("0") {
        "kernel.unprivileged_userns_clone is 0: set it to 1"
    } else if setting("user/max_user_namespaces").as_deref() == Some("0") {
        "user.max_user_namespaces is 0: raise it"
    } else if setting("kernel/apparmor_restrict_unprivileged_userns").as_deref() == Some("1") {
        "kernel.apparmor_restrict_unprivileged_userns is 1: set it to 0, or give this program an AppArmor profile that allows userns"
    } else {
        "perhaps a container or a security module around this program forbids it"
    };
    NotStarted {
        reason: format!(
            "--runtime host needs user name spaces, which this machine refuses ({error}): {cause}; or use --runtime podman or docker"
        ),
        retryable: false,
    }
}

fn answer(answer: &Answer) -> ExitCode {
    let text = serde_json::to_vec(answer).unwrap_or_default();
    let mut stdout = std::io::stdout();
    match stdout.write_all(&text).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Reads the request, and no byte more: what follows is the end.
fn read_request() -> std::io::Result<Request> {
    let mut line = Vec::new();
    let mut byte = [0];
    let mut stdin = std::io::stdin().lock();
    while stdin.read(&mut byte)? == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    Ok(serde_json::from_slice(&line)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_forbidden_keeps_the_next_attempt_from_a_sandbox() {
        for errno in [Errno::AGAIN, Errno::NOMEM, Errno::NOENT, Errno::NOSPC] {
            let error = unmade(&errno.into());
            assert!(error.retryable && !error.reason.contains("name spaces"));
        }
        for errno in [Errno::PERM, Errno::ACCESS, Errno::NOSYS, Errno::INVAL] {
            let error = unmade(&errno.into());
            assert!(!error.retryable && error.reason.contains("user name spaces"));
        }
    }
}
