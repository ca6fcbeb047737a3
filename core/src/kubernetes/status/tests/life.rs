use super::*;

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
fn a_pod_that_its_node_has_not_taken_yet_is_pending() {
    let assigned = json!({"status": {"phase": "Pending", "startTime": null, "conditions": [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": ago(10)},
    ]}});
    assert_eq!(phase(&pod(&[], assigned)), Phase::Pending(None));
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
