//! Before the first executor: directories, placeholders and inputs.

use std::collections::HashSet;
use std::io::{self, Write};
use std::sync::Arc;

use futures_util::{TryStreamExt, stream};

use super::Failure;
use crate::plan::{InputSource, Mount, MountKind, Plan, PlannedInput};
use crate::rooted::{RelPath, Root};
use crate::storage::{LocalPath, StorageUrl};
use crate::tes::FileType;
use crate::transfer::{Engine, FETCHED_MODE};

/// For whatever user an image has.
const ANYBODY: u32 = FETCHED_MODE;
/// As programs expect it of `/tmp`.
const ANYBODY_STICKY: u32 = 0o1777;
/// Inputs on their way at once. What really runs in parallel the engine's own limits decide.
const PARALLEL: usize = 32;

/// Makes the plan's directories in scratch, and placeholders for its single-file mounts and for
/// files that are mounted over scratch, all usable by any user.
pub fn prepare(plan: &Plan, scratch: &Root) -> Result<(), Failure> {
    for directory in &plan.directories {
        make_directory(scratch, directory)?;
    }
    for mount in &plan.mounts {
        match mount.kind {
            MountKind::Directory => make_directory(scratch, &mount.path)?,
            MountKind::File => make_placeholder(scratch, &mount.path)?,
        }
    }
    for input in plan.inputs.iter().filter(|input| input.mounted.is_some()) {
        match input.kind {
            FileType::Directory => make_directory(scratch, &input.path)?,
            FileType::File => make_placeholder(scratch, &input.path)?,
        }
    }
    Ok(())
}

fn make_directory(scratch: &Root, directory: &str) -> Result<(), Failure> {
    let mode = if directory == "/tmp" {
        ANYBODY_STICKY
    } else {
        ANYBODY
    };
    let path = relative(directory)?;
    scratch
        .create_dir_all(&path, ANYBODY)
        .and_then(|()| scratch.set_mode(&path, mode))
        .map_err(|error| cannot_make(directory, &error))
}

fn make_placeholder(scratch: &Root, file: &str) -> Result<(), Failure> {
    let path = relative(file)?;
    scratch
        .create_dir_all(&path.parent().unwrap_or_default(), ANYBODY)
        .and_then(|()| scratch.create_file(&path, ANYBODY))
        .map(drop)
        .map_err(|error| cannot_make(file, &error))
}

fn cannot_make(path: &str, error: &io::Error) -> Failure {
    Failure::of_scratch(&format!("cannot make {path} in scratch"), error)
}

fn relative(path: &str) -> Result<RelPath, Failure> {
    RelPath::new(path)
        .ok_or_else(|| Failure::definite(format!("the plan has the unusable path {path:?}")))
}

/// Puts every input in place that is not mounted, in parallel where order does not matter. The
/// first failure ends the rest.
///
/// What is in place is the task's own copy, for any user to read, change and execute.
pub async fn inputs(plan: &Plan, scratch: &Arc<Root>, engine: &Engine) -> Result<(), Failure> {
    let mut rest = plan.inputs.as_slice();
    while !rest.is_empty() {
        let (wave, after) = rest.split_at(independent(rest));
        stream::iter(wave.iter().map(Ok))
            .map_ok(|input| place(input, &plan.mounts, scratch, engine))
            .try_buffer_unordered(PARALLEL)
            .try_collect::<()>()
            .await?;
        rest = after;
    }
    Ok(())
}

/// How many of the first inputs do not touch each other: none is at, above or below another.
pub(super) fn independent(inputs: &[PlannedInput]) -> usize {
    let mut taken: HashSet<&str> = HashSet::new();
    let mut above: HashSet<&str> = HashSet::new();
    for (count, input) in inputs.iter().enumerate() {
        let path = input.path.as_str();
        let parents = path.match_indices('/').map(|(at, _)| &path[..at]);
        let touches = taken.contains(path)
            || above.contains(path)
            || parents.clone().any(|parent| taken.contains(parent));
        if touches {
            return count;
        }
        taken.insert(path);
        above.extend(parents);
    }
    inputs.len()
}

async fn place(
    input: &PlannedInput,
    mounts: &[Mount],
    scratch: &Arc<Root>,
    engine: &Engine,
) -> Result<(), Failure> {
    if input.mounted.is_some() {
        return Ok(());
    }
    let what = format!("inputs[{}] ({})", input.index, input.path);
    let to = LocalPath {
        root: scratch.clone(),
        path: relative(&input.path)?,
    };
    match &input.from {
        InputSource::Content(content) => {
            let content = content.clone();
            blocking(&what, move || {
                to.root
                    .create_dir_all(&to.path.parent().unwrap_or_default(), ANYBODY)?;
                to.root
                    .create_file(&to.path, ANYBODY)?
                    .write_all(content.as_bytes())
            })
            .await?;
        }
        InputSource::Url(url) => {
            let url: StorageUrl = url
                .parse()
                .map_err(|error| Failure::definite(format!("{what}: its url {error}")))?;
            let failed = |error| Failure::of_storage(&what, &error);
            match input.kind {
                FileType::File => {
                    // A rename would leave the old file mounted.
                    let in_place = mounts
                        .iter()
                        .any(|m| m.kind == MountKind::File && m.path == input.path);
                    engine
                        .fetch_file(&url, &to, in_place)
                        .await
                        .map_err(failed)?;
                }
                FileType::Directory => {
                    engine.fetch_directory(&url, &to).await.map_err(failed)?;
                }
            }
        }
    }
    Ok(())
}

async fn blocking(
    what: &str,
    work: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Result<(), Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| Failure::of_scratch(what, &error)),
        Err(error) => Err(Failure::definite(format!("{what}: {error}"))),
    }
}
