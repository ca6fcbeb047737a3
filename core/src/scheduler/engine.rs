//! Store, compute and scheduler as one thing.

use std::sync::Arc;

use super::compute::{Compute, ComputeError, Observed};
use super::record::TaskId;
use super::run::{Scheduler, Settings};
use super::store::{StoreError, TaskStore};
use super::term::{During, Election};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What runs tasks. Dropping it stops the scheduler; attempts go on.
#[derive(Debug)]
pub struct Engine {
    store: Arc<dyn TaskStore>,
    compute: Arc<dyn Compute>,
    scheduling: Scheduling,
}

/// What a service uses of an engine.
#[derive(Clone, Debug)]
pub struct Handles {
    /// The records of its tasks.
    pub store: Arc<dyn TaskStore>,
    /// Where attempts run.
    pub compute: Arc<dyn Compute>,
    /// See [`Engine::schedules`].
    pub schedules: Option<watch::Receiver<bool>>,
}

#[derive(Debug)]
enum Scheduling {
    Always(Scheduler),
    Elected(Candidate),
}

/// A scheduler that runs in the terms of this engine. Dropping it stops it without waiting.
#[derive(Debug)]
struct Candidate {
    stop: CancellationToken,
    done: Option<tokio::task::JoinHandle<()>>,
    schedules: watch::Receiver<bool>,
}

impl Engine {
    /// Starts the scheduler on the present Tokio runtime. Attempts that an engine before this
    /// one started are adopted.
    pub fn start(store: Arc<dyn TaskStore>, compute: Arc<dyn Compute>, settings: Settings) -> Self {
        let scheduler = Scheduler::start(Arc::clone(&store), Arc::clone(&compute), settings);
        Self {
            store,
            compute,
            scheduling: Scheduling::Always(scheduler),
        }
    }

    /// Like [`Engine::start`], where other engines share store and compute side: the scheduler
    /// runs while this one is elected. Everything else works all the time.
    pub fn stand(
        store: Arc<dyn TaskStore>,
        compute: Arc<dyn Compute>,
        settings: Settings,
        election: Arc<dyn Election>,
    ) -> Self {
        let candidate =
            Candidate::start(Arc::clone(&store), Arc::clone(&compute), settings, election);
        Self {
            store,
            compute,
            scheduling: Scheduling::Elected(candidate),
        }
    }

    /// Whether it is this engine that schedules, as it changes; `None` where there is no other.
    pub fn schedules(&self) -> Option<watch::Receiver<bool>> {
        match &self.scheduling {
            Scheduling::Always(_) => None,
            Scheduling::Elected(candidate) => Some(candidate.schedules.clone()),
        }
    }

    /// The records of its tasks.
    pub fn store(&self) -> Arc<dyn TaskStore> {
        Arc::clone(&self.store)
    }

    /// All that a service needs.
    pub fn handles(&self) -> Handles {
        Handles {
            store: Arc::clone(&self.store),
            compute: Arc::clone(&self.compute),
            schedules: self.schedules(),
        }
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

    /// Stops the scheduler and waits until it has; another engine can be elected at once.
    /// Attempts go on.
    pub async fn stop(self) {
        match self.scheduling {
            Scheduling::Always(scheduler) => scheduler.stop().await,
            Scheduling::Elected(mut candidate) => {
                candidate.stop.cancel();
                if let Some(done) = candidate.done.take() {
                    // A panic in there was reported when it happened.
                    let _ = done.await;
                }
            }
        }
    }
}

impl Candidate {
    fn start(
        store: Arc<dyn TaskStore>,
        compute: Arc<dyn Compute>,
        settings: Settings,
        election: Arc<dyn Election>,
    ) -> Self {
        let stop = CancellationToken::new();
        let (says, schedules) = watch::channel(false);
        let token = stop.clone();
        let terms = async move {
            while let Some(term) = token.run_until_cancelled(election.elected()).await {
                tracing::info!("this server schedules from now on");
                let (store, compute) = (During::new(&store, &term), During::new(&compute, &term));
                let scheduler = Scheduler::start(store, compute, settings.clone());
                says.send_replace(true);
                token.run_until_cancelled(term.over()).await;
                says.send_replace(false);
                if !token.is_cancelled() {
                    tracing::warn!("this server does not schedule any more");
                }
                // After a term, what is under way fails by itself.
                scheduler.stop().await;
            }
            election.resign().await;
        };
        Self {
            stop,
            done: Some(tokio::spawn(terms)),
            schedules,
        }
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        self.stop.cancel();
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
