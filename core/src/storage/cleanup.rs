//! What goes on when nobody waits for it any more: a write that was dropped is removed from its
//! server by a task of its own, and a program must not end before.

use std::fmt;
use std::sync::LazyLock;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

/// How long a program waits at its end. Shorter than a pod has to end with the usual grace; where
/// it is killed before, no more is lost than what is left behind then.
const PATIENCE: Duration = Duration::from_secs(10);
/// How late a server may still begin what was dropped before it had an answer.
const LATE: Duration = Duration::from_secs(1);

static TRACKED: LazyLock<TaskTracker> = LazyLock::new(|| {
    let tracker = TaskTracker::new();
    // It can be waited for at any time.
    tracker.close();
    tracker
});

/// Removes what is half-done unless it is kept: when this is dropped, by a task of its own.
pub struct Undo {
    work: Option<BoxFuture<'static, ()>>,
    late: Option<BoxFuture<'static, ()>>,
}

impl Undo {
    /// `work` is what removes it. It has to log its errors, as nobody else hears of them.
    pub fn new(work: impl Future<Output = ()> + Send + 'static) -> Self {
        Self {
            work: Some(Box::pin(work)),
            late: None,
        }
    }

    /// With the same work to be done again one second after that of a drop: the server may have
    /// come to the request that was dropped only after the one that removes what it began.
    #[must_use]
    pub fn and_late(mut self, again: impl Future<Output = ()> + Send + 'static) -> Self {
        self.late = Some(Box::pin(again));
        self
    }

    /// It is done, or gone already.
    pub fn keep(mut self) {
        self.work = None;
    }

    /// Keeps what is `done`; removes it after an error, and waits for that. If nobody waits for
    /// this any more, the rest of the work is done as after a drop.
    pub async fn unless_ok<T, E>(mut self, done: Result<T, E>) -> Result<T, E> {
        if let (Err(_), Some(work)) = (&done, &mut self.work) {
            work.await;
        }
        self.keep();
        done
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        let Some(work) = self.work.take() else {
            return;
        };
        let late = self.late.take();
        spawn(async move {
            work.await;
            if let Some(late) = late {
                tokio::time::sleep(LATE).await;
                late.await;
            }
        });
    }
}

impl fmt::Debug for Undo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Undo").finish_non_exhaustive()
    }
}

/// Runs `work`, which removes what is half-done, on the runtime that this is called in; outside of
/// one it is dropped.
fn spawn(work: impl Future<Output = ()> + Send + 'static) {
    if let Ok(runtime) = Handle::try_current() {
        runtime.spawn(track(work));
    }
}

/// The same `work`, for which [`finish`] waits, until it is done or dropped: a task that outlives
/// who waits for it, or that has an [`Undo`]. What it gives is dropped after that, if nobody takes
/// it: a task whose output has an [`Undo`] has to send it instead.
pub fn track<T>(work: impl Future<Output = T>) -> impl Future<Output = T> {
    TRACKED.track_future(work)
}

/// Waits for all that is tracked in this process, 10 seconds at most. A program that moves files
/// calls it when it has dropped what it does not wait for, before it ends its runtime.
pub async fn finish() {
    if tokio::time::timeout(PATIENCE, TRACKED.wait())
        .await
        .is_err()
    {
        tracing::warn!("something half-written may be left behind: its server takes too long");
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;

    /// Work that takes a while, and tells that it is done.
    fn undo() -> (Undo, UnboundedReceiver<()>) {
        let (tell, told) = unbounded_channel();
        let work = async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let _ = tell.send(());
        };
        (Undo::new(work), told)
    }

    #[tokio::test]
    async fn what_the_drop_of_an_aborted_task_begins_is_waited_for() {
        let (undo, mut told) = undo();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(track(async move {
            let _undo = undo;
            std::future::pending::<()>().await;
        }));
        tokio::task::yield_now().await;
        drop(tasks);
        finish().await;
        assert_eq!(told.try_recv(), Ok(()));
    }

    #[tokio::test]
    async fn what_is_kept_is_not_removed() {
        let (kept, mut told) = undo();
        kept.keep();
        assert_eq!(told.recv().await, None);
        let (done, mut told) = undo();
        assert_eq!(done.unless_ok(Ok::<_, ()>(1)).await, Ok(1));
        assert_eq!(told.recv().await, None);
    }

    #[tokio::test]
    async fn what_failed_is_removed_before_its_error_is_told() {
        let (undo, mut told) = undo();
        assert_eq!(undo.unless_ok(Err::<(), _>(2)).await, Err(2));
        assert_eq!(told.try_recv(), Ok(()));
        // Once.
        assert_eq!(told.recv().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_dropped_is_removed_once_more_and_what_failed_is_not() {
        for is_dropped in [true, false] {
            let (tell, mut told) = unbounded_channel();
            let say = |word: &'static str| {
                let tell = tell.clone();
                async move {
                    let _ = tell.send(word);
                }
            };
            let undo = Undo::new(say("now")).and_late(say("late"));
            drop(tell);
            if is_dropped {
                drop(undo);
            } else {
                undo.unless_ok(Err::<(), _>(())).await.unwrap_err();
            }
            assert_eq!(told.recv().await, Some("now"));
            assert_eq!(told.recv().await, is_dropped.then_some("late"));
        }
    }

    #[tokio::test]
    async fn a_removal_that_nobody_waits_for_any_more_goes_on() {
        let (undo, mut told) = undo();
        let mut removing = Box::pin(undo.unless_ok(Err::<(), _>(())));
        assert!(futures_util::poll!(&mut removing).is_pending());
        drop(removing);
        assert_eq!(told.recv().await, Some(()));
    }

    #[test]
    fn without_a_runtime_nothing_happens() {
        let (undo, mut told) = undo();
        drop(undo);
        assert!(told.blocking_recv().is_none());
    }
}
