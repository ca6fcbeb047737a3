//! The other steps' side: is it running, is it over, did it die?

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, openat};
use rustix::io::Errno;

use super::{MAX_RECORD, Record, Step, VERSION};

/// Looks at one step.
#[derive(Debug)]
pub struct Watch {
    directory: PathBuf,
    /// Kept open once it was seen: nobody can take it away again.
    alive: Option<File>,
}

/// What is seen of a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Seen {
    /// It has not begun.
    NotStarted,
    /// It has begun, and its process lives.
    Running,
    /// It has ended, and says how.
    Over(Box<Record>),
    /// It has ended without a word, or with words that make no sense: with the reason.
    Died(String),
}

impl Watch {
    /// Watches `step`; nothing of it need be there yet.
    pub fn new(handover: &Path, step: Step) -> Self {
        Self {
            directory: handover.join(step.to_string()),
            alive: None,
        }
    }

    /// Looks, without waiting.
    pub fn look(&mut self) -> Seen {
        let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = match openat(CWD, &self.directory, directory, Mode::empty()) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => return Seen::NotStarted,
            Err(error) => return Seen::Died(format!("its hand-over directory: {error}")),
        };
        self.look_in(&directory).unwrap_or_else(Seen::Died)
    }

    /// As long as its process lives a step is running, whatever its record says: only the last
    /// word counts, and the user's command cannot have it.
    fn look_in(&mut self, directory: &OwnedFd) -> Result<Seen, String> {
        if self.alive.is_none() {
            self.alive = open(directory, "alive")?;
        }
        if let Some(alive) = &self.alive {
            match flock(alive, FlockOperation::NonBlockingLockShared) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(Seen::Running),
                Err(error) => return Err(format!("its lock: {error}")),
            }
            let _ = flock(alive, FlockOperation::Unlock);
        }
        match (read_record(directory)?, &self.alive) {
            (Some(record), _) => Ok(Seen::Over(Box::new(record))),
            (None, Some(_)) => Ok(Seen::Died(KILLED.to_owned())),
            (None, None) => Ok(Seen::NotStarted),
        }
    }
}

const KILLED: &str = "it was killed before it could say how it ended (out of memory?)";

/// Opens a regular file of a hostile directory; never waits, never follows.
fn open(directory: &OwnedFd, name: &str) -> Result<Option<File>, String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match openat(directory, name, flags | OFlags::CLOEXEC, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::LOOP) => return Err(format!("its {name} file is a symlink")),
        Err(error) => return Err(format!("its {name} file: {error}")),
    };
    match file.metadata() {
        Ok(metadata) if metadata.is_file() => Ok(Some(file)),
        Ok(_) => Err(format!("its {name} file is not a regular file")),
        Err(error) => Err(format!("its {name} file: {error}")),
    }
}

fn read_record(directory: &OwnedFd) -> Result<Option<Record>, String> {
    let Some(file) = open(directory, "record")? else {
        return Ok(None);
    };
    let mut json = Vec::new();
    file.take(MAX_RECORD + 1)
        .read_to_end(&mut json)
        .map_err(|error: io::Error| format!("its record: {error}"))?;
    if json.len() as u64 > MAX_RECORD {
        return Err("its record is too large".to_owned());
    }
    let record: Record =
        serde_json::from_slice(&json).map_err(|error| format!("its record is broken: {error}"))?;
    if record.version != VERSION {
        return Err(format!(
            "its record has the unknown version {}",
            record.version
        ));
    }
    Ok(Some(record))
}
