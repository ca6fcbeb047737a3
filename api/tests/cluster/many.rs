//! Many tasks at once, and a server that dies under them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::place::{Place, SOON, script, text, with};
use crate::{Suite, Tests};

pub(crate) fn trials(tests: &Tests) -> Vec<Trial> {
    vec![tests.alone(
        "many::a_hundred_tasks_at_once_run_once_each_though_the_server_is_killed_twice",
        a_hundred_tasks_at_once_run_once_each_though_the_server_is_killed_twice,
    )]
}

const TASKS: usize = 100;

/// A task that tells that it runs, and delivers a file.
pub(crate) fn marked(suite: &Suite, number: usize) -> Value {
    let ran = suite.web.url(&format!("/marks/{number}"));
    let task = script(&format!("wget -q -O - {ran}; echo {number} >/out/mark"));
    let url = suite.web.url(&format!("/delivered/{number}"));
    let more = json!({
        "name": format!("number {number}"),
        "outputs": [{ "path": "/out/mark", "url": url }],
    });
    with(task, &more)
}

async fn a_hundred_tasks_at_once_run_once_each_though_the_server_is_killed_twice(
    suite: Arc<Suite>,
) -> Result<()> {
    // It is not about how long nobody schedules.
    let place = Place::start("many", SOON).await?;
    for number in 0..TASKS {
        suite.web.put(&format!("/marks/{number}"), "seen");
    }
    let tasks: Vec<_> = (0..TASKS).map(|number| marked(&suite, number)).collect();
    let submits = tasks.iter().map(|task| place.submit(task));
    let ids = futures_util::future::try_join_all(submits).await?;

    for part in [10, 50] {
        let ran = || (0..TASKS).filter(|n| suite.web.asked(&format!("/marks/{n}")) > 0);
        place
            .until("some have run", || async {
                Ok((ran().count() >= part).then_some(()))
            })
            .await?;
        place.kill().await?;
        // Pods go on without it.
        tokio::time::sleep(Duration::from_secs(1)).await;
        place.serve().await?;
    }
    for (number, id) in ids.iter().enumerate() {
        let task = place.wait_for(id, "COMPLETE").await?;
        let attempts = task["logs"].as_array().map(Vec::len);
        ensure!(attempts == Some(1), "{task:#}");
        let ran = suite.web.asked(&format!("/marks/{number}"));
        ensure!(ran == 1, "number {number} ran {ran} times");
        let delivered = suite.web.text(&format!("/delivered/{number}"));
        ensure!(delivered == format!("{number}\n"), "{task:#}");
    }
    // Nothing is left but records and the filer's configuration.
    place.all_gone().await?;
    let records = place
        .objects("configmaps", "app.kubernetes.io/component=record")
        .await?;
    ensure!(records.len() == TASKS, "{} records", records.len());
    let names = records.iter().map(|record| &record["metadata"]["name"]);
    ensure!(names.map(text).all(|name| name.starts_with("tesk-")));
    Ok(())
}
