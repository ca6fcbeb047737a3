//! Passwords in URLs: they reach the storage and nothing else.

use std::sync::Arc;

use anyhow::{Error, Result, ensure};
use libtest_mimic::Trial;
use serde_json::json;
use tesk_core::kubernetes::pod;
use tesk_core::plan::packed;

use crate::place::{reasons, script, text, with};
use crate::web::PASSWORD;
use crate::{Suite, Tests, trials};

pub(crate) fn trials(tests: &Tests) -> Vec<Trial> {
    trials![tests, "passwords":
        a_password_in_a_url_is_seen_by_the_storage_alone,
        a_password_is_not_in_the_reason_of_a_failure,
    ]
}

async fn a_password_in_a_url_is_seen_by_the_storage_alone(suite: Arc<Suite>) -> Result<()> {
    let place = suite.place().await?;
    suite.web.put("/private/given", "given\n");
    let task = with(
        script(&format!(
            "cat /data/in >/out/copy; env; cat /.tesk/bin/plan.json; grep -r hunter2 /.tesk; {}",
            suite.web.gate("password")
        )),
        &json!({
            "inputs": [{ "path": "/data/in", "url": suite.web.private_url("/given") }],
            "outputs": [{ "path": "/out/copy", "url": suite.web.private_url("/copy") }],
        }),
    );
    let id = place.submit(&task).await?;
    let task = place.wait_for(&id, "RUNNING").await?;
    ensure!(!task.to_string().contains(PASSWORD), "{task:#}");
    ensure!(text(&task["inputs"][0]["url"]).contains("***"), "{task:#}");

    let secret = format!("tesk-{id}");
    let seen = ["get", "pods,configmaps,events", "-o", "yaml"];
    let seen = place.kubectl(&seen).await?;
    ensure!(seen.contains(&id) && !seen.contains(PASSWORD));
    let selector = format!("tesk.elixir-cloud.org/task={id}");
    let pods = place.objects("pods", &selector).await?;
    let annotation = &pods[0]["metadata"]["annotations"][pod::PLAN];
    let plan = packed::unpack(text(annotation)).map_err(Error::msg)?;
    let plan = String::from_utf8(plan)?;
    ensure!(
        plan.contains("/private/given") && !plan.contains(PASSWORD),
        "{plan}"
    );
    place.kubectl(&["get", "secret", &secret]).await?;

    suite.web.open("password");
    let task = place.wait_for(&id, "COMPLETE").await?;
    ensure!(suite.web.text("/private/copy") == "given\n", "{task:#}");
    ensure!(!task.to_string().contains(PASSWORD), "{task:#}");
    place.gone(&id).await?;
    let gone = place.kubectl(&["get", "secret", &secret]).await;
    ensure!(gone.is_err_and(|error| error.to_string().contains("NotFound")));
    let log = std::fs::read_to_string(place.log())?;
    ensure!(log.contains(&id) && !log.contains(PASSWORD));
    Ok(())
}

async fn a_password_is_not_in_the_reason_of_a_failure(suite: Arc<Suite>) -> Result<()> {
    let url = suite.web.private_url("/not there");
    let url = url.replace(' ', "-");
    let task = with(
        script("true"),
        &json!({ "inputs": [{ "path": "/data/in", "url": url }] }),
    );
    let task = suite.place().await?.run(&task, "SYSTEM_ERROR").await?;
    ensure!(reasons(&task).contains("not-there"), "{task:#}");
    ensure!(!task.to_string().contains(PASSWORD), "{task:#}");
    suite.place().await?.gone(text(&task["id"])).await
}
