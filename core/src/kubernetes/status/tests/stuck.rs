use super::*;

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
fn the_last_events_say_whether_a_pod_is_in_trouble() {
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
    // Each volume has an event, and some are told of again and again.
    let mut secret = event("Warning", "FailedMount", 60);
    secret["message"] = json!("no secret");
    let older = event("Warning", "FailedScheduling", 901);
    let scheduled = event("Normal", "Scheduled", 900);
    assert_eq!(
        trouble(&events(json!([failed, older, secret, scheduled, failed]))),
        Some("it does not start: FailedMount: words; FailedMount: no secret".into())
    );
    let many: Vec<Value> = (1..9)
        .map(|number| event("Warning", &format!("Reason{number}"), number))
        .collect();
    assert_eq!(
        trouble(&events(json!(many))),
        Some("it does not start: Reason1: words; Reason2: words; Reason3: words".into())
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
