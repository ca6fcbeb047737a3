//! A directory that no path and no symlink leaves.
//!
//! Tasks, users and servers name files; this is the one place where such a name becomes a file
//! of this machine. Resolution is the kernel's own (`openat2(2)`, Linux 5.6), so there is no
//! window between a check and its use.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// A path below a [`Root`]: relative, without `.`, `..`, empty components or NUL. The root
/// itself is the empty path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelPath(PathBuf);

/// An open directory that is the whole world of the paths below it.
#[derive(Debug)]
pub struct Root {
    directory: OwnedFd,
    path: PathBuf,
    symlinks: Symlinks,
}

/// What happens to symlinks on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Symlinks {
    /// Followed as long as they stay below the root; absolute ones never do
    /// (`RESOLVE_BENEATH`). For directories an operator maps.
    Beneath,
    /// Followed as if the root were `/` (`RESOLVE_IN_ROOT`). For scratch, which mirrors
    /// container paths.
    InRoot,
}

impl RelPath {
    /// Reads `text`, `/`-separated; leading, trailing and double slashes and `.` components
    /// are dropped. `None` for a `..` component or a NUL.
    pub fn new(text: impl AsRef<[u8]>) -> Option<Self> {
        use std::os::unix::ffi::OsStrExt;
        let mut path = PathBuf::new();
        for component in text.as_ref().split(|b| *b == b'/') {
            match component {
                b"" | b"." => {}
                b".." => return None,
                name if name.contains(&0) => return None,
                name => path.push(std::ffi::OsStr::from_bytes(name)),
            }
        }
        Some(Self(path))
    }

    /// As a path relative to the root.
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// Whether this is the root itself.
    pub fn is_root(&self) -> bool {
        self.0.as_os_str().is_empty()
    }

    /// The path `other` below this one.
    #[must_use]
    pub fn join(&self, other: &RelPath) -> Self {
        if other.is_root() {
            self.clone()
        } else {
            Self(self.0.join(&other.0))
        }
    }

    /// The directory this lies in, unless it is the root.
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            None
        } else {
            self.0.parent().map(|p| Self(p.to_owned()))
        }
    }
}

impl Root {
    /// Opens the directory `path`.
    pub fn open(path: impl Into<PathBuf>, symlinks: Symlinks) -> io::Result<Self> {
        let _ = (path.into(), symlinks);
        todo!()
    }
    /// Where it is, for messages and for tools that need a path.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// Opens a file for reading. Pipes, sockets and devices are refused without being opened
    /// for real (`O_NONBLOCK`, then a check of the type).
    pub fn open_file(&self, path: &RelPath) -> io::Result<File> {
        let _ = path;
        todo!()
    }
    /// Creates or truncates a file for writing; parents must exist.
    pub fn create_file(&self, path: &RelPath, mode: u32) -> io::Result<File> {
        let _ = (path, mode);
        todo!()
    }
    /// Creates a directory and its parents; fine if it is there.
    pub fn create_dir_all(&self, path: &RelPath, mode: u32) -> io::Result<()> {
        let _ = (path, mode);
        todo!()
    }
    /// What is at `path`, symlinks followed (within the root).
    pub fn metadata(&self, path: &RelPath) -> io::Result<std::fs::Metadata> {
        let _ = path;
        todo!()
    }
    /// The names in a directory, unsorted, without `.` and `..`.
    pub fn read_dir(&self, path: &RelPath) -> io::Result<Vec<std::ffi::OsString>> {
        let _ = path;
        todo!()
    }
    /// Renames a file, replacing one that is there.
    pub fn rename(&self, from: &RelPath, to: &RelPath) -> io::Result<()> {
        let _ = (from, to);
        todo!()
    }
    /// Removes a file (not following a symlink) or an empty directory.
    pub fn remove(&self, path: &RelPath) -> io::Result<()> {
        let _ = path;
        todo!()
    }
}
