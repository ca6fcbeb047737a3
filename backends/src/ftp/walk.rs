//! Everything below a directory.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt as _};
use jiff::Timestamp;
use tesk_core::rooted;
use tesk_core::storage::{Entry, EntryKind, EntryStream, Error, ErrorKind, Result, StorageUrl};

use super::listing::{self, Found, Kind};
use super::path;
use super::pool::{Lease, Site, Use};
use super::reply::Failure;

/// Deeper than anybody's directories: what gets there goes round in circles.
const DEEPEST: usize = 100;
const MESSAGE: &str = "cannot be listed";

/// Lists the directory `root` and what is below it. The root itself is listed at once.
pub(super) async fn walk(site: Arc<Site>, url: &StorageUrl, root: String) -> Result<EntryStream> {
    let mut walk = Walk {
        site,
        url: url.clone(),
        root,
        to_do: vec![Directory::default()],
        found: VecDeque::new(),
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
    site: Arc<Site>,
    url: StorageUrl,
    root: String,
    to_do: Vec<Directory>,
    found: VecDeque<Entry>,
}

#[derive(Default)]
struct Directory {
    /// Below the root; empty for the root.
    path: String,
    depth: usize,
    /// The server's marks of the directories that it is in.
    above: Vec<String>,
}

impl Walk {
    /// Lists the next directory. A connection is only held as long as that takes: who reads the
    /// entries may need one for each before coming back.
    async fn advance(&mut self) -> Result<()> {
        let Some(mut directory) = self.to_do.pop() else {
            return Ok(());
        };
        let path = match directory.path.as_str() {
            "" => self.root.clone(),
            below => path::join(&self.root, below),
        };
        let mut lease = self.site.lease(Use::Commands, &self.url).await?;
        let listing = match lease.list(&path).await {
            Ok(listing) => listing,
            Err(failure) => return Err(self.why(&mut lease, &path, failure).await),
        };
        if let Some(unique) = listing.unique
            && directory.above.last() != Some(&unique)
        {
            directory.above.push(unique);
        }
        let mut below = Vec::new();
        for found in listing.found {
            if rooted::is_temp_name(found.name.as_ref()) {
                continue;
            }
            if let Some(entry) = self.entry(&mut lease, &path, &directory, &found).await? {
                // What core will refuse is not asked for.
                let is_plain = !found.name.contains(['/', '\r', '\0'])
                    && !matches!(found.name.as_str(), "." | "..");
                if entry.kind == EntryKind::Directory && is_plain {
                    below.push(self.below(&directory, &entry, found.unique)?);
                }
                self.found.push_back(entry);
            }
        }
        // Depth first, in the server's order: what waits stays little.
        below.reverse();
        self.to_do.append(&mut below);
        Ok(())
    }

    async fn entry(
        &self,
        lease: &mut Lease,
        path: &str,
        directory: &Directory,
        found: &Found,
    ) -> Result<Option<Entry>> {
        let fail = |failure: Failure| self.site.error(failure, &self.url, MESSAGE);
        let kind = match &found.kind {
            Kind::Link(target) => {
                let at = path::join(path, &found.name);
                if target
                    .as_deref()
                    .is_some_and(|target| leads_up(path, target))
                {
                    return Err(fail(Failure::Loop(at)));
                }
                let Some(kind) = lease.stat_target(&at).await.map_err(fail)? else {
                    // Common where only a part of a file system is shown.
                    tracing::warn!(path = at, url = %self.url, "a link leads nowhere");
                    return Ok(None);
                };
                kind
            }
            kind => kind.clone(),
        };
        let kind = match kind {
            Kind::File(mut info) => {
                if listing::settles_in(&info, Timestamp::now()).is_some() {
                    info.version = None;
                }
                EntryKind::File(info)
            }
            Kind::Directory | Kind::Link(_) => EntryKind::Directory,
        };
        let path = match directory.path.as_str() {
            "" => found.name.clone(),
            above => format!("{above}/{}", found.name),
        };
        Ok(Some(Entry { path, kind }))
    }

    fn below(&self, above: &Directory, entry: &Entry, unique: Option<String>) -> Result<Directory> {
        let goes_round = unique
            .as_ref()
            .is_some_and(|unique| above.above.contains(unique));
        if goes_round || above.depth >= DEEPEST {
            let failure = Failure::Loop(entry.path.clone());
            return Err(self.site.error(failure, &self.url, MESSAGE));
        }
        let mut marks = above.above.clone();
        marks.extend(unique);
        Ok(Directory {
            path: entry.path.clone(),
            depth: above.depth + 1,
            above: marks,
        })
    }

    /// Finds out what a refusal means.
    async fn why(&self, lease: &mut Lease, path: &str, failure: Failure) -> Error {
        if let Failure::Reply(reply) = &failure
            && matches!(reply.code, 450 | 501 | 550 | 553)
            && lease.is_in_step()
            && let Ok(found) = lease.stat(path).await
        {
            let (kind, message) = match found {
                None => (ErrorKind::NotFound, "there is no such directory"),
                Some(Kind::File(_)) => (ErrorKind::Invalid, "is a file, not a directory"),
                Some(_) => return self.site.error(failure, &self.url, MESSAGE),
            };
            return Error::new(kind, &self.url, message);
        }
        self.site.error(failure, &self.url, MESSAGE)
    }
}

/// Whether a link in the directory `path` leads to that directory or to one above it.
fn leads_up(path: &str, target: &str) -> bool {
    let mut components: Vec<&str> = if target.starts_with('/') {
        Vec::new()
    } else {
        path.split('/').filter(|c| !c.is_empty()).collect()
    };
    for component in target.split('/') {
        match component {
            "" | "." => {}
            ".." => drop(components.pop()),
            name => components.push(name),
        }
    }
    let mut path = path.split('/').filter(|c| !c.is_empty());
    components
        .iter()
        .all(|component| path.next() == Some(component))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_lead_back_are_seen() {
        for (target, up) in [
            (".", true),
            ("..", true),
            ("../../..", true),
            ("/", true),
            ("/a", true),
            ("/a/b/", true),
            ("../b", true),
            ("c", false),
            ("../c", false),
            ("/a/b/c", false),
            ("/x", false),
        ] {
            assert_eq!(leads_up("/a/b", target), up, "{target}");
        }
    }
}
