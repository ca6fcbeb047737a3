//! What executors made, seen as they saw it: symlinks count only where they stay inside the
//! task's own mounts.

use std::cell::Cell;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use crate::plan::{Mount, MountKind};
use crate::rooted::{RelPath, Root};

/// Symlinks followed for one path, as the kernel has it.
const MAX_LINKS: usize = 40;
/// Longer paths do not exist (`PATH_MAX`): only symlinks make them, in a circle or one after
/// another.
pub(super) const MAX_PATH: usize = 4096;
/// Entries visited for one output: symlinks can make a small tree look endless.
const MAX_ENTRIES: usize = if cfg!(test) { 10_000 } else { 1_000_000 };

/// Scratch (or a container's own root) through a task's eyes.
#[derive(Debug)]
pub(super) struct Tree {
    root: Arc<Root>,
    visible: Vec<(RelPath, MountKind)>,
    /// What executors see other things at.
    hidden: Vec<RelPath>,
    /// Entries that may still be visited.
    budget: Cell<usize>,
}

/// A file or directory, symlinks resolved.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Place {
    pub(super) path: RelPath,
    pub(super) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    File,
    Directory,
}

/// Why there is nothing to collect at a path.
#[derive(Debug)]
pub(super) enum Obstacle {
    Missing,
    /// In words: what it is instead.
    Refused(String),
    /// There may be something, but nobody has looked: too many entries came before it.
    TooMany,
    Failed(io::Error),
}

impl Obstacle {
    /// At a path that nothing can have.
    pub(super) fn too_long() -> Self {
        let why = "its path is too long (a chain of symlinks?)";
        Self::Failed(io::Error::new(io::ErrorKind::InvalidFilename, why))
    }
}

impl std::fmt::Display for Obstacle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing => f.write_str("does not exist"),
            Self::Refused(why) => f.write_str(why),
            Self::TooMany => write!(
                f,
                "comes after {MAX_ENTRIES} others (symlinks in a circle?)"
            ),
            Self::Failed(error) => write!(f, "cannot be read: {error}"),
        }
    }
}

/// What a walk finds, with its path relative to where it began.
#[derive(Debug)]
pub(super) enum Found {
    File {
        place: RelPath,
        relative: String,
    },
    Directory {
        place: RelPath,
        relative: String,
        empty: bool,
    },
    Refused {
        relative: String,
        why: Obstacle,
    },
}

impl Tree {
    /// A task's view of `root`: its mounts, and `also`, a path beside them.
    pub(super) fn new(root: &Arc<Root>, mounts: &[Mount], also: Option<&str>) -> Self {
        let mounts = mounts.iter().map(|m| (m.path.as_str(), m.kind));
        let also = also.into_iter().map(|path| (path, MountKind::Directory));
        Self {
            root: root.clone(),
            visible: mounts
                .chain(also)
                .filter_map(|(path, kind)| Some((RelPath::new(path)?, kind)))
                .collect(),
            hidden: Vec::new(),
            budget: Cell::new(MAX_ENTRIES),
        }
    }

    /// The same without what is at `paths`: there is something else in this root than what
    /// executors see.
    pub(super) fn hiding(mut self, paths: &[String]) -> Self {
        self.hidden = paths.iter().filter_map(RelPath::new).collect();
        self
    }

    /// What is at the absolute container path `path`.
    pub(super) fn find(&self, path: &str) -> Result<Place, Obstacle> {
        let components = path.as_bytes().split(|b| *b == b'/').map(name).collect();
        self.resolve(RelPath::default(), components)
    }

    /// What the entry `name` of the (resolved) directory `directory` is.
    pub(super) fn entry(&self, directory: &RelPath, name: &OsStr) -> Result<Place, Obstacle> {
        self.resolve(directory.clone(), [name.to_owned()].into())
    }

    /// The names in a (resolved) directory, in byte order.
    pub(super) fn names(&self, directory: &RelPath) -> Result<Vec<OsString>, Obstacle> {
        let mut names = self.root.read_dir(directory).map_err(obstacle)?;
        names.sort_unstable();
        Ok(names)
    }

    /// Everything below the directory `start`, and `start` itself first, depth first. Breaks
    /// when `found` does, and when too many entries were visited.
    pub(super) fn walk(
        &self,
        start: &RelPath,
        found: &mut dyn FnMut(Found) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        struct Level {
            place: RelPath,
            relative: String,
            names: std::vec::IntoIter<OsString>,
        }
        let mut levels: Vec<Level> = Vec::new();
        let mut next = Some((start.clone(), String::new()));
        loop {
            if let Some((place, relative)) = next.take() {
                match self.names(&place) {
                    Ok(names) => {
                        found(Found::Directory {
                            place: place.clone(),
                            relative: relative.clone(),
                            empty: names.is_empty(),
                        })?;
                        levels.push(Level {
                            place,
                            relative,
                            names: names.into_iter(),
                        });
                    }
                    Err(why) => found(Found::Refused { relative, why })?,
                }
            }
            let Some(level) = levels.last_mut() else {
                return ControlFlow::Continue(());
            };
            let Some(name) = level.names.next() else {
                levels.pop();
                continue;
            };
            let relative = match level.relative.as_str() {
                "" => name.to_string_lossy().into_owned(),
                parent => format!("{parent}/{}", name.to_string_lossy()),
            };
            let refused = |why: &str| Obstacle::Refused(why.to_owned());
            if let Err(why) = self.visit() {
                found(Found::Refused { relative, why })?;
                return ControlFlow::Break(());
            }
            let entry = if name.to_str().is_none() {
                Err(refused("has a name that is not UTF-8"))
            } else if relative.len() > MAX_PATH {
                Err(Obstacle::too_long())
            } else {
                self.entry(&level.place, &name)
            };
            match entry {
                Ok(Place {
                    path,
                    kind: Kind::File,
                }) => found(Found::File {
                    place: path,
                    relative,
                })?,
                Ok(Place {
                    path,
                    kind: Kind::Directory,
                }) => {
                    if levels.iter().any(|level| level.place == path) {
                        let why = refused("is a symlink to a directory it lies in");
                        found(Found::Refused { relative, why })?;
                    } else {
                        next = Some((path, relative));
                    }
                }
                Err(why) => found(Found::Refused { relative, why })?,
            }
        }
    }

    /// Counts one entry more; an error once there were too many.
    pub(super) fn visit(&self) -> Result<(), Obstacle> {
        let left = self.budget.get().checked_sub(1);
        self.budget.set(left.unwrap_or_default());
        left.map(drop).ok_or(Obstacle::TooMany)
    }

    /// Follows `components` from the resolved directory `at`, as a process would whose root is
    /// the root of this tree; then the place must be one that the task can see.
    ///
    /// This decides what a task may deliver; that nothing outside the root is ever opened is
    /// the promise of [`Root`], also against what changes meanwhile.
    fn resolve(&self, at: RelPath, components: VecDeque<OsString>) -> Result<Place, Obstacle> {
        let mut links = 0;
        let place = self.follow(at, components, &mut links);
        let refused = |why: &str| Err(Obstacle::Refused(why.to_owned()));
        let is_hidden = |place: &Place| {
            let path = place.path.as_path();
            self.hidden.iter().any(|h| path.starts_with(h.as_path()))
        };
        match place {
            Ok(place) if is_hidden(&place) => {
                refused("leads to an input that is mounted and not copied, as it is streamable")
            }
            Ok(place) if self.sees(&place.path) => Ok(place),
            Ok(_) if links > 0 => refused("is a symlink that leads out of the task's directories"),
            Err(Obstacle::Missing) if links > 0 => {
                refused("is a symlink to nothing in the task's directories")
            }
            Ok(_) => Err(Obstacle::Missing),
            Err(why) => Err(why),
        }
    }

    fn follow(
        &self,
        mut at: RelPath,
        mut components: VecDeque<OsString>,
        links: &mut usize,
    ) -> Result<Place, Obstacle> {
        let mut kind = Kind::Directory;
        while let Some(component) = components.pop_front() {
            match component.as_bytes() {
                b"" => continue,
                _ if kind == Kind::File => return Err(Obstacle::Missing),
                b"." => continue,
                b".." => {
                    at = at.parent().unwrap_or_default();
                    continue;
                }
                _ => {}
            }
            let Some(step) = RelPath::new(component.as_bytes()) else {
                return Err(Obstacle::Missing);
            };
            let candidate = at.join(&step);
            let metadata = self.root.symlink_metadata(&candidate).map_err(obstacle)?;
            if metadata.is_symlink() {
                *links += 1;
                if *links > MAX_LINKS {
                    return Err(Obstacle::Refused("is a symlink in a loop".to_owned()));
                }
                let target = self.root.read_link(&candidate).map_err(obstacle)?;
                let target = target.into_os_string().into_vec();
                if target.starts_with(b"/") {
                    at = RelPath::default();
                }
                for part in target.split(|b| *b == b'/').rev() {
                    components.push_front(name(part));
                }
                continue;
            }
            kind = if metadata.is_dir() {
                Kind::Directory
            } else if metadata.is_file() {
                Kind::File
            } else {
                let why = "is neither a file nor a directory (a pipe, socket or device)";
                return Err(Obstacle::Refused(why.to_owned()));
            };
            at = candidate;
        }
        Ok(Place { path: at, kind })
    }

    /// Whether a resolved path is in the mounts.
    pub(super) fn sees(&self, path: &RelPath) -> bool {
        let path = path.as_path();
        self.visible.iter().any(|(mount, kind)| match kind {
            MountKind::Directory => path.starts_with(mount.as_path()),
            MountKind::File => path == mount.as_path(),
        })
    }
}

fn name(bytes: &[u8]) -> OsString {
    OsStr::from_bytes(bytes).to_owned()
}

fn obstacle(error: io::Error) -> Obstacle {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Obstacle::Missing,
        _ => Obstacle::Failed(error),
    }
}
