//! Cancel, in every phase.

use std::sync::Arc;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::place::{Place, reasons, script, with};
use crate::{Suite, Tests, trials};

pub(crate) fn trials(tests: &Tests) -> Vec<Trial> {
    trials![tests, "cancel":
        a_task_that_is_queued_is_canceled,
        a_task_without_a_node_is_canceled,
        a_task_whose_inputs_are_under_way_is_canceled,
        a_running_task_is_canceled_although_it_ignores_sigterm,
        a_running_task_may_tidy_up_when_it_is_canceled,
        a_task_whose_outputs_are_under_way_is_canceled,
    ]
}

/// Cancels a task; nothing may be left of it.
async fn canceled(place: &Place, id: &str) -> Result<Value> {
    place.cancel(id).await?;
    let task = place.wait_for(id, "CANCELED").await?;
    ensure!(reasons(&task).contains("canceled"), "{task:#}");
    place.gone(id).await?;
    // It was the last word.
    let later = place.task(id).await?;
    ensure!(later["state"] == "CANCELED", "{later:#}");
    Ok(later)
}

async fn a_task_that_is_queued_is_canceled(_: Arc<Suite>) -> Result<()> {
    let place = Place::start("idle", "limits.max_active = 0").await?;
    let id = place.submit(&script("true")).await?;
    place.wait_for(&id, "QUEUED").await?;
    place.cancel(&id).await?;
    place.wait_for(&id, "CANCELED").await?;
    Ok(())
}

async fn a_task_without_a_node_is_canceled(_: Arc<Suite>) -> Result<()> {
    let settings = "kubernetes.patch.pod.spec.nodeSelector = { on = 'moon' }";
    let place = Place::start("moon", settings).await?;
    let id = place.submit(&script("true")).await?;
    let task = place
        .wait(&id, "waiting with a reason", |task| {
            reasons(task).contains("Unschedulable")
        })
        .await?;
    ensure!(task["state"] == "QUEUED", "{task:#}");
    canceled(&place, &id).await?;
    Ok(())
}

async fn a_task_whose_inputs_are_under_way_is_canceled(suite: Arc<Suite>) -> Result<()> {
    let place = suite.place().await?;
    let url = suite.web.url("/slow/input");
    let task = with(
        script("echo must not run"),
        &json!({ "inputs": [{ "path": "/data/in", "url": url }] }),
    );
    let id = place.submit(&task).await?;
    place.wait_for(&id, "INITIALIZING").await?;
    place
        .until("the download begins", || async {
            Ok((suite.web.asked("/slow/input") > 0).then_some(()))
        })
        .await?;
    let task = canceled(place, &id).await?;
    ensure!(!task.to_string().contains("must not run\\n"), "{task:#}");
    Ok(())
}

async fn a_running_task_is_canceled_although_it_ignores_sigterm(suite: Arc<Suite>) -> Result<()> {
    let place = suite.place().await?;
    let id = place
        .submit(&script("trap '' TERM; while true; do sleep 1; done"))
        .await?;
    place.wait_for(&id, "RUNNING").await?;
    canceled(place, &id).await?;
    Ok(())
}

async fn a_running_task_may_tidy_up_when_it_is_canceled(suite: Arc<Suite>) -> Result<()> {
    let place = Place::start("tidy", "limits.grace = '30s'").await?;
    let url = suite.web.url("/canceled/tidied");
    let task = script(&format!(
        "trap 'wget -q -O - {url}; exit 0' TERM; wget -q -O - {url}-began; sleep 100 & wait"
    ));
    let id = place.submit(&task).await?;
    place.wait_for(&id, "RUNNING").await?;
    // The command itself begins a moment after its container.
    suite.web.put("/canceled/tidied-began", "");
    place
        .until("the command begins", || async {
            Ok((suite.web.asked("/canceled/tidied-began") > 0).then_some(()))
        })
        .await?;
    canceled(&place, &id).await?;
    ensure!(suite.web.asked("/canceled/tidied") == 1);
    Ok(())
}

async fn a_task_whose_outputs_are_under_way_is_canceled(suite: Arc<Suite>) -> Result<()> {
    let place = suite.place().await?;
    let url = suite.web.url("/slow/output");
    let task = with(
        script("echo x >/out/file"),
        &json!({ "outputs": [{ "path": "/out/file", "url": url }] }),
    );
    let id = place.submit(&task).await?;
    place
        .until("the upload begins", || async {
            Ok((suite.web.asked("/slow/output") > 0).then_some(()))
        })
        .await?;
    canceled(place, &id).await?;
    Ok(())
}
