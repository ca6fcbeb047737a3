//! The loop around [`reconcile`](super::reconcile).
//!
//! One asynchronous task owns all state. It hears of records and attempts that changed, decides
//! whose turn it is, and starts a step for each task that needs one: at most one at a time for
//! the same task, and many for different ones, so that no task waits for another that is slow.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::compute::{AttemptId, Compute};
use super::queue::{Queue, Room, Why};
use super::reconcile::Admission;
use super::record::{Head, TaskId};
use super::step::{Quiet, StepError, Stepped, step, sweep_attempts};
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
    /// The wait after a compute side that had no room; it doubles each time, up to a minute,
    /// and more if very many tasks wait for room.
    pub busy: Duration,
    /// How long a task may wait for its turn before its log says why.
    pub explain: Duration,
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
            explain: Duration::from_secs(10),
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
            refused: BTreeSet::new(),
            tried: None,
            unexplained: BTreeSet::new(),
            steps: JoinSet::new(),
            at_once: Arc::new(Semaphore::new(AT_ONCE as usize)),
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
    /// Since when the compute side has had no room for its attempt, and how often it said so.
    refused: Option<(Timestamp, u32)>,
    /// When it is to be looked at why it waits for its turn.
    explain: Option<Timestamp>,
    /// Why it waits for its turn, as its log says.
    explained: Option<Why>,
    /// What the last step has seen, if that was nothing new.
    quiet: Option<Box<Quiet>>,
    /// How many steps have failed since one did not.
    troubles: u32,
    /// It is tried because another task has ended.
    is_tried: bool,
}

impl Entry {
    fn new(head: Head) -> Self {
        Self {
            head,
            stepping: false,
            dirty: false,
            wake: None,
            needs: None,
            refused: None,
            explain: None,
            explained: None,
            quiet: None,
            troubles: 0,
            is_tried: false,
        }
    }

    fn renew(&mut self, head: Head, queue: &mut Queue) {
        // Somebody may have edited the record by hand: it waits in one place alone.
        if (self.head.created, &self.head.owner) != (head.created, &head.owner) {
            queue.remove(&self.head);
        }
        self.head = head;
    }
}

struct Loop {
    store: Arc<dyn TaskStore>,
    compute: Arc<dyn Compute>,
    settings: Arc<Settings>,
    tasks: HashMap<TaskId, Entry>,
    queue: Queue,
    timers: BTreeSet<(Timestamp, TaskId)>,
    /// Tasks whose attempts there was no room for, in the order in which they are tried again
    /// when another has ended.
    refused: BTreeSet<(Timestamp, TaskId)>,
    /// The one of them that was tried last beside the first.
    tried: Option<(Timestamp, TaskId)>,
    /// When to look why tasks wait for their turn.
    unexplained: BTreeSet<(Timestamp, TaskId)>,
    steps: JoinSet<(TaskId, Result<Stepped, StepError>)>,
    /// What steps need to begin.
    at_once: Arc<Semaphore>,
}

/// Steps at once: after a start every active task needs one, and thousands of requests together
/// would keep store and compute side from answering anybody.
const AT_ONCE: u32 = 64;
/// So many bytes of a record take the place of another step: reading and starting a large task takes
/// several times its size in memory.
const HEAVY: usize = 512 << 10;

/// The wait before trouble with the store or the compute side is tried again; it doubles each time,
/// and a poll may be sooner.
const TROUBLE: Duration = Duration::from_secs(1);
/// Attempts that are tried again by the clock in a second, of all that there was no room for.
const RETRIES_PER_SECOND: u32 = 4;
/// The longest wait of the few that there was no room for.
const LONG: Duration = Duration::from_mins(1);
/// How often it is looked why tasks wait for their turn, how many of them are looked at then, and
/// how many lines are written: many tasks that wait must not keep the store busy.
const EXPLAIN: Duration = Duration::from_secs(1);
const EXPLAIN_LOOKS: usize = 500;
const EXPLAIN_LINES: usize = 20;
/// Old tasks removed in one go.
const SWEEP_BATCH: usize = 500;

impl Loop {
    async fn run(&mut self) {
        let mut attempts = self.watch_attempts().await;
        let mut records = self.begin_records().await;
        let mut poll = tokio::time::interval(self.settings.poll);
        let mut sweep = tokio::time::interval(self.settings.sweep);
        let mut explain = tokio::time::interval(EXPLAIN);
        for interval in [&mut poll, &mut sweep, &mut explain] {
            interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        }
        let mut sweeping = JoinSet::new();
        loop {
            self.admit().await;
            let timer = self.next_timer();
            tokio::select! {
                // In this order, which does not depend on chance, so that a simulation can be
                // repeated: what comes seldom is first.
                biased;
                _ = sweep.tick(), if sweeping.is_empty() => {
                    let (store, compute) = (Arc::clone(&self.store), Arc::clone(&self.compute));
                    sweeping.spawn(sweep_all(store, compute, Arc::clone(&self.settings)));
                }
                Some(_) = sweeping.join_next(), if !sweeping.is_empty() => {}
                _ = poll.tick() => self.look_at_active(),
                _ = explain.tick(), if !self.unexplained.is_empty() => self.explain(),
                () = tokio::time::sleep(timer) => self.timers_due(),
                head = records.next() => match head {
                    Some(head) => self.record_changed(head).await,
                    None => records = self.begin_records().await,
                },
                attempt = attempts.next() => match attempt {
                    Some(attempt) => self.look(&attempt.task),
                    None => attempts = self.watch_attempts().await,
                },
                Some(Ok((id, result))) = self.steps.join_next(), if !self.steps.is_empty() => {
                    self.step_done(&id, result);
                }
            }
        }
    }

    async fn finish_steps(&mut self) {
        self.at_once.close();
        // Steps end by themselves, soon; one that hangs on a worker is not waited for.
        let all = async { while self.steps.join_next().await.is_some() {} };
        if tokio::time::timeout(self.settings.grace, all)
            .await
            .is_err()
        {
            tracing::warn!("stopped with steps of the scheduler under way");
        }
    }

    /// Takes in all that is there before anything is decided: who is first, and how many are
    /// active, is not known before.
    async fn begin_records(&mut self) -> BoxStream<'static, Head> {
        let mut records = self.watch_records().await;
        while let Some(Some(head)) = records.next().now_or_never() {
            self.record_changed(head).await;
        }
        records
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
        let active = head.current_attempt().is_some();
        match self.tasks.get_mut(&id) {
            // Our own writes come back; nothing new.
            Some(entry) if entry.head.version >= head.version => return,
            Some(entry) => entry.renew(head, &mut self.queue),
            None => {
                self.tasks.insert(id.clone(), Entry::new(head));
            }
        }
        if active && !self.queue.holds(&id) {
            // It was started before this scheduler was, or by a step whose end is not known: it
            // counts, whatever the limits say.
            let needs = self.needs(&id).await.unwrap_or(self.settings.defaults);
            self.hold(&id, needs);
        }
        // The write may be that of the step under way, which will tell what it has seen.
        if self.tasks.get(&id).is_some_and(|entry| !entry.stepping) {
            self.look(&id);
        }
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
            self.release(id);
            self.wake_at(id, time);
        } else if self.queue.holds(id) {
            // It had its turn, and how far its step came is not known.
            self.start_step(id, Admission::Go);
        } else {
            self.queue.push(head);
            if entry.explain.is_none() {
                let time = Timestamp::now().after(self.settings.explain);
                entry.explain = Some(time);
                self.unexplained.insert((time, id.clone()));
            }
        }
    }

    /// Counts a task as active; fine if it is counted.
    fn hold(&mut self, id: &TaskId, needs: Capacity) {
        if let Some(entry) = self.tasks.get_mut(id) {
            self.queue.hold(&entry.head, needs);
            if let Some(time) = entry.explain.take() {
                self.unexplained.remove(&(time, id.clone()));
            }
        }
    }

    /// What a task asks for.
    async fn needs(&mut self, id: &TaskId) -> Result<Capacity, StoreError> {
        let defaults = self.settings.defaults;
        // Without a capacity nobody wants to know, and reading many tasks takes its time.
        if self.settings.capacity.is_none() {
            return Ok(defaults);
        }
        if let Some(needs) = self.tasks.get(id).and_then(|entry| entry.needs) {
            return Ok(needs);
        }
        let needs = needs_of(&*self.store, id, defaults).await?;
        if let Some(entry) = self.tasks.get_mut(id) {
            entry.needs = Some(needs);
        }
        Ok(needs)
    }

    /// Lets the logs of some tasks say why these wait for their turn.
    fn explain(&mut self) {
        let now = Timestamp::now();
        let mut lines = 0;
        for _ in 0..EXPLAIN_LOOKS {
            let Some((time, id)) = self.unexplained.first().cloned() else {
                return;
            };
            if time > now || lines == EXPLAIN_LINES {
                return;
            }
            self.unexplained.remove(&(time, id.clone()));
            let Some(entry) = self.tasks.get_mut(&id) else {
                continue;
            };
            entry.explain = None;
            let Some(why) = self.queue.why(&entry.head, entry.needs) else {
                continue;
            };
            let again = now.after(LONG);
            entry.explain = Some(again);
            self.unexplained.insert((again, id.clone()));
            if entry.explained != Some(why) && !entry.stepping {
                entry.explained = Some(why);
                lines += 1;
                let reason = self.queue.say(why);
                self.start_step(&id, Admission::Explained(reason));
            }
        }
    }

    /// Gives turns as long as there is room.
    async fn admit(&mut self) {
        while let Some(id) = self.queue.next().cloned() {
            let Some(entry) = self.tasks.get(&id) else {
                // It ended while it waited; the queue was told, so this cannot be.
                tracing::error!(task = %id, "a task waits that is not known");
                return;
            };
            if entry.stepping {
                // Its log is being told why it waits, which soon is over.
                return;
            }
            let head = entry.head.clone();
            let needs = match self.needs(&id).await {
                Ok(needs) => needs,
                Err(error) => {
                    tracing::warn!(task = %id, %error, "cannot read a task");
                    self.queue.remove(&head);
                    self.wake_at(&id, Timestamp::now().after(TROUBLE));
                    continue;
                }
            };
            match self.queue.room(needs) {
                Room::Yes => {
                    self.hold(&id, needs);
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
        let quiet = entry.quiet.take();
        let weight = self.store.weight(id) / HEAVY;
        let turns = u32::try_from(weight).map_or(AT_ONCE, |more| AT_ONCE.min(1 + more));
        let at_once = Arc::clone(&self.at_once);
        let (store, compute) = (Arc::clone(&self.store), Arc::clone(&self.compute));
        let (settings, id) = (Arc::clone(&self.settings), id.clone());
        self.steps.spawn(async move {
            let Ok(_turn) = at_once.acquire_many(turns).await else {
                return (id, Err(StepError::Stopped));
            };
            let step = step(&*store, &*compute, &settings, &id, admission, quiet);
            // Nothing is half done that the next step does not look at anew.
            let result = AssertUnwindSafe(step).catch_unwind().await;
            (id, result.unwrap_or(Err(StepError::Panic)))
        });
    }

    fn step_done(&mut self, id: &TaskId, result: Result<Stepped, StepError>) {
        let Some(entry) = self.tasks.get_mut(id) else {
            return self.release(id);
        };
        entry.stepping = false;
        let mut dirty = std::mem::take(&mut entry.dirty);
        let wake = match result {
            Ok(Stepped { head: None, .. }) => return self.forget(id),
            Ok(Stepped {
                head: Some(head),
                wake,
                busy,
                quiet,
            }) => {
                if head.state.is_terminal() {
                    return self.forget(id);
                }
                entry.quiet = quiet;
                entry.troubles = 0;
                if entry.head.version <= head.version {
                    entry.renew(head, &mut self.queue);
                } else {
                    // The watch has told of something newer meanwhile.
                    dirty = true;
                }
                if entry.head.current_attempt().is_none() {
                    self.release(id);
                    return self.look(id);
                }
                let needs = entry.needs.unwrap_or(self.settings.defaults);
                self.hold(id, needs);
                if busy {
                    self.refused(id)
                } else {
                    self.accepted(id);
                    wake
                }
            }
            Err(error) => {
                // It may have a number now: it keeps what it holds, and the timer's step will tell.
                tracing::warn!(task = %id, %error, "will try again");
                let wait = TROUBLE.saturating_mul(1 << entry.troubles.min(6));
                entry.troubles += 1;
                Some(Timestamp::now().after(wait))
            }
        };
        if dirty {
            self.look(id);
        } else if let Some(time) = wake {
            self.wake_at(id, time);
        }
    }

    /// There was no room for the task's attempt: when to try again.
    fn refused(&mut self, id: &TaskId) -> Option<Timestamp> {
        let now = Timestamp::now();
        let entry = self.tasks.get_mut(id)?;
        let (since, times) = entry
            .refused
            .map_or((now, 0), |(since, times)| (since, times + 1));
        entry.refused = Some((since, times));
        let place = (since, id.clone());
        self.refused.insert(place.clone());
        if std::mem::take(&mut entry.is_tried) {
            self.try_another(&place);
        }
        let all = u32::try_from(self.refused.len()).unwrap_or(u32::MAX);
        let longest = LONG.max(Duration::from_secs((all / RETRIES_PER_SECOND).into()));
        let factor = 1_u32.checked_shl(times).unwrap_or(u32::MAX);
        Some(now.after(self.settings.busy.saturating_mul(factor).min(longest)))
    }

    /// There is room for the task's attempt, if there was none: perhaps there is more.
    fn accepted(&mut self, id: &TaskId) {
        if self.no_longer_refused(id) {
            self.try_refused();
        }
    }

    fn no_longer_refused(&mut self, id: &TaskId) -> bool {
        let entry = self.tasks.get_mut(id);
        let taken = entry.and_then(|entry| {
            entry.is_tried = false;
            entry.refused.take()
        });
        let Some((since, _)) = taken else {
            return false;
        };
        self.refused.remove(&(since, id.clone()))
    }

    /// Tries the attempt again that there has been no room for the longest.
    fn try_refused(&mut self) {
        if let Some((_, id)) = self.refused.first().cloned() {
            if let Some(entry) = self.tasks.get_mut(&id) {
                entry.is_tried = true;
            }
            self.look(&id);
        }
    }

    /// There was no room for the first: it may be one that there never is room for, so the others have
    /// their turn beside it, one after another.
    fn try_another(&mut self, first: &(Timestamp, TaskId)) {
        let last = self.tried.take().unwrap_or_else(|| first.clone());
        let after = (Bound::Excluded(last), Bound::Unbounded);
        let next = self.refused.range(after).next();
        let next = next.or_else(|| self.refused.iter().nth(1));
        if let Some(next) = next.filter(|next| *next != first).cloned() {
            let id = next.1.clone();
            self.tried = Some(next);
            self.look(&id);
        }
    }

    /// Takes back what a task holds.
    fn release(&mut self, id: &TaskId) {
        self.no_longer_refused(id);
        if self.queue.release(id) {
            self.try_refused();
        }
    }

    fn forget(&mut self, id: &TaskId) {
        if let Some(entry) = self.tasks.remove(id) {
            self.queue.remove(&entry.head);
            if let Some(time) = entry.wake {
                self.timers.remove(&(time, id.clone()));
            }
            if let Some(time) = entry.explain {
                self.unexplained.remove(&(time, id.clone()));
            }
            if let Some((since, _)) = entry.refused {
                self.refused.remove(&(since, id.clone()));
            }
        }
        self.release(id);
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
        let mut active: Vec<_> = self
            .tasks
            .values()
            .filter(|entry| {
                !entry.stepping && entry.refused.is_none() && entry.head.current_attempt().is_some()
            })
            .map(|entry| entry.head.id.clone())
            .collect();
        // In an order that does not depend on chance, so that a simulation can be repeated.
        active.sort_unstable();
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
    let record = match store.get(id).await {
        Err(StoreError::Corrupt(_)) => None,
        record => record?,
    };
    let task = record.and_then(|record| serde_json::from_str::<Task>(&record.document).ok());
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

#[cfg(test)]
mod tests {
    use super::super::record::Owner;
    use super::*;

    #[test]
    fn a_record_that_was_edited_by_hand_waits_in_one_place() {
        let mut queue = Queue::new(&Settings::default());
        let head = |created, user: &str| Head {
            created: Timestamp::from_millis(created),
            ..Head::queued(
                "t1".parse().unwrap(),
                Owner {
                    user: user.to_owned(),
                    group: None,
                },
                Timestamp::from_millis(1),
            )
        };
        let mut entry = Entry::new(head(1, "ann"));
        queue.push(&entry.head);
        for edited in [head(2, "ann"), head(2, "bob")] {
            entry.renew(edited, &mut queue);
            assert_eq!(queue.next(), None);
            queue.push(&entry.head);
            assert_eq!(queue.next(), Some(&entry.head.id));
        }
        entry.renew(head(2, "bob"), &mut queue);
        assert_eq!(queue.next(), Some(&entry.head.id), "nothing has changed");
        queue.remove(&entry.head);
        assert_eq!(queue.next(), None);
    }
}
