//! What goes on when nobody waits for it any more: a write that was dropped is removed from its
//! server by a task of its own, and a program must not end before.

use std::sync::LazyLock;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

/// How long a program waits at its end. Shorter than a pod has to end with the usual grace; where
/// it is killed before, no more is lost than what is left behind then.
const PATIENCE: Duration = Duration::from_secs(10);

static TRACKED: LazyLock<TaskTracker> = LazyLock::new(|| {
    let tracker = TaskTracker::new();
    // It can be waited for at any time.
    tracker.close();
    tracker
});

/// Runs `work`, which removes what is half-done, on the runtime that this is called in; outside of
/// one it is dropped. For `Drop` of what a plugin has begun at a server.
pub fn spawn(work: impl Future<Output = ()> + Send + 'static) {
    if let Ok(runtime) = Handle::try_current() {
        runtime.spawn(track(work));
    }
}

/// The same `work`, for which [`finish`] waits, until it is done or dropped: a task that outlives
/// who waits for it, or whose drop [`spawn`]s. What it gives is dropped after that, if nobody takes
/// it: a task whose output [`spawn`]s in its drop has to send it instead.
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
    use super::*;

    struct Half(tokio::sync::mpsc::UnboundedSender<()>);

    impl Drop for Half {
        fn drop(&mut self) {
            let tell = self.0.clone();
            spawn(async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                let _ = tell.send(());
            });
        }
    }

    #[tokio::test]
    async fn what_the_drop_of_an_aborted_task_begins_is_waited_for() {
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let mut tasks = tokio::task::JoinSet::new();
        let half = Half(tell);
        tasks.spawn(track(async move {
            let _half = half;
            std::future::pending::<()>().await;
        }));
        tokio::task::yield_now().await;
        drop(tasks);
        finish().await;
        assert_eq!(told.try_recv(), Ok(()));
        // Without a runtime nothing happens.
        let (tell, _told) = tokio::sync::mpsc::unbounded_channel();
        std::thread::spawn(move || drop(Half(tell))).join().unwrap();
    }
}
