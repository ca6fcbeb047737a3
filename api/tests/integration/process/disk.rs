//! `tesk` on a file system that is full.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{SERVE, Server, command, has_sandbox, run, task_file, tesk, text};

/// `tesk`, started by `by`, where `disk` is a file system of 8 MiB.
fn tesk_on_a_small_disk(disk: &Path, by: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-root-user", "--mount", "sh", "-c"])
        .arg(r#"mount -t tmpfs -o size=8m none "$0" && exec "$@""#)
        .arg(disk)
        .args(by)
        .arg(env!("CARGO_BIN_EXE_tesk"))
        .env("LC_ALL", "C");
    command
}

/// How a task ends that is run where records and scratch together have 8 MiB.
fn run_on_a_small_disk(task: &Value) -> (Output, Value) {
    let folder = TempDir::new().unwrap();
    let file = task_file(&folder, task);
    let disk = TempDir::new().unwrap();
    let output = run(tesk_on_a_small_disk(disk.path(), &["timeout", "60"])
        .args(["run", "--runtime", "host", "--json", "--data"])
        .arg(disk.path().join("data"))
        .arg(&file));
    let task = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("no task: {}", text(&output.stderr)));
    (output, task)
}

/// Fills the disk, and then does `more`.
fn fills_the_disk(more: &str) -> Value {
    let script = format!("cat /dev/zero > /task/zero || ({more}; exit 1)");
    let mut task = command(&["sh", "-c", &script]);
    task["volumes"] = json!(["/task"]);
    task
}

#[test]
fn a_command_that_fills_the_disk_fails() {
    if !has_sandbox() {
        return;
    }
    let (output, task) = run_on_a_small_disk(&fills_the_disk("true"));
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert_eq!(task["state"], "EXECUTOR_ERROR", "{task}");
    let log = &task["logs"][0]["logs"][0];
    assert_eq!(log["exit_code"], 1, "{task}");
    assert!(
        log["stderr"].as_str().unwrap().contains("No space"),
        "{task}"
    );
    assert_eq!(task["logs"].as_array().unwrap().len(), 1, "{task}");
}

#[test]
fn an_input_that_fills_the_disk_is_named() {
    if !has_sandbox() {
        return;
    }
    let input = tempfile::NamedTempFile::new().unwrap();
    // Of what the kernel cannot leave out.
    std::fs::write(input.path(), vec![7; 32 << 20]).unwrap();
    let mut task = command(&["true"]);
    task["inputs"] = json!([{ "url": input.path(), "path": "/task/in" }]);
    let (output, task) = run_on_a_small_disk(&task);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(task["state"], "SYSTEM_ERROR", "{task}");
    let said = task["logs"][0]["system_logs"].to_string();
    assert!(
        said.contains("inputs[0]") && said.contains("space"),
        "{said}"
    );
}

#[test]
fn output_that_does_not_fit_its_file_is_no_error_of_the_command_that_could_be_ignored() {
    if !has_sandbox() {
        return;
    }
    let mut task = command(&["head", "-c", "32000000", "/dev/zero"]);
    task["executors"][0]["stdout"] = json!("/task/a");
    task["executors"][0]["ignore_error"] = json!(true);
    let next = command(&["wc", "-c", "/task/a"]);
    task["executors"]
        .as_array_mut()
        .unwrap()
        .push(next["executors"][0].clone());
    let (output, task) = run_on_a_small_disk(&task);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(task["state"], "SYSTEM_ERROR", "{task}");
    let log = &task["logs"][0];
    assert_eq!(log["logs"].as_array().unwrap().len(), 1, "{task}");
    assert_eq!(log["logs"][0]["exit_code"], 0, "{task}");
    let said = log["system_logs"].to_string();
    assert!(said.contains("/task/a") && said.contains("space"), "{said}");
}

#[test]
fn an_output_that_fills_the_disk_while_it_is_collected_is_named() {
    if !has_sandbox() {
        return;
    }
    let storage = TempDir::new().unwrap();
    let mut task = command(&["true"]);
    task["outputs"] =
        json!([{ "path": "/usr/bin/*", "path_prefix": "/usr/bin", "url": storage.path() }]);
    let (output, task) = run_on_a_small_disk(&task);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(task["state"], "SYSTEM_ERROR", "{task}");
    let said = task["logs"][0]["system_logs"].to_string();
    assert!(said.contains("outputs[0]: /usr/bin/"), "{said}");
    assert!(said.contains("space"), "{said}");
}

#[test]
fn while_the_disk_is_full_tasks_end_and_none_is_taken() {
    if !has_sandbox() {
        return;
    }
    let disk = TempDir::new().unwrap();
    let mut start = tesk_on_a_small_disk(disk.path(), &[]);
    start.args(SERVE).arg(disk.path().join("data"));
    let server = Server::spawn(start, Stdio::null());
    let bystander = server.submit(&command(&["sleep", "100"]));
    server.wait_for_state(&bystander, "RUNNING");
    let glutton = server.submit(&fills_the_disk("echo full; sleep 100"));
    server.wait_for_state(&glutton, "RUNNING");

    // What is small may still fit for a while.
    let mut large = command(&["true"]);
    large["description"] = "x".repeat(300_000).into();
    let folder = TempDir::new().unwrap();
    let file = task_file(&folder, &large);
    let begun = Instant::now();
    let (waiting, refused) = loop {
        let mut submit = tesk()
            .arg("submit")
            .arg(&file)
            .env("TESK_SERVER", &server.address)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let mut stderr = BufReader::new(submit.stderr.take().unwrap());
        if stderr.read_line(&mut said).unwrap() > 0 {
            break (submit, said);
        }
        assert!(submit.wait().unwrap().success());
        assert!(begun.elapsed() < Duration::from_secs(20), "never refused");
    };
    assert!(refused.contains("no room"), "{refused}");
    assert!(refused.contains("503"), "{refused}");

    for task in [&bystander, &glutton] {
        server.ask(&["cancel", task]);
        server.wait_for_state(task, "CANCELED");
    }
    // It has asked again meanwhile, or does so soon.
    let taken = waiting.wait_with_output().unwrap();
    assert!(taken.status.success());
    server.wait_for_state(text(&taken.stdout).trim(), "COMPLETE");
}
