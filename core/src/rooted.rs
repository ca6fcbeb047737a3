//! A directory that no path and no symlink leaves.
//!
//! Tasks, users and servers name files; this is the one place where such a name becomes a file
//! of this machine. Resolution is the kernel's own (`openat2(2)`, Linux 5.6), so there is no
//! window between a check and its use.
//!
//! What creates, renames or removes works on the last component itself, never on what a symlink
//! there points to. Pipes, sockets and devices are refused without being opened. Modes are set
//! exactly, whatever the umask.

mod copy;
mod remove;
mod walk;

#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

pub use copy::copy_contents;
pub use walk::{Found, Walk, WalkError};

/// A path below a [`Root`]: relative, without `.`, `..`, empty components or NUL. The root
/// itself is the empty path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelPath(PathBuf);

impl std::fmt::Display for RelPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.display().fmt(f)
    }
}

/// An open directory that is the whole world of the paths below it.
#[derive(Debug)]
pub struct Root {
    /// Opened with `O_PATH`.
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
    /// An error (`RESOLVE_NO_SYMLINKS`). For what somebody else will resolve once more.
    Refused,
}

impl RelPath {
    /// Reads `text`, `/`-separated; leading, trailing and double slashes and `.` components
    /// are dropped. `None` for a `..` component or a NUL.
    pub fn new(text: impl AsRef<[u8]>) -> Option<Self> {
        let mut path = PathBuf::new();
        for component in text.as_ref().split(|b| *b == b'/') {
            match component {
                b"" | b"." => {}
                b".." => return None,
                name if name.contains(&0) => return None,
                name => path.push(OsStr::from_bytes(name)),
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

    /// The last component, unless this is the root.
    pub fn file_name(&self) -> Option<&OsStr> {
        self.0.file_name()
    }

    /// The rest of this path below `directory`, if it lies there.
    pub fn strip_prefix(&self, directory: &RelPath) -> Option<Self> {
        let rest = self.0.strip_prefix(&directory.0).ok()?;
        Some(Self(rest.to_owned()))
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

/// How often a resolution is tried again that a rename elsewhere disturbed (`EAGAIN`).
const MAX_DISTURBANCES: u32 = 1000;

impl Root {
    /// Opens the directory `path`. Symlinks in `path` itself are followed: the operator wrote it.
    ///
    /// Fails with [`io::ErrorKind::Unsupported`] where `openat2(2)` is missing or forbidden.
    pub fn open(path: impl Into<PathBuf>, symlinks: Symlinks) -> io::Result<Self> {
        let path = path.into();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = Self {
            directory: rustix::fs::openat(CWD, &path, flags, Mode::empty())?,
            path,
            symlinks,
        };
        root.resolve(Path::new("."), flags)
            .map_err(explain_refusal)?;
        Ok(root)
    }

    /// Where it is, for messages and for tools that need a path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a file for reading. Pipes, sockets and devices are refused without being opened.
    pub fn open_file(&self, path: &RelPath) -> io::Result<File> {
        self.open_regular(path).map(|(file, _)| file)
    }

    /// The same, with what is known of the file.
    pub(crate) fn open_regular(&self, path: &RelPath) -> io::Result<(File, Metadata)> {
        expect_regular(&self.metadata(path)?)?;
        // Between the check and the opening the file may have become a pipe: with `O_NONBLOCK`
        // the opening returns at once, and the second check refuses it.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        regular(self.resolve(path.as_path(), flags)?)
    }

    /// Creates or truncates a file for writing; parents must exist. A symlink there is refused.
    /// A new file gets exactly `mode`; one that was there keeps its own, and its inode.
    pub fn create_file(&self, path: &RelPath, mode: u32) -> io::Result<File> {
        match self.symlink_metadata(path) {
            Ok(found) => expect_regular(&found)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => match self.create_new(path, mode) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                done => return done,
            },
            Err(e) => return Err(e),
        }
        let (parent, name) = self.open_parent(path)?;
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW;
        let (file, _) = regular(rustix::fs::openat(
            &parent,
            name,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
        )?)?;
        file.set_len(0)?;
        Ok(file)
    }

    /// Creates a file for reading and writing that must not be there yet, with exactly `mode`;
    /// parents must exist.
    pub fn create_new(&self, path: &RelPath, mode: u32) -> io::Result<File> {
        let (parent, name) = self.open_parent(path)?;
        create_in(&parent, name, mode)
    }

    /// Creates a file without a name, or under a temporary one, in the directory of `target`, which
    /// is to take the place of what is there. It is gone when the [`TempFile`] is dropped before
    /// that. The directory and its parents are made, each new one with exactly `directory_mode`. A
    /// directory at `target` is refused.
    pub fn create_replacement(
        &self,
        target: &RelPath,
        mode: u32,
        directory_mode: u32,
    ) -> io::Result<TempFile> {
        let parent = target.parent().ok_or_else(|| {
            let message = "is the root directory";
            io::Error::new(io::ErrorKind::IsADirectory, message)
        })?;
        let directory = match self.open_dir(&parent) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.create_dir_all(&parent, directory_mode)?;
                self.open_dir(&parent)?
            }
            opened => opened?,
        };
        let name = target.file_name().ok_or(Errno::ISDIR)?;
        let there = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW);
        if there.is_ok_and(|there| FileType::from_raw_mode(there.st_mode).is_dir()) {
            let message = "there is a directory of that name";
            return Err(io::Error::new(io::ErrorKind::IsADirectory, message));
        }
        TempFile::new(directory, target, mode)
    }

    /// Creates a directory and its parents; fine if it is there. Each new one gets exactly
    /// `mode`.
    pub fn create_dir_all(&self, path: &RelPath, mode: u32) -> io::Result<()> {
        match self.open_dir(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            done => return done.map(drop),
        }
        let mut parent = self.open_dir(&RelPath::default())?;
        let mut so_far = RelPath::default();
        for component in path.as_path().components() {
            let name = component.as_os_str();
            so_far.0.push(name);
            match rustix::fs::mkdirat(&parent, name, Mode::from(0o700)) {
                Ok(()) => {
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
                    let made =
                        rustix::fs::openat(&parent, name, flags | OFlags::CLOEXEC, Mode::empty())?;
                    rustix::fs::fchmod(&made, Mode::from(mode & 0o7777))?;
                    parent = made;
                }
                Err(Errno::EXIST) => parent = self.open_dir(&so_far)?,
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// What is at `path`, symlinks followed (within the root).
    pub fn metadata(&self, path: &RelPath) -> io::Result<Metadata> {
        let fd = self.resolve(path.as_path(), OFlags::PATH | OFlags::CLOEXEC)?;
        File::from(fd).metadata()
    }

    /// What is at `path`; a symlink there is not followed.
    pub fn symlink_metadata(&self, path: &RelPath) -> io::Result<Metadata> {
        File::from(self.open_itself(path)?).metadata()
    }

    /// Where the symlink at `path` points to, as it is written there.
    pub fn read_link(&self, path: &RelPath) -> io::Result<PathBuf> {
        let (parent, name) = self.open_parent(path)?;
        let target = rustix::fs::readlinkat(&parent, name, Vec::new())?;
        Ok(OsString::from_vec(target.into_bytes()).into())
    }

    /// The names in a directory, unsorted, without `.` and `..`.
    pub fn read_dir(&self, path: &RelPath) -> io::Result<Vec<OsString>> {
        names_in(self.open_readable(path)?)?.collect()
    }

    /// Everything below the directory `path`, symlinks followed within the root; see [`Walk`].
    pub fn walk(self: &Arc<Self>, path: &RelPath) -> io::Result<Walk> {
        Walk::new(self.clone(), path)
    }

    /// Sets the permission bits of what is at `path`; a symlink there is refused.
    pub fn set_mode(&self, path: &RelPath, mode: u32) -> io::Result<()> {
        let fd = self.open_itself(path)?;
        if File::from(fd.try_clone()?).metadata()?.is_symlink() {
            return Err(Errno::LOOP.into());
        }
        Ok(chmod_fd(&fd, mode)?)
    }

    /// Renames a file, replacing one that is there.
    pub fn rename(&self, from: &RelPath, to: &RelPath) -> io::Result<()> {
        let (from, from_name) = self.open_parent(from)?;
        let (to, to_name) = self.open_parent(to)?;
        Ok(rustix::fs::renameat(&from, from_name, &to, to_name)?)
    }

    /// Removes a file (not following a symlink) or an empty directory.
    pub fn remove(&self, path: &RelPath) -> io::Result<()> {
        let (parent, name) = self.open_parent(path)?;
        match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)?,
            done => done?,
        }
        Ok(())
    }

    /// Removes what is at `path` and everything below it, following no symlink; nothing there
    /// is fine. The root itself is emptied, not removed. Directories that their owner may not
    /// change are made changeable first.
    pub fn remove_all(&self, path: &RelPath) -> io::Result<()> {
        if !path.is_root() {
            match self.remove(path) {
                Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                done => return done,
            }
        }
        remove::empty(&remove::open(&self.open_itself(path)?)?)?;
        if path.is_root() {
            Ok(())
        } else {
            self.remove(path)
        }
    }

    /// Writes a directory's names to disk, so that a rename in it survives a crash.
    pub fn sync_dir(&self, path: &RelPath) -> io::Result<()> {
        Ok(rustix::fs::fsync(self.open_readable(path)?)?)
    }

    /// The directory itself, for callers that pass it to another process.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    fn open_readable(&self, path: &RelPath) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        self.resolve(path.as_path(), flags)
    }

    fn open_dir(&self, path: &RelPath) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        self.resolve(path.as_path(), flags)
    }

    fn open_parent<'a>(&self, path: &'a RelPath) -> io::Result<(OwnedFd, &'a OsStr)> {
        let name = path.file_name().ok_or(Errno::ISDIR)?;
        Ok((self.open_dir(&path.parent().unwrap_or_default())?, name))
    }

    fn open_itself(&self, path: &RelPath) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if path.is_root() {
            return self.resolve(path.as_path(), flags);
        }
        let (parent, name) = self.open_parent(path)?;
        Ok(rustix::fs::openat(&parent, name, flags, Mode::empty())?)
    }

    fn resolve(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let how = ResolveFlags::NO_MAGICLINKS
            | match self.symlinks {
                Symlinks::Beneath => ResolveFlags::BENEATH,
                Symlinks::InRoot => ResolveFlags::IN_ROOT,
                Symlinks::Refused => ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
            };
        let mut disturbances = 0;
        loop {
            match rustix::fs::openat2(&self.directory, path, flags, Mode::empty(), how) {
                Err(Errno::AGAIN) if disturbances < MAX_DISTURBANCES => disturbances += 1,
                Err(Errno::INTR) => {}
                Err(Errno::XDEV) => {
                    return Err(io::Error::new(
                        io::ErrorKind::PermissionDenied,
                        "a symlink leads out of the directory",
                    ));
                }
                done => return Ok(done?),
            }
        }
    }
}

/// Removes what is at `path` of this machine and everything below it, as [`Root::remove_all`]
/// does. Symlinks are followed on the way to its parent only.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let name = path
        .file_name()
        .and_then(|name| RelPath::new(name.as_bytes()));
    let (Some(parent), Some(name)) = (path.parent(), name) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    match Root::open(parent, Symlinks::Refused) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        root => root?.remove_all(&name),
    }
}

/// What temporary names begin and end with; between them are 32 random hexadecimal digits.
const TEMP_PREFIX: &str = ".tesk-";
const TEMP_SUFFIX: &str = ".part";

/// A new name for a file that is not finished; needs no escaping in any URL.
pub fn temp_name() -> String {
    format!("{TEMP_PREFIX}{:032x}{TEMP_SUFFIX}", rand::random::<u128>())
}

/// Whether `name` is one that [`Root::create_replacement`] may give: a file that is not finished, or was
/// left behind by a crash.
pub fn is_temp_name(name: &OsStr) -> bool {
    name.to_str()
        .and_then(|n| n.strip_prefix(TEMP_PREFIX)?.strip_suffix(TEMP_SUFFIX))
        .is_some_and(|hex| hex.len() == 32 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Whether files without a name can be given one here. Once that has failed it is not tried again.
static NAMELESS: AtomicBool = AtomicBool::new(true);

/// A file that has no name yet, or where the file system knows no such files a temporary one; gone
/// when dropped, unless it was [kept](TempFile::keep).
#[derive(Debug)]
pub struct TempFile {
    /// Where its target is, wherever that directory is moved to meanwhile.
    directory: OwnedFd,
    name: Option<String>,
    target: RelPath,
    file: Arc<File>,
}

impl TempFile {
    fn new(directory: OwnedFd, target: &RelPath, mode: u32) -> io::Result<Self> {
        if NAMELESS.load(Ordering::Relaxed)
            && let Ok(file) = create_nameless(&directory, mode)
        {
            return Ok(Self {
                directory,
                name: None,
                target: target.clone(),
                file: Arc::new(file),
            });
        }
        Self::named(directory, target, mode)
    }

    fn named(directory: OwnedFd, target: &RelPath, mode: u32) -> io::Result<Self> {
        let name = temp_name();
        let file = create_in(&directory, name.as_ref(), mode)?;
        Ok(Self {
            directory,
            name: Some(name),
            target: target.clone(),
            file: Arc::new(file),
        })
    }

    /// The open file.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Gives the file the name of its target, replacing a file that is there. The file that has
    /// the name now, which is another one of the same content where a name could not be given.
    pub fn keep(mut self) -> io::Result<Arc<File>> {
        if self.name.is_none() {
            let target = self.target.file_name().ok_or(Errno::ISDIR)?;
            match self.link(target) {
                Ok(()) => return Ok(self.file.clone()),
                Err(Errno::EXIST) => {
                    let name = temp_name();
                    self.link(name.as_ref())?;
                    self.name = Some(name);
                }
                Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::IO)) => return Err(error.into()),
                Err(error) => {
                    self = self.copy_named()?;
                    tracing::debug!(%error, "files without a name cannot be given one here");
                    NAMELESS.store(false, Ordering::Relaxed);
                }
            }
        }
        let target = self.target.file_name().ok_or(Errno::ISDIR)?;
        if let Some(name) = &self.name {
            rustix::fs::renameat(&self.directory, name, &self.directory, target)?;
        }
        self.name = None;
        Ok(self.file.clone())
    }

    /// Gives a file without a name this one.
    fn link(&self, name: &OsStr) -> Result<(), Errno> {
        match rustix::fs::linkat(&self.file, "", &self.directory, name, AtFlags::EMPTY_PATH) {
            // Linux before 6.10 wants a capability for it.
            Err(Errno::NOENT | Errno::PERM) => {
                let file = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                rustix::fs::linkat(CWD, file, &self.directory, name, AtFlags::SYMLINK_FOLLOW)
            }
            done => done,
        }
    }

    /// A file of a temporary name with the same content and mode.
    fn copy_named(&self) -> io::Result<Self> {
        let found = self.file.metadata()?;
        let directory = self.directory.try_clone()?;
        let named = Self::named(directory, &self.target, found.permissions().mode())?;
        let go_on = |_| ControlFlow::Continue(());
        copy_contents(&self.file, &named.file, found.len(), go_on)?;
        // Whoever wanted this one on the disk wants that one there.
        named.file.sync_all()?;
        Ok(named)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if let Some(name) = &self.name
            && let Err(error) = rustix::fs::unlinkat(&self.directory, name, AtFlags::empty())
        {
            let target = &self.target;
            tracing::warn!(%target, name, %error, "a temporary file was left behind");
        }
    }
}

/// The names in an open directory without `.` and `..`.
fn names_in(directory: OwnedFd) -> io::Result<impl Iterator<Item = io::Result<OsString>>> {
    Ok(entries_in(directory)?.map(|entry| entry.map(|(name, _)| name)))
}

/// The same with what each is, where the file system tells.
fn entries_in(
    directory: OwnedFd,
) -> io::Result<impl Iterator<Item = io::Result<(OsString, FileType)>>> {
    let entries = rustix::fs::Dir::new(directory)?;
    Ok(entries.filter_map(|entry| match entry {
        Ok(entry) => match entry.file_name().to_bytes() {
            b"." | b".." => None,
            name => Some(Ok((OsStr::from_bytes(name).to_owned(), entry.file_type()))),
        },
        Err(e) => Some(Err(e.into())),
    }))
}

/// `fchmod` refuses an `O_PATH` descriptor, and opening for real may be forbidden by the very
/// mode to be changed; the descriptor's entry in /proc is neither.
fn chmod_fd(fd: &OwnedFd, mode: u32) -> Result<(), Errno> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::chmodat(CWD, path, Mode::from(mode & 0o7777), AtFlags::empty())
}

fn regular(fd: OwnedFd) -> io::Result<(File, Metadata)> {
    let file = File::from(fd);
    let found = file.metadata()?;
    expect_regular(&found)?;
    Ok((file, found))
}

fn create_in(directory: &OwnedFd, name: &OsStr, mode: u32) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    let mode_for_now = Mode::from(0o600);
    let fd = rustix::fs::openat(directory, name, flags | OFlags::CLOEXEC, mode_for_now)?;
    rustix::fs::fchmod(&fd, Mode::from(mode & 0o7777))?;
    Ok(File::from(fd))
}

/// A file in the directory that has no name there, and is gone when it is closed without one.
fn create_nameless(directory: &OwnedFd, mode: u32) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(directory, ".", flags, Mode::from(0o600))?;
    rustix::fs::fchmod(&fd, Mode::from(mode & 0o7777))?;
    Ok(File::from(fd))
}

fn expect_regular(found: &Metadata) -> io::Result<()> {
    let kind = found.file_type();
    if kind.is_file() {
        return Ok(());
    }
    if kind.is_dir() {
        return Err(io::Error::new(
            io::ErrorKind::IsADirectory,
            "is a directory",
        ));
    }
    let what = if kind.is_symlink() {
        "is a symlink"
    } else if kind.is_fifo() {
        "is a pipe, not a regular file"
    } else if kind.is_socket() {
        "is a socket, not a regular file"
    } else {
        "is a device, not a regular file"
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, what))
}

fn explain_refusal(error: io::Error) -> io::Error {
    match Errno::from_io_error(&error) {
        // Old seccomp profiles answer EPERM to system calls they do not know.
        Some(Errno::NOSYS | Errno::PERM) => io::Error::new(
            io::ErrorKind::Unsupported,
            "the system call openat2 is not available: it needs Linux 5.6 or later and a seccomp \
             profile that allows it",
        ),
        _ => error,
    }
}
