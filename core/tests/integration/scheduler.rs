//! The scheduler's loop over a compute side that does what a test wants.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use async_trait::async_trait;
use futures_util::StreamExt as _;
use futures_util::future::try_join_all;
use futures_util::stream::BoxStream;
use libtest_mimic::Trial;
use tesk_core::local::SqliteStore;
use tesk_core::plan::Plan;
use tesk_core::scheduler::compute::{ComputeError, Outcome, Phase};
use tesk_core::scheduler::{
    AttemptId, Compute, Observed, Refusal, Report, Scheduler, Settings, TaskId, TaskStore,
};
use tesk_core::tes::{ExecutorLog, State};
use tesk_core::time::Timestamp;
use tokio::sync::mpsc;

use super::store::task;
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        "scheduler":
        a_step_that_panics_is_tried_again,
        ten_thousand_tasks_wait_their_turn,
        thousands_of_tasks_that_run_are_looked_at_a_few_at_a_time,
    ]
}

/// How long thousands of tasks may take.
const PATIENCE: Duration = Duration::from_mins(15);

/// Attempts that are complete as soon as they are looked at.
#[derive(Debug, Default)]
pub(super) struct Instantly {
    looks: Mutex<HashMap<AttemptId, usize>>,
    pub(super) started: AtomicUsize,
    /// Attempts at once that nobody had seen the end of, at most.
    most: AtomicUsize,
    panics: AtomicUsize,
    /// What its executors have logged.
    logs: Vec<ExecutorLog>,
    /// Attempts of this task cannot be looked at.
    hidden: Option<TaskId>,
    hints: Mutex<Vec<mpsc::UnboundedSender<AttemptId>>>,
}

impl Instantly {
    /// With logs of executors, and a task that cannot be looked at.
    pub(super) fn with(logs: Vec<ExecutorLog>, hidden: Option<TaskId>) -> Self {
        Self {
            logs,
            hidden,
            ..Self::default()
        }
    }

    /// An attempt that is there, whoever has made it.
    pub(super) fn leave(&self, attempt: AttemptId) {
        locked(&self.looks).insert(attempt, 0);
    }

    fn hint(&self, attempt: &AttemptId) {
        let mut hints = locked(&self.hints);
        hints.retain(|sender| sender.send(attempt.clone()).is_ok());
    }
}

#[async_trait]
impl Compute for Instantly {
    async fn submit(&self, attempt: &AttemptId, _: &Plan) -> Result<(), Refusal> {
        let left = self
            .panics
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        assert!(left.is_err(), "this is what the test wants");
        let mut looks = locked(&self.looks);
        if looks.insert(attempt.clone(), 0).is_none() {
            self.started.fetch_add(1, Ordering::SeqCst);
        }
        let active = looks.values().filter(|looks| **looks == 0).count();
        self.most.fetch_max(active, Ordering::SeqCst);
        drop(looks);
        self.hint(attempt);
        Ok(())
    }

    async fn observe(&self, attempt: &AttemptId) -> Result<Observed, ComputeError> {
        if self.hidden.as_ref() == Some(&attempt.task) {
            return Err(ComputeError("its node does not answer".to_owned()));
        }
        let mut observed = Observed::absent();
        if let Some(looks) = locked(&self.looks).get_mut(attempt) {
            *looks += 1;
            let now = Timestamp::now();
            observed.started = Some(now);
            observed.phase = Phase::Finished(Box::new(Report {
                outcome: Outcome::Complete,
                executors: self.logs.clone(),
                outputs: Vec::new(),
                notes: Vec::new(),
                started: now,
                ended: now,
            }));
        }
        Ok(observed)
    }

    async fn watch(&self) -> Result<BoxStream<'static, AttemptId>, ComputeError> {
        let (sender, receiver) = mpsc::unbounded_channel();
        locked(&self.hints).push(sender);
        let next = |mut receiver: mpsc::UnboundedReceiver<_>| async move {
            Some((receiver.recv().await?, receiver))
        };
        Ok(futures_util::stream::unfold(receiver, next).boxed())
    }

    async fn cancel(&self, _: &AttemptId, _: Duration) -> Result<(), ComputeError> {
        Ok(())
    }

    async fn remove(&self, attempt: &AttemptId) -> Result<(), ComputeError> {
        locked(&self.looks).remove(attempt);
        Ok(())
    }

    async fn attempts(&self) -> Result<Vec<AttemptId>, ComputeError> {
        Ok(locked(&self.looks).keys().cloned().collect())
    }
}

/// Attempts that run for ever.
#[derive(Debug, Default)]
pub(super) struct Endlessly {
    pub(super) looks: AtomicUsize,
    /// Attempts that are looked at now, and at most.
    looking: AtomicUsize,
    pub(super) most: AtomicUsize,
}

#[async_trait]
impl Compute for Endlessly {
    async fn submit(&self, _: &AttemptId, _: &Plan) -> Result<(), Refusal> {
        Ok(())
    }

    async fn observe(&self, _: &AttemptId) -> Result<Observed, ComputeError> {
        let looking = self.looking.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(looking, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(5)).await;
        self.looking.fetch_sub(1, Ordering::SeqCst);
        self.looks.fetch_add(1, Ordering::SeqCst);
        Ok(Observed {
            phase: Phase::Running,
            started: Some(Timestamp::from_millis(1)),
            ..Observed::absent()
        })
    }

    async fn watch(&self) -> Result<BoxStream<'static, AttemptId>, ComputeError> {
        Ok(futures_util::stream::pending().boxed())
    }

    async fn cancel(&self, _: &AttemptId, _: Duration) -> Result<(), ComputeError> {
        Ok(())
    }

    async fn remove(&self, _: &AttemptId) -> Result<(), ComputeError> {
        Ok(())
    }

    async fn attempts(&self) -> Result<Vec<AttemptId>, ComputeError> {
        Ok(Vec::new())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until `count` tasks are complete.
pub(super) async fn completed(store: &dyn TaskStore, count: u64, limit: Duration) -> Result<()> {
    counted(store, State::Complete, count, limit).await
}

/// Waits until `count` tasks are in a state.
pub(super) async fn counted(
    store: &dyn TaskStore,
    state: State,
    count: u64,
    limit: Duration,
) -> Result<()> {
    let begun = Instant::now();
    loop {
        let counts: HashMap<_, _> = store.counts().await?.into_iter().collect();
        if counts.get(&state) == Some(&count) {
            return Ok(());
        }
        ensure!(begun.elapsed() < limit, "after {limit:?}: {counts:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn a_step_that_panics_is_tried_again() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = SqliteStore::open(directory.path())?;
    let compute = Arc::new(Instantly {
        panics: AtomicUsize::new(2),
        ..Instantly::default()
    });
    store.create(task(TaskId::random())).await?;
    let settings = Settings::default();
    let scheduler = Scheduler::start(Arc::new(store.clone()), compute.clone(), settings);
    completed(&store, 1, Duration::from_secs(20)).await?;
    ensure!(compute.started.load(Ordering::SeqCst) == 1);
    scheduler.stop().await;
    Ok(())
}

async fn ten_thousand_tasks_wait_their_turn() -> Result<()> {
    const TASKS: usize = 10_000;
    let directory = tempfile::tempdir()?;
    let store = SqliteStore::open(directory.path())?;
    let compute = Arc::new(Instantly::default());
    let created = (0..TASKS).map(|_| store.create(task(TaskId::random())));
    try_join_all(created).await.context("creating")?;
    let settings = Settings {
        max_active: 50,
        ..Settings::default()
    };
    let scheduler = Scheduler::start(Arc::new(store.clone()), compute.clone(), settings);
    completed(&store, TASKS as u64, PATIENCE).await?;
    ensure!(compute.started.load(Ordering::SeqCst) == TASKS);
    let most = compute.most.load(Ordering::SeqCst);
    ensure!((2..=50).contains(&most), "{most} at once");
    scheduler.stop().await;
    Ok(())
}

async fn thousands_of_tasks_that_run_are_looked_at_a_few_at_a_time() -> Result<()> {
    const TASKS: usize = 2000;
    let directory = tempfile::tempdir()?;
    let store = SqliteStore::open(directory.path())?;
    let created = (0..TASKS).map(|_| store.create(task(TaskId::random())));
    try_join_all(created).await.context("creating")?;
    let settings = Settings {
        max_active: TASKS,
        poll: Duration::from_millis(50),
        ..Settings::default()
    };
    let compute = Arc::new(Endlessly::default());
    let scheduler = Scheduler::start(Arc::new(store.clone()), compute.clone(), settings.clone());
    counted(&store, State::Running, TASKS as u64, PATIENCE).await?;
    scheduler.stop().await;
    // Another finds all of them at once.
    let compute = Arc::new(Endlessly::default());
    let scheduler = Scheduler::start(Arc::new(store.clone()), compute.clone(), settings);
    let begun = Instant::now();
    while compute.looks.load(Ordering::SeqCst) < 2 * TASKS {
        ensure!(begun.elapsed() < PATIENCE, "not looked at");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let most = compute.most.load(Ordering::SeqCst);
    ensure!((2..=100).contains(&most), "{most} at once");
    scheduler.stop().await;
    Ok(())
}
