//! A step's own side: it is alive, and then it has something to say.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, RenameFlags, fchmod, flock, renameat_with};

use super::{MAX_RECORD, Record, Step, clip};

/// A step that has begun. Dropping it without [`Turn::record`] says that the step died, and so
/// does the end of this process.
#[derive(Debug)]
pub struct Turn {
    directory: PathBuf,
    _lock: File,
}

impl Turn {
    /// Begins `step`. Fails if it has begun before: no step runs twice.
    pub fn take(handover: &Path, step: Step) -> io::Result<Self> {
        let directory = handover.join(step.to_string());
        match DirBuilder::new().mode(0o755).create(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let temporary = directory.join(format!(".alive-{}", std::process::id()));
        let lock = create(&temporary)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        let alive = directory.join("alive");
        if let Err(error) = renameat_with(CWD, &temporary, CWD, &alive, RenameFlags::NOREPLACE) {
            let _ = std::fs::remove_file(&temporary);
            return Err(match error {
                rustix::io::Errno::EXIST => {
                    io::Error::new(io::ErrorKind::AlreadyExists, "this step has begun before")
                }
                other => other.into(),
            });
        }
        Ok(Self {
            directory,
            _lock: lock,
        })
    }

    /// Says how the step ended, and gives the turn on. Texts and lists are shortened if the record
    /// would be larger than what the others read; a failure that is definite stays.
    pub fn record(self, mut record: Record) -> io::Result<()> {
        let mut json = serde_json::to_vec(&record)?;
        while json.len() as u64 > MAX_RECORD {
            for text in [&mut record.stdout, &mut record.stderr] {
                *text = second_half(text).to_owned();
            }
            record.notes.truncate(record.notes.len() / 2);
            record.reason = record.reason.as_deref().map(clip);
            // The definite ones first.
            record.failures.sort_by_key(|failure| failure.retryable);
            let half = record.failures.len().div_ceil(2);
            record.failures.truncate(half);
            for failure in &mut record.failures {
                failure.message = clip(&failure.message);
            }
            json = serde_json::to_vec(&record)?;
        }
        let temporary = self
            .directory
            .join(format!(".record-{}", std::process::id()));
        let mut file = create(&temporary)?;
        file.write_all(&json)?;
        // Over whatever the user's command may have put there: this is the truth.
        std::fs::rename(&temporary, self.directory.join("record"))
    }
}

fn create(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(path)?;
    // Whatever the umask: the other steps may be other users.
    fchmod(&file, Mode::from(0o644))?;
    Ok(file)
}

fn second_half(text: &str) -> &str {
    let mut middle = text.len() / 2 + 1;
    while !text.is_char_boundary(middle.min(text.len())) {
        middle += 1;
    }
    text.get(middle..).unwrap_or_default()
}
