//! Several whole engines over one stand-in for the API server. A pretended kubelet starts their
//! pods, as the real one does: only while the record of the task permits it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use tesk_conformance::fake_api::{FakeApi, Line};
use tesk_core::config::Span;
use tesk_core::kubernetes::{
    Cluster, ClusterSettings, ConfigMapStore, LeaseSettings, Settings, open_on,
};
use tesk_core::scheduler::compute::{Outcome, Report};
use tesk_core::scheduler::{self, TaskId, TaskStore as _};
use tesk_core::staging::report;
use tesk_core::tes::State;
use tesk_core::time::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};

use super::compute::{ended, run};
use super::store::scheduled::runnable;
use super::store::{all, open, stored};
use crate::integration::scheduler::completed;
use crate::trials;

pub(super) fn trials() -> Vec<Trial> {
    trials![
        "replicas":
        of_two_engines_one_schedules_and_hands_over,
        a_leader_that_dies_is_replaced_and_every_task_runs_once,
        a_leader_that_stalls_starts_nothing_twice_and_overwrites_nothing,
        a_leader_that_is_cut_off_starts_nothing_twice_and_overwrites_nothing,
    ]
}

const LASTS: Duration = Duration::from_millis(1500);
/// How long a pod runs.
const RUNS: Duration = Duration::from_millis(150);
const TASKS: u64 = 40;
/// So many of them are active at once.
const ACTIVE: u64 = 8;

/// An engine in a process of its own, as far as a thread can be one.
struct Replica {
    orders: mpsc::UnboundedSender<Order>,
    schedules: watch::Receiver<bool>,
    thread: Option<JoinHandle<()>>,
}

enum Order {
    /// Stand still until the other end is dropped, the clock going on: as SIGSTOP does.
    Stall(std::sync::mpsc::Receiver<()>),
    /// Stop in good order.
    Stop,
    /// End without a word: as SIGKILL does.
    Die,
}

impl Replica {
    async fn start(line: &Line) -> Result<Self> {
        let (orders, mut ordered) = mpsc::unbounded_channel();
        let (says, said) = oneshot::channel();
        let line = line.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let client = kube::Client::new(line, "test");
                let cluster = Cluster::new(client, "test".to_owned(), "tesk".to_owned());
                let engine = open_on(cluster, settings()).await.expect("an engine");
                let _ = says.send(engine.schedules().expect("an election"));
                loop {
                    match ordered.recv().await {
                        Some(Order::Stall(woken)) => {
                            let _ = woken.recv();
                        }
                        Some(Order::Stop) => return engine.stop().await,
                        // Nothing runs any more once this returns.
                        Some(Order::Die) | None => return,
                    }
                }
            });
        });
        Ok(Self {
            orders,
            schedules: said.await?,
            thread: Some(thread),
        })
    }

    fn schedules(&self) -> bool {
        *self.schedules.borrow()
    }

    async fn elected(&mut self) -> Result<()> {
        let elected = self.schedules.wait_for(|schedules| *schedules);
        tokio::time::timeout(Duration::from_secs(10), elected).await??;
        Ok(())
    }

    async fn deposed(&mut self) -> Result<()> {
        let deposed = self.schedules.wait_for(|schedules| !*schedules);
        tokio::time::timeout(Duration::from_secs(10), deposed).await??;
        Ok(())
    }

    fn order(&self, order: Order) -> Result<()> {
        self.orders.send(order).ok().context("it is dead")
    }

    /// Orders its end, and waits for that.
    async fn end(mut self, order: Order) -> Result<()> {
        self.order(order)?;
        let thread = self.thread.take().context("a thread")?;
        let joined = tokio::task::spawn_blocking(|| thread.join());
        joined.await?.ok().context("it panicked")
    }
}

fn settings() -> ClusterSettings {
    ClusterSettings {
        kubernetes: Settings {
            lease: LeaseSettings {
                duration: Span(LASTS),
                renew: Span(LASTS / 5),
            },
            ..Settings::default()
        },
        filer_config: String::new(),
        scheduler: scheduler::Settings {
            max_active: ACTIVE as usize,
            sweep: Duration::from_millis(300),
            ..scheduler::Settings::default()
        },
    }
}

/// Starts pods, once for each uid, and ends them.
#[derive(Clone, Default)]
struct Kubelet(Arc<Mutex<BTreeMap<String, Started>>>);

struct Started {
    /// The pod's name: the attempt.
    attempt: String,
    at: Instant,
}

impl Kubelet {
    /// Works until it is dropped with the runtime.
    fn start(server: &FakeApi) -> Self {
        let kubelet = Self::default();
        let (this, server) = (kubelet.clone(), server.clone());
        tokio::spawn(async move {
            loop {
                for pod in server.objects("pods") {
                    this.look(&server, &pod);
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        kubelet
    }

    fn look(&self, server: &FakeApi, pod: &Value) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (name, uid) = (
            text(&pod["metadata"]["name"]),
            text(&pod["metadata"]["uid"]),
        );
        if pod["metadata"]["deletionTimestamp"].is_string() {
            server.remove("pods", &name);
            return;
        }
        let mut started = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match started.get(&uid) {
            Some(started) => {
                let over = pod["status"]["containerStatuses"][0]["name"] == "outputs";
                if !over && started.at.elapsed() > RUNS {
                    run(server, &name, &json!([ended("outputs", &message())]));
                }
            }
            None if is_permitted(server, pod) => {
                run(server, &name, &json!([]));
                let now = Started {
                    attempt: name,
                    at: Instant::now(),
                };
                started.insert(uid, now);
            }
            None => {}
        }
    }

    /// How often each attempt was started.
    fn starts(&self) -> BTreeMap<String, usize> {
        let started = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut starts = BTreeMap::new();
        for one in started.values() {
            *starts.entry(one.attempt.clone()).or_default() += 1;
        }
        starts
    }
}

/// Whether the volume is there without which the first container does not start.
fn is_permitted(server: &FakeApi, pod: &Value) -> bool {
    let volumes = pod["spec"]["volumes"].as_array();
    let permit = volumes.and_then(|all| all.iter().find(|volume| volume["name"] == "permit"));
    let Some(permit) = permit.map(|volume| &volume["configMap"]) else {
        return true;
    };
    let map = permit["name"]
        .as_str()
        .and_then(|name| server.object("configmaps", name));
    let key = permit["items"][0]["key"].as_str().unwrap_or_default();
    map.is_some_and(|map| map["data"][key].is_string())
}

/// The report of an attempt that went well.
fn message() -> String {
    let now = Timestamp::now();
    let report = Report {
        outcome: Outcome::Complete,
        executors: Vec::new(),
        outputs: Vec::new(),
        notes: Vec::new(),
        started: now,
        ended: now,
    };
    let packed = report::pack(&report, 4096);
    packed.map(|packed| packed.message).unwrap_or_default()
}

async fn submit(front: &ConfigMapStore, tasks: u64) -> Result<()> {
    for _ in 0..tasks {
        stored(front, runnable()).await?;
    }
    Ok(())
}

/// Waits until at least `count` tasks are complete.
async fn some_complete(front: &ConfigMapStore, count: u64) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(20) {
        let counts = front.counts().await?;
        let complete = counts.iter().find(|(state, _)| *state == State::Complete);
        if complete.is_some_and(|(_, complete)| *complete >= count) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bail!("not {count} are complete: {:?}", front.counts().await?)
}

/// Every task was run once, by its first attempt, and says so; no pod is left.
async fn each_ran_once(server: &FakeApi, front: &ConfigMapStore, kubelet: &Kubelet) -> Result<()> {
    let tasks = all(front).await?;
    ensure!(tasks.len() as u64 == TASKS);
    let mut expected = BTreeMap::new();
    for task in &tasks {
        let record = front.get(task).await?.context("a record")?;
        ensure!(record.head.state == State::Complete && record.head.attempt == 1);
        ensure!(record.logs.len() == 1, "{:?}", record.logs);
        expected.insert(format!("{task}-1"), 1);
    }
    let starts = kubelet.starts();
    ensure!(starts == expected, "{starts:?}");
    let begun = Instant::now();
    while !server.objects("pods").is_empty() {
        ensure!(begun.elapsed() < Duration::from_secs(10), "pods are left");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// The state of each task, and its version.
async fn heads(front: &ConfigMapStore) -> Result<Vec<(TaskId, State, u64)>> {
    let mut heads = Vec::new();
    for task in all(front).await? {
        let head = front.head_now(&task).await?.context("a head")?;
        heads.push((task, head.state, head.version));
    }
    Ok(heads)
}

/// Waits until all that the leader has begun waits for a pod to be made.
async fn all_wait_for_pods(server: &FakeApi, front: &ConfigMapStore) -> Result<()> {
    let pause = || tokio::time::sleep(Duration::from_millis(5));
    loop {
        let mut active = 0;
        for task in all(front).await? {
            let head = front.head_now(&task).await?.context("a head")?;
            active += u64::from(!head.state.is_terminal() && head.current_attempt().is_some());
        }
        if active == ACTIVE && server.objects("pods").is_empty() {
            break;
        }
        pause().await;
    }
    // What follows on the last of these numbers is sent before another renewal is.
    let renewals = || server.requests().get("update leases").copied().unwrap_or(0);
    let enough = renewals() + 2;
    while renewals() < enough {
        pause().await;
    }
    Ok(())
}

/// Who holds the lease.
fn holder(server: &FakeApi) -> Result<Value> {
    let lease = server.object("leases", "tesk-scheduler");
    Ok(lease.context("a lease")?["spec"]["holderIdentity"].clone())
}

/// One that schedules, behind a line, and one that waits; and tasks, some of which are complete.
async fn leader_and_heir(
    server: &FakeApi,
    line: &Line,
    front: &ConfigMapStore,
    tasks: u64,
    complete: u64,
) -> Result<(Replica, Replica)> {
    let mut one = Replica::start(line).await?;
    one.elected().await?;
    let two = Replica::start(&server.line()).await?;
    submit(front, tasks).await?;
    some_complete(front, complete).await?;
    Ok((one, two))
}

async fn of_two_engines_one_schedules_and_hands_over() -> Result<()> {
    let server = FakeApi::new();
    let (kubelet, front) = (Kubelet::start(&server), open(&server).await?);
    let (one, mut two) = leader_and_heir(&server, &server.line(), &front, TASKS, TASKS / 2).await?;
    ensure!(one.schedules() && !two.schedules());
    let before = holder(&server)?;
    one.end(Order::Stop).await?;
    ensure!(holder(&server)? != before, "it has kept the lease");
    two.elected().await?;
    completed(&front, TASKS, Duration::from_secs(30)).await?;
    each_ran_once(&server, &front, &kubelet).await?;
    two.end(Order::Stop).await
}

async fn a_leader_that_dies_is_replaced_and_every_task_runs_once() -> Result<()> {
    let server = FakeApi::new();
    let (kubelet, front) = (Kubelet::start(&server), open(&server).await?);
    let (one, mut two) = leader_and_heir(&server, &server.line(), &front, TASKS, TASKS / 4).await?;
    one.end(Order::Die).await?;
    let begun = Instant::now();
    ensure!(!two.schedules());
    two.elected().await?;
    let took = begun.elapsed();
    ensure!(took > LASTS / 2 && took < LASTS * 2, "{took:?}");
    completed(&front, TASKS, Duration::from_secs(30)).await?;
    each_ran_once(&server, &front, &kubelet).await?;
    two.end(Order::Stop).await
}

/// What the leader has sent arrives when all is over; and so does the leader, if it stood still.
async fn late(stalls: bool) -> Result<()> {
    let server = FakeApi::new();
    let (kubelet, front) = (Kubelet::start(&server), open(&server).await?);
    let line = server.line();
    let tasks = TASKS - ACTIVE;
    let (mut one, mut two) = leader_and_heir(&server, &line, &front, tasks, TASKS / 4).await?;
    // It goes on until all that it has begun waits for a pod to be made; then for everything.
    line.hold("/pods");
    submit(&front, ACTIVE).await?;
    let waits = all_wait_for_pods(&server, &front);
    let waits = tokio::time::timeout(Duration::from_secs(30), waits).await;
    waits.context("nothing waits for a pod")??;
    line.hold("");
    let (wake, woken) = std::sync::mpsc::channel();
    if stalls {
        one.order(Order::Stall(woken))?;
    }
    two.elected().await?;
    ensure!(stalls || !one.schedules(), "two at once");
    completed(&front, TASKS, Duration::from_secs(30)).await?;
    let before = heads(&front).await?;
    let created = server.requests()["create pods"];
    line.release();
    drop(wake);
    one.deposed().await?;
    // What it would do late, it does by then.
    tokio::time::sleep(LASTS).await;
    let late = server.requests()["create pods"] - created;
    ensure!(late > 0, "nothing was under way");
    ensure!(heads(&front).await? == before, "a record has changed");
    ensure!(two.schedules() && !one.schedules());
    each_ran_once(&server, &front, &kubelet).await?;
    // The one that was late is as good as any other.
    two.end(Order::Stop).await?;
    one.elected().await?;
    one.end(Order::Stop).await
}

async fn a_leader_that_stalls_starts_nothing_twice_and_overwrites_nothing() -> Result<()> {
    late(true).await
}

async fn a_leader_that_is_cut_off_starts_nothing_twice_and_overwrites_nothing() -> Result<()> {
    late(false).await
}
