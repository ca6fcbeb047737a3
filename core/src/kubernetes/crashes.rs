//! A server that is killed, or stands still while another takes over, at each of its crash points,
//! over a stand-in for the API server and a pretended kubelet.
//!
//! A server is a thread with a runtime of its own: one that comes to its point and goes no further
//! is, for all others, a process that was killed or stopped there.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::PostParams;
use serde_json::{Value, json};
use tesk_conformance::fake_api::FakeApi;
use tokio::runtime::Runtime;

use super::cluster::Cluster;
use super::engine::open_with;
use super::pod::STOP;
use super::settings::{LeaseSettings, Patience, Settings};
use super::store::StoreSettings;
use super::{ClusterSettings, cluster};
use crate::config::Span;
use crate::crash::{self, POINTS};
use crate::scheduler::compute::{Outcome, Report};
use crate::scheduler::store::IdempotencyKey;
use crate::scheduler::{self, Created, NewTask, Owner, TaskId};
use crate::staging::report;
use crate::tes::{ExecutorLog, UrlSecrets};
use crate::time::Timestamp;

const PATIENCE: Duration = Duration::from_mins(10);
/// How long a server that stands still does so: others have taken over by then.
const STILL: Duration = Duration::from_secs(3);

/// What happens at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Killed,
    StandsStill,
}

/// What is asked of a server.
enum Ask {
    Create(Box<NewTask>, mpsc::Sender<Option<Created>>),
    Cancel(TaskId, mpsc::Sender<Option<Created>>),
    Stop,
}

/// A server, as a thread.
struct Server {
    asks: tokio::sync::mpsc::UnboundedSender<Ask>,
    reached: Arc<AtomicBool>,
}

fn cluster(server: &FakeApi) -> Cluster {
    let client = kube::Client::new(server.clone(), "test");
    Cluster::new(client, "test".to_owned(), "tesk".to_owned())
}

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

fn settings() -> ClusterSettings {
    let milliseconds = |n| Span(Duration::from_millis(n));
    ClusterSettings {
        kubernetes: Settings {
            lease: LeaseSettings {
                duration: milliseconds(1500),
                renew: milliseconds(300),
            },
            patience: Patience {
                image_pull: milliseconds(100),
                ..Patience::default()
            },
            ..Settings::default()
        },
        filer_config: String::new(),
        scheduler: scheduler::Settings {
            poll: Duration::from_millis(300),
            sweep: Duration::from_millis(200),
            back_off: Duration::from_millis(100),
            grace: Duration::from_millis(100),
            // Longer than a server stands still, or what it does then is a new task.
            retention: Some(STILL + Duration::from_secs(2)),
            ..scheduler::Settings::default()
        },
    }
}

impl Server {
    fn start(api: &FakeApi, at: Option<(&'static str, Fate)>) -> Self {
        let (asks, mut asked) = tokio::sync::mpsc::unbounded_channel();
        let reached = Arc::new(AtomicBool::new(false));
        let (api, says) = (api.clone(), Arc::clone(&reached));
        let main = async move {
            let store = StoreSettings {
                orphan_age: Duration::from_secs(4),
                orphan_interval: Duration::ZERO,
                ..StoreSettings::default()
            };
            let engine = open_with(cluster(&api), settings(), store).await.unwrap();
            while let Some(ask) = asked.recv().await {
                match ask {
                    Ask::Create(task, answer) => {
                        let created = engine.store().create(*task).await;
                        let _ = answer.send(created.ok());
                    }
                    Ask::Cancel(id, answer) => {
                        let done = scheduler::cancel(&*engine.store(), &id).await;
                        let _ = answer.send(done.ok().map(|head| Created::Existing(head.id)));
                    }
                    Ask::Stop => break,
                }
            }
            engine.stop().await;
        };
        std::thread::spawn(move || {
            crash::on_this_thread(move |point| {
                let Some((_, fate)) = at.filter(|(at, _)| *at == point) else {
                    return;
                };
                if says.swap(true, Ordering::SeqCst) {
                    return;
                }
                match fate {
                    Fate::Killed => loop {
                        std::thread::park();
                    },
                    Fate::StandsStill => std::thread::sleep(STILL),
                }
            });
            runtime().block_on(main);
        });
        Self { asks, reached }
    }

    fn reached(&self) -> bool {
        self.reached.load(Ordering::SeqCst)
    }

    /// The answer, if there is one in time.
    fn ask(&self, ask: impl FnOnce(mpsc::Sender<Option<Created>>) -> Ask) -> Option<Created> {
        let (answer, answers) = mpsc::channel();
        self.asks.send(ask(answer)).ok()?;
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end && !self.reached() {
            if let Ok(answer) = answers.recv_timeout(Duration::from_millis(20)) {
                return answer;
            }
        }
        answers.try_recv().ok().flatten()
    }
}

/// What a kubelet has seen.
#[derive(Default)]
struct Seen {
    /// How often the executors of a pod ran.
    ran: HashMap<String, u32>,
    /// The state of each task, as it was last.
    states: HashMap<String, String>,
}

fn container(name: &str, state: &Value) -> Value {
    json!({
        "name": name, "ready": false, "restartCount": 0, "image": "i", "imageID": "i",
        "started": state["running"].is_object(), "state": state,
    })
}

fn ended(message: &str) -> Value {
    json!({"terminated": {"exitCode": 0, "message": message, "finishedAt": "2026-01-01T00:00:00Z"}})
}

/// Runs pods until it is told to stop.
fn kubelet(api: &FakeApi, seen: &Mutex<Seen>, stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        for map in api.objects("configmaps") {
            let metadata = &map["metadata"];
            let state = &metadata["labels"]["tesk.elixir-cloud.org/state"];
            if let (Some(name), Some(state)) = (metadata["name"].as_str(), state.as_str()) {
                let mut seen = seen.lock().unwrap();
                seen.states.insert(name.to_owned(), state.to_owned());
            }
        }
        for pod in api.objects("pods") {
            turn(api, seen, &pod);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What a kubelet does about a pod when it looks at it.
fn turn(api: &FakeApi, seen: &Mutex<Seen>, pod: &Value) {
    let name = pod["metadata"]["name"].as_str().unwrap();
    let containers = pod["spec"]["containers"].as_array().unwrap();
    let executor = containers.iter().find(|c| c["name"] == "executor-0");
    let image = executor.and_then(|c| c["image"].as_str()).unwrap_or("");
    if pod["metadata"]["deletionTimestamp"].is_string() {
        api.remove("pods", name);
        return;
    }
    let stopped = pod["metadata"]["annotations"][STOP].is_string();
    let next = match (pod["status"]["phase"].as_str(), image) {
        (Some("Running"), "waits:1") => return,
        (Some("Running"), "lost:1") if name.ends_with("-1") => {
            // Before that, one that vanishes while no server watches is not known to have been.
            let head = format!("tesk-{}", name.trim_end_matches("-1"));
            let seen = seen.lock().unwrap();
            if seen
                .states
                .get(&head)
                .is_some_and(|state| state != "QUEUED")
            {
                api.remove("pods", name);
            }
            return;
        }
        (Some("Running"), "absent:1") if !stopped => return,
        (Some("Running"), _) => {
            let outcome = if stopped {
                Outcome::SystemError
            } else {
                Outcome::Complete
            };
            let now = Timestamp::now();
            let log = ExecutorLog {
                // So long that it has objects of its own.
                stdout: Some("long ".repeat(4000)),
                ..ExecutorLog::default()
            };
            let report = Report {
                outcome,
                executors: vec![log],
                outputs: Vec::new(),
                notes: Vec::new(),
                started: now,
                ended: now,
            };
            ended(&report::pack(&report, 4096).unwrap().message)
        }
        (_, "absent:1") => json!({"waiting": {"reason": "ErrImagePull"}}),
        (_, _) => {
            let mut seen = seen.lock().unwrap();
            *seen.ran.entry(name.to_owned()).or_default() += 1;
            json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}})
        }
    };
    let containers = if next["terminated"].is_object() {
        json!([container("outputs", &next)])
    } else {
        let running = json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}});
        json!([
            container("inputs", &ended("")),
            container("executor-0", &next),
            container("outputs", &running)
        ])
    };
    api.edit("pods", name, |pod| {
        pod["spec"]["nodeName"] = json!("n");
        pod["status"] = json!({
            "phase": "Running", "startTime": "2026-01-01T00:00:00Z",
            "conditions": [{
                "type": "PodScheduled", "status": "True",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
            "containerStatuses": containers,
        });
    });
}

/// A task with all that a task can have.
fn task(image: &str) -> NewTask {
    let mut random = 1_u64;
    let mut noise = || {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        char::from(b'0' + (random >> 33) as u8 % 64)
    };
    let content: String = (0..24_000)
        .map(|_| noise())
        .filter(|c| *c != '\\')
        .collect();
    let document = json!({
        "executors": [{"image": image, "command": ["true"]}],
        "inputs": [{"path": "/data/in", "type": "FILE", "content": content}],
    });
    NewTask {
        id: TaskId::random(),
        owner: Owner::default(),
        document: document.to_string().into(),
        name: None,
        tags: Vec::new(),
        secrets: UrlSecrets([("inputs[0].url".to_owned(), "secret".to_owned())].into()),
        warnings: Vec::new(),
        idempotency: Some(IdempotencyKey {
            key: image.to_owned(),
            digest: [1; 32],
            ttl: Duration::from_mins(1),
        }),
    }
}

/// Objects of a task that nobody knows.
fn strays(api: &FakeApi) {
    let labels = |part: &str| {
        json!({
            cluster::MANAGED_BY: "tesk", cluster::INSTANCE: "tesk", cluster::COMPONENT: part,
            cluster::TASK: "tstray", cluster::ATTEMPT: "1",
        })
    };
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "tstray-1", "labels": labels("attempt")},
        "spec": {"containers": [{"name": "main", "image": "waits:1"}]},
    }))
    .unwrap();
    let map: ConfigMap = serde_json::from_value(json!({
        "metadata": {"name": "tesk-tstray.document-0-0", "labels": labels("document")},
    }))
    .unwrap();
    runtime().block_on(async {
        let (cluster, params) = (cluster(api), PostParams::default());
        cluster.api().create(&params, &pod).await.unwrap();
        cluster.api().create(&params, &map).await.unwrap();
    });
}

/// The servers of one run: the first comes to the point, the others are as they should be.
struct Servers {
    api: FakeApi,
    all: Vec<Server>,
}

impl Servers {
    /// One that is there.
    fn present(&mut self) -> &Server {
        if self.all.last().unwrap().reached() {
            self.all.push(Server::start(&self.api, None));
        }
        self.all.last().unwrap()
    }

    fn ask(&mut self, mut ask: impl FnMut(mpsc::Sender<Option<Created>>) -> Ask) -> TaskId {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            match self.present().ask(&mut ask) {
                Some(Created::New(id) | Created::Existing(id)) => return id,
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
        panic!("no answer");
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn run(point: &'static str, fate: Fate) {
    let api = FakeApi::new();
    let (seen, stop) = (
        Arc::new(Mutex::<Seen>::default()),
        Arc::new(AtomicBool::new(false)),
    );
    let kubelet = {
        let (api, seen, stop) = (api.clone(), Arc::clone(&seen), Arc::clone(&stop));
        std::thread::spawn(move || kubelet(&api, &seen, &stop))
    };
    strays(&api);
    let mut servers = Servers {
        all: vec![Server::start(&api, Some((point, fate)))],
        api: api.clone(),
    };
    let mut expected = Vec::new();
    for (image, state, attempts) in [
        ("ends:1", "COMPLETE", 1),
        ("waits:1", "CANCELED", 1),
        ("absent:1", "SYSTEM_ERROR", 0),
        ("lost:1", "COMPLETE", 2),
    ] {
        // Again with the same key, until there is an answer.
        let id = servers.ask(|answer| Ask::Create(Box::new(task(image)), answer));
        if image == "waits:1" {
            let pod = format!("{id}-1");
            until("it runs", || {
                servers.present();
                seen.lock().unwrap().ran.contains_key(&pod)
            });
            servers.ask(|answer| Ask::Cancel(id.clone(), answer));
        }
        expected.push((id, state, attempts));
    }
    let name = |object: &Value| object["metadata"]["name"].as_str().unwrap().to_owned();
    let left = || {
        let objects = ["configmaps", "pods", "secrets"].map(|plural| api.objects(plural));
        let mut names: Vec<_> = objects.concat().iter().map(name).collect();
        names.retain(|name| !name.starts_with("tesk-filer-"));
        names
    };
    let begun = Instant::now();
    while !left().is_empty() && begun.elapsed() < PATIENCE {
        servers.present();
        std::thread::sleep(Duration::from_millis(100));
    }
    if point == "lease.released" {
        let _ = servers.all[0].asks.send(Ask::Stop);
    }
    until("it comes to the point", || servers.all[0].reached());
    // The one that stood still goes on, and finds nothing to do.
    if fate == Fate::StandsStill {
        std::thread::sleep(STILL);
    }
    assert_eq!(left(), Vec::<String>::new(), "left over");
    let seen = seen.lock().unwrap();
    for (id, state, attempts) in expected {
        assert_eq!(seen.states[&format!("tesk-{id}")], state, "{id}");
        let of = |(pod, n): (&String, &u32)| pod.starts_with(id.as_str()).then_some(*n);
        let ran: Vec<u32> = seen.ran.iter().filter_map(of).collect();
        assert_eq!(ran, vec![1; attempts], "{id}");
    }
    drop(seen);
    for server in &servers.all {
        let _ = server.asks.send(Ask::Stop);
    }
    stop.store(true, Ordering::SeqCst);
    kubelet.join().unwrap();
}

#[test]
fn a_server_that_is_killed_or_stopped_anywhere_changes_nothing() {
    let only = std::env::var("CRASH").unwrap_or_default();
    let mut runs = Vec::new();
    for (point, _) in POINTS {
        for fate in [Fate::Killed, Fate::StandsStill] {
            if only.is_empty() || only == format!("{point} {fate:?}") {
                runs.push((*point, fate));
            }
        }
    }
    // Each has its clock, and they mostly wait; yet too many keep each other from going on.
    let at_once = std::thread::available_parallelism().map_or(8, |n| (4 * n.get()).max(8));
    let (runs, failed) = (Mutex::new(runs), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let Some((point, fate)) = runs.lock().unwrap().pop() else {
                        return;
                    };
                    if let Err(error) = std::thread::spawn(move || run(point, fate)).join() {
                        let text = error.downcast_ref::<String>().cloned();
                        let failure = (point, fate, text.unwrap_or_default());
                        failed.lock().unwrap().push(failure);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{failed:#?}");
}
