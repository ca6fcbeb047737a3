//! How what is fetched comes to its place.

use std::sync::OnceLock;

use super::FETCHED_MODE;

/// How a file or directory comes to its place, and with which mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placing {
    /// As a task's own copy: with [`FETCHED_MODE`], in place of what was there.
    Staged,
    /// The same, but a file keeps its inode and mode: it is mounted somewhere.
    InPlace,
    /// As programs make files: with the mode that the storage tells, less what the umask takes.
    Copied,
    /// For this process only, and only for a while.
    Kept,
}

impl Placing {
    /// The mode of a file of which the storage tells `told`.
    pub(super) fn file_mode(self, told: Option<u32>) -> u32 {
        match self {
            Self::Staged | Self::InPlace => FETCHED_MODE,
            // Nobody's file becomes one that runs as the person who copies it.
            Self::Copied => told.unwrap_or(0o666) & 0o777 & !umask(),
            Self::Kept => 0o600,
        }
    }

    /// The mode of a new directory.
    pub(super) fn directory_mode(self) -> u32 {
        match self {
            Self::Staged | Self::InPlace => FETCHED_MODE,
            Self::Copied => 0o777 & !umask(),
            Self::Kept => 0o700,
        }
    }
}

/// What this process takes from the modes of new files. `umask(2)` tells it only by changing it, for
/// all threads; where the kernel's report is not to be had, files are the owner's alone.
fn umask() -> u32 {
    static UMASK: OnceLock<u32> = OnceLock::new();
    *UMASK.get_or_init(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let told = status.lines().find_map(|line| line.strip_prefix("Umask:"));
        told.and_then(|told| u32::from_str_radix(told.trim(), 8).ok())
            .unwrap_or(0o077)
    })
}
