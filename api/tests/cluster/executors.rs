//! What commands get and what is kept of them.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::place::{reasons, script, stdout, text, with};
use crate::{Suite, Tests, trials};

pub(crate) fn trials(tests: &Tests) -> Vec<Trial> {
    trials![tests, "executors":
        three_executors_share_a_volume_and_run_in_order,
        streams_are_kept_apart_and_exit_codes_are_kept,
        the_environment_reaches_the_command_as_it_was_written,
        standard_input_and_the_working_directory_are_the_tasks,
        standard_streams_become_outputs,
        an_error_that_is_to_be_ignored_does_not_end_the_task,
        executors_that_have_ended_are_seen_while_others_run,
        what_an_executor_prints_is_seen_while_it_runs,
        an_error_keeps_later_executors_from_running,
        of_200_megabytes_on_standard_output_the_end_is_kept,
        a_report_of_2000_files_comes_whole,
    ]
}

async fn three_executors_share_a_volume_and_run_in_order(suite: Arc<Suite>) -> Result<()> {
    let step = |script: &str| json!({ "image": "busybox:1", "command": ["sh", "-c", script] });
    let task = json!({
        "volumes": ["/shared"],
        "executors": [
            step("echo one >/shared/log; echo private >/tmp/seen"),
            step("sleep 1; cat /shared/log; echo two >>/shared/log"),
            step("cat /shared/log; hostname >/dev/null"),
        ],
    });
    let task = suite.place().await?.run(&task, "COMPLETE").await?;
    ensure!(stdout(&task, 1) == "one\n", "{task:#}");
    ensure!(stdout(&task, 2) == "one\ntwo\n", "{task:#}");
    let logs = task["logs"][0]["logs"].as_array().cloned();
    let logs = logs.unwrap_or_default();
    ensure!(logs.len() == 3, "{task:#}");
    for (earlier, later) in logs.iter().zip(&logs[1..]) {
        let (end, start) = (text(&earlier["end_time"]), text(&later["start_time"]));
        ensure!(!end.is_empty() && end <= start, "{task:#}");
    }
    Ok(())
}

async fn streams_are_kept_apart_and_exit_codes_are_kept(suite: Arc<Suite>) -> Result<()> {
    let task = script("echo to out; echo to err >&2; exit 7");
    let task = suite.place().await?.run(&task, "EXECUTOR_ERROR").await?;
    let log = &task["logs"][0]["logs"][0];
    ensure!(log["stdout"] == "to out\n", "{task:#}");
    ensure!(log["stderr"] == "to err\n", "{task:#}");
    ensure!(log["exit_code"] == 7, "{task:#}");
    Ok(())
}

async fn the_environment_reaches_the_command_as_it_was_written(suite: Arc<Suite>) -> Result<()> {
    let task = json!({ "executors": [{
        "image": "busybox:1",
        "command": ["sh", "-c", "printf '%s|' \"$A\" \"$B\" \"$1\" \"$2\" \"$C\" \"$HOSTNAME\"",
            "sh", "$(A)", "$$(A) $$"],
        "env": { "A": "first", "B": "$(A) $$(A) $$ `id`", "C": "üñ\nline" },
    }] });
    let task = suite.place().await?.run(&task, "COMPLETE").await?;
    let printed = stdout(&task, 0);
    let expected = "first|$(A) $$(A) $$ `id`|$(A)|$$(A) $$|üñ\nline|";
    ensure!(printed.starts_with(expected), "{printed}");
    Ok(())
}

async fn standard_input_and_the_working_directory_are_the_tasks(suite: Arc<Suite>) -> Result<()> {
    let task = json!({
        "inputs": [{ "content": "given\n", "path": "/data/in.txt" }],
        "executors": [
            { "image": "busybox:1", "command": ["sh", "-c", "pwd; cat"],
              "workdir": "/data", "stdin": "/data/in.txt" },
            { "image": "static:1", "command": ["/bin/cat"], "stdin": "/data/in.txt" },
            { "image": "busybox:1", "command": ["sh", "-c", "wc -c"] },
        ],
    });
    let task = suite.place().await?.run(&task, "COMPLETE").await?;
    ensure!(stdout(&task, 0) == "/data\ngiven\n", "{task:#}");
    ensure!(stdout(&task, 1) == "given\n", "{task:#}");
    ensure!(stdout(&task, 2).trim() == "0", "{task:#}");
    Ok(())
}

async fn standard_streams_become_outputs(suite: Arc<Suite>) -> Result<()> {
    let task = json!({
        "outputs": [
            { "path": "/out/stdout", "url": suite.web.url("/streams/out") },
            { "path": "/out/stderr", "url": suite.web.url("/streams/err") },
        ],
        "executors": [{
            "image": "busybox:1", "command": ["sh", "-c", "echo o; echo e >&2"],
            "stdout": "/out/stdout", "stderr": "/out/stderr",
        }],
    });
    let task = suite.place().await?.run(&task, "COMPLETE").await?;
    ensure!(suite.web.text("/streams/out") == "o\n", "{task:#}");
    ensure!(suite.web.text("/streams/err") == "e\n", "{task:#}");
    let outputs = &task["logs"][0]["outputs"];
    ensure!(
        outputs.as_array().is_some_and(|all| all.len() == 2),
        "{task:#}"
    );
    ensure!(outputs[0]["size_bytes"] == "2", "{task:#}");
    Ok(())
}

async fn an_error_that_is_to_be_ignored_does_not_end_the_task(suite: Arc<Suite>) -> Result<()> {
    let task = json!({ "executors": [
        { "image": "busybox:1", "command": ["sh", "-c", "exit 3"], "ignore_error": true },
        { "image": "busybox:1", "command": ["echo", "goes on"] },
    ] });
    let task = suite.place().await?.run(&task, "COMPLETE").await?;
    ensure!(task["logs"][0]["logs"][0]["exit_code"] == 3, "{task:#}");
    ensure!(stdout(&task, 1) == "goes on\n", "{task:#}");
    Ok(())
}

async fn executors_that_have_ended_are_seen_while_others_run(suite: Arc<Suite>) -> Result<()> {
    let step = |script: &str| json!({ "image": "busybox:1", "command": ["sh", "-c", script] });
    let task = json!({ "executors": [step("exit 0"), step(&suite.web.gate("second"))] });
    let place = suite.place().await?;
    let id = place.submit(&task).await?;
    let first = |task: &Value| task["logs"][0]["logs"][0]["exit_code"] == 0;
    let task = place.wait(&id, "over with the first", first).await?;
    ensure!(task["state"] == "RUNNING", "{task:#}");
    ensure!(
        !text(&task["logs"][0]["logs"][0]["end_time"]).is_empty(),
        "{task:#}"
    );
    suite.web.open("second");
    place.wait_for(&id, "COMPLETE").await?;
    Ok(())
}

async fn what_an_executor_prints_is_seen_while_it_runs(suite: Arc<Suite>) -> Result<()> {
    let step = |script: &str| json!({ "image": "busybox:1", "command": ["sh", "-c", script] });
    let gate = suite.web.gate("printed");
    let printing = format!("echo early; echo wrong >&2; {gate}; echo late");
    let task = json!({ "executors": [step("echo before"), step(&printing)] });
    let place = suite.place().await?;
    let id = place.submit(&task).await?;
    // From before the pod is there.
    let mut output = place.output(&id, 1).await?;
    let mut seen = String::new();
    while !(seen.contains("early\n") && seen.contains("wrong\n")) {
        let chunk = output.chunk().await?;
        let chunk = chunk.with_context(|| format!("it ends after {seen:?}"))?;
        seen.push_str(std::str::from_utf8(&chunk)?);
    }
    ensure!(place.task(&id).await?["state"] == "RUNNING");
    suite.web.open("printed");
    ensure!(output.text().await? == "late\n");
    ensure!(place.output(&id, 0).await?.text().await? == "before\n");
    place.wait_for(&id, "COMPLETE").await?;
    place.gone(&id).await?;
    ensure!(place.output(&id, 1).await?.text().await?.contains("late\n"));
    Ok(())
}

async fn an_error_keeps_later_executors_from_running(suite: Arc<Suite>) -> Result<()> {
    let put = suite.web.url("/later/ran");
    let task = json!({
        "outputs": [{ "path": "/out/first", "url": suite.web.url("/later/first") }],
        "executors": [
            { "image": "busybox:1", "command": ["sh", "-c", "echo kept >/out/first; exit 4"] },
            { "image": "busybox:1", "command": ["wget", "-q", "-O", "-", put] },
        ],
    });
    let task = suite.place().await?.run(&task, "EXECUTOR_ERROR").await?;
    let logs = task["logs"][0]["logs"].as_array().map(Vec::len);
    ensure!(logs == Some(1), "{task:#}");
    ensure!(suite.web.asked("/later/ran") == 0, "{task:#}");
    ensure!(suite.web.text("/later/first") == "kept\n", "{task:#}");
    Ok(())
}

async fn of_200_megabytes_on_standard_output_the_end_is_kept(suite: Arc<Suite>) -> Result<()> {
    // More than the memory of its container.
    let task = script("dd if=/dev/zero bs=1M count=200 2>/dev/null | tr '\\0' a; echo; echo end");
    let task = with(task, &json!({ "resources": { "ram_gb": 0.064 } }));
    let task = suite.place().await?.run(&task, "COMPLETE").await?;
    let kept = stdout(&task, 0);
    ensure!(kept.ends_with("aaa\nend\n"), "{} bytes", kept.len());
    ensure!(
        (10 << 10..=80 << 10).contains(&kept.len()),
        "{} bytes",
        kept.len()
    );
    Ok(())
}

async fn a_report_of_2000_files_comes_whole(suite: Arc<Suite>) -> Result<()> {
    // Names that do not compress, so that the report does not fit a termination message.
    let names = "i=0; while [ $i -lt 2000 ]; do echo $i >/out/$(echo $i | md5sum | cut -c1-32).txt; i=$((i + 1)); done";
    let task = with(
        script(names),
        &json!({ "outputs": [{
            "path": "/out/*.txt", "path_prefix": "/out/", "url": suite.web.url("/many/"),
        }] }),
    );
    let task = suite.place().await?.run(&task, "COMPLETE").await?;
    let outputs = task["logs"][0]["outputs"].as_array().map(Vec::len);
    ensure!(outputs == Some(2000), "{outputs:?}\n{}", reasons(&task));
    let delivered = suite.web.all();
    let delivered = delivered
        .iter()
        .filter(|(path, _)| path.starts_with("/many/"));
    ensure!(delivered.count() == 2000);
    Ok(())
}
