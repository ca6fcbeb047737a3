//! Executors in containers: only with `TESK_TEST_PODMAN=1`, because images and an engine that
//! works are not everywhere.
//!
//! `TESK_TEST_IMAGE` names an image with a busybox shell, which has to be there already,
//! `TESK_TEST_USER_IMAGE` one whose user is not root, and `TESK_TEST_PODMAN_ARGS` global arguments of podman, separated by spaces.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tesk_core::local::RuntimeChoice;
use tesk_core::scheduler::TaskId;
use tesk_core::tes::State;

use super::crash::running_attempt;
use super::harness::{Place, Running, ended, eventually, system_logs};
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    if std::env::var("TESK_TEST_PODMAN").as_deref() != Ok("1") {
        eprintln!("containers are not tested: TESK_TEST_PODMAN is not 1");
        return Vec::new();
    }
    trials![
        "podman":
        a_task_runs_in_its_images,
        exit_codes_of_a_container_are_those_of_its_command,
        a_command_that_ends_as_the_container_engine_would_runs_once,
        a_container_gets_its_environment_and_arguments_as_they_were_sent,
        streams_of_a_container_are_redirected,
        outputs_that_belong_to_the_image_are_collected,
        what_is_in_a_container_and_cannot_be_collected_is_a_system_error,
        a_link_that_an_executor_leaves_leads_no_copy_out_of_scratch,
        an_image_that_is_nowhere_is_a_system_error,
        an_image_among_the_files_of_the_machine_is_refused,
        a_canceled_container_is_gone,
        a_user_of_the_image_reads_inputs_and_writes_outputs,
        a_container_whose_attempt_is_killed_is_gone_before_the_next,
        a_container_that_comes_after_its_attempt_is_removed_and_no_other,
    ]
}

async fn start(place: &Place) -> Result<Running> {
    place
        .start_with(|settings| {
            settings.runtime = RuntimeChoice::Podman;
            settings.scheduler.grace = Duration::from_millis(500);
            settings.scheduler.sweep = Duration::from_millis(500);
            let arguments = std::env::var("TESK_TEST_PODMAN_ARGS").unwrap_or_default();
            settings.container_arguments.global =
                arguments.split_whitespace().map(str::to_owned).collect();
        })
        .await
}

fn container(command: &Value) -> Value {
    let image = std::env::var("TESK_TEST_IMAGE").expect("TESK_TEST_IMAGE names an image");
    json!({ "image": image, "command": command })
}

fn shell(script: &str) -> Value {
    container(&json!(["sh", "-c", script]))
}

async fn a_task_runs_in_its_images() -> Result<()> {
    let place = Place::new()?;
    std::fs::write(place.file("in"), "data")?;
    let running = start(&place).await?;
    let task = json!({
        "inputs": [
            { "url": place.url("in"), "path": "/work/in, \"odd\"" },
            { "content": "conf", "path": "/etc/my.conf" },
        ],
        "outputs": [{ "url": place.url("out"), "path": "/work/out" }],
        "volumes": ["/vol"],
        "resources": { "cpu_cores": 1, "ram_gb": 0.01 },
        "executors": [
            shell("cat '/work/in, \"odd\"' /etc/my.conf > /vol/x; touch /not-shared"),
            shell("test ! -e /not-shared && cat /vol/x > /work/out"),
        ],
    });
    let record = running.run(&place, &task).await?;
    ended(&record, State::Complete)?;
    ensure!(place.read("out")? == "dataconf");
    eventually("no attempt is left", || Ok(place.attempts()?.is_empty())).await
}

async fn exit_codes_of_a_container_are_those_of_its_command() -> Result<()> {
    let place = Place::new()?;
    let running = start(&place).await?;
    for (command, code) in [
        (json!(["sh", "-c", "exit 3"]), 3),
        (json!(["sh", "-c", "exit 125"]), 125),
        (json!(["no-such-program"]), 127),
        (json!(["/etc"]), 126),
        (json!(["sh", "-c", "sh -c 'kill -9 $$'; exit $?"]), 137),
    ] {
        let task = json!({ "executors": [container(&command)] });
        let record = running.run(&place, &task).await?;
        ended(&record, State::ExecutorError)?;
        let found = record.logs[0].logs[0].exit_code;
        ensure!(found == code, "{command}: {found}");
    }
    Ok(())
}

async fn a_command_that_ends_as_the_container_engine_would_runs_once() -> Result<()> {
    let place = Place::new()?;
    let running = start(&place).await?;
    for (words, code) in [
        ("Error: no space, and docker: Error response", 125),
        ("Error: workdir /made does not exist on container x", 126),
    ] {
        let script = format!("echo ran >> /work/runs; echo '{words}' >&2; exit {code}");
        let mut executor = shell(&script);
        executor["workdir"] = json!("/work");
        let task = json!({
            "outputs": [{ "url": place.url("runs"), "path": "/work/runs" }],
            "executors": [executor],
        });
        let record = running.run(&place, &task).await?;
        ended(&record, State::ExecutorError)?;
        ensure!(record.logs.len() == 1);
        ensure!(record.logs[0].logs[0].exit_code == code);
        ensure!(place.read("runs")? == "ran\n");
    }
    Ok(())
}

async fn a_container_gets_its_environment_and_arguments_as_they_were_sent() -> Result<()> {
    let place = Place::new()?;
    let running = start(&place).await?;
    let mut executor = container(&json!([
        "sh",
        "-c",
        "echo \"$A|$PATH|$0|$1|$2\"; echo \"$B|$C|$D|$E|$CHARSET|$G\"",
        "x",
        "",
        "$(Y)"
    ]));
    executor["env"] = json!({
        "A": "one\ntwo", "PATH": "/bin:/extra", "LD_PRELOAD": "", "B": "$HOME", "C": "\"q\" 'q'",
        "D": "  led ", "E": "#x # y", "CHARSET": "utf-8 *", "G": "a=b",
    });
    let record = running
        .run(&place, &json!({ "executors": [executor] }))
        .await?;
    ended(&record, State::Complete)?;
    let out = record.logs[0].logs[0].stdout.clone().unwrap_or_default();
    let lines = "one\ntwo|/bin:/extra|x||$(Y)\n$HOME|\"q\" 'q'|  led |#x # y|utf-8 *|a=b\n";
    ensure!(out == lines, "{out}");
    Ok(())
}

async fn streams_of_a_container_are_redirected() -> Result<()> {
    let place = Place::new()?;
    let running = start(&place).await?;
    let mut executor = container(&json!(["cat"]));
    executor["stdin"] = json!("/work/in");
    executor["stdout"] = json!("/work/deep/out");
    executor["workdir"] = json!("/made/here");
    let task = json!({
        "inputs": [{ "content": "hello", "path": "/work/in" }],
        "outputs": [{ "url": place.url("out"), "path": "/work/deep/out" }],
        "executors": [executor],
    });
    let record = running.run(&place, &task).await?;
    ended(&record, State::Complete)?;
    ensure!(place.read("out")? == "hello");
    Ok(())
}

async fn outputs_that_belong_to_the_image_are_collected() -> Result<()> {
    let place = Place::new()?;
    let running = start(&place).await?;
    let task = json!({
        "outputs": [
            { "url": place.url("root"), "path": "/result" },
            { "url": place.url("etc"), "path": "/etc/result-*", "path_prefix": "/etc" },
        ],
        "executors": [shell("echo 1 > /result; mkdir -p /etc; echo 2 > /etc/result-2")],
    });
    let record = running.run(&place, &task).await?;
    ended(&record, State::Complete)?;
    ensure!(place.read("root")? == "1\n" && place.read("etc/result-2")? == "2\n");
    Ok(())
}

async fn what_is_in_a_container_and_cannot_be_collected_is_a_system_error() -> Result<()> {
    let place = Place::new()?;
    let running = start(&place).await?;
    let task = json!({
        "outputs": [{ "url": place.url("d"), "path": "/root/*", "path_prefix": "/root" }],
        "executors": [
            shell("mkdir -p /root/a; echo 1 > /root/a/x"),
            // No file is put in the place of a directory.
            shell("mkdir -p /root; echo 2 > /root/a"),
        ],
    });
    let record = running.run(&place, &task).await?;
    ended(&record, State::SystemError)?;
    ensure!(system_logs(&record).contains("outputs[0]: /root/a is not collected"));
    Ok(())
}

async fn a_link_that_an_executor_leaves_leads_no_copy_out_of_scratch() -> Result<()> {
    let place = Place::new()?;
    let running = start(&place).await?;
    // Of the machine, and of the same user.
    let outside = tempfile::tempdir()?;
    let (file, folder) = (outside.path().join("file"), outside.path().join("folder"));
    std::fs::write(&file, "mine")?;
    std::fs::create_dir(&folder)?;
    let links = format!(
        "mkdir -p /opt/d/1 && echo 1 > /opt/d/1/x && ln -s {} /opt/out && ln -s {} /opt/d/sub",
        file.display(),
        folder.display()
    );
    let task = json!({
        "outputs": [
            { "url": place.url("out"), "path": "/opt/out" },
            { "url": place.url("d"), "path": "/opt/d/*/x", "path_prefix": "/opt/d" },
        ],
        "executors": [
            shell(&links),
            shell("mkdir -p /opt/d/sub && echo 2 > /opt/out && echo 3 > /opt/d/sub/x"),
        ],
    });
    let record = running.run(&place, &task).await?;
    ensure!(std::fs::read_to_string(&file)? == "mine");
    ensure!(std::fs::read_dir(&folder)?.count() == 0);
    ended(&record, State::Complete)?;
    ensure!(place.read("out")? == "2\n" && place.read("d/sub/x")? == "3\n");
    ensure!(place.read("d/1/x")? == "1\n");
    Ok(())
}

async fn an_image_that_is_nowhere_is_a_system_error() -> Result<()> {
    let place = Place::new()?;
    let running = start(&place).await?;
    let task = json!({ "executors": [
        { "image": "localhost/no-such-image:none", "command": ["true"] }
    ]});
    let record = running.run(&place, &task).await?;
    ended(&record, State::SystemError)?;
    ensure!(system_logs(&record).contains("localhost/no-such-image:none"));
    ensure!(record.logs[0].logs.is_empty());
    Ok(())
}

async fn an_image_among_the_files_of_the_machine_is_refused() -> Result<()> {
    let place = Place::new()?;
    let running = start(&place).await?;
    for image in ["dir:/etc", "docker-archive:/x.tar", "oci:latest"] {
        let task = json!({ "executors": [{ "image": image, "command": ["true"] }]});
        let record = running.run(&place, &task).await?;
        ended(&record, State::SystemError)?;
        ensure!(system_logs(&record).contains("not the name of an image in a registry"));
        ensure!(record.logs.len() == 1, "it is not tried again");
    }
    Ok(())
}

async fn a_canceled_container_is_gone() -> Result<()> {
    let place = Place::new()?;
    let running = start(&place).await?;
    let id = running
        .submit(
            &place,
            &json!({ "executors": [shell("trap '' TERM; while :; do sleep 1; done")] }),
        )
        .await?;
    running.until(&id, |s| s == State::Running).await?;
    tokio::time::sleep(Duration::from_millis(700)).await;
    running.cancel(&id).await?;
    ended(&running.end(&id).await?, State::Canceled)?;
    eventually("no attempt is left", || Ok(place.attempts()?.is_empty())).await
}

async fn a_user_of_the_image_reads_inputs_and_writes_outputs() -> Result<()> {
    let place = Place::new()?;
    let running = start(&place).await?;
    let mut executor = shell("id -u; cat /work/in > /work/deep/out; echo > here; echo > /vol/x");
    executor["image"] = json!(std::env::var("TESK_TEST_USER_IMAGE")?);
    executor["workdir"] = json!("/made/here");
    executor["stdout"] = json!("/work/user");
    let task = json!({
        "inputs": [{ "content": "hello", "path": "/work/in" }],
        "outputs": [
            { "url": place.url("out"), "path": "/work/deep/out" },
            { "url": place.url("user"), "path": "/work/user" },
        ],
        "volumes": ["/vol"],
        "executors": [executor],
    });
    let record = running.run(&place, &task).await?;
    ended(&record, State::Complete)?;
    ensure!(place.read("out")? == "hello" && place.read("user")? != "0\n");
    eventually("no attempt is left", || Ok(place.attempts()?.is_empty())).await
}

async fn a_container_whose_attempt_is_killed_is_gone_before_the_next() -> Result<()> {
    let place = Place::new()?;
    let running = start(&place).await?;
    let task = json!({ "executors": [shell("sleep 60")] });
    let id = running.submit(&place, &task).await?;
    running.until(&id, |s| s == State::Running).await?;
    tokio::time::sleep(Duration::from_millis(700)).await;
    let pid = running_attempt(&place, &id)?.and_then(Pid::from_raw);
    kill_process(pid.context("a process id")?, Signal::KILL)?;
    let lost = |record: &tesk_core::scheduler::Record| record.head.attempt == 2;
    let begun = std::time::Instant::now();
    while !lost(&running.store.get(&id).await?.context("get")?) {
        ensure!(begun.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let label = format!("label=tesk.attempt={id}-1");
    ensure!(podman(&["ps", "--all", "--quiet", "--filter", &label])?.is_empty());
    running.cancel(&id).await?;
    ended(&running.end(&id).await?, State::Canceled)
}

async fn a_container_that_comes_after_its_attempt_is_removed_and_no_other() -> Result<()> {
    let place = Place::new()?;
    drop(start(&place).await?);
    let id = std::fs::read_to_string(place.path().join("data/id"))?;
    let server = id.split(' ').next().context("an empty data/id")?;
    let image = std::env::var("TESK_TEST_IMAGE")?;
    let create = |server: &str| -> Result<String> {
        let name = format!("tesk-{}-1-0", TaskId::random());
        let label = format!("tesk.server={server}");
        let create = ["create", "--name", &name, "--label", &label, &image, "true"];
        podman(&create)?;
        Ok(name)
    };
    let (stray, of_attempt, of_other) = (create(server)?, create(server)?, create("other")?);
    let attempt = of_attempt
        .trim_start_matches("tesk-")
        .trim_end_matches("-0");
    let directory = place.path().join("data/attempts").join(attempt);
    std::fs::create_dir_all(directory)?;
    let _running = start(&place).await?;
    let is_there = |name: &str| -> Result<bool> {
        let filter = format!("name={name}");
        Ok(!podman(&["ps", "--all", "--quiet", "--filter", &filter])?.is_empty())
    };
    eventually("the stray is gone", || Ok(!is_there(&stray)?)).await?;
    let left = is_there(&of_attempt)? && is_there(&of_other)?;
    podman(&["rm", "--force", &of_attempt, &of_other])?;
    ensure!(left);
    Ok(())
}

fn podman(arguments: &[&str]) -> Result<String> {
    let global = std::env::var("TESK_TEST_PODMAN_ARGS").unwrap_or_default();
    let output = std::process::Command::new("podman")
        .args(global.split_whitespace())
        .args(arguments)
        .output()?;
    ensure!(output.status.success(), "podman {arguments:?}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}
