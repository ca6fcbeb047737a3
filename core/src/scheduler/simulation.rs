//! The scheduler's steps against a store and a compute side in memory, with crashes between any
//! two of their operations, before or after these have had their effect. Seeded: a failure
//! names the seed that shows it again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::cancel;
use super::compute::{AttemptId, Compute, ComputeError, Observed, Outcome, Phase, Refusal, Report};
use super::reconcile::Admission;
use super::record::{Head, Owner, Record, TaskId};
use super::run::Settings;
use super::step::{step, sweep_attempts};
use super::store::{Created, NewTask, Page, Query, RawRecord, StoreError, TaskStore, Update};
use crate::plan::Plan;
use crate::tes::{State, TaskLog, UrlSecrets};
use crate::time::Timestamp;

const SEEDS: u64 = 300;
const TASKS: usize = 4;
const TURNS: usize = 400;

/// Everything that survives a crash of the scheduler.
#[derive(Debug)]
struct World {
    state: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    rng: StdRng,
    records: BTreeMap<TaskId, Record>,
    attempts: BTreeMap<AttemptId, Running>,
    /// How often each attempt was really started.
    starts: HashMap<AttemptId, u32>,
    /// The end that each ended task was seen to have.
    ends: HashMap<TaskId, State>,
    /// Operations until the scheduler crashes.
    fuse: Option<u32>,
}

#[derive(Debug)]
struct Running {
    phase: Phase,
    canceled: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            state: Mutex::new(Inner {
                rng: StdRng::seed_from_u64(seed),
                records: BTreeMap::new(),
                attempts: BTreeMap::new(),
                starts: HashMap::new(),
                ends: HashMap::new(),
                fuse: None,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.state.lock().unwrap()
    }

    /// One operation: it has its effect, unless the crash comes before it.
    fn operate<T, E>(
        &self,
        crashed: impl Fn() -> E,
        effect: impl FnOnce(&mut Inner) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut inner = self.lock();
        match inner.fuse {
            Some(0) => return Err(crashed()),
            Some(1) => {
                inner.fuse = Some(0);
                // The last operation before the crash may have had its effect, or not.
                if inner.rng.random_bool(0.5) {
                    return Err(crashed());
                }
                let _ = effect(&mut inner);
                return Err(crashed());
            }
            Some(left) => inner.fuse = Some(left - 1),
            None => {}
        }
        effect(&mut inner)
    }
}

fn down() -> StoreError {
    StoreError::Unavailable("crashed".to_owned())
}

fn unreachable() -> ComputeError {
    ComputeError("crashed".to_owned())
}

#[async_trait]
impl TaskStore for World {
    async fn create(&self, task: NewTask) -> Result<Created, StoreError> {
        let now = Timestamp::now();
        let record = Record {
            head: Head {
                id: task.id.clone(),
                owner: task.owner,
                state: State::Queued,
                created: now,
                changed: now,
                attempt: 0,
                not_before: None,
                version: 1,
            },
            document: task.document,
            logs: vec![TaskLog::default()],
            secrets: task.secrets,
        };
        self.lock().records.insert(task.id.clone(), record);
        Ok(Created::New(task.id))
    }

    async fn head(&self, id: &TaskId) -> Result<Option<Head>, StoreError> {
        Ok(self.get(id).await?.map(|record| record.head))
    }

    async fn get(&self, id: &TaskId) -> Result<Option<Record>, StoreError> {
        self.operate(down, |inner| Ok(inner.records.get(id).cloned()))
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
        self.operate(down, |inner| {
            let record = inner.records.get_mut(id).ok_or(StoreError::NotFound)?;
            let head = &mut record.head;
            if head.version != expected || head.state.is_terminal() {
                return Err(StoreError::Conflict);
            }
            head.version += 1;
            head.state = update.state.unwrap_or(head.state);
            head.attempt = update.attempt.unwrap_or(head.attempt);
            head.not_before = update.not_before.unwrap_or(head.not_before);
            if let Some(logs) = update.logs {
                record.logs = logs;
            }
            if head.state.is_terminal() {
                inner.ends.insert(id.clone(), head.state);
            }
            Ok(head.clone())
        })
    }

    async fn sweep(&self, _: Timestamp, _: usize) -> Result<Vec<TaskId>, StoreError> {
        Ok(Vec::new())
    }

    async fn watch(&self) -> Result<BoxStream<'static, Head>, StoreError> {
        Ok(futures_util::stream::empty().boxed())
    }

    async fn counts(&self) -> Result<Vec<(State, u64)>, StoreError> {
        Ok(Vec::new())
    }

    async fn check(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

#[async_trait]
impl Compute for World {
    async fn submit(&self, attempt: &AttemptId, _: &Plan) -> Result<(), Refusal> {
        self.operate(
            || Refusal::Unknown(unreachable()),
            |inner| {
                if inner.rng.random_bool(0.1) {
                    return Err(Refusal::Busy("full".to_owned()));
                }
                if !inner.attempts.contains_key(attempt) {
                    *inner.starts.entry(attempt.clone()).or_default() += 1;
                    let running = Running {
                        phase: Phase::Pending(None),
                        canceled: false,
                    };
                    inner.attempts.insert(attempt.clone(), running);
                }
                Ok(())
            },
        )
    }

    async fn observe(&self, attempt: &AttemptId) -> Result<Observed, ComputeError> {
        self.operate(unreachable, |inner| {
            let running = inner.attempts.get(attempt);
            Ok(Observed {
                phase: running.map_or(Phase::Absent, |running| running.phase.clone()),
                started: Some(Timestamp::from_millis(1)),
                ..Observed::absent()
            })
        })
    }

    async fn watch(&self) -> Result<BoxStream<'static, AttemptId>, ComputeError> {
        Ok(futures_util::stream::empty().boxed())
    }

    async fn cancel(&self, attempt: &AttemptId, _: Duration) -> Result<(), ComputeError> {
        self.operate(unreachable, |inner| {
            if let Some(running) = inner.attempts.get_mut(attempt) {
                running.canceled = true;
            }
            Ok(())
        })
    }

    async fn remove(&self, attempt: &AttemptId) -> Result<(), ComputeError> {
        self.operate(unreachable, |inner| {
            if let Some(running) = inner.attempts.remove(attempt) {
                assert!(
                    running.phase.is_over(),
                    "{attempt} is removed while it runs"
                );
                // What it left must have been written before.
                let record = &inner.records[&attempt.task];
                let concluded = record.head.state.is_terminal()
                    || record.head.current_attempt().as_ref() != Some(attempt);
                assert!(concluded, "{attempt} is removed before its end is written");
            }
            Ok(())
        })
    }

    async fn attempts(&self) -> Result<Vec<AttemptId>, ComputeError> {
        self.operate(unreachable, |inner| {
            Ok(inner.attempts.keys().cloned().collect())
        })
    }
}

/// Lets time pass for one attempt.
fn advance(inner: &mut Inner) {
    let Inner { rng, attempts, .. } = inner;
    let at = match attempts.len() {
        0 => return,
        count => rng.random_range(0..count),
    };
    let Some(running) = attempts.values_mut().nth(at) else {
        return;
    };
    let report = |outcome| {
        Phase::Finished(Box::new(Report {
            outcome,
            executors: Vec::new(),
            outputs: Vec::new(),
            notes: Vec::new(),
            started: Timestamp::from_millis(1),
            ended: Timestamp::from_millis(2),
        }))
    };
    let lost = || Phase::Lost {
        reason: "lost".to_owned(),
        preempted: false,
    };
    running.phase = match (&running.phase, rng.random_range(0..10)) {
        (over, _) if over.is_over() => return,
        (_, 0) => lost(),
        _ if running.canceled => report(Outcome::Canceled),
        (Phase::Pending(_), _) => Phase::Initializing,
        (Phase::Initializing, 1) => report(Outcome::SystemError),
        (Phase::Initializing, _) => Phase::Running,
        (_, 1) => report(Outcome::ExecutorError),
        (_, 2) => report(Outcome::Retry),
        (_, _) => report(Outcome::Complete),
    };
}

fn new_task(index: usize) -> NewTask {
    NewTask {
        id: format!("task{index}").parse().unwrap(),
        owner: Owner::default(),
        document: r#"{"executors":[{"image":"i","command":["c"]}]}"#.into(),
        name: None,
        tags: Vec::new(),
        secrets: UrlSecrets::default(),
        warnings: Vec::new(),
        idempotency: None,
    }
}

/// Checks what must always hold.
fn check(world: &World, seed: u64) {
    let inner = world.lock();
    for (attempt, starts) in &inner.starts {
        assert_eq!(
            *starts, 1,
            "seed {seed}: {attempt} was started {starts} times"
        );
    }
    for (id, end) in &inner.ends {
        let now = inner.records[id].head.state;
        assert_eq!(now, *end, "seed {seed}: {id} was {end} and is {now}");
    }
    for (id, record) in &inner.records {
        let alive = inner
            .attempts
            .iter()
            .filter(|(attempt, running)| attempt.task == *id && !running.phase.is_over());
        assert!(alive.count() <= 1, "seed {seed}: two attempts of {id} run");
        assert!(record.logs.len() as u32 >= record.head.attempt);
    }
}

async fn simulate(seed: u64) {
    let world = World::new(seed);
    let settings = Settings {
        back_off: Duration::ZERO,
        max_back_off: Duration::ZERO,
        ..Settings::default()
    };
    for index in 0..TASKS {
        world.create(new_task(index)).await.unwrap();
    }
    let ids: Vec<TaskId> = world.lock().records.keys().cloned().collect();
    let mut canceled = BTreeSet::new();
    for turn in 0.. {
        let (id, event, fuse) = {
            let mut inner = world.lock();
            let id = ids[inner.rng.random_range(0..ids.len())].clone();
            // After some time nothing goes wrong any more, so that all comes to its end.
            let fuse =
                (turn < TURNS && inner.rng.random_bool(0.4)).then(|| inner.rng.random_range(1..8));
            (id, inner.rng.random_range(0..20), fuse)
        };
        match event {
            0 if turn < TURNS => {
                canceled.insert(id.clone());
                // A client's, not the scheduler's: it does not crash with it.
                cancel(&world, &id).await.unwrap();
            }
            1..=8 => advance(&mut world.lock()),
            9 => {
                world.lock().fuse = fuse;
                let _ = sweep_attempts(&world, &world, &settings).await;
            }
            _ => {
                world.lock().fuse = fuse;
                let _ = step(&world, &world, &settings, &id, Admission::Go).await;
            }
        }
        world.lock().fuse = None;
        check(&world, seed);
        let over = {
            let inner = world.lock();
            inner.ends.len() == TASKS && inner.attempts.is_empty()
        };
        if over {
            break;
        }
        assert!(turn < TURNS * 20, "seed {seed}: {:#?}", world.lock());
    }
    for id in &canceled {
        // It was asked for before its end, or after.
        assert!(world.lock().ends.contains_key(id));
    }
}

#[tokio::test]
async fn whatever_crashes_no_attempt_runs_twice_and_every_task_ends_once() {
    for seed in 0..SEEDS {
        simulate(seed).await;
    }
}
