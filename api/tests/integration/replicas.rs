//! Several servers over one stand-in for the API server of a cluster; and what is left of them
//! while it is away.

use std::time::{Duration, Instant};

use kube::Client;
use serde_json::Value;
use tesk_conformance::fake_api::{FakeApi, Fault};
use tesk_core::config::Span;
use tesk_core::kubernetes::{self, Cluster, ClusterSettings, LeaseSettings, Settings};
use tesk_core::scheduler::{self, Engine};

use crate::support::{BASE, Reply, Service, minimal};

/// A server of a cluster. It dies when it is dropped.
struct Replica {
    service: Service,
    _engine: Engine,
}

impl Replica {
    async fn start(server: &FakeApi) -> Self {
        let client = Client::new(server.clone(), "test");
        let cluster = Cluster::new(client, "test".to_owned(), "tesk".to_owned());
        let settings = ClusterSettings {
            kubernetes: Settings {
                lease: LeaseSettings {
                    duration: Span(Duration::from_millis(1500)),
                    renew: Span(Duration::from_millis(500)),
                },
                ..Settings::default()
            },
            filer_config: String::new(),
            scheduler: scheduler::Settings::default(),
        };
        let engine = kubernetes::open_on(cluster, settings).await.unwrap();
        let service = Service::beside(engine.store(), engine.schedules(), |_| {}).await;
        Self {
            service,
            _engine: engine,
        }
    }

    async fn ready(&self) -> String {
        let reply = self.service.get("/readyz").await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.text
    }

    /// Waits until `/readyz` says this, and nothing but 200 meanwhile.
    async fn says(&self, what: &str) {
        let begun = Instant::now();
        while !self.ready().await.contains(what) {
            let ready = self.ready().await;
            assert!(begun.elapsed() < Duration::from_secs(10), "{ready}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until a gauge has this value.
    async fn shows(&self, name: &str, value: u64) {
        let begun = Instant::now();
        while self.gauge(name).await != value {
            let waited = begun.elapsed();
            assert!(waited < Duration::from_secs(10), "{name} is not {value}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn gauge(&self, name: &str) -> u64 {
        let text = self.service.get("/metrics").await.text;
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name}: {text}"))
            .trim()
            .parse()
            .unwrap()
    }
}

const THIS: &str = "\nthis server schedules\n";
const ANOTHER: &str = "\nanother server schedules, or is about to\n";
const STALE: &str = " s old: the API server does not answer\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_say_which_of_them_schedules() {
    let server = FakeApi::new();
    let one = Replica::start(&server).await;
    one.says(THIS).await;
    let two = Replica::start(&server).await;
    two.says(ANOTHER).await;
    one.shows("tesk_scheduler_leader", 1).await;
    two.shows("tesk_scheduler_leader", 0).await;
    two.shows("tesk_store_stale_seconds", 0).await;
    drop(one);
    two.says(THIS).await;
    two.shows("tesk_scheduler_leader", 1).await;
}

fn is_refused(reply: &Reply, begun: Instant) {
    reply.error(503);
    let wait = reply.headers["retry-after"].to_str().unwrap();
    assert!(wait.parse::<u32>().unwrap() > 0);
    assert!(begun.elapsed() < Duration::from_secs(10), "{begun:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_api_server_reads_go_on_and_writes_fail_at_once() {
    for fault in [Fault::Hang, Fault::Lose, Fault::Refuse(503)] {
        let server = FakeApi::new();
        let replica = Replica::start(&server).await;
        let service = &replica.service;
        replica.says(THIS).await;
        // What is active would be tried to be scheduled, and never end here.
        let id = service.id_of(&minimal()).await;
        service.send(cancel(service, &id)).await;
        canceled(service, &id).await;
        let before = service.task(&id, "FULL").await;
        server.intercept(move |_| Some(fault.clone()));
        server.cut_watches();
        replica.says(STALE).await;
        // Its term ends too.
        replica.says(ANOTHER).await;
        assert!(replica.gauge("tesk_store_stale_seconds").await >= 1);
        assert_eq!(replica.gauge("tesk_scheduler_leader").await, 0);

        for view in ["MINIMAL", "BASIC", "FULL"] {
            assert_eq!(service.task(&id, view).await["state"], before["state"]);
        }
        assert_eq!(service.list("view=MINIMAL").await.0, [id.as_str()]);
        let begun = Instant::now();
        is_refused(&service.create(&minimal()).await, begun);
        // One that is not known here may be there: this is no 404.
        let unknown = format!("{BASE}/tasks/tunknown");
        let begun = Instant::now();
        is_refused(&service.get(&unknown).await, begun);

        server.heal();
        replica.says(THIS).await;
        let ready = replica.ready().await;
        assert!(!ready.contains(STALE), "{ready}");
        let text: Value = service.create(&minimal()).await.json();
        assert!(text["id"].is_string());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_without_the_api_server_fails_at_once_and_not_in_silence() {
    let server = FakeApi::new();
    let replica = Replica::start(&server).await;
    let service = &replica.service;
    replica.says(THIS).await;
    let id = service.id_of(&minimal()).await;
    server.intercept(|_| Some(Fault::Hang));
    server.cut_watches();
    replica.says(STALE).await;
    let begun = Instant::now();
    is_refused(&service.send(cancel(service, &id)).await, begun);
    // Its term ends before it begins another.
    replica.says(ANOTHER).await;
    server.heal();
    replica.says(THIS).await;
    let reply = service.send(cancel(service, &id)).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
}

/// Waits until a task is canceled.
async fn canceled(service: &Service, id: &str) {
    let begun = Instant::now();
    while service.task(id, "MINIMAL").await["state"] != "CANCELED" {
        assert!(begun.elapsed() < Duration::from_secs(30), "not canceled");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn cancel(service: &Service, id: &str) -> reqwest::RequestBuilder {
    service.request("POST", &format!("{BASE}/tasks/{id}:cancel"))
}
