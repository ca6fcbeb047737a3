//! The scheduler over this store.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use tesk_conformance::fake_api::{FakeApi, Fault};
use tesk_core::scheduler::{Created, Scheduler, Settings, TaskStore};

use super::{open, stored, task};
use crate::integration::scheduler::{Instantly, completed};
use crate::trials;

pub(super) fn trials() -> Vec<Trial> {
    trials![
        "config-maps":
        a_task_costs_few_requests_from_its_post_to_its_end,
        every_task_ends_once_though_requests_fail,
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
    // A create, a look at the document, and a patch for each state; the rest is a sweep's lists.
    let each = server.request_count() - before;
    ensure!(each <= TASKS * 5 + 10, "{requests:?}");
    ensure!(requests["get configmaps"] <= TASKS, "{requests:?}");
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
    completed(&*back, TASKS, Duration::from_mins(1)).await?;
    completed(&front, TASKS, Duration::from_secs(20)).await?;
    scheduler.stop().await;
    ensure!(compute.started.load(Ordering::SeqCst) as u64 == TASKS);
    Ok(())
}

pub(in crate::integration::kubernetes) fn runnable() -> tesk_core::scheduler::NewTask {
    let mut task = task();
    task.document = r#"{"executors":[{"image":"i","command":["c"]}]}"#.into();
    task
}
