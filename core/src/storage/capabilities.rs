//! What a plugin can do. Denied by default.

use serde::Serialize;

/// What a storage plugin claims; the default claims nothing but `stat` and `read`.
///
/// The conformance suite checks both directions: a claimed capability works, an unclaimed one
/// is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Capabilities {
    /// Directories can be listed.
    pub list: bool,
    /// Files can be written.
    pub write: bool,
    /// A failed write leaves what was there before, and a running one is not visible.
    pub atomic_write: bool,
    /// A read can begin and end anywhere ([`ByteRange`](super::ByteRange)).
    pub ranges: bool,
    /// Uploads can be driven part by part.
    pub parts: bool,
    /// Empty directories exist and can be made.
    pub directories: bool,
    /// Files can be renamed over existing ones.
    pub rename: bool,
    /// Files and empty directories can be removed.
    pub remove: bool,
    /// Unix permission bits survive a round trip.
    pub modes: bool,
    /// The largest file, in bytes; `None` is no limit.
    pub max_file_size: Option<u64>,
}

impl Capabilities {
    /// Claims nothing but `stat` and `read`; set fields from here.
    pub const fn read_only() -> Self {
        Self {
            list: false,
            write: false,
            atomic_write: false,
            ranges: false,
            parts: false,
            directories: false,
            rename: false,
            remove: false,
            modes: false,
            max_file_size: None,
        }
    }
}
