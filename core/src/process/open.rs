//! Opens the files that a command names.
//!
//! What a task names is never followed through a link of the kernel's own, as there are in
//! `/proc/self/fd`: such a link leads to whatever this process has open or comes from, outside
//! the root that the task sees. So it is refused on every component (`RESOLVE_NO_MAGICLINKS`).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, retry_on_intr};

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);

/// How paths are followed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opener {
    /// Through links of the kernel's own too.
    pub(super) magic_links: bool,
}

impl Opener {
    /// Opens a file that is there.
    pub(super) fn open(self, path: &Path, flags: OFlags) -> io::Result<File> {
        let file = self.open_at(CWD, path, flags, Mode::empty())?;
        Ok(File::from(file))
    }

    /// Opens a file, made with its parents if it is not there.
    pub(super) fn create(self, path: &Path, flags: OFlags) -> io::Result<File> {
        let name = path.file_name().ok_or(Errno::ISDIR)?;
        let directory = self.make_directory(path.parent().unwrap_or(Path::new("")))?;
        let flags = flags | OFlags::CREATE;
        let file = self.open_at(&directory, name.as_ref(), flags, Mode::from(0o666))?;
        Ok(File::from(file))
    }

    /// Opens a directory (`O_PATH`), made with its parents if it is not there.
    pub(super) fn make_directory(self, path: &Path) -> io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        match self.open_at(CWD, path, DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) => {}
            opened => return Ok(opened?),
        }
        let (Some(parent), Some(name @ Component::Normal(_))) =
            (path.parent(), path.components().next_back())
        else {
            return Err(Errno::NOENT.into());
        };
        let parent = self.make_directory(parent)?;
        match rustix::fs::mkdirat(&parent, name.as_os_str(), Mode::from(0o777)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let name = Path::new(name.as_os_str());
        Ok(self.open_at(&parent, name, DIRECTORY, Mode::empty())?)
    }

    fn open_at(
        self,
        directory: impl AsFd,
        path: &Path,
        flags: OFlags,
        mode: Mode,
    ) -> rustix::io::Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC;
        let plain = || retry_on_intr(|| rustix::fs::openat(&directory, path, flags, mode));
        if self.magic_links {
            return plain();
        }
        let how = ResolveFlags::NO_MAGICLINKS;
        match retry_on_intr(|| rustix::fs::openat2(&directory, path, flags, mode, how)) {
            // In a pod the process that comes here has nothing open from outside the container,
            // so it does without on an old kernel. A sandbox is not made on one: collecting
            // outputs needs the same call.
            Err(Errno::NOSYS | Errno::PERM) if !is_available() => plain(),
            opened => opened,
        }
    }
}

/// Whether this kernel has `openat2` (Linux 5.6), and nothing forbids it: old seccomp profiles
/// answer EPERM, as a file can.
fn is_available() -> bool {
    let how = ResolveFlags::NO_MAGICLINKS;
    let probe = rustix::fs::openat2(CWD, ".", DIRECTORY | OFlags::CLOEXEC, Mode::empty(), how);
    !matches!(probe, Err(Errno::NOSYS | Errno::PERM))
}
