//! A store and a compute side in memory, under virtual time, and everything that goes wrong
//! with them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::{Instant, sleep};

use crate::plan::Plan;
use crate::scheduler::compute::{
    AttemptId, Compute, ComputeError, Observed, Outcome, Phase, Refusal, Report,
};
use crate::scheduler::hints::Hints;
use crate::scheduler::record::{Head, Record, TaskId};
use crate::scheduler::store::{
    Created, NewTask, Page, Query, RawRecord, StoreError, TaskStore, Update,
};
use crate::tes::{State, TaskLog};
use crate::time::Timestamp;

/// What goes wrong, and how often.
#[derive(Clone, Debug)]
pub(super) struct Weather {
    /// Requests that are lost: half of them with their effect, half without.
    pub(super) errors: f64,
    /// Hints and heads of a watch that come late, and hints that never come.
    pub(super) late: f64,
    /// How far behind reads of the store may be, for what others wrote.
    pub(super) lag: Duration,
    /// Submits that find no room.
    pub(super) busy: f64,
    /// Tasks that are refused for good.
    pub(super) never: f64,
    /// Attempts that are lost, evicted or simply gone.
    pub(super) lost: f64,
    /// Milliseconds that a step in the life of an attempt takes at most.
    pub(super) slowest: u64,
    /// Whether what a scheduler asks for after another has taken over is refused. If not, the
    /// compute side remembers for ever what it has started.
    pub(super) fenced: bool,
}

impl Default for Weather {
    /// Nothing goes wrong.
    fn default() -> Self {
        Self {
            errors: 0.0,
            late: 0.0,
            lag: Duration::ZERO,
            busy: 0.0,
            never: 0.0,
            lost: 0.0,
            slowest: 20_000,
            fenced: true,
        }
    }
}

/// Everything that survives a crash of a scheduler.
pub(super) struct World {
    state: Mutex<Inner>,
    heads: crate::scheduler::watchers::Watchers,
    hints: Hints,
}

pub(super) struct Inner {
    pub(super) rng: StdRng,
    pub(super) weather: Weather,
    /// All versions of each record, with the time since which each is there.
    records: BTreeMap<TaskId, Vec<(Instant, Record)>>,
    pub(super) pods: BTreeMap<AttemptId, Pod>,
    /// Attempts that were ever started.
    pub(super) started: BTreeSet<AttemptId>,
    /// The reports that attempts have left.
    pub(super) reports: BTreeMap<AttemptId, Outcome>,
    /// Tasks that the compute side refuses for good.
    pub(super) refused: BTreeSet<TaskId>,
    /// Tasks that there is never room for.
    pub(super) too_large: BTreeSet<TaskId>,
    /// Tasks that a user canceled.
    pub(super) canceled: BTreeSet<TaskId>,
    /// Tasks that were reserved a number, in the order in which they were.
    pub(super) reserved: Vec<TaskId>,
    /// Submits that found no room, and when.
    pub(super) found_full: Vec<Instant>,
    /// The most tasks that were active at once: in all, and of one user.
    pub(super) most: (usize, usize),
    /// How long an attempt may take.
    pub(super) time_limit: Option<Duration>,
    /// Nothing goes on in pods.
    pub(super) asleep: bool,
    /// Pods that fit at once.
    pub(super) quota: Option<usize>,
    /// Promises that were broken.
    pub(super) broken: Vec<String>,
    /// The scheduler that may act, if that is checked.
    leader: u32,
}

pub(super) struct Pod {
    pub(super) phase: Phase,
    started: Timestamp,
    canceled: bool,
}

impl World {
    pub(super) fn new(seed: u64) -> Arc<Self> {
        let inner = Inner {
            rng: StdRng::seed_from_u64(seed),
            weather: Weather::default(),
            records: BTreeMap::new(),
            pods: BTreeMap::new(),
            started: BTreeSet::new(),
            reports: BTreeMap::new(),
            refused: BTreeSet::new(),
            too_large: BTreeSet::new(),
            canceled: BTreeSet::new(),
            reserved: Vec::new(),
            found_full: Vec::new(),
            most: (0, 0),
            time_limit: None,
            asleep: false,
            quota: None,
            broken: Vec::new(),
            leader: 0,
        };
        Arc::new(Self {
            state: Mutex::new(inner),
            heads: crate::scheduler::watchers::Watchers::default(),
            hints: Hints::default(),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.state.lock().unwrap()
    }

    /// What a user, or a new scheduler, does with this world.
    pub(super) fn side(self: &Arc<Self>, number: u32) -> Arc<Side> {
        Arc::new(Side {
            world: Arc::clone(self),
            number,
            state: Mutex::default(),
        })
    }

    pub(super) fn store(&self, task: NewTask) {
        let now = Timestamp::now();
        let head = Head::queued(task.id.clone(), task.owner, now);
        let record = Record {
            head: head.clone(),
            document: task.document,
            logs: vec![TaskLog::default()],
            secrets: task.secrets,
        };
        let versions = vec![(Instant::now(), record)];
        let mut inner = self.lock();
        let never = inner.weather.never;
        if inner.rng.random_bool(never) {
            inner.refused.insert(task.id.clone());
        }
        inner.records.insert(task.id, versions);
        drop(inner);
        self.heads.publish(&[head]);
    }

    /// The life of one attempt.
    async fn run(self: Arc<Self>, attempt: AttemptId) {
        loop {
            let wait = {
                let mut inner = self.lock();
                let slowest = inner.weather.slowest;
                inner.rng.random_range(50..slowest)
            };
            sleep(Duration::from_millis(wait)).await;
            let over = {
                let mut inner = self.lock();
                !inner.asleep && inner.advance(&attempt)
            };
            let hint = {
                let mut inner = self.lock();
                let late = inner.weather.late;
                !inner.rng.random_bool(late)
            };
            if hint {
                self.hints.send(&attempt);
            }
            if over {
                return;
            }
        }
    }
}

impl Inner {
    pub(super) fn record(&self, id: &TaskId) -> &Record {
        &self.records[id].last().unwrap().1
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Record> {
        self.records.values().map(|all| &all.last().unwrap().1)
    }

    /// A record as one sees it who has seen this version: old, perhaps.
    fn read(&mut self, id: &TaskId, seen: Option<u64>) -> Option<&Record> {
        let lag = u64::try_from(self.weather.lag.as_millis()).unwrap();
        let lag = Duration::from_millis(self.rng.random_range(0..=lag));
        let now = Instant::now();
        let mut found = None;
        for (since, record) in self.records.get(id).into_iter().flatten().rev() {
            found = Some(record);
            if *since + lag <= now || seen.is_some_and(|seen| record.head.version <= seen) {
                break;
            }
        }
        found
    }

    pub(super) fn calm(&mut self) {
        let fenced = self.weather.fenced;
        self.weather = Weather {
            fenced,
            ..Weather::default()
        };
    }

    /// From now on this scheduler acts, and those before it no longer.
    pub(super) fn lead(&mut self, number: u32) {
        self.leader = number;
    }

    fn breaks(&mut self, what: String) {
        self.broken.push(what);
    }

    /// One step in the life of an attempt; `true` after the last.
    fn advance(&mut self, attempt: &AttemptId) -> bool {
        let lost = self.weather.lost;
        let (is_lost, chance) = (self.rng.random_bool(lost), self.rng.random_range(0..20));
        let Some(pod) = self.pods.get_mut(attempt) else {
            return true;
        };
        if pod.phase.is_over() {
            return true;
        }
        let outcome = match chance {
            _ if pod.canceled => Outcome::Canceled,
            0 => Outcome::SystemError,
            1 => Outcome::ExecutorError,
            2 if lost > 0.0 => Outcome::Retry,
            _ => Outcome::Complete,
        };
        if is_lost {
            if chance < 5 {
                self.pods.remove(attempt);
                // Whoever deletes it before anybody has seen that it began gets it once more.
                if self.record(&attempt.task).head.state == State::Queued {
                    self.started.remove(attempt);
                }
                return true;
            }
            pod.phase = Phase::Lost {
                reason: format!("the node {chance} is gone"),
                preempted: chance < 10,
            };
            return true;
        }
        pod.phase = match (&pod.phase, &outcome) {
            (Phase::Running, _)
            | (_, Outcome::Canceled)
            | (Phase::Initializing, Outcome::SystemError | Outcome::Retry) => {
                let report = Report {
                    outcome: outcome.clone(),
                    executors: Vec::new(),
                    outputs: Vec::new(),
                    notes: Vec::new(),
                    started: pod.started,
                    ended: Timestamp::now(),
                };
                self.reports.insert(attempt.clone(), outcome);
                Phase::Finished(Box::new(report))
            }
            (Phase::Pending(_), _) if chance < 5 => Phase::Pending(Some("an image".to_owned())),
            (Phase::Pending(_), _) => Phase::Initializing,
            _ => Phase::Running,
        };
        pod.phase.is_over()
    }

    /// Active tasks, in all and of the user who has the most.
    fn count_active(&mut self) {
        let mut users = BTreeMap::<&str, usize>::new();
        for record in self.records.values().map(|all| &all.last().unwrap().1) {
            let head = &record.head;
            if !head.state.is_terminal() && head.current_attempt().is_some() {
                *users.entry(&head.owner.user).or_default() += 1;
            }
        }
        let all = users.values().sum();
        let user = users.values().copied().max().unwrap_or(0);
        self.most = (self.most.0.max(all), self.most.1.max(user));
    }

    fn change(&mut self, id: &TaskId, expected: u64, update: Update) -> Result<Head, StoreError> {
        let Some(versions) = self.records.get_mut(id) else {
            return Err(StoreError::NotFound);
        };
        let mut record = versions.last().unwrap().1.clone();
        let head = &mut record.head;
        if head.version != expected || head.state.is_terminal() {
            return Err(StoreError::Conflict);
        }
        head.version += 1;
        head.state = update.state.unwrap_or(head.state);
        head.not_before = update.not_before.unwrap_or(head.not_before);
        let new_attempt = update.attempt.filter(|number| *number != head.attempt);
        head.attempt = update.attempt.unwrap_or(head.attempt);
        if let Some(logs) = update.logs {
            record.logs = logs;
        }
        let new = record.head.clone();
        let alive = self
            .pods
            .iter()
            .find(|(attempt, pod)| attempt.task == *id && !pod.phase.is_over());
        if let Some((attempt, _)) = alive
            && new.state.is_terminal()
            && self.weather.fenced
        {
            let what = format!("{id} is {} while {attempt} runs", new.state);
            self.broken.push(what);
        }
        versions.push((Instant::now(), record));
        if new_attempt.is_some() {
            self.reserved.push(id.clone());
        }
        self.count_active();
        Ok(new)
    }

    fn submit(&mut self, attempt: &AttemptId) -> Result<bool, Refusal> {
        let full = self.quota.is_some_and(|quota| {
            self.pods
                .values()
                .filter(|pod| !pod.phase.is_over())
                .count()
                >= quota
        });
        if self.pods.contains_key(attempt) {
            return Ok(false);
        }
        if !self.weather.fenced && self.started.contains(attempt) {
            return Ok(false);
        }
        let busy = self.weather.busy;
        let never_fits = self.too_large.contains(&attempt.task);
        if full || never_fits || self.rng.random_bool(busy) {
            self.found_full.push(Instant::now());
            let used = self.pods.len();
            return Err(Refusal::Busy(format!("full, used: {used}")));
        }
        if self.refused.contains(&attempt.task) {
            return Err(Refusal::Never("not here".to_owned()));
        }
        if !self.started.insert(attempt.clone()) {
            self.breaks(format!("{attempt} is started twice"));
        }
        let others = self
            .pods
            .iter()
            .filter(|(other, pod)| other.task == attempt.task && !pod.phase.is_over());
        let others: Vec<_> = others.map(|(other, _)| other.clone()).collect();
        if !others.is_empty() {
            self.breaks(format!("{attempt} is started while {others:?} run"));
        }
        let head = self.record(&attempt.task).head.clone();
        if self.weather.fenced && head.state.is_terminal() {
            self.breaks(format!(
                "{attempt} is started after its task was {}",
                head.state
            ));
        }
        if head.attempt < attempt.number {
            self.breaks(format!("{attempt} is started and was not reserved"));
        }
        let pod = Pod {
            phase: Phase::Pending(None),
            started: Timestamp::now(),
            canceled: false,
        };
        self.pods.insert(attempt.clone(), pod);
        Ok(true)
    }

    fn cancel(&mut self, attempt: &AttemptId) {
        let head = self.record(&attempt.task).head.clone();
        let limit = self.time_limit;
        let Some(pod) = self.pods.get_mut(attempt) else {
            return;
        };
        pod.canceled = true;
        let over_time = limit.is_some_and(|limit| pod.started.after(limit) <= Timestamp::now());
        let wanted = head.state != State::Canceling
            && !head.state.is_terminal()
            && head.current_attempt().as_ref() == Some(attempt);
        if wanted && !over_time {
            self.breaks(format!("{attempt} is ended for no reason"));
        }
    }

    fn remove(&mut self, attempt: &AttemptId) {
        let Some(pod) = self.pods.remove(attempt) else {
            return;
        };
        if !pod.phase.is_over() {
            self.breaks(format!("{attempt} is removed while it runs"));
        }
        // What it left must have been written before.
        let head = &self.record(&attempt.task).head;
        if !head.state.is_terminal() && head.current_attempt().as_ref() == Some(attempt) {
            self.breaks(format!("{attempt} is removed before its end is written"));
        }
    }
}

/// The world as one process sees it: a scheduler, or a user at the API.
pub(super) struct Side {
    world: Arc<World>,
    /// 0 is a user's.
    number: u32,
    state: Mutex<SideState>,
}

#[derive(Default)]
struct SideState {
    dead: bool,
    stalled_until: Option<Instant>,
    /// The versions that it has seen: reads do not go back behind these.
    seen: BTreeMap<TaskId, u64>,
}

impl std::fmt::Debug for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "side {}", self.number)
    }
}

impl Side {
    /// The process is killed: nothing that it asks for from now on has an effect or an answer.
    pub(super) fn kill(&self) {
        self.state.lock().unwrap().dead = true;
    }

    /// The process stands still for some time.
    pub(super) fn stall(&self, time: Duration) {
        self.state.lock().unwrap().stalled_until = Some(Instant::now() + time);
    }

    async fn alive(&self) {
        loop {
            let (dead, until) = {
                let state = self.state.lock().unwrap();
                (state.dead, state.stalled_until)
            };
            if dead {
                return std::future::pending().await;
            }
            match until {
                Some(until) if until > Instant::now() => tokio::time::sleep_until(until).await,
                _ => return,
            }
        }
    }

    /// One request: on its way, perhaps lost, its effect, perhaps its answer lost, on its way
    /// back. The process may be killed or stand still at each of these.
    async fn ask<T, E>(
        &self,
        failed: impl Fn(&str) -> E,
        effect: impl FnOnce(&World, &mut Inner) -> Result<T, E>,
    ) -> Result<T, E> {
        let (there, back, lost) = {
            let mut inner = self.world.lock();
            let lost = inner.weather.errors;
            let rng = &mut inner.rng;
            let mut way = || match rng.random_range(0..10) {
                0 => rng.random_range(0..3000),
                _ => rng.random_range(0..5),
            };
            let (there, back) = (way(), way());
            let lost = rng.random_bool(lost).then(|| rng.random_bool(0.5));
            (
                Duration::from_millis(there),
                Duration::from_millis(back),
                lost,
            )
        };
        self.alive().await;
        sleep(there).await;
        self.alive().await;
        if lost == Some(false) {
            return Err(failed("the request was lost"));
        }
        let result = {
            let mut inner = self.world.lock();
            if inner.weather.fenced && self.number > 0 && self.number < inner.leader {
                return Err(failed("another scheduler has taken over"));
            }
            effect(&self.world, &mut inner)
        };
        sleep(back).await;
        self.alive().await;
        if lost == Some(true) {
            return Err(failed("the answer was lost"));
        }
        result
    }

    fn saw(&self, id: &TaskId, version: u64) {
        let mut state = self.state.lock().unwrap();
        let seen = state.seen.entry(id.clone()).or_default();
        *seen = version.max(*seen);
    }
}

fn unavailable(why: &str) -> StoreError {
    StoreError::Unavailable(why.to_owned())
}

fn unreachable(why: &str) -> ComputeError {
    ComputeError(why.to_owned())
}

#[async_trait]
impl TaskStore for Side {
    async fn create(&self, task: NewTask) -> Result<Created, StoreError> {
        let id = task.id.clone();
        self.world.store(task);
        Ok(Created::New(id))
    }

    async fn head(&self, id: &TaskId) -> Result<Option<Head>, StoreError> {
        Ok(self.get(id).await?.map(|record| record.head))
    }

    async fn get(&self, id: &TaskId) -> Result<Option<Record>, StoreError> {
        let seen = self.state.lock().unwrap().seen.get(id).copied();
        let record = self
            .ask(unavailable, |_, inner| Ok(inner.read(id, seen).cloned()))
            .await?;
        if let Some(record) = &record {
            self.saw(id, record.head.version);
        }
        Ok(record)
    }

    async fn get_with_secrets(&self, id: &TaskId) -> Result<Option<Record>, StoreError> {
        self.get(id).await
    }

    async fn get_raw(&self, _: &TaskId) -> Result<Option<RawRecord>, StoreError> {
        Ok(None)
    }

    async fn list(&self, _: &Query) -> Result<Page, StoreError> {
        Ok(Page::default())
    }

    async fn update(&self, id: &TaskId, expected: u64, update: Update) -> Result<Head, StoreError> {
        let result = self
            .ask(unavailable, |world, inner| {
                let end = update.state;
                if self.number == 0 && matches!(end, Some(State::Canceling | State::Canceled)) {
                    inner.canceled.insert(id.clone());
                }
                let result = inner.change(id, expected, update);
                match &result {
                    Ok(head) => world.heads.publish(std::slice::from_ref(head)),
                    Err(_) => self.saw(id, inner.record(id).head.version),
                }
                result
            })
            .await;
        if let Ok(head) = &result {
            self.saw(id, head.version);
        }
        result
    }

    async fn sweep(&self, _: Timestamp, _: usize) -> Result<Vec<TaskId>, StoreError> {
        Ok(Vec::new())
    }

    async fn watch(&self) -> Result<BoxStream<'static, Head>, StoreError> {
        let watcher = self.world.heads.register();
        let (active, lag): (Vec<_>, _) = self
            .ask(unavailable, |_, inner| {
                let ids: Vec<_> = inner.records.keys().cloned().collect();
                let heads = ids
                    .iter()
                    .filter_map(|id| Some(inner.read(id, None)?.head.clone()));
                let active = heads.filter(|head| !head.state.is_terminal()).collect();
                Ok((active, inner.weather.lag))
            })
            .await?;
        let at_once = active.iter().map(|head| (head.id.clone(), head.version));
        let at_once: BTreeSet<_> = at_once.collect();
        watcher.merge(active);
        let world = Arc::clone(&self.world);
        // What was older than it is now.
        let rest = {
            let world = Arc::clone(&self.world);
            async move {
                if lag.is_zero() {
                    return std::future::pending().await;
                }
                sleep(lag).await;
                let inner = world.lock();
                let heads: Vec<_> = inner.all().map(|record| record.head.clone()).collect();
                stream::iter(heads)
            }
        };
        let heads = stream::select(watcher.into_stream(), stream::once(rest).flatten());
        Ok(heads
            .then(move |head| {
                let late = {
                    let mut inner = world.lock();
                    let late = inner.weather.late;
                    let is_late = inner.rng.random_bool(late)
                        && !at_once.contains(&(head.id.clone(), head.version));
                    is_late.then(|| inner.rng.random_range(0..5000))
                };
                async move {
                    if let Some(late) = late {
                        sleep(Duration::from_millis(late)).await;
                    }
                    head
                }
            })
            .boxed())
    }

    async fn counts(&self) -> Result<Vec<(State, u64)>, StoreError> {
        Ok(Vec::new())
    }

    async fn check(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

#[async_trait]
impl Compute for Side {
    async fn submit(&self, attempt: &AttemptId, _: &Plan) -> Result<(), Refusal> {
        let world = Arc::clone(&self.world);
        self.ask(
            |why| Refusal::Unknown(unreachable(why)),
            |_, inner| {
                if inner.submit(attempt)? {
                    tokio::spawn(world.run(attempt.clone()));
                }
                Ok(())
            },
        )
        .await
    }

    async fn observe(&self, attempt: &AttemptId) -> Result<Observed, ComputeError> {
        self.ask(unreachable, |_, inner| {
            let pod = inner.pods.get(attempt);
            Ok(Observed {
                phase: pod.map_or(Phase::Absent, |pod| pod.phase.clone()),
                started: pod.map(|pod| pod.started),
                ..Observed::absent()
            })
        })
        .await
    }

    async fn watch(&self) -> Result<BoxStream<'static, AttemptId>, ComputeError> {
        // It breaks now and then.
        let lasts = self.world.lock().rng.random_range(1..200);
        let ends = sleep(Duration::from_secs(lasts));
        Ok(self.world.hints.subscribe().take_until(ends).boxed())
    }

    async fn cancel(&self, attempt: &AttemptId, _: Duration) -> Result<(), ComputeError> {
        self.ask(unreachable, |_, inner| {
            inner.cancel(attempt);
            Ok(())
        })
        .await
    }

    async fn remove(&self, attempt: &AttemptId) -> Result<(), ComputeError> {
        self.ask(unreachable, |_, inner| {
            inner.remove(attempt);
            Ok(())
        })
        .await
    }

    async fn attempts(&self) -> Result<Vec<AttemptId>, ComputeError> {
        self.ask(unreachable, |_, inner| {
            Ok(inner.pods.keys().cloned().collect())
        })
        .await
    }
}
