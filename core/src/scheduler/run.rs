//! The loop around [`reconcile`](super::reconcile).
//!
//! One asynchronous task owns all state. It hears of records and attempts that changed, decides
//! whose turn it is, and starts a step for each task that needs one: at most one at a time for
//! the same task, and any number for different ones, so that no task waits for another.

use std::collections::{BTreeSet, HashMap};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::compute::{AttemptId, Compute};
use super::queue::{Queue, Room};
use super::reconcile::Admission;
use super::record::{Head, TaskId};
use super::step::{StepError, Stepped, step, sweep_attempts};
use super::store::{StoreError, TaskStore};
use crate::tes::Task;
use crate::time::Timestamp;

/// The scheduler of one engine. Dropping it stops it without waiting.
#[derive(Debug)]
pub struct Scheduler {
    stop: CancellationToken,
    done: Option<tokio::task::JoinHandle<()>>,
}

/// How the scheduler decides.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What all active tasks together may ask for; `None` leaves that to the compute side.
    pub capacity: Option<Capacity>,
    /// What a task counts for as far as it does not say.
    pub defaults: Capacity,
    /// Active tasks at most.
    pub max_active: usize,
    /// Active tasks of one user at most.
    pub max_active_per_user: Option<usize>,
    /// Attempts at a task at most, at least 1.
    pub max_attempts: u32,
    /// The wait before the second attempt; it doubles with each more.
    pub back_off: Duration,
    /// The longest wait before an attempt.
    pub max_back_off: Duration,
    /// Time between a polite and a forced end.
    pub grace: Duration,
    /// How long an attempt may run, from when a worker took it.
    pub time_limit: Option<Duration>,
    /// Whether a task that was preempted and has no attempts left ends as `PREEMPTED` instead of
    /// `SYSTEM_ERROR`.
    pub report_preempted: bool,
    /// How long tasks are kept after their end; `None` is for ever.
    pub retention: Option<Duration>,
    /// How often every active task is looked at, although nothing was heard of it.
    pub poll: Duration,
    /// The wait after a compute side that had no room.
    pub busy: Duration,
    /// How often old tasks and left-over attempts are looked for.
    pub sweep: Duration,
}

/// What a machine has, or a task asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// CPU cores.
    pub cores: u32,
    /// Bytes of memory.
    pub memory: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            capacity: None,
            defaults: Capacity {
                cores: 1,
                memory: 0,
            },
            max_active: 1000,
            max_active_per_user: None,
            max_attempts: 3,
            back_off: Duration::from_secs(5),
            max_back_off: Duration::from_mins(5),
            grace: Duration::from_secs(10),
            time_limit: None,
            report_preempted: false,
            retention: None,
            poll: Duration::from_secs(10),
            busy: Duration::from_secs(1),
            sweep: Duration::from_mins(1),
        }
    }
}

impl Scheduler {
    /// Starts the loop on the present Tokio runtime. Attempts that run already are adopted,
    /// those that no task has are removed.
    pub fn start(store: Arc<dyn TaskStore>, compute: Arc<dyn Compute>, settings: Settings) -> Self {
        let stop = CancellationToken::new();
        let state = Loop {
            queue: Queue::new(&settings),
            store,
            compute,
            settings: Arc::new(settings),
            tasks: HashMap::new(),
            timers: BTreeSet::new(),
            steps: JoinSet::new(),
        };
        let token = stop.clone();
        let done = tokio::spawn(async move {
            let mut state = state;
            token.run_until_cancelled(state.run()).await;
            state.finish_steps().await;
        });
        Self {
            stop,
            done: Some(done),
        }
    }

    /// Stops the loop and waits until no step is under way. Attempts go on; the next start
    /// adopts them.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if let Some(done) = self.done.take() {
            // A panic in there was reported when it happened.
            let _ = done.await;
        }
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A task that is not terminal.
#[derive(Debug)]
struct Entry {
    head: Head,
    /// A step is under way.
    stepping: bool,
    /// Something happened since that step began.
    dirty: bool,
    /// The present timer.
    wake: Option<Timestamp>,
    /// What it asks for, once it was read.
    needs: Option<Capacity>,
}

struct Loop {
    store: Arc<dyn TaskStore>,
    compute: Arc<dyn Compute>,
    settings: Arc<Settings>,
    tasks: HashMap<TaskId, Entry>,
    queue: Queue,
    timers: BTreeSet<(Timestamp, TaskId)>,
    steps: JoinSet<(TaskId, Result<Stepped, StepError>)>,
}

/// The wait before trouble with the store or the compute side is tried again.
const TROUBLE: Duration = Duration::from_secs(1);
/// Old tasks removed in one go.
const SWEEP_BATCH: usize = 500;

impl Loop {
    async fn run(&mut self) {
        let mut records = self.watch_records().await;
        let mut attempts = self.watch_attempts().await;
        let mut poll = tokio::time::interval(self.settings.poll);
        let mut sweep = tokio::time::interval(self.settings.sweep);
        for interval in [&mut poll, &mut sweep] {
            interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        }
        let mut sweeping = JoinSet::new();
        loop {
            self.admit().await;
            let timer = self.next_timer();
            tokio::select! {
                head = records.next() => match head {
                    Some(head) => self.record_changed(head).await,
                    None => records = self.watch_records().await,
                },
                attempt = attempts.next() => match attempt {
                    Some(attempt) => self.look(&attempt.task),
                    None => attempts = self.watch_attempts().await,
                },
                Some(Ok((id, result))) = self.steps.join_next(), if !self.steps.is_empty() => {
                    self.step_done(&id, result);
                }
                () = tokio::time::sleep(timer) => self.timers_due(),
                _ = poll.tick() => self.look_at_active(),
                _ = sweep.tick(), if sweeping.is_empty() => {
                    let (store, compute) = (Arc::clone(&self.store), Arc::clone(&self.compute));
                    sweeping.spawn(sweep_all(store, compute, Arc::clone(&self.settings)));
                }
                Some(_) = sweeping.join_next(), if !sweeping.is_empty() => {}
            }
        }
    }

    async fn finish_steps(&mut self) {
        // Steps end by themselves, soon; one that hangs on a worker is not waited for.
        let all = async { while self.steps.join_next().await.is_some() {} };
        if tokio::time::timeout(self.settings.grace, all)
            .await
            .is_err()
        {
            tracing::warn!("stopped with steps of the scheduler under way");
        }
    }

    async fn watch_records(&self) -> BoxStream<'static, Head> {
        loop {
            match self.store.watch().await {
                Ok(stream) => return stream,
                Err(error) => tracing::warn!(%error, "cannot watch the task store"),
            }
            tokio::time::sleep(TROUBLE).await;
        }
    }

    async fn watch_attempts(&self) -> BoxStream<'static, AttemptId> {
        loop {
            match self.compute.watch().await {
                Ok(stream) => return stream,
                Err(error) => tracing::warn!(%error, "cannot watch attempts"),
            }
            tokio::time::sleep(TROUBLE).await;
        }
    }

    async fn record_changed(&mut self, head: Head) {
        let id = head.id.clone();
        if head.state.is_terminal() {
            self.forget(&id);
            return;
        }
        match self.tasks.get_mut(&id) {
            // Our own writes come back; nothing new.
            Some(entry) if entry.head.version >= head.version => return,
            Some(entry) => entry.head = head,
            None => {
                if head.current_attempt().is_some() {
                    // It ran before this scheduler started: it counts, whatever the limits say.
                    let needs = needs_of(&*self.store, &id, self.settings.defaults).await;
                    self.queue
                        .hold(&head, needs.unwrap_or(self.settings.defaults));
                }
                let entry = Entry {
                    head,
                    stepping: false,
                    dirty: false,
                    wake: None,
                    needs: None,
                };
                self.tasks.insert(id.clone(), entry);
            }
        }
        self.look(&id);
    }

    /// Does what a task needs now: a step, a timer or a place in the queue.
    fn look(&mut self, id: &TaskId) {
        let Some(entry) = self.tasks.get_mut(id) else {
            return;
        };
        if entry.stepping {
            entry.dirty = true;
            return;
        }
        let head = &entry.head;
        let waits = head.state == crate::tes::State::Queued && head.current_attempt().is_none();
        if !waits {
            self.start_step(id, Admission::Wait);
        } else if let Some(time) = head.not_before.filter(|time| *time > Timestamp::now()) {
            self.wake_at(id, time);
        } else {
            self.queue.push(head);
        }
    }

    /// Gives turns as long as there is room.
    async fn admit(&mut self) {
        while let Some(id) = self.queue.next().cloned() {
            let Some(entry) = self.tasks.get_mut(&id) else {
                // It ended while it waited; the queue was told, so this cannot be.
                tracing::error!(task = %id, "a task waits that is not known");
                return;
            };
            let needs = match entry.needs {
                Some(needs) => needs,
                None => match needs_of(&*self.store, &id, self.settings.defaults).await {
                    Ok(needs) => *entry.needs.insert(needs),
                    Err(error) => {
                        tracing::warn!(task = %id, %error, "cannot read a task");
                        let head = entry.head.clone();
                        self.queue.remove(&head);
                        self.wake_at(&id, Timestamp::now().after(TROUBLE));
                        continue;
                    }
                },
            };
            let head = entry.head.clone();
            match self.queue.room(needs) {
                Room::Yes => {
                    self.queue.hold(&head, needs);
                    self.start_step(&id, Admission::Go);
                }
                Room::NotNow => return,
                Room::Never(reason) => {
                    self.queue.remove(&head);
                    self.start_step(&id, Admission::Never(reason));
                }
            }
        }
    }

    fn start_step(&mut self, id: &TaskId, admission: Admission) {
        let Some(entry) = self.tasks.get_mut(id) else {
            return;
        };
        entry.stepping = true;
        entry.dirty = false;
        let (store, compute) = (Arc::clone(&self.store), Arc::clone(&self.compute));
        let (settings, id) = (Arc::clone(&self.settings), id.clone());
        self.steps.spawn(async move {
            let step = step(&*store, &*compute, &settings, &id, admission);
            // Nothing is half done that the next step does not look at anew.
            let result = AssertUnwindSafe(step).catch_unwind().await;
            (id, result.unwrap_or(Err(StepError::Panic)))
        });
    }

    fn step_done(&mut self, id: &TaskId, result: Result<Stepped, StepError>) {
        let Some(entry) = self.tasks.get_mut(id) else {
            self.queue.release(id);
            return;
        };
        entry.stepping = false;
        let dirty = std::mem::take(&mut entry.dirty);
        let wake = match result {
            Ok(Stepped { head: None, .. }) => return self.forget(id),
            Ok(Stepped {
                head: Some(head),
                wake,
            }) => {
                if head.state.is_terminal() {
                    return self.forget(id);
                }
                let waits = head.current_attempt().is_none();
                if entry.head.version <= head.version {
                    entry.head = head;
                }
                if waits {
                    self.queue.release(id);
                    return self.look(id);
                }
                wake
            }
            Err(error) => {
                tracing::warn!(task = %id, %error, "will try again");
                if entry.head.current_attempt().is_none() {
                    // Whether it has a number now is not known; the timer's step will tell.
                    self.queue.release(id);
                }
                Some(Timestamp::now().after(TROUBLE))
            }
        };
        if dirty {
            self.look(id);
        } else if let Some(time) = wake {
            self.wake_at(id, time);
        }
    }

    fn forget(&mut self, id: &TaskId) {
        self.queue.release(id);
        if let Some(entry) = self.tasks.remove(id) {
            self.queue.remove(&entry.head);
            if let Some(time) = entry.wake {
                self.timers.remove(&(time, id.clone()));
            }
        }
    }

    fn wake_at(&mut self, id: &TaskId, time: Timestamp) {
        if let Some(entry) = self.tasks.get_mut(id) {
            if let Some(before) = entry.wake.replace(time) {
                self.timers.remove(&(before, id.clone()));
            }
            self.timers.insert((time, id.clone()));
        }
    }

    fn next_timer(&self) -> Duration {
        const FAR: Duration = Duration::from_hours(1);
        self.timers
            .first()
            .map_or(FAR, |(time, _)| time.since(Timestamp::now()).min(FAR))
    }

    fn timers_due(&mut self) {
        let now = Timestamp::now();
        while let Some((time, id)) = self.timers.first().cloned() {
            if time > now {
                return;
            }
            self.timers.remove(&(time, id.clone()));
            if let Some(entry) = self.tasks.get_mut(&id) {
                entry.wake = None;
            }
            self.look(&id);
        }
    }

    fn look_at_active(&mut self) {
        let active: Vec<_> = self
            .tasks
            .values()
            .filter(|entry| !entry.stepping && entry.head.current_attempt().is_some())
            .map(|entry| entry.head.id.clone())
            .collect();
        for id in active {
            self.look(&id);
        }
    }
}

async fn needs_of(
    store: &dyn TaskStore,
    id: &TaskId,
    defaults: Capacity,
) -> Result<Capacity, StoreError> {
    const GIB: f64 = 1_073_741_824.0;
    // What cannot be read or is gone is found out by the step.
    let task = store
        .get(id)
        .await?
        .and_then(|record| serde_json::from_str::<Task>(&record.document).ok());
    let asked = task.and_then(|task| task.resources).unwrap_or_default();
    Ok(Capacity {
        cores: asked
            .cpu_cores
            .and_then(|cores| u32::try_from(cores).ok())
            .unwrap_or(defaults.cores),
        memory: asked
            .ram_gb
            .map_or(defaults.memory, |gib| (gib * GIB) as u64),
    })
}

async fn sweep_all(store: Arc<dyn TaskStore>, compute: Arc<dyn Compute>, settings: Arc<Settings>) {
    if let Err(error) = sweep_attempts(&*store, &*compute, &settings).await {
        tracing::warn!(%error, "cannot look for left-over attempts");
    }
    let before = settings
        .retention
        .map_or(Timestamp::from_millis(0), |kept| {
            let kept = i64::try_from(kept.as_millis()).unwrap_or(i64::MAX);
            Timestamp::from_millis(Timestamp::now().as_millis().saturating_sub(kept))
        });
    loop {
        match store.sweep(before, SWEEP_BATCH).await {
            Ok(removed) if removed.len() == SWEEP_BATCH => {}
            Ok(_) => return,
            Err(error) => {
                tracing::warn!(%error, "cannot remove old tasks");
                return;
            }
        }
    }
}
