//! What transfers share: files, memory and connections at the same time.
//!
//! Whoever needs several kinds takes them in this order, so that nobody waits for somebody who
//! waits for them: a file, then memory, then connections in the order of the hosts' names.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit as Permit, Semaphore};

use super::Settings;
use crate::storage::StorageUrl;

/// What one stream may hold in memory, in MiB: a batch that is collected, one that is written,
/// and what the network has buffered.
pub const STREAM_MIB: u32 = 4;

#[derive(Debug)]
pub(super) struct Limits {
    files: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    memory_mib: u32,
    per_host: usize,
    hosts: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// Held while a stream is open.
#[derive(Debug)]
pub(super) struct StreamPermit {
    _memory: Permit,
    _hosts: Vec<Permit>,
}

impl Limits {
    pub(super) fn new(settings: &Settings) -> Self {
        let memory_mib = settings.buffer_mib.max(STREAM_MIB);
        Self {
            files: Arc::new(Semaphore::new(settings.parallel_files.max(1))),
            memory: Arc::new(Semaphore::new(memory_mib as usize)),
            memory_mib,
            per_host: settings.per_host.max(1),
            hosts: Mutex::default(),
        }
    }

    pub(super) async fn file(&self) -> Permit {
        acquire(&self.files, 1).await
    }

    /// For a stream that touches the hosts of `urls`.
    pub(super) async fn stream(&self, urls: &[&StorageUrl]) -> StreamPermit {
        self.buffered(urls, 0).await
    }

    /// The same for one that holds `bytes` of its own in memory.
    pub(super) async fn buffered(&self, urls: &[&StorageUrl], bytes: u64) -> StreamPermit {
        let mib = u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX);
        // More than there is at all would wait for ever: such a one runs alone.
        let mib = mib.max(STREAM_MIB).min(self.memory_mib);
        let memory = acquire(&self.memory, mib).await;
        let mut hosts: Vec<_> = urls
            .iter()
            .filter(|url| !url.host().is_empty())
            .map(|url| format!("{}://{}", url.scheme(), url.host().to_ascii_lowercase()))
            .collect();
        hosts.sort();
        hosts.dedup();
        let mut permits = Vec::with_capacity(hosts.len());
        for host in hosts {
            let host = {
                let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
                let new = || Arc::new(Semaphore::new(self.per_host));
                hosts.entry(host).or_insert_with(new).clone()
            };
            permits.push(acquire(&host, 1).await);
        }
        StreamPermit {
            _memory: memory,
            _hosts: permits,
        }
    }
}

async fn acquire(semaphore: &Arc<Semaphore>, count: u32) -> Permit {
    let permit = semaphore.clone().acquire_many_owned(count).await;
    permit.expect("no semaphore here is ever closed")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn waits<T>(permit: impl Future<Output = T>) -> bool {
        let wait = Duration::from_millis(20);
        tokio::time::timeout(wait, permit).await.is_err()
    }

    fn limits(buffer_mib: u32, per_host: usize) -> Limits {
        Limits::new(&Settings {
            buffer_mib,
            per_host,
            ..Settings::default()
        })
    }

    #[tokio::test]
    async fn a_host_has_its_own_limit_in_any_spelling() {
        let limits = limits(1000, 2);
        let host = "ftp://Host/a".parse().unwrap();
        let same = "ftp://me@host/b".parse().unwrap();
        let other = "ftp://other/a".parse().unwrap();
        let first = limits.stream(&[&host]).await;
        let _second = limits.stream(&[&same, &host]).await;
        assert!(waits(limits.stream(&[&host])).await);
        assert!(!waits(limits.stream(&[&other])).await);
        drop(first);
        assert!(!waits(limits.stream(&[&host])).await);
    }

    #[tokio::test]
    async fn memory_is_shared_and_who_wants_more_than_all_runs_alone() {
        let limits = limits(16, 100);
        let streams = [limits.stream(&[]).await, limits.stream(&[]).await];
        assert!(waits(limits.buffered(&[], 1 << 40)).await);
        assert!(!waits(limits.buffered(&[], 8 << 20)).await);
        drop(streams);
        let _all = limits.buffered(&[], 1 << 40).await;
        assert!(waits(limits.stream(&[])).await);
    }
}
