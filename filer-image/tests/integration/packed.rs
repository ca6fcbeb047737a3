use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tesk_core::plan::packed;
use tesk_core::scheduler::compute::Outcome;

use super::pod::Pod;

const PASSWORD: &str = "correct-horse";

#[test]
fn a_plan_in_parts_is_read_from_a_volume_as_the_kubelet_lays_it_out() {
    // More than ten, whose order is not that of their making.
    for parts in [1, 2, 12] {
        let mut pod = Pod::new();
        pod.parts = Some(parts);
        pod.shell("echo done > out");
        pod.output("out", &pod.url("out"));
        let (codes, report) = pod.run();
        assert_eq!(codes, [0, 0, 0], "{parts}");
        assert_eq!(report.outcome, Outcome::Complete);
        assert_eq!(pod.stored("out"), "done\n");
    }
}

#[test]
fn a_plan_in_an_annotation_is_one_file() {
    let mut pod = Pod::new();
    pod.parts = Some(1);
    pod.shell("true");
    pod.volume("plan", &[("plan".into(), packed::pack(&pod.plan).into())]);
    assert!(pod.run_prepare().status.success());
}

#[test]
fn a_plan_that_is_not_whole_is_refused_with_a_reason() {
    let mut pod = Pod::new();
    pod.parts = Some(3);
    pod.shell("true");
    let whole = packed::pack(&pod.plan);
    let (half, rest) = whole.split_at(whole.len() / 8 * 4);
    let file = |name: &str, content: &str| (name.to_owned(), content.as_bytes().to_vec());
    for (files, expected) in [
        (vec![], "it is empty"),
        (vec![file("plan", "")], "it is empty"),
        // A part is missing.
        (vec![file("plan.0000", half)], "packed plan"),
        (vec![file("plan.0001", rest)], "packed plan"),
        // They are mixed up.
        (
            vec![file("plan.0000", rest), file("plan.0001", half)],
            "packed plan",
        ),
        (vec![file("plan", "not base64!")], "it is not base64"),
        (vec![file("plan", "\u{e4}")], "it is not base64"),
        (vec![file("other", &whole)], "it is empty"),
    ] {
        pod.volume("plan", &files);
        let prepared = pod.run_prepare();
        assert_eq!(prepared.status.code(), Some(1), "{files:?}");
        // The output of a hook is lost: it is left where the kubelet looks.
        let reason = std::fs::read_to_string(pod.at("reason")).unwrap();
        assert!(reason.contains(expected), "{files:?}: {reason}");
        assert!(!pod.at("bin/filer").exists());
    }
}

#[test]
fn a_plan_of_another_version_is_refused_in_parts_too() {
    let mut pod = Pod::new();
    pod.parts = Some(2);
    pod.plan.version += 1;
    let prepared = pod.prepare();
    assert_eq!(prepared.status.code(), Some(1));
    let reason = std::fs::read_to_string(pod.at("reason")).unwrap();
    assert!(reason.contains("is a plan of version 2"), "{reason}");
}

/// A server that answers every request with this status, and keeps what it was sent.
fn server(status: &'static str) -> (SocketAddr, std::sync::mpsc::Receiver<String>) {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for connection in server.incoming() {
            let mut connection = connection.unwrap();
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && connection.read(&mut byte).unwrap_or(0) == 1 {
                request.push(byte[0]);
            }
            let head =
                format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n");
            let body = if request.starts_with(b"HEAD") {
                ""
            } else {
                "in"
            };
            let _ = connection.write_all(format!("{head}{body}").as_bytes());
            let _ = sender.send(String::from_utf8_lossy(&request).into_owned());
        }
    });
    (address, receiver)
}

/// A pod with an input whose password is kept apart.
fn pod(address: SocketAddr) -> Pod {
    let mut pod = Pod::new();
    let mut config = std::fs::read_to_string(pod.at("tesk.toml")).unwrap();
    config.push_str("[[storage]]\ntype = \"http\"\nprefix = \"http://\"\n");
    std::fs::write(pod.at("tesk.toml"), config).unwrap();
    pod.parts = Some(1);
    pod.input(&format!("http://me:***@{address}/in"), "in");
    pod.shell("cat in; env; cat ../bin/plan.json; cat ../handover/*/record; true");
    pod
}

fn secrets(pod: &Pod, content: &str) {
    pod.volume("secrets", &[("secrets.json".into(), content.into())]);
}

/// All files below a directory that hold the password.
fn told(directory: &Path) -> Vec<String> {
    let mut told = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.ends_with("secrets") || path.ends_with("bin/filer") {
            continue;
        }
        if path.is_dir() {
            told.extend(self::told(&path));
        } else if std::fs::read(&path).is_ok_and(|bytes| {
            bytes
                .windows(PASSWORD.len())
                .any(|bytes| bytes == PASSWORD.as_bytes())
        }) {
            told.push(path.display().to_string());
        }
    }
    told
}

#[test]
fn a_password_that_is_kept_apart_is_used_and_not_told() {
    let (address, requests) = server("200 OK");
    let pod = pod(address);
    secrets(&pod, &json!({"inputs[0].url": PASSWORD}).to_string());
    let (codes, report) = pod.run();
    assert_eq!(codes, [0, 0, 0], "{report:?}");
    let sent = STANDARD.encode(format!("me:{PASSWORD}"));
    assert!(requests.try_iter().any(|request| request.contains(&sent)));
    let seen = report.executors[0].stdout.as_deref().unwrap();
    assert!(seen.starts_with("in"), "{seen}");
    assert!(!seen.contains(PASSWORD) && !seen.contains(&sent), "{seen}");
    assert_eq!(told(&pod.at("")), [] as [&str; 0]);
}

#[test]
fn a_password_that_is_refused_is_not_told_either() {
    let (address, _requests) = server("403 Forbidden");
    let pod = pod(address);
    secrets(&pod, &json!({"inputs[0].url": PASSWORD}).to_string());
    let ends: Vec<_> = pod
        .start()
        .into_iter()
        .map(super::pod::Container::end)
        .collect();
    assert_eq!(pod.report().outcome, Outcome::SystemError);
    assert!(pod.report().notes[0].contains(&address.to_string()));
    for end in ends {
        assert!(!end.stdout().contains(PASSWORD) && !end.stderr().contains(PASSWORD));
    }
    assert_eq!(told(&pod.at("")), [] as [&str; 0]);
}

#[test]
fn passwords_that_cannot_be_read_are_not_told_either() {
    let (address, requests) = server("200 OK");
    for broken in [
        format!("{{\"inputs[0].url\": \"{PASSWORD}\""),
        format!("[\"{PASSWORD}\"]"),
        format!("{{\"{PASSWORD}\": 1}}"),
        PASSWORD.to_owned(),
    ] {
        let pod = pod(address);
        secrets(&pod, &broken);
        let ends: Vec<_> = pod
            .start()
            .into_iter()
            .map(super::pod::Container::end)
            .collect();
        assert_ne!(ends[0].code(), 0, "{broken}");
        let said = ends[0].stderr();
        assert!(said.contains("does not hold passwords"), "{said}");
        for end in &ends {
            assert!(!end.stdout().contains(PASSWORD) && !end.stderr().contains(PASSWORD));
        }
        assert_eq!(told(&pod.at("")), [] as [&str; 0]);
    }
    assert_eq!(requests.try_iter().count(), 0);
}

#[test]
fn outputs_that_cannot_report_leave_their_reason_where_the_report_would_be() {
    let mut pod = Pod::new();
    pod.parts = Some(1);
    pod.shell("true");
    assert!(pod.prepare().status.success());
    secrets(&pod, PASSWORD);
    let mut outputs = pod.filer("outputs");
    outputs.arg("--termination-message").arg(pod.at("message"));
    assert_eq!(outputs.output().unwrap().status.code(), Some(1));
    let message = std::fs::read_to_string(pod.at("message")).unwrap();
    assert!(message.contains("does not hold passwords"), "{message}");
    assert!(!message.contains(PASSWORD));
}
