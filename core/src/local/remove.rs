//! Removing a directory that executors wrote to.

use std::io;
use std::path::{Path, PathBuf};

use tokio::process::Command;

use super::runtime::{EngineKind, Runtime};
use crate::rooted;

/// Removes `path` with all below it; fine if it is not there. Directories that were made
/// unreadable are opened first; what other users own because containers wrote it is removed
/// with the container engine's rights.
pub(super) async fn remove_tree(path: &Path, runtime: &Runtime) -> io::Result<()> {
    let own = PathBuf::from(path);
    let removed = tokio::task::spawn_blocking(move || rooted::remove_tree(&own))
        .await
        .map_err(io::Error::other)?;
    let Err(error) = removed else {
        return Ok(());
    };
    let podman = matches!(runtime, Runtime::Container(engine) if engine.kind == EngineKind::Podman);
    if !podman || error.kind() != io::ErrorKind::PermissionDenied {
        return Err(error);
    }
    // In the name space of rootless podman we are root over the users of its containers.
    let status = Command::new("podman")
        .args(["unshare", "rm", "-rf", "--"])
        .arg(path)
        .status()
        .await?;
    if status.success() { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_tree_of_more_levels_than_a_stack_has_room_for_is_removed() {
        let place = tempfile::tempdir().unwrap();
        let (tree, above) = (place.path().join("tree"), place.path().join("above"));
        fs::create_dir(&tree).unwrap();
        for _ in 0..3000 {
            fs::create_dir(&above).unwrap();
            fs::rename(&tree, above.join("d")).unwrap();
            fs::rename(&above, &tree).unwrap();
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .thread_stack_size(256 << 10)
            .build()
            .unwrap();
        runtime.block_on(async {
            remove_tree(&tree, &Runtime::Host).await.unwrap();
            assert!(!tree.exists());
            remove_tree(&tree, &Runtime::Host).await.unwrap();
        });
    }
}
