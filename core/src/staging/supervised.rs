//! Inside an executor's container, when its command has ended: only here can be read what
//! another user owns, and be seen what belongs to the image.

use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Failure;
use super::deliver::{Failures, Lines, not_read};
use super::find::{Item, Missing, base, find};
use super::tree::{Obstacle, Tree};
use crate::plan::Plan;
use crate::rooted::{RelPath, Root};

const ANYBODY: u32 = 0o777;

/// Makes declared outputs that this process owns readable for any user: the one that delivers
/// them may be another. `container` is the root of the executor's file system. Best effort:
/// what stays unreadable is reported when it is delivered.
pub fn release(plan: &Plan, container: &Arc<Root>) {
    for output in plan.outputs.iter().filter(|o| o.collected_at.is_none()) {
        let tree = Tree::new(container, &plan.mounts, None);
        let _ = find(&tree, output, false, &mut |item| {
            match item {
                Item::File { place, .. } => {
                    open_parents(&tree, container, &place);
                    add_mode(container, &place, 0o444);
                }
                Item::Directory { place, .. } => {
                    open_parents(&tree, container, &place);
                    add_mode(container, &place, 0o555);
                }
                Item::Refused { .. } => {}
            }
            ControlFlow::Continue(())
        });
    }
}

fn open_parents(tree: &Tree, container: &Root, place: &RelPath) {
    let mut parent = place.parent();
    while let Some(directory) = parent.filter(|directory| tree.sees(directory)) {
        add_mode(container, &directory, 0o555);
        parent = directory.parent();
    }
}

fn add_mode(container: &Root, place: &RelPath, wanted: u32) {
    if let Ok(metadata) = container.symlink_metadata(place) {
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & wanted != wanted {
            let _ = container.set_mode(place, mode | wanted);
        }
    }
}

/// What became of the outputs that lie outside every mount.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Collected {
    /// Lines for the system log: what was left out on purpose. Bounded.
    pub notes: Vec<String>,
    /// What is there and could not be collected. Bounded.
    pub failures: Vec<Failure>,
}

impl Collected {
    /// Of an `error` that came before all outputs: none is collected.
    pub fn nothing(plan: &Plan, error: &io::Error) -> Self {
        let mut collected = Self::default();
        if plan.outputs.iter().any(|o| o.collected_at.is_some()) {
            let failure = Failure::of_scratch("cannot collect outputs", error);
            collected.failures.push(failure);
        }
        collected
    }
}

/// Copies declared outputs that lie outside every mount from `container`, the root of the
/// executor's file system, to where the plan collects them in `scratch`. What an earlier
/// executor left there is replaced.
pub fn collect(plan: &Plan, container: &Arc<Root>, scratch: &Arc<Root>) -> Collected {
    let (mut notes, mut failures) = (Lines::default(), Failures::default());
    for output in &plan.outputs {
        let Some(collected_at) = &output.collected_at else {
            continue;
        };
        let base = base(output);
        let tree = Tree::new(container, &plan.mounts, Some(&base));
        let label = format!("outputs[{}]", output.index);
        let found = find(&tree, output, false, &mut |item| {
            let (path, copied) = match item {
                Item::Refused { path, why } => {
                    match not_read(&format!("{label}: {path}"), &why) {
                        Some(failure) => failures.push(failure),
                        None => notes.push(format!("{label}: {path} is not collected: {why}")),
                    }
                    return ControlFlow::Continue(());
                }
                Item::File { place, path, .. } => {
                    let copied = target(collected_at, &base, &path)
                        .and_then(|to| copy(container, &place, scratch, &to));
                    (path, copied)
                }
                Item::Directory { path, .. } => {
                    let made = target(collected_at, &base, &path)
                        .and_then(|to| scratch.create_dir_all(&to, ANYBODY));
                    (path, made)
                }
            };
            let what = format!("{label}: {path} is not collected");
            match copied {
                Ok(()) => {}
                // Something else has taken it away meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    notes.push(format!("{what}: {error}"));
                }
                Err(error) => failures.push(Failure::of_scratch(&what, &error)),
            }
            ControlFlow::Continue(())
        });
        // Nothing there is for the end to say: a later executor may make it. Nor did this one
        // make anything where it may not even look.
        if let Err(Missing::Unreadable(path, error)) = found
            && error.kind() != io::ErrorKind::PermissionDenied
        {
            let failure = not_read(&format!("{label}: {path}"), &Obstacle::Failed(error));
            failures.push_all(failure);
        }
    }
    Collected {
        notes: notes.into_lines(),
        failures: failures.into_list(),
    }
}

/// Where in scratch the found `path` is collected.
fn target(collected_at: &str, base: &str, path: &str) -> io::Result<RelPath> {
    let below = path.strip_prefix(base).unwrap_or(path);
    RelPath::new(format!("{collected_at}/{below}"))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidFilename, "it has an unusable name"))
}

fn copy(container: &Root, from: &RelPath, scratch: &Arc<Root>, to: &RelPath) -> io::Result<()> {
    let mut from = container.open_file(from)?;
    let copy = scratch.create_replacement(to, 0o666, ANYBODY)?;
    io::copy(&mut from, &mut copy.file().as_ref())?;
    copy.keep().map(drop)
}
