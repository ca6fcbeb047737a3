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
use crate::plan::{Plan, PlannedOutput};
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

    /// Takes in what became of another output.
    #[cfg(feature = "local")]
    pub(crate) fn extend(&mut self, more: Self) {
        self.notes.extend(more.notes);
        self.failures.extend(more.failures);
    }
}

/// Copies declared outputs that lie outside every mount from `container`, the root of the
/// executor's file system, to where the plan collects them in `scratch`. What an earlier
/// executor left there is replaced.
pub fn collect(plan: &Plan, container: &Arc<Root>, scratch: &Arc<Root>) -> Collected {
    let mut collecting = Collecting::default();
    for output in &plan.outputs {
        if let Some(collected_at) = &output.collected_at {
            let tree = Tree::new(container, &plan.mounts, Some(&base(output)));
            collecting.one((container, &tree, false), output, scratch, collected_at);
        }
    }
    collecting.end()
}

/// The same for the one output `output`, when what lies at its path (for a pattern: in its
/// directory) was copied from the container to `copied` in `scratch`. What was copied is the
/// executor's, symlinks and all.
#[cfg(feature = "local")]
pub(crate) fn collect_copied(
    plan: &Plan,
    output: &PlannedOutput,
    copied: &str,
    scratch: &Arc<Root>,
) -> Collected {
    let mut collecting = Collecting::default();
    if let Some(collected_at) = &output.collected_at {
        let tree = Tree::new(scratch, &plan.mounts, Some(copied));
        let mut output = output.clone();
        output.collected_at = Some(copied.to_owned());
        collecting.one((scratch, &tree, true), &output, scratch, collected_at);
    }
    collecting.end()
}

#[derive(Default)]
struct Collecting {
    notes: Lines,
    failures: Failures,
}

impl Collecting {
    /// Copies what `output` yields in a tree (in a root, and whether it is collected there).
    fn one(
        &mut self,
        (root, tree, collected): (&Arc<Root>, &Tree, bool),
        output: &PlannedOutput,
        scratch: &Arc<Root>,
        collected_at: &str,
    ) {
        let base = base(output);
        let label = format!("outputs[{}]", output.index);
        let found = find(tree, output, collected, &mut |item| {
            let (path, copied) = match item {
                Item::Refused { path, why } => {
                    let failure = not_read(&format!("{label}: {path}"), &why);
                    if failure.is_none() {
                        let note = format!("{label}: {path} is not collected: {why}");
                        self.notes.push(note);
                    }
                    self.failures.push_all(failure);
                    return ControlFlow::Continue(());
                }
                Item::File { place, path, .. } => {
                    let copied = target(collected_at, &base, &path)
                        .and_then(|to| copy(root, &place, scratch, &to));
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
                    self.notes.push(format!("{what}: {error}"));
                }
                Err(error) => self.failures.push(Failure::of_scratch(&what, &error)),
            }
            ControlFlow::Continue(())
        });
        // Nothing there is for the end to say: a later executor may make it. Nor did this one
        // make anything where it may not even look.
        if let Err(Missing::Unreadable(path, error)) = found
            && error.kind() != io::ErrorKind::PermissionDenied
        {
            let failure = not_read(&format!("{label}: {path}"), &Obstacle::Failed(error));
            self.failures.push_all(failure);
        }
    }

    fn end(self) -> Collected {
        Collected {
            notes: self.notes.into_lines(),
            failures: self.failures.into_list(),
        }
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
    // The one that delivers it may be another user.
    let mode = from.metadata()?.permissions().mode() & 0o777 | 0o444;
    let copy = scratch.create_replacement(to, mode, ANYBODY)?;
    io::copy(&mut from, &mut copy.file().as_ref())?;
    copy.keep().map(drop)
}
