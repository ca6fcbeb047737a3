//! Everything below a directory.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt as _};
use tesk_core::storage::{
    Entry, EntryKind, EntryStream, Error, ErrorKind, FileInfo, Result, StorageUrl,
};

use super::super::{look, reply};
use super::href::Named;
use super::{Dav, Depth, Kind, directory, is_gone, is_temp_name, kind, named, refuse_status};

/// Deeper than anybody's directories: what gets there goes round in circles.
const DEEPEST: usize = 100;
/// More than any directory has.
const MOST_ENTRIES: usize = 1_000_000;

/// Lists the directory `url` and what is below it. The directory itself is listed at once.
pub(super) async fn walk(dav: Arc<Dav>, url: StorageUrl) -> Result<EntryStream> {
    let mut walk = Walk {
        dav,
        url,
        to_do: vec![Directory::default()],
        found: VecDeque::new(),
        versions: None,
    };
    walk.advance().await?;
    let entries = stream::try_unfold(walk, |mut walk| async move {
        while walk.found.is_empty() && !walk.to_do.is_empty() {
            walk.advance().await?;
        }
        Ok(walk.found.pop_front().map(|entry| (entry, walk)))
    });
    Ok(entries.boxed())
}

struct Walk {
    dav: Arc<Dav>,
    url: StorageUrl,
    to_do: Vec<Directory>,
    found: VecDeque<Entry>,
    /// Whether the versions that listings tell are those that reads understand.
    versions: Option<bool>,
}

#[derive(Default)]
struct Directory {
    /// Below the root; empty for the root.
    path: String,
    depth: usize,
}

impl Walk {
    /// Lists the next directory, whole: who reads the entries may take longer for each than a
    /// server waits.
    async fn advance(&mut self) -> Result<()> {
        let Some(at) = self.to_do.pop() else {
            return Ok(());
        };
        let url = match at.path.as_str() {
            "" => self.url.clone(),
            below => self.url.join(below),
        };
        let not_found = |message: &str| Error::new(ErrorKind::NotFound, &url, message);
        let asked = self.dav.propfind(&directory(&url), Depth::Children).await;
        let mut reply = match asked {
            Ok(Some(reply)) => reply,
            refused => {
                // A file is no directory to some, and nothing to others.
                let found = self.dav.kind(&url).await;
                return Err(match (refused, found) {
                    (_, Ok(Some(Kind::File))) => no_directory(&url),
                    (Err(error), _) => error,
                    (Ok(_), _) => not_found("there is no such directory"),
                });
            }
        };
        let mut below = Vec::new();
        while let Some(resource) = reply.next().await? {
            let name = match named(&url, &reply, &resource)? {
                Named::Child(name) => name,
                Named::Itself if is_gone(&resource) => {
                    return Err(not_found("there is no such directory"));
                }
                Named::Itself => {
                    refuse_status(&url, &resource)?;
                    if kind(&resource) == Kind::File {
                        return Err(no_directory(&url));
                    }
                    continue;
                }
            };
            if is_gone(&resource) || is_temp_name(&name) {
                continue;
            }
            refuse_status(&url.join(&name), &resource)?;
            if self.found.len() >= MOST_ENTRIES {
                let message = format!("more than {MOST_ENTRIES} entries are in one directory");
                return Err(Error::new(ErrorKind::Invalid, &url, message));
            }
            let path = match at.path.as_str() {
                "" => name,
                above => format!("{above}/{name}"),
            };
            let kind = match kind(&resource) {
                Kind::File => EntryKind::File(resource.file_info(reply.now)),
                Kind::Directory if at.depth >= DEEPEST => {
                    let message = "its directories go round in circles";
                    return Err(Error::new(ErrorKind::Invalid, &self.url, message));
                }
                Kind::Directory => {
                    below.push(Directory {
                        path: path.clone(),
                        depth: at.depth + 1,
                    });
                    EntryKind::Directory
                }
            };
            self.found.push_back(Entry { path, kind });
        }
        // Depth first, in the server's order: what waits stays little.
        below.reverse();
        self.to_do.append(&mut below);
        self.check_versions().await;
        Ok(())
    }

    /// Asks once whether a read would give the version that a listing tells.
    async fn check_versions(&mut self) {
        for entry in &mut self.found {
            let EntryKind::File(info) = &mut entry.kind else {
                continue;
            };
            if info.version.is_none() {
                continue;
            }
            let good = if let Some(good) = self.versions {
                good
            } else {
                let url = self.url.join(&entry.path);
                *self.versions.insert(is_good(&self.dav, &url, info).await)
            };
            if !good {
                info.version = None;
            }
        }
    }
}

async fn is_good(dav: &Dav, url: &StorageUrl, listed: &FileInfo) -> bool {
    match (look(&dav.client, url).await, &listed.version) {
        (Ok(reply), Some(version)) => {
            let headers = reply.headers();
            reply::has_ranges(headers) && reply::is_version(headers, version)
        }
        _ => false,
    }
}

fn no_directory(url: &StorageUrl) -> Error {
    Error::new(ErrorKind::Invalid, url, "is a file, not a directory")
}
