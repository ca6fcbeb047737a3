//! Pods that are told to go, and who owns them.

use super::*;

pub(super) fn trials() -> Vec<Trial> {
    trials![
        "pods":
        an_attempt_is_canceled_once,
        a_pod_that_was_there_and_is_gone_is_lost,
        a_pod_that_is_going_is_not_forced_unless_its_node_is_silent,
        pods_have_an_owner_where_there_is_one,
        attempts_are_all_there_are_once_they_are_known,
    ]
}

async fn an_attempt_is_canceled_once() -> Result<()> {
    let server = FakeApi::new();
    let compute = open(&server).await?;
    compute.cancel(&attempt(1), Duration::ZERO).await?;
    compute.submit(&attempt(1), &plan("a")?).await?;
    compute.submit(&attempt(2), &plan("a")?).await?;
    let running = json!([ended("inputs", ""), {
        "name": "executor-0", "ready": true, "restartCount": 0, "image": "i", "imageID": "i",
        "started": true, "state": {"running": {"startedAt": present()}},
    }]);
    run(&server, "t1-1", &running);
    until("on a node", async || {
        Ok(phase(&compute, &attempt(1)).await? == Phase::Running)
    })
    .await?;
    compute.cancel(&attempt(1), Duration::from_secs(10)).await?;
    let going = server.object("pods", "t1-1").context("a pod")?;
    ensure!(going["metadata"]["deletionGracePeriodSeconds"] == 15);
    until("seen to go", async || {
        let before = server.requests()["delete pods"];
        compute.cancel(&attempt(1), Duration::from_secs(99)).await?;
        Ok(server.requests()["delete pods"] == before)
    })
    .await?;
    ensure!(server.object("pods", "t1-1") == Some(going));
    // It runs until it is gone.
    ensure!(phase(&compute, &attempt(1)).await? == Phase::Running);
    server.remove("pods", "t1-1");
    until("gone", async || {
        Ok(phase(&compute, &attempt(1)).await?.is_over())
    })
    .await?;
    compute.cancel(&attempt(1), Duration::ZERO).await?;
    // One that is on no node is gone at once.
    compute.cancel(&attempt(2), Duration::ZERO).await?;
    until("gone", async || {
        Ok(phase(&compute, &attempt(2)).await?.is_over())
    })
    .await
}

async fn a_pod_that_was_there_and_is_gone_is_lost() -> Result<()> {
    let server = FakeApi::new();
    // One that has made it, and one that only watches.
    let (compute, other) = (open(&server).await?, open(&server).await?);
    compute.submit(&attempt(1), &plan("a")?).await?;
    until(
        "known",
        async || Ok(other.attempts().await? == [attempt(1)]),
    )
    .await?;
    server.remove("pods", "t1-1");
    for compute in [compute, other] {
        until("seen to be gone", async || {
            let phase = phase(&compute, &attempt(1)).await?;
            // It was never made, and would be made again.
            ensure!(phase != Phase::Absent);
            Ok(phase.is_over())
        })
        .await?;
    }
    Ok(())
}

async fn a_pod_that_is_going_is_not_forced_unless_its_node_is_silent() -> Result<()> {
    let server = FakeApi::new();
    let compute = open(&server).await?;
    compute.submit(&attempt(1), &plan("a")?).await?;
    run(&server, "t1-1", &json!([]));
    until("on a node", async || {
        Ok(phase(&compute, &attempt(1)).await? == Phase::Initializing)
    })
    .await?;
    compute.remove(&attempt(1)).await?;
    until("going", async || {
        let before = server.requests()["delete pods"];
        compute.remove(&attempt(1)).await?;
        Ok(server.requests()["delete pods"] == before)
    })
    .await?;
    ensure!(server.object("pods", "t1-1").is_some());
    server.edit("pods", "t1-1", |pod| {
        pod["metadata"]["deletionTimestamp"] = json!("2020-01-01T00:00:00Z");
    });
    until("forced", async || {
        compute.remove(&attempt(1)).await?;
        Ok(server.object("pods", "t1-1").is_none())
    })
    .await
}

async fn pods_have_an_owner_where_there_is_one() -> Result<()> {
    let server = FakeApi::new();
    let options = Options {
        settings: Settings::default(),
        filer_config: String::new(),
        keep_config: Duration::from_hours(1),
        grace: Duration::from_secs(30),
        time_limit: None,
        owners: Some(Arc::new(|task| {
            (task.as_str() != "gone").then(|| OwnerReference {
                name: task.to_string(),
                uid: "u".to_owned(),
                ..OwnerReference::default()
            })
        })),
    };
    let compute = KubernetesCompute::open(cluster(&server), options).await;
    let compute = compute.map_err(anyhow::Error::msg)?;
    compute.submit(&attempt(1), &large_plan(1)?).await?;
    let maps = server.objects("configmaps");
    let parts = maps
        .iter()
        .filter(|map| map["data"]["plan.0000"].is_string());
    let pods = server.objects("pods");
    let made: Vec<_> = parts.chain(&pods).collect();
    ensure!(made.len() == 2);
    for object in made {
        ensure!(object["metadata"]["ownerReferences"][0]["name"] == "t1");
    }
    // Without an owner it would need no permit either.
    let gone = AttemptId {
        task: "gone".parse()?,
        number: 1,
    };
    let refused = compute.submit(&gone, &plan("a")?).await;
    ensure!(matches!(refused, Err(Refusal::Unknown(_))), "{refused:?}");
    ensure!(server.objects("pods").len() == 1);
    Ok(())
}

async fn attempts_are_all_there_are_once_they_are_known() -> Result<()> {
    let server = FakeApi::new();
    let first = open(&server).await?;
    for number in 1..=1200 {
        first.submit(&attempt(number), &plan("a")?).await?;
    }
    let second = open(&server).await?;
    let all = second.attempts().await?;
    ensure!(all.len() == 1200 && all.is_sorted());
    Ok(())
}
