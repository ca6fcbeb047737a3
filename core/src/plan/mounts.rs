//! Which parts of scratch executors see.

use super::{Mount, MountKind, paths};

/// Above this many mounts, neighbours are merged into their deepest common ancestor.
pub const WANTED: usize = 32;
/// A plan that needs more is refused.
pub const MOST: usize = 256;

/// What a plan needs to see of scratch, gathered claim by claim.
#[derive(Debug, Default)]
pub(super) struct Claims {
    directories: Vec<String>,
    files: Vec<String>,
    streams: Vec<String>,
}

impl Claims {
    /// The directory at `path` must be there.
    pub(super) fn directory(&mut self, path: &str) {
        self.directories.push(path.to_owned());
    }

    /// The file at `path` must be there: its directory is mounted, unless it belongs to the
    /// image; then the file alone is.
    pub(super) fn file(&mut self, path: &str) {
        let parent = paths::parent(path);
        if paths::owned_by_image(parent) {
            self.files.push(path.to_owned());
        } else {
            self.directory(parent);
        }
    }

    /// An executor's stream is written to `path`. No directory is mounted for its sake, so that
    /// a log beside a program does not hide the program.
    pub(super) fn stream(&mut self, path: &str) {
        if path != "/" && paths::reserved(path).is_none() {
            self.streams.push(path.to_owned());
        }
    }

    /// The mounts, in the order of their paths; an error is how many there would have to be.
    pub(super) fn merge(mut self) -> Result<Vec<Mount>, usize> {
        outermost(&mut self.directories);
        let room = |files: &[String]| WANTED.saturating_sub(files.len());
        uncovered(&mut self.files, &self.directories);
        merge_neighbours(&mut self.directories, room(&self.files));
        let mut files = self.files;
        files.append(&mut self.streams);
        uncovered(&mut files, &self.directories);
        let count = self.directories.len() + files.len();
        if count > MOST {
            return Err(count);
        }
        let mount = |kind| move |path| Mount { path, kind };
        let mut mounts: Vec<Mount> = self
            .directories
            .into_iter()
            .map(mount(MountKind::Directory))
            .chain(files.into_iter().map(mount(MountKind::File)))
            .collect();
        mounts.sort_by(|a, b| paths::order(&a.path, &b.path));
        Ok(mounts)
    }
}

/// Sorts, and keeps only what does not lie within another.
fn outermost(directories: &mut Vec<String>) {
    directories.sort_by(|a, b| paths::order(a, b));
    directories.dedup_by(|path, before| paths::is_within(path, before));
}

/// Sorts, and keeps only what neither lies in one of the sorted `directories` nor has one in it.
fn uncovered(files: &mut Vec<String>, directories: &[String]) {
    files.sort_by(|a, b| paths::order(a, b));
    files.dedup_by(|path, before| paths::is_within(path, before));
    files.retain(|file| {
        let at = directories.partition_point(|d| paths::order(d, file).is_lt());
        let before = at.checked_sub(1).map(|before| &directories[before]);
        before.is_none_or(|before| !paths::is_within(file, before))
            && directories
                .get(at)
                .is_none_or(|after| !paths::is_within(after, file))
    });
}

/// Merges neighbours in the sorted, disjoint `directories`, those with the deepest common
/// ancestor first, until at most `room` are left or all others would hide the image.
fn merge_neighbours(directories: &mut Vec<String>, room: usize) {
    let Some(too_many) = directories.len().checked_sub(room).filter(|n| *n > 0) else {
        return;
    };
    // How deep each directory's common ancestor with the next one is, if that may be mounted.
    // All below a mountable directory is mountable too, so merged runs are disjoint.
    let depth = |pair: &[String]| {
        let ancestor = paths::common_ancestor(&pair[0], &pair[1]);
        (!paths::owned_by_image(ancestor)).then(|| ancestor.matches('/').count())
    };
    let depths: Vec<Option<usize>> = directories.windows(2).map(depth).collect();
    let mut deepest_first: Vec<usize> = depths.iter().flatten().copied().collect();
    deepest_first.sort_unstable_by(|a, b| b.cmp(a));
    let Some(&least) = deepest_first.get(too_many - 1).or(deepest_first.last()) else {
        return;
    };
    let mut merged: Vec<String> = Vec::new();
    for (index, directory) in directories.drain(..).enumerate() {
        let joins = index > 0 && depths[index - 1].is_some_and(|depth| depth >= least);
        match merged.last_mut() {
            Some(run) if joins => {
                let shared = paths::common_ancestor(run, &directory).len();
                run.truncate(shared);
            }
            _ => merged.push(directory),
        }
    }
    *directories = merged;
}
