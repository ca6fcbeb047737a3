//! The directory of one attempt: all that is known of it, and the token that it runs once.
//!
//! | file | written by | holds |
//! |---|---|---|
//! | `lock` | | locked, shared, as long as anything of the attempt runs |
//! | `order.json` | engine | what to do; it holds passwords, so nobody else may read it |
//! | `cancel` | engine | seconds of grace, as the target of a symlink |
//! | `status.json` | attempt | how far it is; replaced as a whole |
//! | `report.json` | attempt | how it ended; on disk before the attempt ends |
//! | `log` | attempt | its own messages |
//! | `output-<n>` | attempt | what executor n prints, while it is not too much |
//! | `scratch/` | attempt, executors | the task's files |
//!
//! The engine makes the directory under another name, takes the lock, renames it, and only then
//! starts the attempt's process, which inherits the lock. So a directory whose lock is free and
//! that has no report belongs to an attempt that died or was never started; nobody can start it
//! any more, because the lock that an attempt runs under is only ever inherited.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::local::runtime::Runtime;
use crate::plan::Plan;
use crate::scheduler::compute::{AttemptId, Progress, Report};
use crate::staging::report;
use crate::tes::ExecutorLog;
use crate::time::Timestamp;

/// The directory of one attempt.
#[derive(Clone, Debug)]
pub(in crate::local) struct Directory(PathBuf);

/// What an attempt is to do.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::local) struct Order {
    pub(in crate::local) attempt: AttemptId,
    pub(in crate::local) plan: Plan,
    pub(in crate::local) runtime: Runtime,
    /// Bytes kept of the end of each stream.
    pub(in crate::local) tail: usize,
    /// What executors must not see.
    pub(in crate::local) data: PathBuf,
    /// Whose attempt it is, for those who share a container engine.
    pub(in crate::local) server: String,
}

/// How far an attempt is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::local) struct Status {
    /// The attempt's process, and when it started in the kernel's own count: together they name
    /// it for ever.
    pub(in crate::local) process: (u32, u64),
    /// The first executor has started.
    pub(in crate::local) running: bool,
    pub(in crate::local) started: Timestamp,
    pub(in crate::local) executors: Vec<ExecutorLog>,
    pub(in crate::local) notes: Vec<String>,
    pub(in crate::local) progress: Option<Progress>,
}

impl Directory {
    pub(in crate::local) fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Makes the directory with its order in `parent`. `None` if it is there already: the
    /// attempt was given out before. The lock is held as long as the file, or one that a
    /// process inherited, is open.
    pub(super) fn claim(parent: &Path, name: &str, order: &Order) -> io::Result<Option<Claim>> {
        let draft = parent.join(format!(".new-{name}-{:08x}", rand::random::<u32>()));
        DirBuilder::new().mode(0o700).create(&draft)?;
        let made = Self(draft.clone()).fill(order).and_then(|lock| {
            let target = parent.join(name);
            // Onto a directory that is not empty this fails.
            fs::rename(&draft, &target)?;
            Ok(Claim {
                directory: Self(target),
                lock,
            })
        });
        match made {
            Ok(claim) => {
                // After a crash of the machine too this number must be taken.
                File::open(parent)?.sync_all()?;
                Ok(Some(claim))
            }
            Err(error) => {
                let _ = fs::remove_dir_all(&draft);
                let taken = [
                    io::ErrorKind::DirectoryNotEmpty,
                    io::ErrorKind::AlreadyExists,
                ];
                if taken.contains(&error.kind()) {
                    Ok(None)
                } else {
                    Err(error)
                }
            }
        }
    }

    fn fill(&self, order: &Order) -> io::Result<File> {
        self.put("order.json", &serde_json::to_vec(order)?, false)?;
        DirBuilder::new().mode(0o755).create(self.scratch())?;
        let lock = create(&self.lock_path())?;
        lock.lock_shared()?;
        Ok(lock)
    }

    pub(in crate::local) fn path(&self) -> &Path {
        &self.0
    }

    pub(in crate::local) fn scratch(&self) -> PathBuf {
        self.0.join("scratch")
    }

    pub(in crate::local) fn lock_path(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// What an executor prints as it runs. Beyond [`process::ECHO_SIZE`] it begins anew.
    pub(in crate::local) fn output(&self, executor: usize) -> PathBuf {
        self.0.join(format!("output-{executor}"))
    }

    pub(super) fn exists(&self) -> io::Result<bool> {
        self.0.try_exists()
    }

    /// Whether anything of the attempt runs.
    pub(super) fn is_locked(&self) -> io::Result<bool> {
        match File::open(self.lock_path())?.try_lock() {
            Ok(()) => Ok(false),
            Err(fs::TryLockError::WouldBlock) => Ok(true),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    /// What can be seen of the attempt; `None` if there is none.
    pub(super) fn look(&self) -> io::Result<Option<Seen>> {
        if !self.exists()? {
            return Ok(None);
        }
        // The lock first: what an attempt writes is final once it is free.
        let runs = self.is_locked()?;
        let status = match self.status() {
            Err(error) if runs => return Err(error),
            // What a power cut has left of it keeps nobody from ending the attempt.
            status => status.unwrap_or_default(),
        };
        let end = (!runs).then(|| match self.report() {
            Ok(Some(report)) => Ok(report),
            Err(error) => Err(format!("its report cannot be read: {error}")),
            Ok(None) => Err(match self.last_words() {
                Some(words) => format!("its process ended without a report: {words}"),
                None => "its process ended without a report".to_owned(),
            }),
        });
        Ok(Some(Seen { status, end }))
    }

    /// A file for the messages of the attempt's process.
    pub(super) fn open_log(&self) -> io::Result<File> {
        append(&self.0.join("log"))
    }

    /// The last line of those messages.
    fn last_words(&self) -> Option<String> {
        const ENOUGH: usize = 1000;
        let log = fs::read(self.0.join("log")).ok()?;
        let tail = String::from_utf8_lossy(&log[log.len().saturating_sub(ENOUGH)..]).into_owned();
        let last = tail.lines().rev().find(|line| !line.trim().is_empty())?;
        Some(last.trim().to_owned())
    }

    pub(in crate::local) fn order(&self) -> io::Result<Order> {
        self.read("order.json")?
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    pub(super) fn status(&self) -> io::Result<Option<Status>> {
        self.read("status.json")
    }

    pub(in crate::local) fn set_status(&self, status: &Status) -> io::Result<()> {
        self.put("status.json", &serde_json::to_vec(status)?, false)
    }

    fn report(&self) -> io::Result<Option<Report>> {
        self.read("report.json")
    }

    /// A report that is too large for a record is cut, and says so.
    pub(in crate::local) fn set_report(&self, report: &Report) -> io::Result<()> {
        self.put("report.json", &report::to_json(report)?, true)
    }

    /// The grace of a cancel, and how long ago it was asked for.
    pub(in crate::local) fn cancel(&self) -> Option<(Duration, Duration)> {
        let path = self.0.join("cancel");
        let asked = path.symlink_metadata().ok()?.modified().ok()?;
        let grace = fs::read_link(path).ok()?.to_str()?.parse().ok()?;
        let ago = asked.elapsed().unwrap_or_default();
        Some((Duration::from_secs_f64(f64::max(grace, 0.0)), ago))
    }

    /// Asks for a cancel, unless that was done before.
    pub(super) fn set_cancel(&self, grace: Duration) -> io::Result<()> {
        // A short link takes no space of its own: it can be made when the disk is full.
        match std::os::unix::fs::symlink(grace.as_secs_f64().to_string(), self.0.join("cancel")) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made,
        }
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        match fs::read(self.0.join(name)) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts a whole file in place: a reader sees the one before or this one.
    fn put(&self, name: &str, content: &[u8], durable: bool) -> io::Result<()> {
        let draft = self.0.join(format!(".{name}.new"));
        let mut file = create(&draft)?;
        file.write_all(content)?;
        if durable {
            file.sync_data()?;
        }
        fs::rename(draft, self.0.join(name))
    }
}

/// What the files of an attempt say.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) status: Option<Status>,
    /// Once nothing of it runs: its report, or why there is none.
    pub(super) end: Option<Result<Report, String>>,
}

/// An attempt that nobody else will start.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) directory: Directory,
    pub(super) lock: File,
}

/// Opens a file that only the user of this process can read.
pub(in crate::local) fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .read(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

/// When a process started, in ticks since the machine did; with its id that names it for ever.
pub(in crate::local) fn started_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; what follows may not.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::compute::Outcome;
    use crate::tes::OutputFileLog;

    #[test]
    fn an_attempt_that_left_half_a_status_has_ended_all_the_same() {
        let place = tempfile::tempdir().unwrap();
        let directory = Directory::at(place.path());
        let lock = create(&directory.lock_path()).unwrap();
        fs::write(place.path().join("status.json"), "").unwrap();
        lock.lock_shared().unwrap();
        directory.look().unwrap_err();
        drop(lock);
        // A child that is just being started has the lock as well, until it becomes its program.
        let begun = std::time::Instant::now();
        let seen = loop {
            match directory.look() {
                Err(_) if begun.elapsed() < Duration::from_secs(10) => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                seen => break seen.unwrap().unwrap(),
            }
        };
        assert!(seen.status.is_none());
        assert!(seen.end.unwrap().unwrap_err().contains("without a report"));
    }

    #[test]
    fn a_report_of_very_many_files_leaves_the_attempt_cut() {
        let place = tempfile::tempdir().unwrap();
        let directory = Directory::at(place.path());
        create(&directory.lock_path()).unwrap();
        let file = OutputFileLog {
            url: "s3://bucket/".to_owned() + &"x".repeat(900),
            path: "/out".to_owned(),
            size_bytes: 1,
        };
        let report = Report {
            outcome: Outcome::Complete,
            executors: Vec::new(),
            outputs: vec![file; 40_000],
            notes: Vec::new(),
            started: Timestamp::now(),
            ended: Timestamp::now(),
        };
        directory.set_report(&report).unwrap();
        let size = fs::metadata(place.path().join("report.json"))
            .unwrap()
            .len();
        assert!(size <= 32 << 20, "{size}");
        let seen = directory.look().unwrap().unwrap();
        let report = seen.end.unwrap().unwrap();
        assert_eq!(report.outputs.len(), 20_000);
        assert!(report.notes[0].contains("more delivered files"));
    }
}
