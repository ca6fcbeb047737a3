//! Copies as a person asks for them: between any two of URLs and paths of this machine.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};

use super::directory::Names;
use super::placing::Placing;
use super::{Engine, IN_TURN, Moved, in_turn, spawned};
use crate::rooted::{Found, RelPath, Root, Symlinks, Walk, WalkError};
use crate::storage::file::blocking;
use crate::storage::source::SMALL;
use crate::storage::{EntryKind, Error, ErrorKind, LocalPath, Result, Source, StorageUrl};

/// Files on their way at once. What really runs in parallel the engine's own limits decide.
const PARALLEL: usize = 32;
/// How many bytes of small files are read together at most, and one file more.
const READ_AHEAD: usize = 512 << 10;

/// Where a copy comes from or goes to.
#[derive(Clone, Debug)]
pub enum End {
    /// What the storages of the configuration serve.
    Url(StorageUrl),
    /// A file or directory of this machine, reached with the rights of this process.
    Local(LocalPath),
}

/// What a copy came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Files; directories are not counted.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
}

impl Copied {
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            files: self.files + other.files,
            bytes: self.bytes + other.bytes,
        }
    }
}

impl From<Moved> for Copied {
    fn from(moved: Moved) -> Self {
        Self {
            files: 1,
            bytes: moved.size,
        }
    }
}

impl End {
    /// Reads a URL, which has a `://`, or a path. The directory that a path lies in must exist.
    /// An error shows no credentials.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.contains("://") {
            let url = text.parse().map_err(|error| format!("the url {error}"))?;
            return Ok(Self::Url(url));
        }
        let unusable = |why: &dyn std::fmt::Display| format!("{text} is not usable: {why}");
        let path = Path::new(text);
        let (directory, name) = match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) if parent.as_os_str().is_empty() => (Path::new("."), name),
            (Some(parent), Some(name)) => (parent, name),
            // `/`, `.` and whatever ends with `..` are whole directories.
            _ => (path, "".as_ref()),
        };
        let root = Root::open(directory, Symlinks::Beneath).map_err(|error| unusable(&error))?;
        let path =
            RelPath::new(name.as_encoded_bytes()).ok_or_else(|| unusable(&"it is no path"))?;
        Ok(Self::Local(LocalPath {
            root: Arc::new(root),
            path,
        }))
    }
}

/// Both ends are paths: there are other programs for that.
fn no_url(to: &LocalPath) -> Error {
    let message = "one of the two must be a url";
    Error::new(ErrorKind::Invalid, &to.url(), message)
}

impl Engine {
    /// Copies a file. `to` is the whole name of the copy. One of the two must be a URL. A copy on
    /// this machine has the mode that the storage tells, less what the umask takes.
    pub async fn copy_file(&self, from: &End, to: &End) -> Result<Copied> {
        let moved = match (from, to) {
            (End::Url(from), End::Local(to)) => {
                Box::pin(self.fetch_one(from, to, Placing::Copied)).await?
            }
            (End::Local(from), End::Url(to)) => Box::pin(self.store_file(from, to)).await?,
            (End::Url(from), End::Url(to)) => Box::pin(self.copy(from, to)).await?,
            (End::Local(_), End::Local(to)) => return Err(no_url(to)),
        };
        Ok(moved.into())
    }

    /// Copies everything below a directory into the directory `to`; trees merge. One of the two
    /// must be a URL. The first failure ends the rest.
    pub async fn copy_directory(&self, from: &End, to: &End) -> Result<Copied> {
        match (from, to) {
            (End::Url(from), End::Local(to)) => self.fetch_all(from, to, Placing::Copied).await,
            (End::Local(from), End::Url(to)) => {
                let (engine, from, target) = (self.clone(), from.clone(), to.clone());
                spawned(
                    to,
                    async move { engine.store_directory(&from, &target).await },
                )
                .await
            }
            (End::Url(from), End::Url(to)) => self.copy_listed(from, to).await,
            (End::Local(_), End::Local(to)) => Err(no_url(to)),
        }
    }

    async fn store_directory(&self, from: &LocalPath, to: &StorageUrl) -> Result<Copied> {
        let cannot = |error| Error::io(&from.url(), "cannot be listed", error);
        let start = from.clone();
        let walk = blocking(move || start.root.walk(&start.path)).await;
        let walk = walk.map_err(cannot)?.with_content(SMALL);
        let in_turn = self.registry.route(to)?.local_path(to).is_some();
        let groups = walked(walk, from.clone())
            .map_ok(|found| stream::iter(grouped(found, in_turn).into_iter().map(Ok)))
            .try_flatten();
        let copies = groups.map_ok(|group| self.store_found(group, from.clone(), to.clone()));
        sum(copies.try_buffer_unordered(PARALLEL)).await
    }

    /// Copies one file or directory, or several that are [light](is_light) and stay on this
    /// machine.
    async fn store_found(
        &self,
        mut group: Vec<Found>,
        from: LocalPath,
        to: StorageUrl,
    ) -> Result<Copied> {
        if group.len() > 1 {
            let permit = self.limits.file().await;
            let (engine, url) = (self.clone(), to.clone());
            let copies = group.into_iter().map(move |found| {
                let (engine, from, to) = (engine.clone(), from.clone(), to.clone());
                async move {
                    let (file, url) = ends(&from, &to, &found)?;
                    if found.metadata.is_dir() {
                        engine.make_directory(&url).await?;
                        return Ok(Copied::default());
                    }
                    let stored = engine.store_one(found, &file, &url);
                    Ok(engine.begun(stored).await?.into())
                }
            });
            let copied = in_turn(&url, permit, copies).await?;
            return Ok(copied.into_iter().fold(Copied::default(), Copied::and));
        }
        let Some(found) = group.pop() else {
            return Ok(Copied::default());
        };
        let (file, url) = ends(&from, &to, &found)?;
        if found.metadata.is_dir() {
            self.make_directory(&url).await?;
            return Ok(Copied::default());
        }
        let (engine, to) = (self.clone(), url.clone());
        let stored = spawned(
            &url,
            async move { engine.store_one(found, &file, &to).await },
        );
        Ok(self.counted(stored).await?.into())
    }

    /// Delivers what was found at `from`.
    async fn store_one(&self, found: Found, from: &LocalPath, to: &StorageUrl) -> Result<Moved> {
        let Some(content) = found.content else {
            return self.store_from(from, to).await;
        };
        let storage = self.registry.route(to)?;
        let mode = found.metadata.permissions().mode() & 0o7777;
        let source = Source::bytes(content).with_mode(Some(mode));
        self.store(&source, None, &storage, to).await
    }

    async fn copy_listed(&self, from: &StorageUrl, to: &StorageUrl) -> Result<Copied> {
        let from = from.without_trailing_slash();
        let entries = self.list(&from).await?;
        let mut names = Names::default();
        let (engine, from) = (self, &from);
        let entries = entries.map(|entry| {
            let entry = entry?;
            // What a server lists may be hostile.
            let path = names.admit(from, &entry)?;
            Ok(path.map(|path| (path, entry)))
        });
        let entries = entries.try_filter_map(async |entry| Ok(entry));
        let copies = entries.map_ok(async |(path, entry)| {
            let to = to.join(&path.to_string());
            match entry.kind {
                EntryKind::Directory => {
                    engine.make_directory(&to).await?;
                    Ok(Copied::default())
                }
                EntryKind::File(_) => {
                    let moved = engine.copy(&from.join(&entry.path), &to).await?;
                    Ok(moved.into())
                }
            }
        });
        sum(copies.try_buffer_unordered(PARALLEL)).await
    }
}

/// What a walk through the directory `from` finds, many at a time.
fn walked(walk: Walk, from: LocalPath) -> impl Stream<Item = Result<Vec<Found>>> + Send {
    stream::try_unfold((walk, from), async move |(mut walk, from)| {
        let reading = blocking(move || {
            let (mut found, mut bytes) = (Vec::new(), 0);
            while found.len() < IN_TURN && bytes < READ_AHEAD {
                match walk.next() {
                    Some(Ok(next)) => {
                        bytes += next.content.as_ref().map_or(0, Bytes::len);
                        found.push(next);
                    }
                    Some(Err(error)) => return Ok((Err(error), walk)),
                    None => break,
                }
            }
            Ok((Ok(found), walk))
        });
        let cannot = |error| Error::io(&from.url(), "cannot be listed", error);
        let (found, walk) = reading.await.map_err(cannot)?;
        let found = found.map_err(|WalkError { path, error }| {
            Error::io(&from.url(), format!("`{path}` cannot be listed"), error)
        })?;
        Ok((!found.is_empty()).then_some((found, (walk, from))))
    })
}

/// What is copied by itself, and, `in_turn`, together all that is [light](is_light).
fn grouped(found: Vec<Found>, in_turn: bool) -> Vec<Vec<Found>> {
    let (light, heavy): (Vec<_>, Vec<_>) = found
        .into_iter()
        .partition(|found| in_turn && is_light(found));
    let mut groups: Vec<_> = heavy.into_iter().map(|found| vec![found]).collect();
    groups.extend((!light.is_empty()).then_some(light));
    groups
}

/// Whether to wake a thread for it takes longer than to copy it.
fn is_light(found: &Found) -> bool {
    found.metadata.is_dir() || found.metadata.len() <= SMALL
}

/// What is found below `from`, and where it goes below `to`.
fn ends(from: &LocalPath, to: &StorageUrl, found: &Found) -> Result<(LocalPath, StorageUrl)> {
    let path = &found.path;
    let name = path.as_path().to_str().ok_or_else(|| {
        let message = format!("`{path}` cannot be copied: its name is not UTF-8");
        Error::new(ErrorKind::Invalid, &from.url(), message)
    })?;
    let file = LocalPath {
        root: from.root.clone(),
        path: from.path.join(path),
    };
    Ok((file, to.join(name)))
}

/// Files and bytes of all that was copied.
async fn sum(copies: impl Stream<Item = Result<Copied>>) -> Result<Copied> {
    let none = Copied::default();
    copies
        .try_fold(none, async |sum, copied| Ok(sum.and(copied)))
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_a_scheme_is_a_path_of_this_machine() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new");
        let Ok(End::Local(local)) = End::parse(path.to_str().unwrap()) else {
            panic!("it is no path");
        };
        assert_eq!(local.root.path(), directory.path());
        assert_eq!(local.path.as_path(), Path::new("new"));
        let whole = End::parse(".").unwrap();
        assert!(matches!(whole, End::Local(local) if local.path.is_root()));
        assert!(matches!(End::parse("s3://b/k"), Ok(End::Url(_))));
        let error = End::parse("f_p://me:s3cret@h/x").unwrap_err();
        assert!(!error.contains("s3cret"), "{error}");
    }
}
