//! Inputs that executors see where they are, instead of a copy.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use super::Failure;
use crate::plan::{InputSource, Plan};
use crate::rooted::{RelPath, Root, Symlinks};
use crate::storage::{Registry, StorageUrl};
use crate::tes::FileType;

/// Whether every input that is to be mounted can be: it is what its storage has at its URL, of
/// the declared type, without any symlink, and readable for any user, as a copy would be.
///
/// Only what this machine can read itself is looked for, so that no user of an image gets to
/// see more by a mount than by a copy. Any failure may be one that a copy does not have.
pub fn check_mounted(plan: &Plan, registry: &Registry) -> Result<(), Failure> {
    for input in &plan.inputs {
        let (Some(at), InputSource::Url(url)) = (&input.mounted, &input.from) else {
            continue;
        };
        check(at, url, input.kind, registry).map_err(|why| Failure {
            message: format!(
                "inputs[{}] ({}) cannot be mounted: {why}",
                input.index, input.path
            ),
            retryable: true,
        })?;
    }
    Ok(())
}

fn check(at: &str, url: &str, kind: FileType, registry: &Registry) -> Result<(), String> {
    let url: StorageUrl = url.parse().map_err(|error| format!("its url {error}"))?;
    let storage = registry.route(&url).map_err(|error| error.to_string())?;
    let lies = storage.local_path(&url);
    let lies = lies.map(|local| local.root.path().join(local.path.as_path()));
    if lies.as_deref() != Some(Path::new(at)) {
        return Err(format!("its storage does not have {url} in the mount"));
    }
    let failed = |error: std::io::Error| format!("{url}: {error}");
    let root = Arc::new(Root::open("/", Symlinks::Refused).map_err(failed)?);
    let path = RelPath::new(at).ok_or("it has an unusable path")?;
    match kind {
        FileType::File => {
            let file = root.open_file(&path).map_err(failed)?;
            check_mode(&file.metadata().map_err(failed)?)
        }
        FileType::Directory => {
            check_mode(&root.metadata(&path).map_err(failed)?).and_then(|()| walk(&root, &path))
        }
    }
    .map_err(|why| format!("{url}: {why}"))
}

fn walk(root: &Arc<Root>, path: &RelPath) -> Result<(), String> {
    for found in root.walk(path).map_err(|error| error.to_string())? {
        let found = found.map_err(|error| error.to_string())?;
        check_mode(&found.metadata).map_err(|why| format!("{}: {why}", found.path))?;
    }
    Ok(())
}

fn check_mode(found: &Metadata) -> Result<(), String> {
    let wanted = if found.is_dir() {
        0o005
    } else if found.is_file() {
        0o004
    } else {
        return Err("is neither a file nor a directory".into());
    };
    if found.mode() & wanted == wanted {
        Ok(())
    } else {
        Err("is not readable for every user".into())
    }
}
