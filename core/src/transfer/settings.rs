//! The `[transfer]` section of the configuration.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How transfers behave. The defaults keep 64 MiB of buffers whatever the size of the files.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Files moved at the same time. Default 16.
    pub parallel_files: usize,
    /// Ranges or parts of one large file moved at the same time, where the storage can. Default 4.
    pub parallel_ranges: usize,
    /// The size of such a range in MiB; a file of less than two is moved in one stream.
    /// Default 32. Parts of an upload have the size that the storage chooses.
    pub range_mib: u64,
    /// Memory for buffers of all transfers together, in MiB. A stream takes 4, an upload in
    /// parts one part each; who finds none waits. Default 64.
    pub buffer_mib: u32,
    /// Connections to one host at the same time. Default 16.
    pub per_host: usize,
    /// How often an operation is tried again that failed for a cause that may pass. A stream
    /// that got on by 1 MiB or more starts counting anew. Default 5.
    pub retries: u32,
    /// The wait before the first retry, in milliseconds; it doubles each time. The real wait is
    /// drawn between half of it and the whole. Default 500.
    pub retry_base_ms: u64,
    /// The longest such wait, in milliseconds. Default 30000. A server that asks for more gets
    /// up to 10 minutes.
    pub retry_max_ms: u64,
    /// A transfer of which no byte moves for this many seconds has failed, and is tried again.
    /// Default 60.
    pub progress_timeout_secs: u64,
    /// How long a server may take, after the last byte of an upload, to say that it has it all,
    /// in seconds. Default 600.
    pub commit_timeout_secs: u64,
    /// Whether content is compared with the checksum that the storage tells, where it tells one.
    /// Sizes are always compared. Default true.
    pub verify: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            parallel_files: 16,
            parallel_ranges: 4,
            range_mib: 32,
            buffer_mib: 64,
            per_host: 16,
            retries: 5,
            retry_base_ms: 500,
            retry_max_ms: 30_000,
            progress_timeout_secs: 60,
            commit_timeout_secs: 600,
            verify: true,
        }
    }
}

impl Settings {
    pub(super) fn range_size(&self) -> u64 {
        self.range_mib.max(1) << 20
    }

    pub(super) fn progress_timeout(&self) -> Duration {
        Duration::from_secs(self.progress_timeout_secs.max(1))
    }

    pub(super) fn commit_timeout(&self) -> Duration {
        Duration::from_secs(self.commit_timeout_secs).max(self.progress_timeout())
    }
}
