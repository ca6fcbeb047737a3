use super::*;

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
