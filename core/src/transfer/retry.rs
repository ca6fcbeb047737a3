//! Trying again, and knowing when to stop.

use std::sync::Arc;
use std::time::Duration;

use super::{Engine, Settings};
use crate::storage::turns::Turns;
use crate::storage::{Error, ErrorKind, Result, StorageUrl, wait_for_turn};

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
        // A reading waits inside of the write that it feeds, which must not be taken for dead.
        wait_for_turn(tokio::time::sleep(wait)).await;
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

impl Engine {
    /// Runs `operation`, which moves no content, at the host of `url` until it succeeds or its
    /// retries are used up. A single try may take as long as the progress timeout. Its turn may
    /// take longer to come: those before it are watched by themselves.
    pub(super) async fn request<T, F: Future<Output = Result<T>>>(
        &self,
        url: &StorageUrl,
        mut operation: impl FnMut() -> F,
    ) -> Result<T> {
        let mut retry = Retry::new(&self.settings);
        loop {
            let permit = self.limits.stream(&[url]).await;
            let done = in_time(&self.settings, url, operation()).await;
            drop(permit);
            match done {
                Ok(done) => return Ok(done),
                Err(error) => retry.after(error).await?,
            }
        }
    }
}

/// One try of an operation that moves no content: its errors scrubbed, its time limited.
pub(super) async fn in_time<T>(
    settings: &Settings,
    url: &StorageUrl,
    operation: impl Future<Output = Result<T>>,
) -> Result<T> {
    let limit = || settings.progress_timeout();
    watched(&Turns::current(), url, limit, || 0, operation).await
}

/// Runs `operation` as long as within `limit` its `life` grows, or it waits for its turn. Its
/// errors are scrubbed.
pub(super) async fn watched<T>(
    turns: &Arc<Turns>,
    url: &StorageUrl,
    limit: impl Fn() -> Duration,
    life: impl Fn() -> u64,
    operation: impl Future<Output = Result<T>>,
) -> Result<T> {
    let mut operation = std::pin::pin!(turns.of(operation));
    loop {
        let (before, limit) = (life() + turns.over(), limit());
        match tokio::time::timeout(limit, &mut operation).await {
            Ok(done) => return done.map_err(|error| error.scrubbed(url)),
            Err(_) if turns.are_waited_for() || life() + turns.over() > before => {}
            Err(_) => {
                let message = format!("nothing moved for {} s", limit.as_secs());
                return Err(Error::new(ErrorKind::Unavailable, url, message));
            }
        }
    }
}
