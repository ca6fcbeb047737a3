//! What is known of pods, and how soon.

use super::*;

pub(super) fn trials() -> Vec<Trial> {
    trials![
        "pods":
        a_pod_is_seen_before_the_watch_has_told_of_it,
        whoever_watches_has_no_need_to_ask_for_pods_one_by_one,
        changes_are_hinted_at_also_after_a_gap,
        a_pod_that_vanished_in_a_gap_is_lost,
        a_pod_that_can_never_go_on_is_told_to_stop_once,
        a_report_is_read_from_the_log_when_the_message_says_so,
        what_keeps_a_pod_from_starting_is_in_its_events,
    ]
}

async fn a_pod_is_seen_before_the_watch_has_told_of_it() -> Result<()> {
    let server = FakeApi::new();
    open(&server)
        .await?
        .submit(&attempt(1), &plan("a")?)
        .await?;
    server.intercept(|call| matches!(call.verb, "list" | "watch").then_some(Fault::Refuse(500)));
    let compute = open(&server).await?;
    ensure!(phase(&compute, &attempt(1)).await? == Phase::Pending(None));
    ensure!(phase(&compute, &attempt(2)).await? == Phase::Absent);
    run(&server, "t1-1", &json!([]));
    ensure!(phase(&compute, &attempt(1)).await? == Phase::Initializing);
    server.intercept(|_| Some(Fault::Refuse(500)));
    ensure!(compute.observe(&attempt(1)).await.is_err());
    Ok(())
}

async fn whoever_watches_has_no_need_to_ask_for_pods_one_by_one() -> Result<()> {
    let server = FakeApi::new();
    let compute = open(&server).await?;
    for number in 1..=20 {
        compute.submit(&attempt(number), &plan("a")?).await?;
    }
    let before = server.requests().get("get pods").copied();
    let mut refused = 0;
    // The list takes a while.
    server.intercept(move |call| {
        refused += u32::from(call.verb == "list");
        (call.verb == "list" && refused < 4).then_some(Fault::Refuse(500))
    });
    let compute = open(&server).await?;
    let _hints = compute.watch().await?;
    for number in 1..=20 {
        ensure!(phase(&compute, &attempt(number)).await? == Phase::Pending(None));
    }
    ensure!(server.requests().get("get pods").copied() == before);
    Ok(())
}

async fn changes_are_hinted_at_also_after_a_gap() -> Result<()> {
    let server = FakeApi::new();
    let compute = open(&server).await?;
    compute.submit(&attempt(1), &plan("a")?).await?;
    compute.attempts().await?;
    let mut hints = compute.watch().await?;
    for fault in ["cut", "compacted"] {
        server.cut_watches();
        if fault == "compacted" {
            server.compact();
        }
        let on_node = fault == "compacted";
        server.edit("pods", "t1-1", |pod| {
            pod["status"]["phase"] = json!("Pending");
            pod["status"]["conditions"] = if on_node { scheduled() } else { json!([]) };
            pod["status"]["startTime"] = on_node.then(present).into();
            pod["status"]["message"] = json!(fault);
        });
        let expected = if on_node {
            Phase::Initializing
        } else {
            Phase::Pending(None)
        };
        loop {
            let hint = tokio::time::timeout(Duration::from_secs(20), hints.next()).await;
            ensure!(hint.context(fault)? == Some(attempt(1)));
            if phase(&compute, &attempt(1)).await? == expected {
                break;
            }
        }
    }
    Ok(())
}

async fn a_pod_that_vanished_in_a_gap_is_lost() -> Result<()> {
    let server = FakeApi::new();
    let compute = open(&server).await?;
    compute.submit(&attempt(1), &plan("a")?).await?;
    until("known", async || {
        Ok(compute.attempts().await? == [attempt(1)])
    })
    .await?;
    server.intercept(|call| (call.verb == "watch").then_some(Fault::Lose));
    let mut hints = compute.watch().await?;
    server.cut_watches();
    server.remove("pods", "t1-1");
    server.compact();
    server.heal();
    while !phase(&compute, &attempt(1)).await?.is_over() {
        let hint = tokio::time::timeout(Duration::from_secs(20), hints.next()).await?;
        ensure!(hint == Some(attempt(1)));
    }
    ensure!(compute.attempts().await?.is_empty());
    Ok(())
}

async fn a_pod_that_can_never_go_on_is_told_to_stop_once() -> Result<()> {
    let server = FakeApi::new();
    let compute = open(&server).await?;
    compute.submit(&attempt(1), &plan("a")?).await?;
    let mut inputs = ended("inputs", "");
    inputs["state"]["terminated"]["finishedAt"] = json!(present());
    compute.attempts().await?;
    let mut hints = compute.watch().await?;
    // When it is told, the watch is blind: what was done is remembered all the same.
    let (api, mut is_blind) = (server.clone(), false);
    server.intercept(move |call| match call.verb {
        "patch" => {
            is_blind = true;
            api.cut_watches();
            Some(Fault::Delay(Duration::from_millis(100)))
        }
        "watch" if is_blind => Some(Fault::Hang),
        _ => None,
    });
    run(
        &server,
        "t1-1",
        &json!([inputs, waiting("executor-0", "InvalidImageName")]),
    );
    while phase(&compute, &attempt(1)).await? != Phase::Initializing {
        let hint = tokio::time::timeout(Duration::from_secs(20), hints.next()).await?;
        ensure!(hint == Some(attempt(1)));
    }
    for _ in 0..10 {
        ensure!(phase(&compute, &attempt(1)).await? == Phase::Initializing);
    }
    ensure!(
        server.requests()["patch pods"] == 1,
        "{:?}",
        server.requests()
    );
    let pod = server.object("pods", "t1-1").context("a pod")?;
    ensure!(pod["metadata"]["annotations"][STOP] == "executor-0: InvalidImageName");
    // A scheduler that comes after a crash sees that it was done.
    let compute = open(&server).await?;
    compute.observe(&attempt(1)).await?;
    ensure!(server.requests()["patch pods"] == 1);
    Ok(())
}

async fn a_report_is_read_from_the_log_when_the_message_says_so() -> Result<()> {
    let server = FakeApi::new();
    let compute = open(&server).await?;
    compute.submit(&attempt(1), &plan("a")?).await?;
    let notes = (0..500_u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_string());
    let finished = Report {
        outcome: Outcome::Complete,
        executors: Vec::new(),
        outputs: Vec::new(),
        notes: notes.collect(),
        started: Timestamp::from_millis(1000),
        ended: Timestamp::from_millis(2000),
    };
    let packed = report::pack(&finished, 4096)?;
    let log = packed.log.context("a report for the log")?;
    let mut outputs = ended("outputs", &packed.message);
    outputs["state"]["terminated"]["finishedAt"] = json!(present());
    run(&server, "t1-1", &json!([outputs]));
    server.edit("pods", "t1-1", |pod| {
        pod["log"] = json!(format!("progress\n{log}"));
    });
    until("finished", async || {
        Ok(phase(&compute, &attempt(1)).await? == Phase::Finished(Box::new(finished.clone())))
    })
    .await?;
    // No answer says nothing, nor does that of a server that does not know our rights yet; that
    // there is none any more says all.
    for code in [500, 403] {
        server.intercept(move |call| (call.resource == "pods/log").then_some(Fault::Refuse(code)));
        ensure!(compute.observe(&attempt(1)).await.is_err(), "{code}");
    }
    server.heal();
    server.edit("pods", "t1-1", |pod| pod["log"] = json!(null));
    let seen = phase(&compute, &attempt(1)).await?;
    ensure!(matches!(&seen, Phase::Lost { reason, .. } if reason.contains("has no log")));
    Ok(())
}

async fn what_keeps_a_pod_from_starting_is_in_its_events() -> Result<()> {
    let server = FakeApi::new();
    let mut settings = Settings::default();
    settings.patience.start = Span(Duration::from_millis(1));
    let compute = open_with(cluster(&server), settings).await?;
    compute.submit(&attempt(1), &plan("a")?).await?;
    run(
        &server,
        "t1-1",
        &json!([waiting("inputs", "ContainerCreating")]),
    );
    server.edit("pods", "t1-1", |pod| {
        pod["status"]["conditions"][0]["lastTransitionTime"] = json!("2020-01-01T00:00:00Z");
    });
    let uid = server.object("pods", "t1-1").context("a pod")?["metadata"]["uid"].clone();
    let events = cluster(&server).api::<Event>();
    let say = async |name: &str, uid: &Value, reason: &str, minute: u8| {
        let event = serde_json::from_value(json!({
            "metadata": {"name": name}, "type": "Warning", "reason": reason, "message": "why",
            "involvedObject": {"name": "t1-1", "uid": uid},
            "lastTimestamp": format!("2026-01-01T00:{minute:02}:00Z"),
        }))?;
        events.create(&PostParams::default(), &event).await?;
        anyhow::Ok(())
    };
    // Of a pod that had the name before.
    say("old", &json!("another"), "FailedMount", 9).await?;
    until("asked", async || {
        ensure!(phase(&compute, &attempt(1)).await? != Phase::Absent);
        Ok(server.requests().contains_key("list events"))
    })
    .await?;
    // Nothing is wrong: its images are large.
    let due = || tokio::time::sleep(Duration::from_millis(2));
    due().await;
    ensure!(phase(&compute, &attempt(1)).await? == Phase::Initializing);
    say("new", &uid, "FailedMount", 1).await?;
    due().await;
    let seen = phase(&compute, &attempt(1)).await?;
    ensure!(matches!(&seen, Phase::Lost { reason, .. } if reason.ends_with("FailedMount: why")));
    server.intercept(|call| (call.resource == "events").then_some(Fault::Refuse(500)));
    due().await;
    ensure!(compute.observe(&attempt(1)).await.is_err());
    server.intercept(|call| (call.resource == "events").then_some(Fault::Refuse(403)));
    due().await;
    let seen = phase(&compute, &attempt(1)).await?;
    ensure!(matches!(&seen, Phase::Lost { reason, .. } if reason.contains("may not be read")));
    // A thousand pods may wait for large images: whoever looks at them asks seldom.
    server.heal();
    let patient = open(&server).await?;
    let before = server.requests()["list events"];
    for _ in 0..50 {
        patient.observe(&attempt(1)).await?;
    }
    ensure!(server.requests()["list events"] == before + 1);
    Ok(())
}
