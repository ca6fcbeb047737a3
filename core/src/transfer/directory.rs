//! Whole directories: a listing, streamed, its files moved in parallel.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::task::JoinSet;

use super::placing::Placing;
use super::retry::{Retry, in_time};
use super::{Copied, Engine, IN_TURN, Moved, in_turn};
use crate::rooted::RelPath;
use crate::storage::file::blocking;
use crate::storage::source::SMALL;
use crate::storage::{
    Entry, EntryKind, EntryStream, Error, ErrorKind, FileInfo, LocalPath, Result, Storage,
    StorageUrl,
};

/// The most files and directories that a listing may name, those in the paths of others counted. They
/// take 100 MiB of memory at most, however long they are.
const MOST_NAMES: usize = 1_000_000;
/// The longest path that Linux takes is shorter than this.
const LONGEST_PATH: usize = 4096;

/// A file that a listing named.
struct Named {
    /// Where it is to go, below the directory that is fetched.
    path: RelPath,
    from: StorageUrl,
    info: FileInfo,
}

impl Engine {
    pub(super) async fn fetch_tree(
        &self,
        storage: &Arc<dyn Storage>,
        url: &StorageUrl,
        to: &LocalPath,
        placing: Placing,
    ) -> Result<Copied> {
        if !storage.capabilities().list {
            return Err(Error::unsupported(url, "listing directories"));
        }
        let mut files = JoinSet::new();
        let listed = self.fetch_listed(storage, url, to, placing, &mut files);
        let copied = listed.await;
        // After a failure: nothing of the rest may go on behind the caller's back.
        files.shutdown().await;
        copied
    }

    async fn fetch_listed(
        &self,
        storage: &Arc<dyn Storage>,
        url: &StorageUrl,
        to: &LocalPath,
        placing: Placing,
        files: &mut JoinSet<Result<Copied>>,
    ) -> Result<Copied> {
        make_directory(to, RelPath::default(), placing).await?;
        let mut names = Names::default();
        let mut copied = Copied::default();
        let mut small = Vec::new();
        let mut retry = Retry::new(&self.settings);
        'listing: loop {
            let opened = in_time(&self.settings, url, storage.list(url)).await;
            let mut entries = match opened {
                Ok(entries) => entries,
                Err(error) => {
                    retry.after(error).await?;
                    names.pass += 1;
                    continue;
                }
            };
            loop {
                let entry = match self.next_entry(url, &mut entries).await {
                    Ok(Some(entry)) => entry,
                    Ok(None) => break 'listing,
                    Err(error) => {
                        retry.after(error).await?;
                        names.pass += 1;
                        continue 'listing;
                    }
                };
                let Some(path) = names.admit(url, &entry)? else {
                    continue;
                };
                let EntryKind::File(info) = entry.kind else {
                    make_directory(to, path, placing).await?;
                    continue;
                };
                let from = url.join(&entry.path);
                let file = Named { path, from, info };
                let is_small = file.info.size.is_some_and(|size| size <= SMALL);
                if is_small && storage.local_path(&file.from).is_some() {
                    small.push(file);
                    if small.len() < IN_TURN {
                        continue;
                    }
                    let small = std::mem::take(&mut small);
                    self.fetch_in_turn(storage, small, to, placing, files).await;
                } else {
                    let permit = self.limits.file().await;
                    let (engine, storage, to) = (self.clone(), storage.clone(), to.clone());
                    files.spawn(async move {
                        let _permit = permit;
                        let moved = engine.fetch_named(&storage, file, &to, placing);
                        Ok(engine.begun(moved).await?.into())
                    });
                }
                while let Some(done) = files.try_join_next() {
                    copied = copied.and(finished(url, done)?);
                }
            }
        }
        if !small.is_empty() {
            self.fetch_in_turn(storage, small, to, placing, files).await;
        }
        while let Some(done) = files.join_next().await {
            copied = copied.and(finished(url, done)?);
        }
        Ok(copied)
    }

    async fn fetch_named(
        &self,
        storage: &Arc<dyn Storage>,
        Named { path, from, info }: Named,
        to: &LocalPath,
        placing: Placing,
    ) -> Result<Moved> {
        let to = LocalPath {
            root: to.root.clone(),
            path: to.path.join(&path),
        };
        self.fetch(storage, &from, Some(info), &to, placing).await
    }

    async fn fetch_in_turn(
        &self,
        storage: &Arc<dyn Storage>,
        small: Vec<Named>,
        to: &LocalPath,
        placing: Placing,
        files: &mut JoinSet<Result<Copied>>,
    ) {
        let permit = self.limits.file().await;
        let (engine, storage, to) = (self.clone(), storage.clone(), to.clone());
        files.spawn(async move {
            let shown = to.url();
            let one = engine.clone();
            let transfers = small.into_iter().map(move |file| {
                let (engine, storage, to) = (one.clone(), storage.clone(), to.clone());
                async move {
                    let moved = engine.fetch_named(&storage, file, &to, placing);
                    engine.begun(moved).await
                }
            });
            let moved = Box::pin(in_turn(&shown, permit, transfers)).await?;
            Ok(moved
                .into_iter()
                .map(Copied::from)
                .fold(Copied::default(), Copied::and))
        });
    }

    /// A listing whose errors are scrubbed, and that ends with one when nothing comes.
    pub(super) async fn open_listing(
        &self,
        storage: &Arc<dyn Storage>,
        url: &StorageUrl,
    ) -> Result<EntryStream> {
        let entries = in_time(&self.settings, url, storage.list(url)).await?;
        let from = (self.clone(), url.clone(), Some(entries));
        let entries = stream::unfold(from, async |(engine, url, entries)| {
            let mut entries = entries?;
            let entry = engine.next_entry(&url, &mut entries).await.transpose()?;
            let rest = entry.is_ok().then_some(entries);
            Some((entry, (engine, url, rest)))
        });
        Ok(entries.boxed())
    }

    async fn next_entry(
        &self,
        url: &StorageUrl,
        entries: &mut EntryStream,
    ) -> Result<Option<Entry>> {
        in_time(&self.settings, url, entries.try_next()).await
    }
}

async fn make_directory(to: &LocalPath, path: RelPath, placing: Placing) -> Result<()> {
    let (root, path) = (to.root.clone(), to.path.join(&path));
    let made = blocking(move || root.create_dir_all(&path, placing.directory_mode())).await;
    made.map_err(|e| Error::io(&to.url(), "cannot be made", e))
}

pub(super) fn finished<T>(
    url: &StorageUrl,
    done: Result<Result<T>, tokio::task::JoinError>,
) -> Result<T> {
    ended(url, done.map_err(io::Error::other))
}

pub(super) fn ended<T>(url: &StorageUrl, done: io::Result<Result<T>>) -> Result<T> {
    done.unwrap_or_else(|e| {
        let message = "a transfer ended unexpectedly";
        Err(Error::new(ErrorKind::Other, url, message).with_source(e))
    })
}

/// The names that a listing has given so far, and what each is. This is where hostile ones end,
/// and listings that never do.
#[derive(Debug)]
pub(super) struct Names {
    /// Which run of the listing this is, from 1: a retried one names everything again.
    pass: u32,
    seen: HashMap<u128, Name>,
    /// The keys of [`hash`](Names::hash), which no server knows.
    keys: [RandomState; 2],
    /// How many more may come.
    room: usize,
}

#[derive(Debug)]
struct Name {
    is_file: bool,
    /// The run of the listing that named it; 0 for a directory that only is in the path of
    /// something.
    pass: u32,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            pass: 1,
            seen: HashMap::new(),
            keys: Default::default(),
            room: MOST_NAMES,
        }
    }
}

impl Names {
    /// What a path is known by: of two million no two have the same.
    fn hash(&self, path: &RelPath) -> u128 {
        let [one, two] = &self.keys;
        u128::from(one.hash_one(path)) << 64 | u128::from(two.hash_one(path))
    }

    fn take_room(&mut self, url: &StorageUrl) -> Result<()> {
        let message = || format!("the listing is refused: it has more than {MOST_NAMES} names");
        let left = self.room.checked_sub(1);
        self.room = left.ok_or_else(|| Error::new(ErrorKind::Invalid, url, message()))?;
        Ok(())
    }

    /// The path of an entry that is safe to make; `None` for one that was dealt with in an
    /// earlier run, or that is the listed directory itself.
    pub(super) fn admit(&mut self, url: &StorageUrl, entry: &Entry) -> Result<Option<RelPath>> {
        let refused = |why: &str| {
            let shown: String = entry.path.chars().take(LONGEST_PATH).collect();
            let shown = shown.escape_debug();
            let message = format!("the listing is refused: `{shown}` {why}");
            Error::new(ErrorKind::Invalid, url, message)
        };
        let is_file = matches!(entry.kind, EntryKind::File(_));
        let name = entry.path.as_str();
        let name = if is_file {
            name
        } else {
            name.trim_end_matches('/')
        };
        if name.is_empty() && !is_file {
            return Ok(None);
        }
        // What is cut or folded here would name another file than the server meant.
        let bad = |c: &str| matches!(c, "" | "." | "..") || c.contains('\0') || c.len() > 255;
        if name.len() >= LONGEST_PATH || name.split('/').any(bad) {
            return Err(refused("is no path below the directory"));
        }
        let path = RelPath::new(name).ok_or_else(|| refused("is no path below the directory"))?;
        let mut parent = path.parent();
        while let Some(directory) = parent.filter(|p| !p.is_root()) {
            parent = directory.parent();
            let directory = self.hash(&directory);
            match self.seen.get(&directory) {
                Some(known) if known.is_file => return Err(refused("lies below a file")),
                // Its own parents are known too.
                Some(_) => break,
                None => {
                    self.take_room(url)?;
                    let is_file = false;
                    self.seen.insert(directory, Name { is_file, pass: 0 });
                }
            }
        }
        let (pass, hash) = (self.pass, self.hash(&path));
        match self.seen.get_mut(&hash) {
            None => {
                self.take_room(url)?;
                self.seen.insert(hash, Name { is_file, pass });
                Ok(Some(path))
            }
            Some(known) if known.is_file != is_file => {
                Err(refused("is both a file and a directory"))
            }
            Some(known) => match std::mem::replace(&mut known.pass, pass) {
                before if before == pass => Err(refused("is listed twice")),
                // A directory that was only seen as a parent: files will have made it.
                _ => Ok((!is_file).then_some(path)),
            },
        }
    }
}

#[cfg(test)]
mod fuzz {
    use std::path::Component::Normal;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_listed_name_becomes_a_path_outside_or_that_of_another(
            names in proptest::collection::vec(("[ab./\\\\\0%2é-]{0,6}", any::<bool>()), 0..12)
        ) {
            let url = "ftp://host/d".parse().unwrap();
            let mut admitting = Names::default();
            let mut admitted: Vec<(RelPath, bool)> = Vec::new();
            for (path, is_file) in names {
                let kind = if is_file {
                    EntryKind::File(crate::storage::FileInfo::default())
                } else {
                    EntryKind::Directory
                };
                let entry = Entry { path, kind };
                let Ok(Some(path)) = admitting.admit(&url, &entry) else { continue };
                prop_assert!(!path.is_root());
                prop_assert!(path.as_path().components().all(|c| matches!(c, Normal(_))));
                let shown = path.as_path().to_str().unwrap();
                prop_assert_eq!(shown, entry.path.trim_end_matches('/'));
                for (other, other_is_file) in &admitted {
                    let (other, path) = (other.as_path(), path.as_path());
                    prop_assert!(other != path);
                    prop_assert!(!(*other_is_file && path.starts_with(other)));
                    prop_assert!(!(is_file && other.starts_with(path)));
                }
                admitted.push((path, is_file));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit(names: &mut Names, path: &str, kind: EntryKind) -> Result<Option<RelPath>> {
        let path = path.to_owned();
        names.admit(&"ftp://host/d".parse().unwrap(), &Entry { path, kind })
    }

    fn file() -> EntryKind {
        EntryKind::File(crate::storage::FileInfo::default())
    }

    #[test]
    fn hostile_names_never_become_paths() {
        for path in [
            "../x",
            "a/../../x",
            "/etc/passwd",
            "a//b",
            ".",
            "",
            "a/.",
            "a/",
            "a\0b",
        ] {
            let error = admit(&mut Names::default(), path, file()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{path:?}");
            assert!(!error.is_retryable());
        }
        let long = "n".repeat(256);
        assert!(admit(&mut Names::default(), &long, file()).is_err());
    }

    #[test]
    fn a_listing_that_never_ends_is_refused() {
        let mut full = Names {
            room: 3,
            ..Names::default()
        };
        // A directory that is only in a path counts as well, and only once.
        assert!(admit(&mut full, "d/a", file()).unwrap().is_some());
        assert!(admit(&mut full, "e", file()).unwrap().is_some());
        assert!(admit(&mut full, "d", EntryKind::Directory).is_ok());
        let error = admit(&mut full, "ff", file()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(!error.is_retryable());
        assert!(error.to_string().contains("1000000 names"), "{error}");
        let deep = "d/".repeat(3000) + "f";
        assert!(admit(&mut Names::default(), &deep, file()).is_err());
    }

    #[test]
    fn a_name_is_a_file_or_a_directory_and_comes_once() {
        let mut names = Names::default();
        assert!(admit(&mut names, "a/b", file()).unwrap().is_some());
        assert!(admit(&mut names, "a/b", file()).is_err(), "twice");
        assert!(admit(&mut names, "a/b/c", file()).is_err(), "below a file");
        assert!(
            admit(&mut names, "a", file()).is_err(),
            "a directory before"
        );
        assert!(
            admit(&mut names, "a/b", EntryKind::Directory).is_err(),
            "a file before"
        );
        assert!(
            admit(&mut names, "a/", EntryKind::Directory)
                .unwrap()
                .is_some()
        );
    }

    #[test]
    fn a_listing_that_is_tried_again_moves_nothing_twice() {
        let mut names = Names::default();
        assert!(admit(&mut names, "a", file()).unwrap().is_some());
        names.pass = 2;
        assert!(admit(&mut names, "a", file()).unwrap().is_none());
        assert!(admit(&mut names, "b", file()).unwrap().is_some());
    }
}
