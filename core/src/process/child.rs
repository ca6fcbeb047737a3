//! One child: found, started in its own process group, signalled, reaped.

use std::collections::BTreeMap;
use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use rustix::fs::{Access, AtFlags, CWD};
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitOptions, WaitStatus, getpid, kill_process,
    kill_process_group, wait, waitid, waitpid,
};
use tokio::net::unix::pipe;
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};

use super::{Command, Refusal, show};

/// Where programs are looked for when the environment does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The children of all [`Child`]ren alive, and how those ended that are reaped already. As PID 1
/// this process reaps whatever child has ended, so one `run` may find the child of another.
static CHILDREN: Mutex<BTreeMap<i32, Option<Exit>>> = Mutex::new(BTreeMap::new());

fn children() -> MutexGuard<'static, BTreeMap<i32, Option<Exit>>> {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a child ended; `None` when somebody else reaped it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exit(Option<WaitStatus>);

impl Exit {
    /// The exit code as a shell would give it.
    pub(super) fn code(self, notes: &mut Vec<String>) -> i32 {
        match self.0.map(|s| (s.exit_status(), s.terminating_signal())) {
            Some((Some(code), _)) => code,
            Some((_, Some(signal))) => 128 + signal,
            _ => {
                notes.push("the exit code of the command is not known".to_owned());
                1
            }
        }
    }
}

/// A running command. Dropping it kills its whole group.
#[derive(Debug)]
pub(super) struct Child {
    pid: Pid,
    ended: Signals,
}

impl Child {
    /// Starts `command` in the open directory `workdir`; gives its standard output and standard
    /// error.
    pub(super) fn start(
        command: &Command,
        workdir: Option<&OwnedFd>,
        stdin: Option<File>,
    ) -> Result<(Self, [pipe::Receiver; 2]), Refusal> {
        let Some(name) = command.argv.first() else {
            return Err(Refusal::new(
                Refusal::NOT_FOUND,
                "the command is empty".to_owned(),
            ));
        };
        // What was opened, whatever lies at its name now. The child has it too, until it becomes
        // the program.
        let workdir = workdir.map(|fd| PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd())));
        let program = find(name, command, workdir.as_deref())?;
        let infrastructure = |error: io::Error| {
            Refusal::new(
                Refusal::NOT_EXECUTABLE,
                format!("cannot start {name:?}: {error}"),
            )
        };
        // Before the child exists, so that its end cannot be missed.
        let ended = signal(SignalKind::child()).map_err(infrastructure)?;
        let (stdout, its_stdout) = io::pipe().map_err(infrastructure)?;
        let (stderr, its_stderr) = io::pipe().map_err(infrastructure)?;
        let streams = [
            pipe::Receiver::from_owned_fd(stdout.into()).map_err(infrastructure)?,
            pipe::Receiver::from_owned_fd(stderr.into()).map_err(infrastructure)?,
        ];
        let mut start = std::process::Command::new(program);
        start
            .arg0(name)
            .args(&command.argv[1..])
            .env_clear()
            .envs(command.env.iter().map(|(k, v)| (k, v)))
            .stdin(stdin.map_or_else(Stdio::null, Stdio::from))
            .stdout(its_stdout)
            .stderr(its_stderr)
            .process_group(0);
        if let Some(workdir) = &workdir {
            start.current_dir(workdir);
        }
        let mut children = children();
        let started = start.spawn().map_err(|error| {
            let exit_code = match error.kind() {
                // The program is there: it is its interpreter that is not.
                io::ErrorKind::NotFound => Refusal::NOT_FOUND,
                _ => Refusal::NOT_EXECUTABLE,
            };
            Refusal::new(exit_code, format!("cannot run {name:?}: {error}"))
        })?;
        let pid = Pid::from_child(&started);
        children.insert(pid.as_raw_pid(), None);
        Ok((Self { pid, ended }, streams))
    }

    /// Waits for the end of the command itself; then the rest of its group is killed. May be
    /// dropped and called again.
    pub(super) async fn wait(&mut self) -> Exit {
        // The tick is for a process whose parent blocked SIGCHLD.
        const TICK: Duration = Duration::from_secs(1);
        loop {
            if let Some(exit) = self.reap() {
                return exit;
            }
            let _ = tokio::time::timeout(TICK, self.ended.recv()).await;
        }
    }

    /// Sends a signal to the whole group, unless it has ended.
    pub(super) fn signal(&self, signal: Signal) {
        if let Some(None) = children().get(&self.pid.as_raw_pid()) {
            let group = kill_process_group(self.pid, signal);
            // It may have moved to another group itself.
            if group.is_err() || signal == Signal::KILL {
                let _ = kill_process(self.pid, signal);
            }
        }
    }

    fn reap(&self) -> Option<Exit> {
        let mut children = children();
        if getpid().is_init() {
            for (pid, exit) in children.iter_mut().filter(|(_, exit)| exit.is_none()) {
                if let Some(pid) = Pid::from_raw(*pid) {
                    *exit = finish(pid);
                }
            }
            while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
                if let Some(exit) = children.get_mut(&pid.as_raw_pid()) {
                    let _ = kill_process_group(pid, Signal::KILL);
                    *exit = Some(Exit(Some(status)));
                }
            }
        } else if let Some(exit @ None) = children.get_mut(&self.pid.as_raw_pid()) {
            *exit = finish(self.pid);
        }
        children.get(&self.pid.as_raw_pid()).copied().flatten()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.reap();
        children().remove(&self.pid.as_raw_pid());
    }
}

/// If `pid` has ended: kills the rest of its group, then reaps it. In this order, because the
/// number is taken for as long as the child is not reaped.
fn finish(pid: Pid) -> Option<Exit> {
    let peek = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    match waitid(WaitId::Pid(pid), peek) {
        Ok(Some(_)) => {
            let _ = kill_process_group(pid, Signal::KILL);
            let reaped = waitpid(Some(pid), WaitOptions::NOHANG).ok().flatten();
            Some(Exit(reaped.map(|(_, status)| status)))
        }
        Err(Errno::CHILD) => Some(Exit(None)),
        Ok(None) | Err(_) => None,
    }
}

/// The file that `name` means: itself if it has a slash, else the first that can be executed in
/// the directories of the command's `PATH`.
fn find(name: &str, command: &Command, workdir: Option<&Path>) -> Result<PathBuf, Refusal> {
    let workdir = workdir.unwrap_or(Path::new(""));
    if name.contains('/') {
        return match check(&workdir.join(name)) {
            Check::Executable => Ok(PathBuf::from(name)),
            Check::Missing => Err(Refusal::new(
                Refusal::NOT_FOUND,
                format!("{name:?}: there is no such file"),
            )),
            Check::Unusable(why) => Err(Refusal::new(
                Refusal::NOT_EXECUTABLE,
                format!("{name:?}: {why}"),
            )),
        };
    }
    let path = command.env.iter().rev().find(|(key, _)| key == "PATH");
    let path = path.map_or(DEFAULT_PATH.as_ref(), |(_, value)| value.as_os_str());
    let mut unusable = None;
    for directory in std::env::split_paths(path).filter(|_| !name.is_empty()) {
        // An empty entry is the working directory.
        let candidate = Path::new(".").join(directory).join(name);
        match check(&workdir.join(&candidate)) {
            Check::Executable => return Ok(candidate),
            Check::Missing => {}
            Check::Unusable(why) => {
                unusable.get_or_insert_with(|| format!("{}: {why}", show(&candidate)));
            }
        }
    }
    let missing = || {
        let reason = format!("{name:?} is not found in PATH ({})", path.to_string_lossy());
        Refusal::new(Refusal::NOT_FOUND, reason)
    };
    Err(unusable.map_or_else(missing, |reason| {
        Refusal::new(Refusal::NOT_EXECUTABLE, reason)
    }))
}

enum Check {
    Executable,
    Missing,
    Unusable(String),
}

fn check(file: &Path) -> Check {
    match std::fs::metadata(file) {
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Check::Missing,
            _ => Check::Unusable(error.to_string()),
        },
        Ok(metadata) if metadata.is_dir() => Check::Unusable("it is a directory".to_owned()),
        Ok(_) => match rustix::fs::accessat(CWD, file, Access::EXEC_OK, AtFlags::EACCESS) {
            Ok(()) => Check::Executable,
            Err(_) => Check::Unusable("it is not executable".to_owned()),
        },
    }
}

/// The signals that are passed on to the command.
#[derive(Debug)]
pub(super) struct Forwarded(Vec<(Signal, Signals)>);

impl Forwarded {
    const PASSED_ON: [Signal; 7] = [
        Signal::HUP,
        Signal::INT,
        Signal::QUIT,
        Signal::TERM,
        Signal::USR1,
        Signal::USR2,
        Signal::WINCH,
    ];

    /// Listens for them, or for none.
    pub(super) fn new(wanted: bool) -> io::Result<Self> {
        if !wanted {
            return Ok(Self(Vec::new()));
        }
        let listen = |passed: Signal| {
            let kind = SignalKind::from_raw(passed.as_raw());
            Ok((passed, signal(kind)?))
        };
        Self::PASSED_ON
            .into_iter()
            .map(listen)
            .collect::<io::Result<_>>()
            .map(Self)
    }

    /// The next one that this process receives.
    pub(super) async fn next(&mut self) -> Signal {
        poll_fn(|context| {
            for (passed, received) in &mut self.0 {
                if received.poll_recv(context).is_ready() {
                    return Poll::Ready(*passed);
                }
            }
            Poll::Pending
        })
        .await
    }
}
