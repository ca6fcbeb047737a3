//! Copies as a person asks for them: between any two of URLs and paths of this machine.

use std::path::Path;
use std::sync::Arc;

use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};

use super::Engine;
use super::directory::{Names, ended};
use crate::rooted::{RelPath, Root, Symlinks, WalkError};
use crate::storage::file::on_one_thread;
use crate::storage::source::SMALL;
use crate::storage::{EntryKind, Error, ErrorKind, LocalPath, Result, StorageUrl};

/// Files on their way at once. What really runs in parallel the engine's own limits decide.
const PARALLEL: usize = 32;

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
    /// Copies a file. `to` is the whole name of the copy. One of the two must be a URL.
    pub async fn copy_file(&self, from: &End, to: &End) -> Result<Copied> {
        let moved = match (from, to) {
            (End::Url(from), End::Local(to)) => self.fetch_file(from, to, false).await?,
            (End::Local(from), End::Url(to)) => self.store_file(from, to).await?,
            (End::Url(from), End::Url(to)) => self.copy(from, to).await?,
            (End::Local(_), End::Local(to)) => return Err(no_url(to)),
        };
        Ok(Copied {
            files: 1,
            bytes: moved.size,
        })
    }

    /// Copies everything below a directory into the directory `to`; trees merge. One of the two
    /// must be a URL. The first failure ends the rest.
    pub async fn copy_directory(&self, from: &End, to: &End) -> Result<Copied> {
        match (from, to) {
            (End::Url(from), End::Local(to)) => {
                let moved = self.fetch_directory(from, to).await?;
                Ok(Copied {
                    files: moved.len() as u64,
                    bytes: moved.iter().map(|file| file.size).sum(),
                })
            }
            (End::Local(from), End::Url(to)) => self.store_directory(from, to).await,
            (End::Url(from), End::Url(to)) => self.copy_listed(from, to).await,
            (End::Local(_), End::Local(to)) => Err(no_url(to)),
        }
    }

    async fn store_directory(&self, from: &LocalPath, to: &StorageUrl) -> Result<Copied> {
        let cannot = |error| Error::io(&from.url(), "cannot be listed", error);
        let walk = from.root.walk(&from.path).map_err(cannot)?;
        let found = walk.map(|found| {
            found.map_err(|WalkError { path, error }| {
                Error::io(&from.url(), format!("`{path}` cannot be listed"), error)
            })
        });
        let copies = stream::iter(found).map_ok(async |found| {
            let url = to.join(text(from, &found.path)?);
            if found.metadata.is_dir() {
                self.make_directory(&url).await?;
                return Ok(None);
            }
            let file = LocalPath {
                root: from.root.clone(),
                path: from.path.join(&found.path),
            };
            let small = found.metadata.len() <= SMALL;
            let moved = if small && self.registry.route(&url)?.local_path(&url).is_some() {
                let (engine, target) = (self.clone(), url.clone());
                self.counted(async {
                    let moving = async move { engine.store_from(&file, &target).await };
                    ended(&url, on_one_thread(moving).await)
                })
                .await?
            } else {
                self.store_file(&file, &url).await?
            };
            Ok(Some(moved.size))
        });
        sum(copies.try_buffer_unordered(PARALLEL)).await
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
                    Ok(None)
                }
                EntryKind::File(_) => {
                    let moved = engine.copy(&from.join(&entry.path), &to).await?;
                    Ok(Some(moved.size))
                }
            }
        });
        sum(copies.try_buffer_unordered(PARALLEL)).await
    }
}

fn text<'a>(from: &LocalPath, path: &'a RelPath) -> Result<&'a str> {
    path.as_path().to_str().ok_or_else(|| {
        let message = format!("`{path}` cannot be copied: its name is not UTF-8");
        Error::new(ErrorKind::Invalid, &from.url(), message)
    })
}

/// Files and bytes of all that was copied.
async fn sum(copies: impl Stream<Item = Result<Option<u64>>>) -> Result<Copied> {
    let none = Copied::default();
    copies
        .try_fold(none, async |mut sum, size| {
            if let Some(size) = size {
                sum.files += 1;
                sum.bytes += size;
            }
            Ok(sum)
        })
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
