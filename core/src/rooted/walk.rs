//! Everything below a directory.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{RelPath, Root, entries_in};

/// Something found by a [`Walk`].
#[derive(Debug)]
pub struct Found {
    /// Its path relative to the directory that is walked.
    pub path: RelPath,
    /// What it is; of a symlink, what it points to.
    pub metadata: Metadata,
    /// Whether it is a symlink.
    pub is_link: bool,
    /// Its content, if that was [asked for](Walk::with_content) and could be read.
    pub content: Option<Bytes>,
}

/// Something that cannot be walked: an unreadable directory, a symlink that dangles or leads out
/// of the root or to a directory that contains it. The walk goes on behind it.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {error}")]
pub struct WalkError {
    /// Its path relative to the directory that is walked.
    pub path: RelPath,
    /// Why.
    pub error: io::Error,
}

/// Everything below a directory, each directory before what is in it, otherwise in no order.
///
/// Symlinks are followed within the root. Reads as it goes: one directory is open at a time, and
/// only the paths of directories still to be read are kept.
pub struct Walk {
    root: Arc<Root>,
    start: RelPath,
    /// Files of at most so many bytes are read.
    content: Option<u64>,
    current: Option<(Directory, Opened)>,
    ahead: VecDeque<Directory>,
}

/// The directory that is read: itself, for looking at what is in it, and the rest of its names.
struct Opened {
    directory: OwnedFd,
    names: Box<dyn Iterator<Item = io::Result<(OsString, FileType)>> + Send>,
}

#[derive(Clone)]
struct Directory {
    path: RelPath,
    lineage: Arc<Lineage>,
}

/// The identities of a directory and of those it was reached through. A symlink to one of them
/// is a loop.
struct Lineage {
    id: (u64, u64),
    parent: Option<Arc<Lineage>>,
}

impl std::fmt::Debug for Walk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Walk")
            .field("root", &self.root)
            .field("start", &self.start)
            .finish_non_exhaustive()
    }
}

impl Walk {
    pub(super) fn new(root: Arc<Root>, start: &RelPath) -> io::Result<Self> {
        let found = root.metadata(start)?;
        if !found.is_dir() {
            return Err(Errno::NOTDIR.into());
        }
        let lineage = Arc::new(Lineage {
            id: (found.dev(), found.ino()),
            parent: None,
        });
        let first = Directory {
            path: RelPath::default(),
            lineage,
        };
        let opened = open(&root, start)?;
        Ok(Self {
            root,
            start: start.clone(),
            content: None,
            current: Some((first, opened)),
            ahead: VecDeque::new(),
        })
    }

    /// Reads regular files of at most `most` bytes when they are found: in the open directory
    /// that takes fewer steps than finding them once more.
    #[must_use]
    pub(crate) fn with_content(self, most: u64) -> Self {
        let content = Some(most);
        Self { content, ..self }
    }

    fn look_at(
        &mut self,
        within: &Directory,
        opened: &OwnedFd,
        name: &OsStr,
        kind: FileType,
    ) -> Result<Found, WalkError> {
        let path = RelPath(within.path.0.join(name));
        if let Some(most) = self.content.filter(|_| kind == FileType::RegularFile)
            && let Some((metadata, content)) = read_file(opened, name, most)
        {
            return Ok(Found {
                path,
                metadata,
                is_link: false,
                content,
            });
        }
        let look = || {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let itself = rustix::fs::openat(opened, name, flags, Mode::empty())?;
            let itself = File::from(itself).metadata()?;
            if itself.is_symlink() {
                Ok((self.root.metadata(&self.start.join(&path))?, true))
            } else {
                Ok((itself, false))
            }
        };
        let (metadata, is_link) = match look() {
            Ok(found) => found,
            Err(error) => return Err(WalkError { path, error }),
        };
        if metadata.is_dir() {
            let id = (metadata.dev(), metadata.ino());
            if is_link && within.lineage.contains(id) {
                let error = io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "is a symlink to a directory that contains it",
                );
                return Err(WalkError { path, error });
            }
            let lineage = Arc::new(Lineage {
                id,
                parent: Some(within.lineage.clone()),
            });
            self.ahead.push_back(Directory {
                path: path.clone(),
                lineage,
            });
        }
        Ok(Found {
            path,
            metadata,
            is_link,
            content: None,
        })
    }
}

/// The regular file `name` in `directory`, with its content if that has at most `most` bytes;
/// `None` if there is something else now, or it cannot be opened.
fn read_file(directory: &OwnedFd, name: &OsStr, most: u64) -> Option<(Metadata, Option<Bytes>)> {
    // Since the directory was read the file may have become a pipe, which must not be waited for,
    // or a symlink.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW;
    let flags = flags | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(directory, name, flags, Mode::empty()).ok()?);
    let metadata = file.metadata().ok().filter(Metadata::is_file)?;
    if metadata.len() > most {
        return Some((metadata, None));
    }
    let mut content = vec![0; metadata.len() as usize];
    let read = file.read_exact_at(&mut content, 0);
    Some((metadata, read.is_ok().then(|| content.into())))
}

fn open(root: &Root, path: &RelPath) -> io::Result<Opened> {
    let directory = root.open_readable(path)?;
    Ok(Opened {
        names: Box::new(entries_in(directory.try_clone()?)?),
        directory,
    })
}

impl Lineage {
    fn contains(&self, id: (u64, u64)) -> bool {
        let mut at = Some(self);
        while let Some(here) = at {
            if here.id == id {
                return true;
            }
            at = here.parent.as_deref();
        }
        false
    }
}

impl Iterator for Walk {
    type Item = Result<Found, WalkError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((directory, mut opened)) = self.current.take() {
                let Some(name) = opened.names.next() else {
                    continue;
                };
                let item = match name {
                    Ok((name, kind)) => {
                        let item = self.look_at(&directory, &opened.directory, &name, kind);
                        self.current = Some((directory, opened));
                        item
                    }
                    Err(error) => Err(WalkError {
                        path: directory.path,
                        error,
                    }),
                };
                return Some(item);
            }
            let next = self.ahead.pop_back()?;
            match open(&self.root, &self.start.join(&next.path)) {
                Ok(opened) => self.current = Some((next, opened)),
                Err(error) => {
                    return Some(Err(WalkError {
                        path: next.path,
                        error,
                    }));
                }
            }
        }
    }
}
