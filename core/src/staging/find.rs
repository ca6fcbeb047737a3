//! What a declared output means in a tree.

use std::io;
use std::ops::ControlFlow;

use super::tree::{Found, Kind, MAX_PATH, Obstacle, Place, Tree};
use crate::plan::glob::{Component, Pattern};
use crate::plan::{OutputSource, PlannedOutput, delivered_name};
use crate::rooted::RelPath;

/// One thing that an output yields.
#[derive(Debug)]
pub(super) enum Item {
    /// A file; delivered at `relative` below the output's url, or at the url itself.
    File {
        place: RelPath,
        path: String,
        relative: String,
    },
    /// A directory; comes before what is in it.
    Directory {
        place: RelPath,
        path: String,
        relative: String,
        empty: bool,
    },
    /// Something that is left out: on purpose, or because it cannot be read.
    Refused { path: String, why: Obstacle },
}

/// Why an output yields nothing.
#[derive(Debug)]
pub(super) enum Missing {
    /// It was declared without a wildcard, and is not there as declared.
    Declared(String),
    /// Whether it is there cannot be seen, at this path.
    Unreadable(String, io::Error),
    /// This pattern matches nothing.
    Unmatched(String),
}

type Sink<'a> = &'a mut dyn FnMut(Item) -> ControlFlow<()>;

/// The path that an output's [`collected_at`](PlannedOutput::collected_at) stands for.
pub(super) fn base(output: &PlannedOutput) -> String {
    match &output.from {
        OutputSource::File(path) | OutputSource::Directory(path) => path.clone(),
        OutputSource::Pattern { pattern, .. } => Pattern::new(pattern).directory(),
    }
}

/// Finds all that `output` yields in `tree`: where it was collected, with `collected`, else
/// where the task made it. Ends early when `sink` breaks.
pub(super) fn find(
    tree: &Tree,
    output: &PlannedOutput,
    collected: bool,
    sink: Sink<'_>,
) -> Result<(), Missing> {
    let base = base(output);
    let at = match &output.collected_at {
        Some(at) if collected => at,
        _ => &base,
    };
    let start = match tree.find(at) {
        Err(Obstacle::Failed(error)) => return Err(Missing::Unreadable(base, error)),
        start => start,
    };
    match &output.from {
        OutputSource::File(path) => match start {
            Ok(Place {
                path: place,
                kind: Kind::File,
            }) => {
                let _ = sink(Item::File {
                    place,
                    path: path.clone(),
                    relative: String::new(),
                });
                Ok(())
            }
            Ok(_) => Err(Missing::Declared(format!(
                "{path} is a directory, not a file"
            ))),
            Err(why) => Err(Missing::Declared(format!("{path} {why}"))),
        },
        OutputSource::Directory(path) => match start {
            Ok(Place {
                path: place,
                kind: Kind::Directory,
            }) => {
                let _ = walk(tree, &place, path, "", sink);
                Ok(())
            }
            Ok(_) => Err(Missing::Declared(format!(
                "{path} is a file, not a directory"
            ))),
            Err(why) => Err(Missing::Declared(format!("{path} {why}"))),
        },
        OutputSource::Pattern { pattern, prefix } => {
            let compiled = Pattern::new(pattern);
            let mut search = Search {
                tree,
                prefix,
                sink,
                matched: false,
            };
            if let Ok(Place {
                path: place,
                kind: Kind::Directory,
            }) = start
            {
                let shown = base.trim_end_matches('/');
                let _ = search.descend(&place, shown, compiled.components());
            }
            if search.matched {
                Ok(())
            } else {
                Err(Missing::Unmatched(pattern.clone()))
            }
        }
    }
}

/// All below the directory `place`, which the task sees at `path`.
fn walk(tree: &Tree, place: &RelPath, path: &str, below: &str, sink: Sink<'_>) -> ControlFlow<()> {
    let join = |start: &str, end: &str| match (start, end) {
        ("", end) => end.to_owned(),
        (start, "") => start.to_owned(),
        (start, end) => format!("{start}/{end}"),
    };
    tree.walk(place, &mut |found| {
        sink(match found {
            Found::File { place, relative } => Item::File {
                place,
                path: join(path, &relative),
                relative: join(below, &relative),
            },
            Found::Directory {
                place,
                relative,
                empty,
            } => Item::Directory {
                place,
                path: join(path, &relative),
                relative: join(below, &relative),
                empty,
            },
            Found::Refused { relative, why } => Item::Refused {
                path: join(path, &relative),
                why,
            },
        })
    })
}

/// The search for all that matches one pattern.
struct Search<'a> {
    tree: &'a Tree,
    prefix: &'a str,
    sink: Sink<'a>,
    matched: bool,
}

impl Search<'_> {
    /// Everything in the directory `place`, which the task sees at `path`, that matches
    /// `components`.
    fn descend(
        &mut self,
        place: &RelPath,
        path: &str,
        components: &[Component],
    ) -> ControlFlow<()> {
        let Some((component, rest)) = components.split_first() else {
            return ControlFlow::Continue(());
        };
        let names = match component.literal() {
            Some(name) => vec![name.into()],
            None => match self.tree.names(place) {
                Ok(names) => names,
                Err(why) => return self.refuse(path.to_owned(), why),
            },
        };
        for name in names {
            if !component.matches(name.as_encoded_bytes()) {
                continue;
            }
            let shown = format!("{path}/{}", name.to_string_lossy());
            if let Err(why) = self.tree.visit() {
                self.refuse(shown, why)?;
                return ControlFlow::Break(());
            }
            let path = shown;
            let found = self.tree.entry(place, &name);
            match found {
                // A literal name need not be there, and only the last one need be collected.
                Err(Obstacle::Missing) => {}
                Ok(Place {
                    kind: Kind::File, ..
                }) if !rest.is_empty() => {}
                Err(Obstacle::Refused(_)) if !rest.is_empty() => {}
                Err(why) => self.refuse(path, why)?,
                Ok(_) if path.len() > MAX_PATH => self.refuse(path, Obstacle::too_long())?,
                Ok(_) if name.to_str().is_none() => {
                    let why = "has a name that is not UTF-8";
                    self.refuse(path, Obstacle::Refused(why.to_owned()))?;
                }
                Ok(found) if rest.is_empty() => self.deliver(found, path)?,
                Ok(directory) => self.descend(&directory.path, &path, rest)?,
            }
        }
        ControlFlow::Continue(())
    }

    fn deliver(&mut self, found: Place, path: String) -> ControlFlow<()> {
        self.matched = true;
        let relative = delivered_name(&path, self.prefix).to_owned();
        match found.kind {
            Kind::Directory => walk(self.tree, &found.path, &path, &relative, self.sink),
            Kind::File => (self.sink)(Item::File {
                place: found.path,
                path,
                relative,
            }),
        }
    }

    fn refuse(&mut self, path: String, why: Obstacle) -> ControlFlow<()> {
        self.matched = true;
        (self.sink)(Item::Refused { path, why })
    }
}
