//! The commands of a client, and servers that do not do what they should.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{command, hostile_server, odd_server, run, task_file, tesk, text, unread};

/// The name of a file with a task.
fn any_task(folder: &TempDir) -> String {
    let file = task_file(folder, &command(&["true"]));
    file.to_str().unwrap().to_owned()
}

#[test]
fn a_closed_standard_output_changes_neither_what_is_done_nor_how_it_is_judged() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let heard = asked.clone();
    let server = hostile_server(move |head| {
        heard.lock().unwrap().push(head.to_owned());
        (200, json!({ "id": "t1", "state": "EXECUTOR_ERROR" }))
    });
    let folder = TempDir::new().unwrap();
    let file = any_task(&folder);
    let status = |arguments: &[&str]| {
        let mut command = tesk();
        command.args(arguments).env("TESK_SERVER", &server);
        run(command.stdout(unread())).status.code()
    };
    assert_eq!(status(&["submit", &file, &file, &file]), Some(0));
    assert_eq!(asked.lock().unwrap().len(), 3);
    assert_eq!(status(&["submit", &file, "--wait"]), Some(1));
    assert_eq!(status(&["wait", "t1", "t2"]), Some(1));
    let nowhere = "file:///no/such/place";
    assert_eq!(status(&["storage", "check", nowhere]), Some(1));
    // These only show something.
    for arguments in [&["get", "t1"][..], &["completions", "bash"]] {
        assert_eq!(status(arguments), Some(0), "{arguments:?}");
    }
}

#[test]
fn submit_asks_again_with_the_same_key_and_waits_for_what_was_created_before_a_refusal() {
    let keys = Arc::new(Mutex::new(Vec::new()));
    let heard = keys.clone();
    let server = hostile_server(move |head| {
        if head.starts_with("GET") {
            return (200, json!({ "id": "t1", "state": "COMPLETE" }));
        }
        let is_key = |line: &&str| line.to_ascii_lowercase().starts_with("idempotency-key:");
        let key = head.lines().find(is_key).unwrap().to_owned();
        let mut heard = heard.lock().unwrap();
        heard.push(key);
        match heard.len() {
            1 => (0, Value::Null),
            2 => (503, json!({ "msg": "not yet" })),
            3 => (429, Value::Null),
            4 => (200, json!({ "id": "t1" })),
            _ => (400, json!({ "msg": "never" })),
        }
    });
    let folder = TempDir::new().unwrap();
    let file = any_task(&folder);
    let output = run(tesk()
        .args(["submit", &file, &file, &file, "--wait"])
        .args(["--server", &server]));
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert_eq!(text(&output.stdout), "t1\nt1 COMPLETE\n");
    assert_eq!(error.matches("asking again").count(), 1, "{error}");
    assert!(error.contains("task.json: never (HTTP 400)"), "{error}");
    let keys = keys.lock().unwrap();
    assert_eq!(keys.len(), 5, "{keys:?}");
    assert!(keys[..4].iter().all(|key| *key == keys[0]), "{keys:?}");
    assert_ne!(keys[4], keys[0]);
}

#[test]
fn submit_waits_for_somebody_to_listen_only_if_it_waits_for_the_task_too() {
    let folder = TempDir::new().unwrap();
    let file = any_task(&folder);
    let submit = || -> Command {
        let mut command = tesk();
        command.args(["submit", &file, "--server", "http://127.0.0.1:1"]);
        command
    };
    let refused = run(&mut submit());
    let error = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{error}");
    assert!(error.contains("task.json: no answer from"), "{error}");
    assert!(!error.contains("asking again"), "{error}");
    let mut child = submit()
        .arg("--wait")
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    stderr.read_line(&mut said).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(said.contains("asking again"), "{said}");
}

#[test]
fn a_list_ends_at_a_token_that_is_empty_or_leads_nowhere() {
    for (token, pages) in [("", 1), ("again", 2)] {
        let server = hostile_server(move |_| {
            let task = json!({ "id": "t1", "state": "COMPLETE" });
            (200, json!({ "tasks": [task], "next_page_token": token }))
        });
        let output = run(tesk().args(["list", "--all", "--json", "--server", &server]));
        let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(listed["tasks"].as_array().unwrap().len(), pages, "{token}");
    }
}

#[test]
fn a_redirect_is_said_without_secrets_and_not_followed() {
    let folder = TempDir::new().unwrap();
    let file = any_task(&folder);
    for arguments in [&["submit", &file][..], &["list"], &["cancel", "t1"]] {
        let server = odd_server(|head| {
            let path = head.split([' ', '?']).nth(1).unwrap();
            Some(format!(
                "301 x\r\nConnection: close\r\nContent-Length: 0\r\n\
                 Location: http://ada:hunter2@127.0.0.1:9/new{path}?key=hunter2\r\n\r\n"
            ))
        });
        let output = run(tesk().args(arguments).args(["--server", &server]));
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        let moved = "has moved to http://127.0.0.1:9/new/ga4gh/tes/v1/; give that to --server";
        assert!(error.contains(moved), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn a_line_end_after_a_token_is_no_part_of_it_and_one_within_is_refused_at_once() {
    let server = hostile_server(|head| {
        let head = head.to_ascii_lowercase();
        let knows = head.contains("authorization: bearer hunter2\r\n");
        let status = if knows { 200 } else { 401 };
        (status, json!({ "id": "t1", "state": "COMPLETE" }))
    });
    let wait = |token: &str| {
        let mut command = tesk();
        command.args(["wait", "t1", "--server", &server]);
        run(command.env("TESK_TOKEN", token))
    };
    let trimmed = wait("hunter2\n");
    assert!(trimmed.status.success(), "{}", text(&trimmed.stderr));
    let refused = wait("hunter\n2");
    let error = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{error}");
    assert!(error.contains("cannot ask"), "{error}");
    assert!(!error.contains("asking again"), "{error}");
    assert!(!error.contains("hunter"), "{error}");
}
