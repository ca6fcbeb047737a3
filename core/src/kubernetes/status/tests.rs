//! `life`: until its last executor. `ends`: how an attempt can end. `stuck`: what cannot start.

mod ends;
mod life;
mod stuck;

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::tes::OutputFileLog;

/// Seconds since the epoch.
const NOW: i64 = 1_800_000_000;

fn now() -> Timestamp {
    Timestamp::from_millis(NOW * 1000)
}

/// A time as Kubernetes writes it, to the second.
fn ago(seconds: i64) -> String {
    let time = Timestamp::from_millis((NOW - seconds) * 1000).to_string();
    time.replace(".000Z", "Z")
}

fn patience() -> Patience {
    let seconds = |s: u64| Span(Duration::from_secs(s));
    Patience {
        image_pull: seconds(300),
        schedule: seconds(3600),
        start: seconds(900),
        node_lost: seconds(600),
    }
}

fn waits(reason: &str, message: &str) -> Value {
    json!({"started": false, "state": {"waiting": {"reason": reason, "message": message}}})
}

fn creating() -> Value {
    waits("ContainerCreating", "")
}

fn runs(since: i64) -> Value {
    json!({"started": true, "state": {"running": {"startedAt": ago(since)}}})
}

fn over(exit_code: i32, reason: &str, message: &str) -> Value {
    let times = json!({"startedAt": ago(100), "finishedAt": ago(50)});
    let mut end = json!({"exitCode": exit_code, "reason": reason, "message": message});
    end.as_object_mut()
        .unwrap()
        .extend(times.as_object().unwrap().clone());
    json!({"started": false, "state": {"terminated": end}})
}

fn done() -> Value {
    over(0, "Completed", "")
}

/// A pod with these containers that was put on a node 1000 seconds ago; `more` goes over it.
fn pod(containers: &[(&str, Value)], more: Value) -> Pod {
    let statuses = |(name, status): &(&str, Value)| {
        let mut status = status.clone();
        let status_of = status.as_object_mut().unwrap();
        let more = json!({
            "name": name, "ready": false, "restartCount": 0, "image": "i", "imageID": "",
        });
        status_of.extend(more.as_object().unwrap().clone());
        status
    };
    let mut pod = json!({
        "metadata": {"name": "t1-1", "creationTimestamp": ago(1001)},
        "status": {
            "phase": "Running",
            "startTime": ago(1000),
            "conditions": [
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": ago(1000)},
            ],
            "containerStatuses": containers.iter().map(statuses).collect::<Vec<_>>(),
        },
    });
    fn put(over: &mut Value, more: Value) {
        match more {
            Value::Object(more) => {
                for (key, value) in more {
                    put(&mut over[key], value);
                }
            }
            more => *over = more,
        }
    }
    put(&mut pod, more);
    serde_json::from_value(pod).unwrap()
}

fn nothing() -> Value {
    json!({})
}

fn look_at(pod: &Pod) -> Look {
    look(pod, None, &patience(), now())
}

fn phase(pod: &Pod) -> Phase {
    let Look { observed, need } = look_at(pod);
    assert_eq!(need, None);
    observed.phase
}

#[track_caller]
fn stopped(pod: &Pod, expected: Option<&str>) {
    let expected = expected.map(|reason| Need::Stop(reason.to_owned()));
    assert_eq!(look_at(pod).need, expected);
}

/// Why an attempt is lost, and whether it was to make room.
#[track_caller]
fn lost_by(pod: &Pod) -> (String, bool) {
    match phase(pod) {
        Phase::Lost { reason, preempted } => (reason, preempted),
        other => panic!("not lost: {other:?}"),
    }
}

#[track_caller]
fn finished(pod: &Pod) -> Report {
    match phase(pod) {
        Phase::Finished(report) => *report,
        other => panic!("not finished: {other:?}"),
    }
}

fn report(outcome: Outcome) -> Report {
    let file = OutputFileLog {
        url: "s3://b/k".into(),
        path: "/o".into(),
        size_bytes: 1,
    };
    Report {
        outcome,
        executors: Vec::new(),
        outputs: vec![file],
        notes: vec!["a note".into()],
        started: Timestamp::from_millis((NOW - 1000) * 1000),
        ended: Timestamp::from_millis((NOW - 50) * 1000),
    }
}

fn message(report: &Report) -> String {
    report::pack(report, 4096).unwrap().message
}

fn unscheduled(reason: &str, created: i64) -> Pod {
    let condition = json!({
        "type": "PodScheduled", "status": "False", "reason": reason,
        "message": "0/3 nodes are available", "lastTransitionTime": ago(created),
    });
    pod(
        &[],
        json!({
            "metadata": {"creationTimestamp": ago(created)},
            "status": {"phase": "Pending", "startTime": null, "conditions": [condition]},
        }),
    )
}
