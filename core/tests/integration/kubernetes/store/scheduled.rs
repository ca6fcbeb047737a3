//! The scheduler over this store.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use libtest_mimic::Trial;
use serde_json::json;
use tesk_conformance::fake_api::{FakeApi, Fault};
use tesk_core::kubernetes::cluster::{ATTEMPT, Part, TASK};
use tesk_core::kubernetes::store::StoreSettings;
use tesk_core::kubernetes::{
    ClusterSettings, ConfigMapStore, Settings as KubernetesSettings, open_on,
};
use tesk_core::scheduler::{
    AttemptId, Compute as _, Created, Head, Scheduler, Settings, TaskStore,
};
use tesk_core::tes::{ExecutorLog, State};

use super::{cluster, open, soon, stored, task};
use crate::integration::scheduler::{Endlessly, Instantly, completed, counted};
use crate::trials;

pub(super) fn trials() -> Vec<Trial> {
    trials![
        "config-maps":
        a_task_costs_few_requests_from_its_post_to_its_end,
        every_task_ends_once_though_requests_fail,
        a_task_that_has_lost_a_part_of_its_record_ends_and_says_so,
        a_record_that_cannot_be_read_keeps_no_other_attempt_from_being_swept,
        an_attempt_that_cannot_be_looked_at_keeps_no_other_from_being_swept,
        a_task_ends_though_its_log_is_more_than_a_record_can_hold,
        tasks_that_run_are_read_by_a_list_when_another_schedules,
        tasks_that_run_on_as_before_are_not_read_again,
        few_large_tasks_are_looked_at_together,
    ]
}

const TASKS: u64 = 300;

async fn a_task_costs_few_requests_from_its_post_to_its_end() -> Result<()> {
    let server = FakeApi::new();
    // One replica takes the tasks, another schedules them.
    let (front, back) = (open(&server).await?, Arc::new(open(&server).await?));
    let compute = Arc::new(Instantly::default());
    let settings = Settings::default();
    let scheduler = Scheduler::start(back.clone(), compute.clone(), settings);
    let before = server.request_count();
    for _ in 0..TASKS {
        stored(&front, runnable()).await?;
    }
    completed(&*back, TASKS, Duration::from_mins(1)).await?;
    completed(&front, TASKS, Duration::from_secs(10)).await?;
    scheduler.stop().await;
    let requests = server.requests();
    // A create, a look at the document, and a patch for each state; the rest is a sweep's lists, and
    // what a machine with much else to do makes twice.
    let each = server.request_count() - before;
    ensure!(each <= TASKS * 11 / 2, "{requests:?}");
    ensure!(
        requests["get configmaps"] <= TASKS * 11 / 10,
        "{requests:?}"
    );
    ensure!(compute.started.load(Ordering::SeqCst) as u64 == TASKS);
    Ok(())
}

async fn every_task_ends_once_though_requests_fail() -> Result<()> {
    let server = FakeApi::new();
    let (front, back) = (open(&server).await?, Arc::new(open(&server).await?));
    let compute = Arc::new(Instantly::default());
    let mut number = 0;
    server.intercept(move |_| {
        number += 1;
        match number % 29 {
            3 => Some(Fault::Lose),
            11 => Some(Fault::LoseAnswer),
            17 => Some(Fault::Refuse(429)),
            23 => Some(Fault::Refuse(409)),
            _ => None,
        }
    });
    let scheduler = Scheduler::start(back.clone(), compute.clone(), Settings::default());
    for n in 0..TASKS {
        if n % 50 == 0 {
            server.cut_watches();
        }
        // As a client does: again with the same key, until there is an answer.
        let task = super::keyed(runnable(), &n.to_string());
        loop {
            let mut again = task.clone();
            again.id = super::TaskId::random();
            match front.create(again).await {
                Ok(Created::New(_) | Created::Existing(_)) => break,
                Ok(Created::KeyReused) => anyhow::bail!("the body is the same"),
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }
    server.compact();
    server.cut_watches();
    completed(&*back, TASKS, Duration::from_mins(5)).await?;
    completed(&front, TASKS, Duration::from_mins(5)).await?;
    scheduler.stop().await;
    ensure!(compute.started.load(Ordering::SeqCst) as u64 == TASKS);
    Ok(())
}

async fn a_task_that_has_lost_a_part_of_its_record_ends_and_says_so() -> Result<()> {
    let server = FakeApi::new();
    let front = open(&server).await?;
    let mut task = runnable();
    let noise = super::noise(20_000);
    task.document =
        format!(r#"{{"executors":[{{"image":"i","command":["c"],"env":{noise}}}]}}"#).into();
    let id = stored(&front, task).await?;
    let beside = stored(&front, runnable()).await?;
    for name in super::names(&server) {
        if name.contains(".document-") {
            server.remove("configmaps", &name);
        }
    }
    let back = Arc::new(open(&server).await?);
    let compute = Arc::new(Instantly::default());
    let scheduler = Scheduler::start(back.clone(), compute.clone(), Settings::default());
    super::soon("both end", || async {
        let (one, other) = (back.head(&id).await?, back.head(&beside).await?);
        let state = |head: Option<Head>| head.map(|head| head.state);
        Ok(state(one) == Some(State::SystemError) && state(other) == Some(State::Complete))
    })
    .await?;
    scheduler.stop().await;
    let head = server.object("configmaps", &format!("tesk-{id}"));
    let logs = head.context("a head")?["data"]["logs"].to_string();
    ensure!(logs.contains("parts of the record"), "{logs}");
    ensure!(compute.started.load(Ordering::SeqCst) == 1);
    Ok(())
}

async fn a_record_that_cannot_be_read_keeps_no_other_attempt_from_being_swept() -> Result<()> {
    let server = FakeApi::new();
    let spoilt = stored(&open(&server).await?, task()).await?;
    server.edit("configmaps", &format!("tesk-{spoilt}"), |head| {
        head["metadata"]["annotations"] = json!({});
    });
    let cluster = cluster(&server);
    for task in [spoilt.as_str(), "z"] {
        let mut labels = cluster.labels(Part::Attempt);
        labels.insert(TASK.to_owned(), task.to_owned());
        labels.insert(ATTEMPT.to_owned(), "1".to_owned());
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": format!("{task}-1"), "labels": labels },
            "spec": { "containers": [{ "name": "c", "image": "i" }] },
        }))?;
        let pods = cluster.api::<Pod>();
        pods.create(&PostParams::default(), &pod).await?;
    }
    let settings = ClusterSettings {
        kubernetes: KubernetesSettings::default(),
        filer_config: String::new(),
        scheduler: Settings::default(),
    };
    let engine = open_on(cluster, settings).await;
    let engine = engine.map_err(anyhow::Error::msg)?;
    super::soon("it is swept", || async {
        Ok(server.object("pods", "z-1").is_none())
    })
    .await?;
    // It may be mended.
    ensure!(server.object("pods", &format!("{spoilt}-1")).is_some());
    engine.stop().await;
    Ok(())
}

/// Tasks that run, of a scheduler that is gone.
async fn running(server: &FakeApi) -> Result<()> {
    let store = Arc::new(open(server).await?);
    for _ in 0..TASKS {
        stored(&store, runnable()).await?;
    }
    let compute = Arc::new(Endlessly::default());
    let scheduler = Scheduler::start(store.clone(), compute, Settings::default());
    counted(&*store, State::Running, TASKS, Duration::from_mins(1)).await?;
    scheduler.stop().await;
    Ok(())
}

/// Waits until each of the tasks was looked at so many times.
async fn looked(compute: &Endlessly, times: u64) -> Result<()> {
    soon("all are looked at", || async {
        Ok(compute.looks.load(Ordering::SeqCst) as u64 >= times * TASKS)
    })
    .await
}

async fn tasks_that_run_are_read_by_a_list_when_another_schedules() -> Result<()> {
    let server = FakeApi::new();
    running(&server).await?;
    let before = server.requests();
    let store = Arc::new(open(&server).await?);
    let compute = Arc::new(Endlessly::default());
    let scheduler = Scheduler::start(store, compute.clone(), Settings::default());
    looked(&compute, 1).await?;
    scheduler.stop().await;
    let after = server.requests();
    let count = |what: &str| {
        let all = [&before, &after].map(|all| all.get(what).copied().unwrap_or(0));
        all[1] - all[0]
    };
    ensure!(count("get configmaps") == 0, "{before:?} {after:?}");
    ensure!(count("list configmaps") < 12, "{before:?} {after:?}");
    Ok(())
}

async fn tasks_that_run_on_as_before_are_not_read_again() -> Result<()> {
    let server = FakeApi::new();
    running(&server).await?;
    // Without a cache every text is asked for.
    let settings = StoreSettings {
        cache: 0,
        ..StoreSettings::default()
    };
    let store = Arc::new(ConfigMapStore::open(cluster(&server), settings).await?);
    let compute = Arc::new(Endlessly::default());
    let settings = Settings {
        poll: Duration::from_millis(20),
        ..Settings::default()
    };
    let scheduler = Scheduler::start(store, compute.clone(), settings);
    looked(&compute, 2).await?;
    let before = server.requests();
    looked(&compute, 5).await?;
    let after = server.requests();
    scheduler.stop().await;
    ensure!(
        after["get configmaps"] == before["get configmaps"],
        "{before:?} {after:?}"
    );
    Ok(())
}

pub(in crate::integration::kubernetes) fn runnable() -> tesk_core::scheduler::NewTask {
    let mut task = task();
    task.document = r#"{"executors":[{"image":"i","command":["c"]}]}"#.into();
    task
}

async fn an_attempt_that_cannot_be_looked_at_keeps_no_other_from_being_swept() -> Result<()> {
    let server = FakeApi::new();
    let store = open(&server).await?;
    let compute = Arc::new(Instantly::with(Vec::new(), Some("a".parse()?)));
    for task in ["a", "z"] {
        let (task, number) = (task.parse()?, 1);
        compute.leave(AttemptId { task, number });
    }
    let scheduler = Scheduler::start(Arc::new(store), compute.clone(), Settings::default());
    soon("the other is swept", || async {
        Ok(compute.attempts().await?.len() == 1)
    })
    .await?;
    scheduler.stop().await;
    ensure!(compute.attempts().await?[0].task.as_str() == "a");
    Ok(())
}

async fn a_task_ends_though_its_log_is_more_than_a_record_can_hold() -> Result<()> {
    let server = FakeApi::new();
    let store = Arc::new(open(&server).await?);
    let id = stored(&store, runnable()).await?;
    let large = ExecutorLog {
        stdout: Some("x".repeat(35 << 20)),
        ..ExecutorLog::default()
    };
    let compute = Arc::new(Instantly::with(vec![large.clone(), large], None));
    let scheduler = Scheduler::start(store.clone(), compute, Settings::default());
    completed(&*store, 1, Duration::from_mins(1)).await?;
    scheduler.stop().await;
    let record = store.get(&id).await?.context("a record")?;
    let log = record.logs.last().context("a log")?;
    let said = log.system_logs.clone().unwrap_or_default().join("|");
    ensure!(
        said.contains("at most 67108864") && said.contains("is left out"),
        "{said}"
    );
    ensure!(log.logs.len() == 2 && log.logs[0].exit_code == 0);
    Ok(())
}

async fn few_large_tasks_are_looked_at_together() -> Result<()> {
    const LARGE: usize = 12;
    let server = FakeApi::new();
    let store = Arc::new(open(&server).await?);
    for _ in 0..LARGE {
        let mut task = runnable();
        let noise = " ".repeat(8 << 20);
        task.document =
            format!(r#"{{"executors":[{{"image":"i","command":["c"]}}]{noise}}}"#).into();
        stored(&store, task).await?;
    }
    let compute = Arc::new(Endlessly::default());
    let settings = Settings {
        poll: Duration::from_millis(50),
        ..Settings::default()
    };
    let scheduler = Scheduler::start(store, compute.clone(), settings);
    let begun = Instant::now();
    // More than once: at first they come one after another, as they are started.
    while compute.looks.load(Ordering::SeqCst) < 4 * LARGE {
        ensure!(begun.elapsed() < Duration::from_mins(1), "not looked at");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    scheduler.stop().await;
    let most = compute.most.load(Ordering::SeqCst);
    ensure!(most <= 3, "{most} at once");
    Ok(())
}
