//! Space that is given up when the disk is full, so that what happens to the tasks that are
//! there can still be written down.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

/// What is kept at most: a change of a task's state takes some 20 KiB until the next checkpoint,
/// the logs of an attempt up to some MiB.
const MOST: u64 = 64 << 20;
/// The part of the whole disk that is kept at most.
const PART: u64 = 16;

/// A file that holds space.
#[derive(Debug)]
pub(super) struct Reserve {
    directory: PathBuf,
    /// Zero on a file system that does not tell how large it is: there is no reserve then.
    size: u64,
    held: bool,
}

impl Reserve {
    /// The one in `directory`; held unless there is no room.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        let disk = statvfs(directory)?;
        Ok(Self::of(directory, disk.f_blocks * disk.f_frsize))
    }

    /// The one on a file system of this many bytes.
    fn of(directory: &Path, all: u64) -> Self {
        let mut reserve = Self {
            directory: directory.to_owned(),
            size: MOST.min(all / PART),
            held: false,
        };
        reserve.held = reserve.size > 0 && reserve.allocate().is_ok();
        reserve
    }

    /// Whether there is no room but the one that was given up.
    pub(super) fn is_spent(&self) -> bool {
        !self.held && self.size > 0
    }

    /// Gives the space up. False if that was done before.
    pub(super) fn give_up(&mut self) -> bool {
        if !std::mem::take(&mut self.held) {
            return false;
        }
        let removed = fs::remove_file(self.path());
        if let Err(error) = &removed {
            tracing::warn!(path = %self.path().display(), %error, "cannot free the reserve");
        }
        removed.is_ok()
    }

    /// Takes the space again if there is more than enough.
    pub(super) fn restore(&mut self) {
        let free = statvfs(&self.directory).map(|disk| disk.f_bavail * disk.f_frsize);
        if !self.held && free.is_ok_and(|free| free >= 2 * self.size) {
            self.held = self.allocate().is_ok();
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.join("reserve")
    }

    fn allocate(&self) -> io::Result<()> {
        let file = File::options()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(self.path())?;
        let allocated = match fallocate(&file, FallocateFlags::empty(), 0, self.size) {
            // A file system that cannot, such as NFS, gets zeros; one that leaves zeros out
            // keeps nothing, as does one that copies on write.
            Err(rustix::io::Errno::OPNOTSUPP) => zeros(&file, self.size),
            allocated => Ok(allocated?),
        };
        if allocated.is_err() {
            fs::remove_file(self.path())?;
        }
        allocated
    }
}

fn zeros(mut file: &File, size: u64) -> io::Result<()> {
    let there = file.metadata()?.len();
    let missing = size.saturating_sub(there);
    io::copy(&mut io::Read::take(io::repeat(0), missing), &mut file)?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_given_up_once_and_taken_again() {
        let directory = tempfile::tempdir().unwrap();
        let mut reserve = Reserve::open(directory.path()).unwrap();
        let size = || fs::metadata(directory.path().join("reserve")).map(|m| m.len());
        assert!(!reserve.is_spent() && size().unwrap() > 0);
        assert!(reserve.give_up() && !reserve.give_up());
        assert!(reserve.is_spent() && size().is_err());
        reserve.restore();
        assert!(!reserve.is_spent() && size().unwrap() == reserve.size);
    }

    #[test]
    fn where_the_size_of_the_disk_is_not_known_there_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let mut reserve = Reserve::of(directory.path(), 0);
        assert!(!reserve.is_spent() && !reserve.give_up());
        assert!(!reserve.is_spent() && !directory.path().join("reserve").exists());
    }
}
