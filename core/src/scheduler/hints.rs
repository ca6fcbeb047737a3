//! Who wants to know of attempts that changed.

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use tokio::sync::mpsc;

use super::compute::AttemptId;

/// What is behind [`Compute::watch`](super::Compute::watch). Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Hints(Arc<Mutex<Vec<mpsc::UnboundedSender<AttemptId>>>>);

impl Hints {
    /// All attempts that are sent from now on.
    pub fn subscribe(&self) -> BoxStream<'static, AttemptId> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.lock().push(sender);
        stream::unfold(receiver, async |mut receiver| {
            let attempt = receiver.recv().await?;
            Some((attempt, receiver))
        })
        .boxed()
    }

    /// Tells everybody.
    pub fn send(&self, attempt: &AttemptId) {
        self.lock()
            .retain(|sender| sender.send(attempt.clone()).is_ok());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<mpsc::UnboundedSender<AttemptId>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
