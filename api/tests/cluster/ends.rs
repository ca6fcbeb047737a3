//! How tasks end, and what they wait for: each with a reason for people.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::place::{Place, is_terminal, reasons, script, stdout, text, with};
use crate::{Suite, Tests, trials};

pub(crate) fn trials(tests: &Tests) -> Vec<Trial> {
    trials![tests, "ends":
        an_input_that_is_not_there_is_a_system_error,
        an_output_that_is_not_there_is_a_system_error,
        an_image_that_is_not_there_is_a_system_error_in_time,
        the_name_of_an_image_that_is_none_is_a_system_error_at_once,
        a_command_that_is_not_there_is_an_executor_error,
        of_an_executor_without_an_image_the_earlier_outputs_are_delivered,
        a_quota_that_is_used_up_is_waited_for,
        a_pod_that_no_node_has_room_for_is_given_up_in_time,
        a_command_out_of_memory_is_an_executor_error,
        a_task_over_its_scratch_space_is_a_system_error,
        a_pod_that_somebody_deletes_is_followed_by_another,
        a_secret_that_is_missing_is_a_system_error_in_time,
        a_task_over_its_time_is_a_system_error,
        a_polling_client_sees_a_legal_way_of_states,
    ]
}

async fn an_input_that_is_not_there_is_a_system_error(suite: Arc<Suite>) -> Result<()> {
    let url = suite.web.url("/absent");
    let task = with(
        script("echo must not run"),
        &json!({ "inputs": [{ "path": "/data/in", "url": url }] }),
    );
    let task = suite.place().await?.run(&task, "SYSTEM_ERROR").await?;
    let reasons = reasons(&task);
    ensure!(reasons.contains("/absent"), "{task:#}");
    let executors = task["logs"][0]["logs"].as_array().map_or(0, Vec::len);
    ensure!(executors == 0, "{task:#}");
    Ok(())
}

async fn an_output_that_is_not_there_is_a_system_error(suite: Arc<Suite>) -> Result<()> {
    let task = with(
        script("true"),
        &json!({ "outputs": [{ "path": "/out/none", "url": suite.web.url("/none") }] }),
    );
    let task = suite.place().await?.run(&task, "SYSTEM_ERROR").await?;
    ensure!(reasons(&task).contains("/out/none"), "{task:#}");
    ensure!(task["logs"][0]["logs"][0]["exit_code"] == 0, "{task:#}");
    Ok(())
}

fn of_image(image: &str) -> Value {
    json!({ "image": image, "command": ["true"] })
}

async fn an_image_that_is_not_there_is_a_system_error_in_time(_: Arc<Suite>) -> Result<()> {
    let place = Place::start("pull", "kubernetes.patience.image_pull = '5s'").await?;
    let task = json!({ "executors": [of_image("nowhere.test/none:1")] });
    let task = place.run(&task, "SYSTEM_ERROR").await?;
    ensure!(reasons(&task).contains("nowhere.test/none:1"), "{task:#}");
    ensure!(
        task["logs"].as_array().is_some_and(|logs| logs.len() == 1),
        "{task:#}"
    );
    place.gone(text(&task["id"])).await
}

async fn the_name_of_an_image_that_is_none_is_a_system_error_at_once(
    suite: Arc<Suite>,
) -> Result<()> {
    let task = json!({ "executors": [of_image("UPPER/case:::1")] });
    let place = suite.place().await?;
    let task = place.run(&task, "SYSTEM_ERROR").await?;
    ensure!(reasons(&task).contains("InvalidImageName"), "{task:#}");
    place.gone(text(&task["id"])).await
}

async fn a_command_that_is_not_there_is_an_executor_error(suite: Arc<Suite>) -> Result<()> {
    let task = json!({ "executors": [{ "image": "static:1", "command": ["/bin/sh"] }] });
    let task = suite.place().await?.run(&task, "EXECUTOR_ERROR").await?;
    ensure!(task["logs"][0]["logs"][0]["exit_code"] == 127, "{task:#}");
    Ok(())
}

async fn of_an_executor_without_an_image_the_earlier_outputs_are_delivered(
    suite: Arc<Suite>,
) -> Result<()> {
    let first = json!({
        "image": "busybox:1", "command": ["sh", "-c", "echo first | tee /out/first"],
    });
    let task = json!({
        "outputs": [{ "path": "/out/first", "url": suite.web.url("/ends/first") }],
        "executors": [first, of_image("UPPER/case:::1")],
    });
    let task = suite.place().await?.run(&task, "SYSTEM_ERROR").await?;
    ensure!(reasons(&task).contains("InvalidImageName"), "{task:#}");
    ensure!(suite.web.text("/ends/first") == "first\n", "{task:#}");
    ensure!(stdout(&task, 0) == "first\n", "{task:#}");
    Ok(())
}

async fn a_quota_that_is_used_up_is_waited_for(_: Arc<Suite>) -> Result<()> {
    let place = Place::namespace("quota", "").await?;
    let quota = |pods: &str| {
        json!({
            "apiVersion": "v1", "kind": "ResourceQuota", "metadata": { "name": "quota" },
            "spec": { "hard": { "pods": pods } },
        })
    };
    place.create(&quota("0")).await?;
    place.serve().await?;
    let id = place.submit(&script("echo done")).await?;
    let canceled = place.submit(&script("true")).await?;
    let waits = |task: &Value| reasons(task).contains("exceeded quota");
    let task = place.wait(&id, "waiting with a reason", waits).await?;
    ensure!(task["state"] == "QUEUED", "{task:#}");
    place.cancel(&canceled).await?;
    place.wait_for(&canceled, "CANCELED").await?;
    let more = r#"{"spec": {"hard": {"pods": "10"}}}"#;
    place
        .kubectl(&["patch", "resourcequota", "quota", "--patch", more])
        .await?;
    let task = place.wait_for(&id, "COMPLETE").await?;
    ensure!(stdout(&task, 0) == "done\n", "{task:#}");
    ensure!(
        task["logs"].as_array().is_some_and(|logs| logs.len() == 1),
        "{task:#}"
    );
    Ok(())
}

async fn a_pod_that_no_node_has_room_for_is_given_up_in_time(_: Arc<Suite>) -> Result<()> {
    let settings = "
        kubernetes.patience.schedule = '4s'
        kubernetes.patch.pod.spec.resources.requests.cpu = '1000'
        kubernetes.patch.executor.resources.limits.cpu = '1000'
    ";
    let place = Place::start("room", settings).await?;
    let task = place.run(&script("true"), "SYSTEM_ERROR").await?;
    ensure!(reasons(&task).contains("Insufficient cpu"), "{task:#}");
    place.gone(text(&task["id"])).await
}

async fn a_command_out_of_memory_is_an_executor_error(suite: Arc<Suite>) -> Result<()> {
    let task = json!({
        "resources": { "ram_gb": 0.03 },
        "executors": [{ "image": "busybox:1", "command": ["tail", "/dev/zero"] }],
    });
    let task = suite.place().await?.run(&task, "EXECUTOR_ERROR").await?;
    ensure!(task["logs"][0]["logs"][0]["exit_code"] == 137, "{task:#}");
    ensure!(reasons(&task).contains("out of memory"), "{task:#}");
    Ok(())
}

async fn a_task_over_its_scratch_space_is_a_system_error(suite: Arc<Suite>) -> Result<()> {
    let fill = script("dd if=/dev/zero of=/task/large bs=1M count=120; sleep 200");
    let more = json!({ "resources": { "disk_gb": 0.02 }, "volumes": ["/task"] });
    let place = suite.place().await?;
    let id = place.submit(&with(fill, &more)).await?;
    // The kubelet looks seldom.
    let over = |task: &Value| task["state"] == "SYSTEM_ERROR";
    let task = match place.wait(&id, "over", over).await {
        Ok(task) => task,
        Err(_) => place.wait(&id, "over", over).await?,
    };
    ensure!(reasons(&task).contains("disk space"), "{task:#}");
    ensure!(
        task["logs"].as_array().is_some_and(|logs| logs.len() == 1),
        "{task:#}"
    );
    Ok(())
}

async fn a_pod_that_somebody_deletes_is_followed_by_another(suite: Arc<Suite>) -> Result<()> {
    let place = suite.place().await?;
    let gate = suite.web.gate("survive");
    let id = place
        .submit(&script(&format!("{gate}; echo survived")))
        .await?;
    place.wait_for(&id, "RUNNING").await?;
    let pod = format!("pod/{id}-1");
    place.kubectl(&["delete", &pod, "--wait=false"]).await?;
    let again = |task: &Value| task["logs"].as_array().is_some_and(|logs| logs.len() == 2);
    place.wait(&id, "at its second attempt", again).await?;
    suite.web.open("survive");
    let task = place.wait_for(&id, "COMPLETE").await?;
    let attempts = task["logs"].as_array().map(Vec::len);
    ensure!(attempts == Some(2), "{task:#}");
    ensure!(reasons(&task).contains("attempt 1 was lost"), "{task:#}");
    ensure!(stdout(&task, 0) == "survived\n", "{task:#}");
    place.gone(&id).await
}

async fn a_secret_that_is_missing_is_a_system_error_in_time(_: Arc<Suite>) -> Result<()> {
    let settings = "
        limits.attempts = 1
        kubernetes.patience.start = '5s'
        kubernetes.mounts = [{ path = '/etc/missing', secret = 'missing' }]
    ";
    let place = Place::start("secret", settings).await?;
    let task = place.run(&script("true"), "SYSTEM_ERROR").await?;
    ensure!(reasons(&task).contains("does not start"), "{task:#}");
    place.gone(text(&task["id"])).await
}

async fn a_task_over_its_time_is_a_system_error(_: Arc<Suite>) -> Result<()> {
    let place = Place::start("time", "limits.time_limit = '4s'").await?;
    let task = place
        .run(&script("echo began; sleep 100"), "SYSTEM_ERROR")
        .await?;
    ensure!(reasons(&task).contains("time limit"), "{task:#}");
    place.gone(text(&task["id"])).await
}

async fn a_polling_client_sees_a_legal_way_of_states(suite: Arc<Suite>) -> Result<()> {
    let place = suite.place().await?;
    let id = place.submit(&script(&suite.web.gate("way"))).await?;
    let mut seen: Vec<String> = Vec::new();
    loop {
        let task = place.task(&id).await?;
        let state = text(&task["state"]).to_owned();
        if seen.last() != Some(&state) {
            if state == "RUNNING" {
                suite.web.open("way");
            }
            seen.push(state);
        }
        if is_terminal(&task) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let way = ["QUEUED", "INITIALIZING", "RUNNING", "COMPLETE"];
    let mut rest = way.iter();
    let is_legal = seen.iter().all(|state| rest.any(|next| next == state));
    ensure!(
        is_legal && seen.last().is_some_and(|last| last == "COMPLETE"),
        "{seen:?}"
    );
    ensure!(seen.iter().any(|state| state == "RUNNING"), "{seen:?}");
    Ok(())
}
