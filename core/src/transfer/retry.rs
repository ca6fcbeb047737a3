//! Trying again, and knowing when to stop.

use std::sync::Arc;
use std::time::Duration;

use super::Settings;
use crate::storage::{Error, ErrorKind, Result, StorageUrl};

/// The longest wait that a server may ask for; one that asks for more is given up on.
const LONGEST_ASKED: Duration = Duration::from_mins(10);

/// The retries of one operation.
#[derive(Debug)]
pub(super) struct Retry {
    settings: Arc<Settings>,
    failures: u32,
}

impl Retry {
    pub(super) fn new(settings: &Arc<Settings>) -> Self {
        Self {
            settings: settings.clone(),
            failures: 0,
        }
    }

    /// Waits before the next try, or gives the error back when there is none.
    pub(super) async fn after(&mut self, error: Error) -> Result<()> {
        if !error.is_retryable() || error.is_exhausted() {
            return Err(error);
        }
        self.failures += 1;
        let asked = error.retry_after().unwrap_or_default();
        if self.failures > self.settings.retries || asked > LONGEST_ASKED {
            return Err(error.exhausted_after(self.failures));
        }
        let wait = asked.max(self.backoff());
        tracing::warn!(%error, attempt = self.failures, ?wait, "trying again");
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// What was tried got on: failures from now on are counted anew.
    pub(super) fn progressed(&mut self) {
        self.failures = 0;
    }

    fn backoff(&self) -> Duration {
        let doubled = 1_u64 << (self.failures - 1).min(20);
        let whole = self.settings.retry_base_ms.saturating_mul(doubled);
        let whole = whole.min(self.settings.retry_max_ms);
        Duration::from_millis(rand::random_range(whole / 2..=whole))
    }
}

/// Runs `operation` until it succeeds or its retries are used up. A single try may take as long
/// as the progress timeout.
pub(super) async fn with_retries<T, F: Future<Output = Result<T>>>(
    settings: &Arc<Settings>,
    url: &StorageUrl,
    mut operation: impl FnMut() -> F,
) -> Result<T> {
    let mut retry = Retry::new(settings);
    loop {
        match in_time(settings, url, operation()).await {
            Ok(done) => return Ok(done),
            Err(error) => retry.after(error).await?,
        }
    }
}

/// One try of an operation that moves no content: its errors scrubbed, its time limited.
pub(super) async fn in_time<T>(
    settings: &Settings,
    url: &StorageUrl,
    operation: impl Future<Output = Result<T>>,
) -> Result<T> {
    match tokio::time::timeout(settings.progress_timeout(), operation).await {
        Ok(done) => done.map_err(|error| error.scrubbed(url)),
        Err(_) => Err(stalled(settings.progress_timeout(), url)),
    }
}

pub(super) fn stalled(after: Duration, url: &StorageUrl) -> Error {
    let message = format!("nothing moved for {} s", after.as_secs());
    Error::new(ErrorKind::Unavailable, url, message)
}
