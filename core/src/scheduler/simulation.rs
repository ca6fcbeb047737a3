//! The whole scheduler against a store and a compute side in memory, under virtual time.
//!
//! Requests and answers are lost and late, schedulers are killed between any two of them or
//! stand still while another takes over, attempts fail, vanish and find no room, hints do not
//! come, and users cancel at any time. All of it follows from one seed: a failure names the
//! seed, and `SIMULATION_SEED=<seed>` runs only that one. `SIMULATION_CASES` sets how many seeds
//! are tried.

mod turns;
mod world;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::time::{Instant, sleep};

use self::world::{Side, Weather, World};
use super::cancel;
use super::compute::{AttemptId, Outcome};
use super::record::{Owner, TaskId};
use super::run::{Capacity, Scheduler, Settings};
use super::store::NewTask;
use crate::tes::{State, UrlSecrets};
use crate::time::simulated::Clock;

const CASES: u64 = 2000;
/// How long things go wrong.
const STORM: Duration = Duration::from_mins(5);
/// How long it may take then until all has come to its end.
const CALM: Duration = Duration::from_hours(2);

fn new_task(index: usize, user: &str, cores: u32) -> NewTask {
    let document = format!(
        r#"{{"executors":[{{"image":"i","command":["c"]}}],"resources":{{"cpu_cores":{cores}}}}}"#
    );
    NewTask {
        id: format!("task{index}").parse().unwrap(),
        owner: Owner {
            user: user.to_owned(),
            group: None,
        },
        document: document.into(),
        name: None,
        tags: Vec::new(),
        secrets: UrlSecrets::default(),
        warnings: Vec::new(),
        idempotency: None,
    }
}

/// Runs one simulation by itself, in virtual time.
fn simulated<T>(simulation: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let _clock = Clock::begin();
        simulation.await
    })
}

/// What is simulated.
struct Case {
    settings: Settings,
    world: Arc<World>,
    tasks: Vec<TaskId>,
    /// Whether no more tasks may be active than the settings say: with old reads, or with two
    /// schedulers that act, more may be.
    limited: bool,
    schedulers: u32,
}

impl Case {
    fn new(seed: u64) -> Self {
        let world = World::new(seed);
        let (settings, tasks) = {
            let mut inner = world.lock();
            let rng = &mut inner.rng;
            let settings = Settings {
                capacity: rng.random_bool(0.5).then_some(Capacity {
                    cores: 4,
                    memory: 0,
                }),
                max_active: rng.random_range(1..=4),
                max_active_per_user: rng.random_bool(0.5).then(|| rng.random_range(1..=2)),
                max_attempts: rng.random_range(1..=3),
                time_limit: rng.random_bool(0.3).then_some(Duration::from_secs(40)),
                report_preempted: rng.random_bool(0.5),
                ..Settings::default()
            };
            let tasks = (0..rng.random_range(1..=6)).map(|index| {
                let user = ["ann", "bob"][rng.random_range(0..2)];
                new_task(index, user, rng.random_range(1..=5))
            });
            let tasks: Vec<_> = tasks.collect();
            let mut often = |most| {
                if rng.random_bool(0.5) {
                    rng.random_range(0.0..most)
                } else {
                    0.0
                }
            };
            let weather = Weather {
                errors: often(0.2),
                late: often(0.8),
                busy: often(0.5),
                never: often(0.2),
                lost: often(0.3),
                slowest: [1000, 20_000][rng.random_range(0..2)],
                fenced: rng.random_bool(0.7),
                lag: Duration::from_millis(if rng.random_bool(0.5) {
                    rng.random_range(0..30_000)
                } else {
                    0
                }),
            };
            inner.weather = weather;
            inner.time_limit = settings.time_limit;
            (settings, tasks)
        };
        let limited = {
            let inner = world.lock();
            inner.weather.fenced && inner.weather.lag.is_zero()
        };
        let ids = tasks.iter().map(|task| task.id.clone()).collect();
        for task in tasks {
            world.store(task);
        }
        Self {
            settings,
            world,
            tasks: ids,
            limited,
            schedulers: 0,
        }
    }

    fn random<T>(&self, choose: impl FnOnce(&mut StdRng) -> T) -> T {
        choose(&mut self.world.lock().rng)
    }

    /// A new scheduler, which takes over from those before it.
    fn start(&mut self) -> (Scheduler, Arc<Side>) {
        self.schedulers += 1;
        self.world.lock().lead(self.schedulers);
        let side = self.world.side(self.schedulers);
        let scheduler = Scheduler::start(side.clone(), side.clone(), self.settings.clone());
        (scheduler, side)
    }

    async fn run(mut self) -> Result<(), String> {
        let mut running = self.start();
        let mut stalled = Vec::new();
        let user = self.world.side(0);
        let mut told = BTreeSet::new();
        let begun = Instant::now();
        let mut ends = Vec::new();
        while begun.elapsed() < STORM {
            let wait = self.random(|rng| rng.random_range(0..15_000));
            sleep(Duration::from_millis(wait)).await;
            match self.random(|rng| rng.random_range(0..10)) {
                0 | 1 => {
                    running.1.kill();
                    running = self.start();
                }
                2 => {
                    let time = self.random(|rng| rng.random_range(1..60));
                    running.1.stall(Duration::from_secs(time));
                    stalled.push(std::mem::replace(&mut running, self.start()));
                }
                3 => {
                    let time = self.random(|rng| rng.random_range(1..30));
                    running.1.stall(Duration::from_secs(time));
                }
                4 => {
                    let old = std::mem::replace(&mut running, self.start());
                    old.0.stop().await;
                }
                5 => {
                    let at = self.random(|rng| rng.random_range(0..self.tasks.len()));
                    let id = &self.tasks[at];
                    if let Ok(head) = cancel(&*user, id).await
                        && matches!(head.state, State::Canceling | State::Canceled)
                    {
                        told.insert(id.clone());
                    }
                }
                _ => {}
            }
            self.check(&mut ends)?;
        }
        self.world.lock().calm();
        // Those that stood still give up at last.
        for (scheduler, _) in stalled {
            scheduler.stop().await;
        }
        let calm = Instant::now();
        loop {
            self.check(&mut ends)?;
            let over = {
                let inner = self.world.lock();
                inner.all().all(|record| record.head.state.is_terminal()) && inner.pods.is_empty()
            };
            if over {
                break;
            }
            if calm.elapsed() > CALM {
                let inner = self.world.lock();
                let open: Vec<_> = inner.all().map(|record| &record.head).collect();
                let left: Vec<_> = inner.pods.keys().collect();
                return Err(format!("it does not end: {open:#?}, left: {left:?}"));
            }
            sleep(Duration::from_secs(1)).await;
        }
        // What is late may still come.
        sleep(Duration::from_mins(5)).await;
        self.check(&mut ends)?;
        self.check_ends(&told)?;
        running.0.stop().await;
        Ok(())
    }

    /// What must hold at any time.
    fn check(&self, ends: &mut Vec<(TaskId, State)>) -> Result<(), String> {
        let inner = self.world.lock();
        if let Some(broken) = inner.broken.first() {
            return Err(broken.clone());
        }
        for (id, end) in ends.iter() {
            let now = inner.record(id).head.state;
            if now != *end {
                return Err(format!("{id} was {end} and is {now}"));
            }
        }
        for record in inner.all() {
            let head = &record.head;
            if head.state.is_terminal() && ends.iter().all(|(id, _)| *id != head.id) {
                ends.push((head.id.clone(), head.state));
            }
            if head.attempt > self.settings.max_attempts {
                return Err(format!("{} has attempt {}", head.id, head.attempt));
            }
            if (record.logs.len() as u32) < head.attempt {
                return Err(format!("{} has lost a log", head.id));
            }
        }
        if self.limited {
            let (all, user) = inner.most;
            let limit = self.settings.max_active_per_user.unwrap_or(usize::MAX);
            if all > self.settings.max_active || user > limit {
                return Err(format!("{all} tasks are active, {user} of one user"));
            }
        }
        Ok(())
    }

    /// What must hold at the end.
    fn check_ends(&self, told: &BTreeSet<TaskId>) -> Result<(), String> {
        let inner = self.world.lock();
        for record in inner.all() {
            let head = &record.head;
            let (id, state) = (&head.id, head.state);
            let report = inner.reports.get(&AttemptId {
                task: id.clone(),
                number: head.attempt,
            });
            let lines = record
                .logs
                .iter()
                .flat_map(|log| &log.system_logs)
                .flatten();
            let lines: Vec<_> = lines.collect();
            let says = |what: &str| lines.iter().any(|line| line.contains(what));
            let right = match state {
                State::Complete => report == Some(&Outcome::Complete),
                State::ExecutorError => report == Some(&Outcome::ExecutorError),
                State::Canceled => inner.canceled.contains(id),
                State::Preempted => head.attempt == self.settings.max_attempts,
                State::SystemError => {
                    report == Some(&Outcome::SystemError)
                        || inner.refused.contains(id)
                        || says("this machine has")
                        || says("over the time limit")
                        || head.attempt == self.settings.max_attempts
                            && says(&format!("attempt {0} of {0} was lost", head.attempt))
                }
                _ => false,
            };
            if !right {
                return Err(format!("{id} is {state}, its report {report:?}, {lines:?}"));
            }
            if told.contains(id) && state != State::Canceled {
                return Err(format!("{id} was canceled and is {state}"));
            }
            let mut once = BTreeSet::new();
            for log in &record.logs {
                once.clear();
                for line in log.system_logs.iter().flatten() {
                    if !once.insert(line) {
                        return Err(format!("{id} says twice: {line}"));
                    }
                }
            }
        }
        Ok(())
    }
}

#[test]
fn whatever_happens_no_attempt_runs_twice_and_every_task_ends_once() {
    let number = |name: &str| Some(std::env::var(name).ok()?.parse::<u64>().unwrap());
    let seeds = match number("SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIMULATION_CASES").unwrap_or(CASES),
    };
    for seed in seeds {
        let result = simulated(async { Case::new(seed).run().await });
        if let Err(broken) = result {
            panic!("{broken}\nto see it again: SIMULATION_SEED={seed}");
        }
    }
}

#[test]
fn a_seed_always_makes_the_same_simulation() {
    for seed in 0..20 {
        let runs = [(), ()].map(|()| {
            let world = simulated(async {
                let case = Case::new(seed);
                let world = Arc::clone(&case.world);
                case.run().await.unwrap();
                world
            });
            let inner = world.lock();
            format!("{:?}", inner.all().collect::<Vec<_>>())
        });
        assert_eq!(runs[0], runs[1], "seed {seed}");
    }
}
