//! Everything below a directory.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use rustix::io::Errno;

use super::{RelPath, Root};

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
    current: Option<(Directory, Names)>,
    ahead: VecDeque<Directory>,
}

type Names = Box<dyn Iterator<Item = io::Result<OsString>> + Send>;

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
        let names = Box::new(root.iterate_dir(start)?);
        Ok(Self {
            root,
            start: start.clone(),
            current: Some((first, names)),
            ahead: VecDeque::new(),
        })
    }

    fn look_at(&mut self, within: &Directory, name: OsString) -> Result<Found, WalkError> {
        let path = RelPath(within.path.0.join(name));
        let whole = self.start.join(&path);
        let look = || {
            let itself = self.root.symlink_metadata(&whole)?;
            if itself.is_symlink() {
                Ok((self.root.metadata(&whole)?, true))
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
            if let Some((directory, mut names)) = self.current.take() {
                let Some(name) = names.next() else { continue };
                let item = match name {
                    Ok(name) => {
                        let item = self.look_at(&directory, name);
                        self.current = Some((directory, names));
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
            match self.root.iterate_dir(&self.start.join(&next.path)) {
                Ok(names) => self.current = Some((next, Box::new(names))),
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
