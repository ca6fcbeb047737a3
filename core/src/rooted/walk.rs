//! Everything below a directory.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{RelPath, Root, names_in};

/// Something found by a [`Walk`].
#[derive(Debug)]
pub struct Found {
    /// Its path relative to the directory that is walked.
    pub path: RelPath,
    /// What it is; of a symlink, what it points to.
    pub metadata: Metadata,
    /// Whether it is a symlink.
    pub is_link: bool,
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
    current: Option<(Directory, Opened)>,
    ahead: VecDeque<Directory>,
}

/// The directory that is read: itself, for looking at what is in it, and the rest of its names.
struct Opened {
    directory: OwnedFd,
    names: Box<dyn Iterator<Item = io::Result<OsString>> + Send>,
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
            current: Some((first, opened)),
            ahead: VecDeque::new(),
        })
    }

    fn look_at(
        &mut self,
        within: &Directory,
        opened: &OwnedFd,
        name: &OsStr,
    ) -> Result<Found, WalkError> {
        let path = RelPath(within.path.0.join(name));
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
        })
    }
}

fn open(root: &Root, path: &RelPath) -> io::Result<Opened> {
    let directory = root.open_readable(path)?;
    Ok(Opened {
        names: Box::new(names_in(directory.try_clone()?)?),
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
                    Ok(name) => {
                        let item = self.look_at(&directory, &opened.directory, &name);
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
