//! Who schedules where several engines share a store, and for how long it may act.
//!
//! A [`Term`] is the time for which an engine knows that no other schedules. It ends by itself
//! unless it is extended. [`During`] is a store or compute side that acts in its term only: what
//! the scheduler has begun fails when the term is over, and nothing is begun after it.
//!
//! What a stalled process still sends when it wakes up is harmless for other reasons: updates of
//! records compare versions, attempts have names, and what may run of them is in the record.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use tokio::sync::watch;
use tokio::time::Instant;

use super::compute::{AttemptId, Compute, ComputeError, Observed, Output, Refusal};
use super::record::{Head, Record, TaskId};
use super::store::{Created, NewTask, Page, Query, RawRecord, StoreError, TaskStore, Update};
use crate::plan::Plan;
use crate::tes::State;
use crate::time::Timestamp;

/// Decides which of several engines schedules.
#[async_trait]
pub trait Election: fmt::Debug + Send + Sync + 'static {
    /// Waits until this engine is elected. There is no other whose term is not over.
    async fn elected(&self) -> Term;

    /// Gives up the office and does not stand again: another can be elected at once.
    async fn resign(&self);
}

/// The time during which an engine may act. Clones are the same term.
#[derive(Clone, Debug)]
pub struct Term(watch::Receiver<Option<Instant>>);

/// Extends a term. Dropping it ends the term.
#[derive(Debug)]
pub struct Office(watch::Sender<Option<Instant>>);

/// The term is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this server does not schedule any more")]
pub struct Over;

impl Office {
    /// A term that ends at `end`.
    pub fn take(end: Instant) -> (Self, Term) {
        let (sender, receiver) = watch::channel(Some(end));
        (Self(sender), Term(receiver))
    }

    /// Moves the end. A term that is over stays so.
    pub fn extend(&self, end: Instant) -> Result<(), Over> {
        let extended = self.0.send_if_modified(|until| match until {
            Some(present) if *present > Instant::now() => {
                *until = Some(end);
                true
            }
            _ => false,
        });
        if extended { Ok(()) } else { Err(Over) }
    }

    /// When the term ends as things are.
    pub fn end(&self) -> Instant {
        self.0.borrow().unwrap_or_else(Instant::now)
    }
}

impl Drop for Office {
    fn drop(&mut self) {
        self.0.send_replace(None);
    }
}

impl Term {
    /// Whether it is not over.
    pub fn holds(&self) -> bool {
        self.0.borrow().is_some_and(|end| end > Instant::now())
    }

    /// Waits for the end.
    pub async fn over(&self) {
        let mut ends = self.0.clone();
        loop {
            let Some(end) = *ends.borrow_and_update() else {
                return;
            };
            if end <= Instant::now() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep_until(end) => {}
                changed = ends.changed() => if changed.is_err() {
                    return;
                },
            }
        }
    }

    /// Works as long as the term lasts. The clock is looked at before each step of the work: a
    /// process that was stopped takes none after its term, whatever it was about to do.
    pub async fn within<T>(&self, work: impl Future<Output = T>) -> Result<T, Over> {
        let (mut work, mut over) = (pin!(work), pin!(self.over()));
        std::future::poll_fn(|context| {
            if !self.holds() || over.as_mut().poll(context).is_ready() {
                return std::task::Poll::Ready(Err(Over));
            }
            work.as_mut().poll(context).map(Ok)
        })
        .await
    }
}

/// What a store says that is asked for more after the term.
fn unavailable(over: Over) -> StoreError {
    StoreError::Unavailable(over.to_string())
}

impl From<Over> for ComputeError {
    fn from(over: Over) -> Self {
        Self(over.to_string())
    }
}

/// A store or a compute side whose changes are confined to a term. Records are read as ever.
#[derive(Debug)]
pub(super) struct During<T: ?Sized> {
    inner: Arc<T>,
    term: Term,
}

impl<T: ?Sized> During<T> {
    pub(super) fn new(inner: &Arc<T>, term: &Term) -> Arc<Self> {
        Arc::new(Self {
            inner: Arc::clone(inner),
            term: term.clone(),
        })
    }
}

#[async_trait]
impl TaskStore for During<dyn TaskStore> {
    async fn create(&self, task: NewTask) -> Result<Created, StoreError> {
        let created = self.term.within(self.inner.create(task)).await;
        created.map_err(unavailable)?
    }

    async fn head(&self, id: &TaskId) -> Result<Option<Head>, StoreError> {
        self.inner.head(id).await
    }

    async fn head_now(&self, id: &TaskId) -> Result<Option<Head>, StoreError> {
        self.inner.head_now(id).await
    }

    async fn get(&self, id: &TaskId) -> Result<Option<Record>, StoreError> {
        self.inner.get(id).await
    }

    async fn get_with_secrets(&self, id: &TaskId) -> Result<Option<Record>, StoreError> {
        self.inner.get_with_secrets(id).await
    }

    async fn get_raw(&self, id: &TaskId) -> Result<Option<RawRecord>, StoreError> {
        self.inner.get_raw(id).await
    }

    async fn list(&self, query: &Query) -> Result<Page, StoreError> {
        self.inner.list(query).await
    }

    async fn update(&self, id: &TaskId, expected: u64, update: Update) -> Result<Head, StoreError> {
        let updated = self.inner.update(id, expected, update);
        self.term.within(updated).await.map_err(unavailable)?
    }

    async fn sweep(&self, before: Timestamp, limit: usize) -> Result<Vec<TaskId>, StoreError> {
        let swept = self.term.within(self.inner.sweep(before, limit)).await;
        swept.map_err(unavailable)?
    }

    async fn watch(&self) -> Result<BoxStream<'static, Head>, StoreError> {
        self.inner.watch().await
    }

    fn weight(&self, id: &TaskId) -> usize {
        self.inner.weight(id)
    }

    async fn counts(&self) -> Result<Vec<(State, u64)>, StoreError> {
        self.inner.counts().await
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.inner.check().await
    }

    fn stale(&self) -> Option<Duration> {
        self.inner.stale()
    }
}

#[async_trait]
impl Compute for During<dyn Compute> {
    async fn submit(&self, attempt: &AttemptId, plan: &Plan) -> Result<(), Refusal> {
        let submitted = self.term.within(self.inner.submit(attempt, plan)).await;
        submitted.map_err(ComputeError::from)?
    }

    async fn observe(&self, attempt: &AttemptId) -> Result<Observed, ComputeError> {
        self.term.within(self.inner.observe(attempt)).await?
    }

    async fn watch(&self) -> Result<BoxStream<'static, AttemptId>, ComputeError> {
        self.inner.watch().await
    }

    async fn cancel(&self, attempt: &AttemptId, grace: Duration) -> Result<(), ComputeError> {
        self.term.within(self.inner.cancel(attempt, grace)).await?
    }

    async fn remove(&self, attempt: &AttemptId) -> Result<(), ComputeError> {
        self.term.within(self.inner.remove(attempt)).await?
    }

    async fn attempts(&self) -> Result<Vec<AttemptId>, ComputeError> {
        self.inner.attempts().await
    }

    async fn output(
        &self,
        attempt: &AttemptId,
        executor: usize,
    ) -> Result<Option<Output>, ComputeError> {
        self.inner.output(attempt, executor).await
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn work_ends_with_the_term_and_a_term_is_extended_only_while_it_lasts() {
        let (office, term) = Office::take(Instant::now() + SECOND);
        assert_eq!(term.within(async { 7 }).await, Ok(7));
        office.extend(Instant::now() + 3 * SECOND).unwrap();
        let long = term.within(tokio::time::sleep(2 * SECOND)).await;
        assert_eq!(long, Ok(()), "it was extended");
        let begun = Instant::now();
        let long = term.within(tokio::time::sleep(2 * SECOND)).await;
        assert_eq!((long, begun.elapsed()), (Err(Over), SECOND));
        assert_eq!(office.extend(Instant::now() + SECOND), Err(Over));
        assert!(!term.holds());
    }

    #[tokio::test(start_paused = true)]
    async fn an_office_that_is_dropped_ends_its_term_at_once() {
        let (office, term) = Office::take(Instant::now() + SECOND);
        let worker = term.clone();
        let work = tokio::spawn(async move { worker.within(std::future::pending::<()>()).await });
        tokio::task::yield_now().await;
        let begun = Instant::now();
        drop(office);
        assert_eq!(work.await.unwrap(), Err(Over));
        assert!(begun.elapsed() < SECOND && !term.holds());
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_was_stopped_takes_no_step_after_its_term() {
        let (_office, term) = Office::take(Instant::now() + SECOND);
        let sent = Cell::new(false);
        let mut stopped = false;
        // Ready to go on at once, but the clock has moved before it is asked.
        let work = std::future::poll_fn(|context| {
            if stopped {
                sent.set(true);
                return std::task::Poll::Ready(());
            }
            stopped = true;
            context.waker().wake_by_ref();
            std::task::Poll::Pending
        });
        let mut work = pin!(term.within(work));
        assert!(futures_util::poll!(work.as_mut()).is_pending());
        tokio::time::advance(2 * SECOND).await;
        assert_eq!(work.await, Err(Over));
        assert!(!sent.get());
    }
}
