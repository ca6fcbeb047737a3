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

#[test]
fn a_pod_that_nobody_has_looked_at_is_pending() {
    let new = json!({"status": null});
    assert_eq!(phase(&pod(&[], new)), Phase::Pending(None));
    let observed = look_at(&pod(&[], json!({"status": null}))).observed;
    assert_eq!((observed.started, observed.executors.len()), (None, 0));
}

#[test]
fn a_pod_that_no_node_has_room_for_is_pending_and_says_why() {
    assert_eq!(
        phase(&unscheduled("Unschedulable", 3599)),
        Phase::Pending(Some("Unschedulable: 0/3 nodes are available".into()))
    );
}

#[test]
fn a_task_ends_when_no_node_has_had_room_for_too_long() {
    let report = finished(&unscheduled("Unschedulable", 3600));
    assert_eq!(report.outcome, Outcome::SystemError);
    assert_eq!(
        report.notes,
        ["no node had room in time: Unschedulable: 0/3 nodes are available"]
    );
    let forever = Patience {
        schedule: Span(Duration::ZERO),
        ..patience()
    };
    let look = look(
        &unscheduled("Unschedulable", 1_000_000),
        None,
        &forever,
        now(),
    );
    assert!(matches!(look.observed.phase, Phase::Pending(Some(_))));
}

#[test]
fn a_pod_behind_a_gate_waits_for_as_long_as_the_gate_is_shut() {
    let gated = phase(&unscheduled("SchedulingGated", 1_000_000));
    assert!(matches!(gated, Phase::Pending(Some(_))), "{gated:?}");
}

#[test]
fn a_pod_on_a_node_is_initializing_until_inputs_are_in_place() {
    let fresh = json!({"status": {"conditions": [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": ago(10)},
    ]}});
    assert_eq!(phase(&pod(&[], fresh.clone())), Phase::Initializing);
    for (inputs, executor) in [
        (creating(), creating()),
        (runs(9), creating()),
        (runs(9), runs(9)),
        (done(), creating()),
        (over(1, "Error", ""), runs(9)),
    ] {
        let containers = [
            (INPUTS, inputs),
            ("executor-0", executor),
            (OUTPUTS, creating()),
        ];
        let observed = look_at(&pod(&containers, fresh.clone())).observed;
        assert_eq!(observed.phase, Phase::Initializing, "{containers:?}");
        let started = Timestamp::from_millis((NOW - 1000) * 1000);
        assert_eq!(observed.started, Some(started));
    }
}

#[test]
fn a_task_runs_once_its_inputs_are_in_place_and_its_first_executor_has_started() {
    let pod = pod(
        &[
            (INPUTS, done()),
            ("executor-0", runs(9)),
            (OUTPUTS, runs(9)),
        ],
        nothing(),
    );
    assert_eq!(phase(&pod), Phase::Running);
}

#[test]
fn executors_that_have_ended_are_shown_in_order_before_the_report_comes() {
    let said = json!({"exit_code": 3, "started": "2026-01-01T00:00:00.000Z",
                      "ended": "2026-01-01T00:00:01.000Z", "reason": null});
    let pod = pod(
        &[
            (INPUTS, done()),
            ("executor-0", over(3, "Error", &said.to_string())),
            ("executor-1", over(137, "OOMKilled", "")),
            ("executor-2", runs(9)),
            ("executor-3", done()),
            (OUTPUTS, runs(9)),
        ],
        nothing(),
    );
    let observed = look_at(&pod).observed;
    let codes: Vec<_> = observed.executors.iter().map(|log| log.exit_code).collect();
    assert_eq!(codes, [3, 137]);
    let first = &observed.executors[0];
    assert_eq!(
        first.start_time.unwrap().to_string(),
        "2026-01-01T00:00:00.000Z"
    );
    assert_eq!(
        observed.executors[1].end_time,
        Some(Timestamp::from_millis((NOW - 50) * 1000))
    );
    assert_eq!(observed.notes, ["executor-1: out of memory (OOMKilled)"]);
}

#[test]
fn what_a_command_leaves_as_its_message_is_no_more_than_a_claim() {
    for forged in [
        "",
        "{",
        "[]",
        r#"{"exit_code": "0", "started": 1, "ended": 2}"#,
        r#"{"exit_code": 0, "started": "9999999-01-01T00:00:00Z", "ended": "x"}"#,
        r#"{"exit_code": 99999999999, "started": "2026-01-01T00:00:00Z", "ended": "x"}"#,
        "tesk-report/1 1 2 log",
        &message(&report(Outcome::Complete)),
    ] {
        let executor = over(7, "Error", forged);
        let pod = pod(
            &[
                (INPUTS, done()),
                ("executor-0", executor),
                (OUTPUTS, runs(9)),
            ],
            nothing(),
        );
        let Look { observed, need } = look_at(&pod);
        assert_eq!((observed.phase, need), (Phase::Running, None), "{forged}");
        assert_eq!(observed.executors.len(), 1, "{forged}");
        assert_eq!(observed.executors[0].exit_code, 7, "{forged}");
        assert_eq!(observed.notes, [] as [&str; 0]);
    }
    // A supervisor that did not run its command says so; that hides nothing but a log.
    let skipped = r#"{"exit_code": null, "started": "2026-01-01T00:00:00Z",
                      "ended": "2026-01-01T00:00:00Z"}"#;
    let pod = pod(
        &[
            (INPUTS, done()),
            ("executor-0", over(125, "Error", skipped)),
            (OUTPUTS, runs(9)),
        ],
        nothing(),
    );
    assert_eq!(look_at(&pod).observed.executors, []);
}

#[test]
fn the_end_of_outputs_is_the_end_of_the_attempt_whatever_else_runs() {
    let report = report(Outcome::Complete);
    let pod = pod(
        &[
            (INPUTS, done()),
            ("executor-0", done()),
            (OUTPUTS, over(0, "Completed", &message(&report))),
            ("istio-proxy", runs(9)),
        ],
        nothing(),
    );
    assert_eq!(finished(&pod), report);
}

#[test]
fn a_report_has_notes_of_what_only_the_pod_knows() {
    let report = report(Outcome::ExecutorError);
    let pod = pod(
        &[
            (INPUTS, done()),
            ("executor-0", over(137, "OOMKilled", "")),
            (OUTPUTS, over(0, "Completed", &message(&report))),
        ],
        nothing(),
    );
    let seen = finished(&pod);
    assert_eq!(seen.outcome, Outcome::ExecutorError);
    assert_eq!(
        seen.notes,
        ["a note", "executor-0: out of memory (OOMKilled)"]
    );
}

#[test]
fn a_report_in_the_log_is_asked_for() {
    let mut report = report(Outcome::Complete);
    let scattered = |n: u32| format!("/{:x}", n.wrapping_mul(2_654_435_761));
    report.notes = (0..2000).map(scattered).collect();
    let packed = report::pack(&report, 4096).unwrap();
    let pod = pod(
        &[
            (INPUTS, done()),
            (OUTPUTS, over(0, "Completed", &packed.message)),
        ],
        nothing(),
    );
    let Look { observed, need } = look_at(&pod);
    assert_eq!((observed.phase, need), (Phase::Running, Some(Need::Log)));
    let log = packed.log.unwrap();
    let seen = look(&pod, Some(&log), &patience(), now());
    assert_eq!(seen.observed.phase, Phase::Finished(Box::new(report)));
    for not_whole in ["", "container not found", &log[..log.len() / 2]] {
        let Look { observed, need } = look(&pod, Some(not_whole), &patience(), now());
        assert!(matches!(observed.phase, Phase::Lost { .. }), "{not_whole}");
        assert_eq!(need, None);
    }
}

#[test]
fn an_end_of_outputs_without_a_report_is_a_lost_attempt() {
    for (end, expected) in [
        (
            over(0, "Completed", ""),
            "the termination message holds no report",
        ),
        (
            over(1, "Error", "cannot read the plan"),
            "the container outputs ended with exit code 1: Error: cannot read the plan",
        ),
        (
            over(137, "OOMKilled", ""),
            "the container outputs ended with exit code 137: OOMKilled",
        ),
    ] {
        let pod = pod(&[(INPUTS, done()), (OUTPUTS, end)], nothing());
        assert_eq!(lost_by(&pod), (expected.into(), false));
    }
}

#[test]
fn a_pod_that_ended_before_its_containers_began_is_a_lost_attempt() {
    let failed = |reason: &str, message: &str| {
        let status = json!({"phase": "Failed", "reason": reason, "message": message,
                            "containerStatuses": null});
        lost_by(&pod(&[], json!({ "status": status })))
    };
    assert_eq!(
        failed("OutOfcpu", "Node didn't have enough resource: cpu"),
        (
            "OutOfcpu: Node didn't have enough resource: cpu".into(),
            false
        )
    );
    let bare = json!({"status": {"phase": "Failed"}});
    assert_eq!(lost_by(&pod(&[], bare)).0, "its pod ended without a report");
}

#[test]
fn a_pod_that_makes_room_for_others_is_preempted() {
    for reason in [
        "PreemptionByScheduler",
        "TerminationByKubelet",
        "EvictionByEvictionAPI",
    ] {
        let conditions = json!([
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": ago(1000)},
            {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "room",
             "lastTransitionTime": ago(80)},
        ]);
        let status = json!({"phase": "Failed", "conditions": conditions});
        let pod = pod(
            &[
                (INPUTS, done()),
                ("executor-0", over(143, "Error", "")),
                (OUTPUTS, over(143, "Error", "")),
            ],
            json!({ "status": status }),
        );
        assert_eq!(lost_by(&pod), (format!("{reason}: room"), true));
    }
}

#[test]
fn an_eviction_for_the_nodes_sake_is_no_fault_of_the_task() {
    let conditions = json!([
        {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet",
         "lastTransitionTime": ago(80)},
    ]);
    let status = json!({
        "phase": "Failed", "reason": "Evicted", "conditions": conditions,
        "message": "The node was low on resource: memory. Threshold quantity: 100Mi.",
    });
    let pod = pod(&[], json!({ "status": status }));
    let (reason, preempted) = lost_by(&pod);
    assert!(
        preempted && reason.contains("low on resource: memory"),
        "{reason}"
    );
}

#[test]
fn an_eviction_for_the_tasks_own_use_of_disk_is_its_end() {
    for message in [
        "Usage of EmptyDir volume \"scratch\" exceeds the limit \"1Gi\". ",
        "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. ",
        "Container executor-0 exceeded its local ephemeral storage limit \"1Gi\". ",
    ] {
        let status = json!({"phase": "Failed", "reason": "Evicted", "message": message});
        let pod = pod(
            &[
                (INPUTS, done()),
                ("executor-0", over(143, "Error", "")),
                (OUTPUTS, over(143, "Error", "")),
            ],
            json!({ "status": status }),
        );
        let report = finished(&pod);
        assert_eq!(report.outcome, Outcome::SystemError);
        assert!(report.notes[0].starts_with("stopped: over its disk space: "));
        assert!(report.notes[0].contains(message.trim()));
        assert_eq!(report.executors[0].exit_code, 143);
    }
}

#[test]
fn a_pod_over_its_deadline_is_over_its_time_limit() {
    let status = json!({"phase": "Failed", "reason": "DeadlineExceeded",
                        "message": "Pod was active on the node longer than the deadline"});
    let pod = pod(
        &[(INPUTS, done()), (OUTPUTS, over(143, "Error", ""))],
        json!({ "status": status }),
    );
    let report = finished(&pod);
    assert_eq!(report.outcome, Outcome::SystemError);
    assert_eq!(report.notes, ["stopped: over its time limit"]);
    assert_eq!(report.ended, now());
}

#[test]
fn an_executor_that_was_told_to_make_room_has_not_failed() {
    let disrupted = |since: i64| {
        json!({"status": {"conditions": [
            {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
             "message": "room", "lastTransitionTime": ago(since)},
        ]}})
    };
    let seen = |outcome, since| {
        let end = over(0, "Completed", &message(&report(outcome)));
        phase(&pod(&[(INPUTS, done()), (OUTPUTS, end)], disrupted(since)))
    };
    let preempted = seen(Outcome::ExecutorError, 80);
    assert!(matches!(
        preempted,
        Phase::Lost {
            preempted: true,
            ..
        }
    ));
    // The failure came first, or there was none.
    assert!(matches!(
        seen(Outcome::ExecutorError, 20),
        Phase::Finished(_)
    ));
    assert!(matches!(seen(Outcome::Complete, 80), Phase::Finished(_)));
}

#[test]
fn an_executor_that_was_ended_with_its_pod_has_not_failed() {
    for (reason, expected) in [
        ("DeadlineExceeded", "stopped: over its time limit"),
        ("Evicted", "stopped: over its disk space: exceeds the limit"),
    ] {
        let end = |outcome| over(0, "Completed", &message(&report(outcome)));
        let status = json!({"phase": "Failed", "reason": reason, "message": "exceeds the limit"});
        let seen = |outcome| {
            let containers = [(INPUTS, done()), (OUTPUTS, end(outcome))];
            finished(&pod(&containers, json!({ "status": status })))
        };
        let failed = seen(Outcome::ExecutorError);
        assert_eq!(failed.outcome, Outcome::SystemError);
        assert_eq!(failed.notes, [expected]);
        // It was in time.
        assert_eq!(seen(Outcome::Complete).outcome, Outcome::Complete);
    }
}

#[test]
fn a_pod_that_is_going_is_over_when_its_commands_are() {
    let deleted = |ago_seconds: i64| json!({"metadata": {"deletionTimestamp": ago(ago_seconds)}});
    let pod_with = |executor: Value, since: i64| {
        pod(
            &[
                (INPUTS, done()),
                ("executor-0", executor),
                (OUTPUTS, over(143, "Error", "")),
            ],
            deleted(since),
        )
    };
    // Its command still has its time of grace.
    assert_eq!(phase(&pod_with(runs(500), -20)), Phase::Running);
    let (reason, preempted) = lost_by(&pod_with(over(143, "Error", ""), -20));
    assert_eq!((&*reason, preempted), ("its pod was deleted", false));
}

#[test]
fn an_executor_that_was_told_to_go_has_not_failed() {
    let seen = |outcome, since: i64| {
        let end = over(0, "Completed", &message(&report(outcome)));
        // It was told so `since` seconds ago, and had 30 seconds.
        let deleted = json!({"metadata": {
            "deletionTimestamp": ago(since - 30), "deletionGracePeriodSeconds": 30,
        }});
        phase(&pod(&[(INPUTS, done()), (OUTPUTS, end)], deleted))
    };
    let going = seen(Outcome::ExecutorError, 51);
    assert_eq!(going, lost("its pod was deleted".into()));
    assert!(matches!(
        seen(Outcome::ExecutorError, 49),
        Phase::Finished(_)
    ));
    assert!(matches!(seen(Outcome::Complete, 51), Phase::Finished(_)));
}

#[test]
fn a_node_that_does_not_answer_is_given_up_after_a_time() {
    let silent = |since: i64| {
        let deleted = json!({"metadata": {"deletionTimestamp": ago(since)}});
        pod(
            &[
                (INPUTS, done()),
                ("executor-0", runs(900)),
                (OUTPUTS, runs(900)),
            ],
            deleted,
        )
    };
    assert_eq!(phase(&silent(599)), Phase::Running);
    assert!(!is_silent(&silent(599), &patience(), now()));
    assert_eq!(
        lost_by(&silent(600)),
        ("its node does not answer".into(), false)
    );
    assert!(is_silent(&silent(600), &patience(), now()));
    let half_gone = json!({"metadata": {"deletionTimestamp": ago(600)}});
    let half_gone = pod(
        &[
            (INPUTS, done()),
            ("executor-0", runs(900)),
            (OUTPUTS, over(143, "Error", "")),
        ],
        half_gone,
    );
    assert_eq!(lost_by(&half_gone).0, "its node does not answer");
}

#[test]
fn a_filer_that_cannot_be_pulled_is_the_infrastructures_fault() {
    let pull = |since: i64| {
        let on_node = json!({"status": {"conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": ago(since)},
        ]}});
        pod(
            &[
                (INPUTS, waits("ImagePullBackOff", "Back-off pulling image")),
                ("executor-0", waits("PodInitializing", "")),
                (OUTPUTS, waits("ErrImagePull", "no such host")),
            ],
            on_node,
        )
    };
    let early = look_at(&pull(299)).observed;
    assert_eq!(early.phase, Phase::Initializing);
    assert_eq!(
        early.notes,
        [
            "inputs waits: ImagePullBackOff: Back-off pulling image",
            "outputs waits: ErrImagePull: no such host"
        ]
    );
    assert_eq!(
        lost_by(&pull(300)).0,
        "the container inputs does not start: ImagePullBackOff: Back-off pulling image"
    );
}

fn events(list: Value) -> Vec<Event> {
    serde_json::from_value(list).unwrap()
}

#[test]
fn why_a_first_container_is_not_seen_to_start_is_in_the_events() {
    let scheduled = |since: i64| {
        json!({"status": {"conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": ago(since)},
        ]}})
    };
    // All say so until the images of all are there.
    let all = [
        (INPUTS, creating()),
        ("executor-0", creating()),
        (OUTPUTS, creating()),
    ];
    for containers in [&all[..], &[]] {
        let early = look_at(&pod(containers, scheduled(899)));
        assert_eq!(
            (early.observed.phase, early.need),
            (Phase::Initializing, None)
        );
        let late = look_at(&pod(containers, scheduled(900)));
        let expected = (Phase::Initializing, Some(Need::Events));
        assert_eq!((late.observed.phase, late.need), expected);
    }
}

#[test]
fn the_last_event_says_whether_a_pod_is_in_trouble() {
    let meta = json!({"metadata": {}, "involvedObject": {}});
    let event = |kind: &str, reason: &str, seconds: i64| {
        let mut event = meta.clone();
        let more = json!({"type": kind, "reason": reason, "message": "words",
                          "lastTimestamp": ago(seconds)});
        event
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        event
    };
    let failed = event("Warning", "FailedMount", 60);
    assert_eq!(trouble(&[]), None);
    assert_eq!(
        trouble(&events(json!([failed, event("Normal", "Scheduled", 900)]))),
        Some("it does not start: FailedMount: words".into())
    );
    // A large image is on its way.
    let pulling = event("Normal", "Pulling", 50);
    assert_eq!(trouble(&events(json!([pulling, failed]))), None);
    let mut new = meta.clone();
    new["type"] = json!("Warning");
    new["reason"] = json!("FailedAttachVolume");
    new["eventTime"] = json!("2020-01-01T00:00:00.000000Z");
    new["series"] = json!({"count": 2, "lastObservedTime": "2030-01-01T00:00:00.000000Z"});
    assert_eq!(
        trouble(&events(json!([new, pulling]))),
        Some("it does not start: FailedAttachVolume".into())
    );
}

#[test]
fn outputs_that_cannot_start_are_the_infrastructures_fault() {
    let pod = pod(
        &[
            (INPUTS, runs(990)),
            ("executor-0", runs(980)),
            (OUTPUTS, waits("CreateContainerError", "no memory")),
        ],
        nothing(),
    );
    assert_eq!(
        lost_by(&pod).0,
        "the container outputs does not start: CreateContainerError: no memory"
    );
}

#[test]
fn an_init_container_that_fails_says_why() {
    let init = |status: Value| {
        let mut pod = pod(&[(INPUTS, waits("PodInitializing", ""))], nothing());
        let failed = self::pod(&[(PREPARE, status)], nothing());
        let statuses = failed.status.unwrap().container_statuses;
        let status = pod.status.as_mut().unwrap();
        status.init_container_statuses = statuses;
        status.phase = Some("Failed".into());
        pod
    };
    let (reason, _) = lost_by(&init(over(1, "Error", "cannot open scratch")));
    assert_eq!(
        reason,
        "the container prepare ended with exit code 1: Error: cannot open scratch"
    );
    let mut waiting = init(waits("ErrImagePull", "not found"));
    waiting.status.as_mut().unwrap().phase = Some("Pending".into());
    assert_eq!(
        lost_by(&waiting).0,
        "the container prepare does not start: ErrImagePull: not found"
    );
}

fn inputs_ended(end: Value, more: Value) -> Pod {
    let containers = [(INPUTS, end), ("executor-0", runs(90)), (OUTPUTS, runs(90))];
    pod(&containers, more)
}

#[test]
fn a_hook_that_fails_is_a_lost_attempt_with_its_reason() {
    let said = over(137, "Error", "cannot install in /.tesk/bin: no space left");
    let pod = inputs_ended(said, nothing());
    assert_eq!(
        lost_by(&pod).0,
        "the container inputs ended with exit code 137: its hook failed: \
         cannot install in /.tesk/bin: no space left"
    );
    let notes = look_at(&pod).observed.notes;
    assert_eq!(
        notes,
        ["inputs: cannot install in /.tesk/bin: no space left"]
    );
    let silent = inputs_ended(over(143, "Error", ""), nothing());
    assert_eq!(
        lost_by(&silent).0,
        "the container inputs ended with exit code 143: its hook failed"
    );
    // A pod that is to go has no hook that failed.
    let deleted = json!({"metadata": {"deletionTimestamp": ago(-9)}});
    let going = inputs_ended(over(143, "Error", ""), deleted);
    assert_eq!(phase(&going), Phase::Initializing);
}

#[test]
fn inputs_that_fail_leave_the_report_to_outputs_which_have_a_time_for_it() {
    let failed = inputs_ended(over(1, "Error", ""), nothing());
    assert_eq!(phase(&failed), Phase::Initializing);
    let late = now().after(Duration::from_secs(850));
    let look = look(&failed, None, &patience(), late);
    let expected = "the container inputs ended with exit code 1: Error";
    assert_eq!(look.observed.phase, lost(expected.into()));
}

#[test]
fn an_executor_without_its_supervisor_is_the_infrastructures_fault() {
    let missing = "exec: \"/.tesk/bin/filer\": stat /.tesk/bin/filer: no such file or directory";
    let pod = pod(
        &[
            (INPUTS, runs(900)),
            ("executor-0", over(128, "StartError", missing)),
            (OUTPUTS, runs(900)),
        ],
        nothing(),
    );
    assert!(
        lost_by(&pod)
            .0
            .starts_with("executor-0 has no supervisor: ")
    );
}

fn executor_waits(reason: &str, message: &str, more: Value) -> Pod {
    pod(
        &[
            (INPUTS, done()),
            ("executor-0", done()),
            ("executor-1", waits(reason, message)),
            (OUTPUTS, runs(90)),
        ],
        more,
    )
}

#[test]
fn an_executor_that_can_never_start_ends_the_waiting_at_once() {
    for reason in [
        "InvalidImageName",
        "CreateContainerConfigError",
        "ErrImageNeverPull",
    ] {
        stopped(
            &executor_waits(reason, "for good", nothing()),
            Some(&format!("executor-1: {reason}: for good")),
        );
    }
    let pod = pod(
        &[
            (INPUTS, done()),
            ("executor-0", over(128, "StartError", "not a directory")),
            (OUTPUTS, runs(90)),
        ],
        nothing(),
    );
    stopped(&pod, Some("executor-0: StartError: not a directory"));
    // What follows is in the report.
    assert_eq!(look_at(&pod).observed.phase, Phase::Running);
}

#[test]
fn what_the_kubelet_tries_again_gets_the_patience_of_a_pull() {
    for (reason, message) in [
        ("ImagePullBackOff", "Back-off"),
        ("ErrImagePull", "no such host"),
        ("RegistryUnavailable", ""),
        ("CreateContainerError", "context deadline exceeded"),
        (
            "CreateContainerConfigError",
            "failed to sync configmap cache: timed out",
        ),
    ] {
        // The executor before it began 100 seconds ago; only then was this image asked for.
        stopped(&executor_waits(reason, message, nothing()), None);
        let late = look(
            &executor_waits(reason, message, nothing()),
            None,
            &patience(),
            now().after(Duration::from_secs(200)),
        );
        assert_eq!(
            late.need,
            Some(Need::Stop(sentence(["executor-1", reason, message])))
        );
    }
    stopped(&executor_waits("ContainerCreating", "", nothing()), None);
}

#[test]
fn what_was_told_to_stop_or_to_go_is_not_told_again() {
    let told = json!({"metadata": {"annotations": {STOP: "executor-1: InvalidImageName"}}});
    stopped(&executor_waits("InvalidImageName", "", told), None);
    let deleted = json!({"metadata": {"deletionTimestamp": ago(-10)}});
    stopped(&executor_waits("InvalidImageName", "", deleted), None);
}

#[test]
fn a_log_that_nobody_can_give_is_stale_after_a_time() {
    let pod = pod(&[(OUTPUTS, over(0, "Completed", ""))], nothing());
    assert!(!is_stale(&pod, &patience(), now()));
    assert!(is_stale(
        &pod,
        &patience(),
        now().after(Duration::from_secs(550))
    ));
}
