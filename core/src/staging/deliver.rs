//! After the last executor: outputs are found and delivered at the same time.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::find::{Item, Missing, find};
use super::tree::{Obstacle, Tree};
use super::{Delivered, Failure};
use crate::plan::{Mount, Plan, PlannedOutput};
use crate::rooted::{RelPath, Root};
use crate::storage::{LocalPath, StorageUrl};
use crate::tes::OutputFileLog;
use crate::transfer::Engine;

/// Outputs on their way at once. What really runs in parallel the engine's own limits decide.
const PARALLEL: usize = 32;
/// Found, but not yet on their way.
const WAITING: usize = 256;
/// Lines of each sort that a task log gets; ten thousand would help nobody.
const MAX_LINES: usize = 100;
/// Bytes of one line: a long path, and what is said of it.
const MAX_LINE: usize = 4096;

/// Something to deliver.
#[derive(Debug)]
struct Delivery {
    output: usize,
    /// Where the task's executors see it.
    path: String,
    url: StorageUrl,
    /// The file; `None` is an empty directory.
    file: Option<RelPath>,
}

/// Collects and delivers every output; one failure does not stop the others.
pub async fn outputs(plan: &Plan, scratch: &Arc<Root>, engine: &Engine) -> Delivered {
    let (queue, found) = mpsc::channel(WAITING);
    let search = tokio::task::spawn_blocking({
        let (outputs, mounts) = (plan.outputs.clone(), plan.mounts.clone());
        let mounted = plan.inputs.iter().filter(|i| i.mounted.is_some());
        let hidden: Vec<_> = mounted.map(|input| input.path.clone()).collect();
        let scratch = scratch.clone();
        move || search(&outputs, &mounts, &hidden, &scratch, &queue)
    });
    let mut delivered = Delivered::default();
    let mut failures = Failures::default();
    let found = stream::unfold(found, |mut found| async {
        found.recv().await.map(|delivery| (delivery, found))
    });
    let mut done = std::pin::pin!(
        found
            .map(|delivery| deliver(delivery, scratch, engine))
            .buffer_unordered(PARALLEL)
    );
    while let Some(result) = done.next().await {
        match result {
            Ok(log) => delivered.outputs.extend(log),
            Err(failure) => failures.push(failure),
        }
    }
    match search.await {
        Ok(searched) => {
            delivered.notes = searched.notes.into_lines();
            failures.extend(searched.failures);
        }
        Err(error) => failures.push(Failure {
            message: format!("the search for outputs broke off: {error}"),
            retryable: true,
        }),
    }
    delivered.failures = failures.into_list();
    delivered
        .outputs
        .sort_unstable_by(|a, b| (&a.path, &a.url).cmp(&(&b.path, &b.url)));
    delivered
}

async fn deliver(
    delivery: Delivery,
    scratch: &Arc<Root>,
    engine: &Engine,
) -> Result<Option<OutputFileLog>, Failure> {
    let Delivery {
        output,
        path,
        url,
        file,
    } = delivery;
    let failed = |error| Failure::of_storage(&format!("outputs[{output}] ({path})"), &error);
    let Some(file) = file else {
        return engine
            .make_directory(&url)
            .await
            .map(|()| None)
            .map_err(failed);
    };
    let from = LocalPath {
        root: scratch.clone(),
        path: file,
    };
    let moved = engine.store_file(&from, &url).await.map_err(failed)?;
    Ok(Some(OutputFileLog {
        url: moved.url,
        path,
        size_bytes: moved.size,
    }))
}

/// What a search has to say beside the files it queues.
#[derive(Debug, Default)]
struct Searched {
    notes: Lines,
    failures: Failures,
}

/// Walks scratch and queues what is to be delivered, for as long as somebody listens. Blocks.
fn search(
    outputs: &[PlannedOutput],
    mounts: &[Mount],
    hidden: &[String],
    scratch: &Arc<Root>,
    queue: &mpsc::Sender<Delivery>,
) -> Searched {
    let mut searched = Searched::default();
    // Only the digests: with ten thousands of files the names themselves would be kept twice.
    let mut queued: HashSet<[u8; 32]> = HashSet::new();
    for output in outputs {
        let label = format!("outputs[{}]", output.index);
        let url: StorageUrl = match output.url.parse() {
            Ok(url) => url,
            Err(error) => {
                let message = format!("{label}: its url {error}");
                searched.failures.push(Failure::definite(message));
                continue;
            }
        };
        let tree = Tree::new(scratch, mounts, output.collected_at.as_deref()).hiding(hidden);
        let (notes, failures) = (&mut searched.notes, &mut searched.failures);
        let mut queue_item = |item: Item| {
            let (path, relative, file) = match item {
                Item::File {
                    place,
                    path,
                    relative,
                } => (path, relative, Some(place)),
                Item::Directory {
                    path,
                    relative,
                    empty: true,
                    ..
                } => (path, relative, None),
                Item::Directory { .. } => return ControlFlow::Continue(()),
                Item::Refused { path, why } => {
                    let item = format!("{label}: {path}");
                    match not_read(&item, &why) {
                        Some(failure) => failures.push(failure),
                        None => notes.push(format!("warning: {item} {why}: not delivered")),
                    }
                    return ControlFlow::Continue(());
                }
            };
            let url = match relative.as_str() {
                "" => url.clone(),
                relative => url.join(relative),
            };
            let pair = Sha256::new()
                .chain_update(&path)
                .chain_update([0])
                .chain_update(url.to_secret_string())
                .finalize();
            if !queued.insert(pair.into()) {
                return ControlFlow::Continue(());
            }
            let delivery = Delivery {
                output: output.index,
                path,
                url,
                file,
            };
            match queue.blocking_send(delivery) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        };
        match find(&tree, output, true, &mut queue_item) {
            Ok(()) => {}
            Err(Missing::Declared(why)) => {
                searched
                    .failures
                    .push(Failure::definite(format!("{label}: {why}")));
            }
            Err(Missing::Unreadable(path, error)) => {
                let what = format!("{label}: {path}");
                let failure = not_read(&what, &Obstacle::Failed(error));
                searched.failures.push_all(failure);
            }
            Err(Missing::Unmatched(pattern)) => {
                let note = format!("warning: {label}: nothing matches {pattern}");
                searched.notes.push(note);
            }
        }
    }
    searched
}

/// The failure that `why` is, at `what`: something may be there that is not delivered, and nobody
/// meant to leave it out. `None` is a reason to leave it out.
pub(super) fn not_read(what: &str, why: &Obstacle) -> Option<Failure> {
    match why {
        Obstacle::Missing | Obstacle::Refused(_) => None,
        Obstacle::TooMany => Some(Failure::definite(format!("{what} {why}"))),
        Obstacle::Failed(error) => Some(Failure::of_scratch(
            &format!("{what} cannot be read"),
            error,
        )),
    }
}

/// The beginning and the end of a line that is too long for a log: what it is about, and why.
fn clip(mut line: String) -> String {
    if line.len() > MAX_LINE {
        let start = line.floor_char_boundary(MAX_LINE / 2 - 2);
        let end = line.ceil_char_boundary(line.len() - (MAX_LINE / 2 - 2));
        line.replace_range(start..end, "…");
    }
    line
}

/// Lines for people: the first hundred, and how many there were.
#[derive(Debug, Default)]
pub(super) struct Lines {
    lines: Vec<String>,
    more: usize,
}

impl Lines {
    pub(super) fn push(&mut self, line: String) {
        if self.lines.len() < MAX_LINES {
            self.lines.push(clip(line));
        } else {
            self.more += 1;
        }
    }

    pub(super) fn into_lines(mut self) -> Vec<String> {
        if self.more > 0 {
            self.lines
                .push(format!("and {} more such lines", self.more));
        }
        self.lines
    }
}

/// Failures: the first hundred, and how many there were; never hides a definite one.
#[derive(Debug, Default)]
pub(super) struct Failures {
    list: Vec<Failure>,
    more: usize,
    more_definite: bool,
}

impl Failures {
    pub(super) fn push(&mut self, failure: Failure) {
        if self.list.len() < MAX_LINES {
            self.list.push(Failure {
                message: clip(failure.message),
                ..failure
            });
        } else {
            self.more += 1;
            self.more_definite |= !failure.retryable;
        }
    }

    pub(super) fn push_all(&mut self, failures: impl IntoIterator<Item = Failure>) {
        for failure in failures {
            self.push(failure);
        }
    }

    fn extend(&mut self, other: Self) {
        self.push_all(other.list);
        self.more += other.more;
        self.more_definite |= other.more_definite;
    }

    pub(super) fn into_list(mut self) -> Vec<Failure> {
        if self.more > 0 {
            self.list.push(Failure {
                message: format!("and {} more outputs that are not delivered", self.more),
                retryable: !self.more_definite,
            });
        }
        self.list
    }
}
