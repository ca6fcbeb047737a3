//! Operations that wait for others of the same plugin.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

tokio::task_local! {
    /// Of the operation that runs here.
    static TURNS: Arc<Turns>;
}

/// Waits for `turn`: for a connection, say, which other transfers of the same plugin hold.
///
/// Core ends an operation of which nothing is heard for long. Such a wait does not count as
/// silence, however long it is: what others do until they are done is watched by itself. So `turn`
/// must come when they are.
pub async fn wait_for_turn<T>(turn: impl Future<Output = T>) -> T {
    let _waiting = Waiting::new(Turns::current());
    turn.await
}

/// What is known of the waits of one operation and of those that are a part of it.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    waiting: AtomicUsize,
    over: AtomicU64,
}

impl Turns {
    /// Those of the operation that runs here, or new ones.
    pub(crate) fn current() -> Arc<Self> {
        TURNS.try_with(Arc::clone).unwrap_or_default()
    }

    /// Runs `operation`, whose waits are these.
    pub(crate) async fn of<T>(self: &Arc<Self>, operation: impl Future<Output = T>) -> T {
        TURNS.scope(self.clone(), operation).await
    }

    /// Whether somebody waits now.
    pub(crate) fn are_waited_for(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// How many waits are over.
    pub(crate) fn over(&self) -> u64 {
        self.over.load(Ordering::SeqCst)
    }
}

struct Waiting(Arc<Turns>);

impl Waiting {
    fn new(turns: Arc<Turns>) -> Self {
        turns.waiting.fetch_add(1, Ordering::SeqCst);
        Self(turns)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // In this order a look in between sees one of the two.
        self.0.over.fetch_add(1, Ordering::SeqCst);
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}
