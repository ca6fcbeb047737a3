//! Store, compute and scheduler as one thing.

use std::sync::Arc;

use super::compute::{Compute, ComputeError, Observed};
use super::record::TaskId;
use super::run::{Scheduler, Settings};
use super::store::{StoreError, TaskStore};

/// What runs tasks. Dropping it stops the scheduler; attempts go on.
#[derive(Debug)]
pub struct Engine {
    store: Arc<dyn TaskStore>,
    compute: Arc<dyn Compute>,
    scheduler: Scheduler,
}

impl Engine {
    /// Starts the scheduler on the present Tokio runtime. Attempts that an engine before this
    /// one started are adopted.
    pub fn start(store: Arc<dyn TaskStore>, compute: Arc<dyn Compute>, settings: Settings) -> Self {
        let scheduler = Scheduler::start(Arc::clone(&store), Arc::clone(&compute), settings);
        Self {
            store,
            compute,
            scheduler,
        }
    }

    /// The records of its tasks.
    pub fn store(&self) -> Arc<dyn TaskStore> {
        Arc::clone(&self.store)
    }

    /// The current attempt at a task as it is now, with the progress of its transfers; `None`
    /// for a task that is not known or has no attempt under way.
    pub async fn observe(&self, id: &TaskId) -> Result<Option<Observed>, ObserveError> {
        let head = self.store.head(id).await?;
        let attempt = head
            .filter(|head| !head.state.is_terminal())
            .and_then(|head| head.current_attempt());
        Ok(match attempt {
            Some(attempt) => Some(self.compute.observe(&attempt).await?),
            None => None,
        })
    }

    /// Stops the scheduler and waits until it has. Attempts go on.
    pub async fn stop(self) {
        self.scheduler.stop().await;
    }
}

/// Nothing can be said about a task now.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// The store does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The attempt cannot be looked at.
    #[error(transparent)]
    Compute(#[from] ComputeError),
}
