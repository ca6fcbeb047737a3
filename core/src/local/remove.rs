//! Removing a directory that executors wrote to.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tokio::process::Command;

use super::runtime::{EngineKind, Runtime};

/// Removes `path` with all below it; fine if it is not there. Directories that were made
/// unreadable are opened first; what other users own because containers wrote it is removed
/// with the container engine's rights.
pub(super) async fn remove_tree(path: &Path, runtime: &Runtime) -> io::Result<()> {
    let own = PathBuf::from(path);
    let removed = tokio::task::spawn_blocking(move || remove(&own))
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

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            open_directories(path);
            fs::remove_dir_all(path)
        }
        other => other,
    }
}

/// Makes every directory below `path` writable, as far as it is ours. Symlinks are not followed.
fn open_directories(path: &Path) {
    let mut waiting = vec![path.to_owned()];
    while let Some(directory) = waiting.pop() {
        let _ = fs::set_permissions(&directory, fs::Permissions::from_mode(0o700));
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                waiting.push(entry.path());
            }
        }
    }
}
