//! The same on a real server.

use super::*;

pub(in super::super) fn trials() -> Vec<Trial> {
    trials![
        "api-server":
        an_attempt_comes_and_goes_on_a_real_server,
        a_secret_that_is_missing_is_named,
        refusals_of_a_real_server_are_understood,
        a_limit_range_that_is_younger_than_the_engine_is_obeyed,
    ]
}

async fn an_attempt_comes_and_goes_on_a_real_server() -> Result<()> {
    let space = Space::new("attempt", json!({})).await?;
    let compute = open_on(space.cluster("tesk")).await?;
    let other = open_on(space.cluster("other")).await?;
    let mut hints = compute.watch().await?;
    compute.submit(&attempt(1), &plan("a")?).await?;
    compute.submit(&attempt(1), &plan("a")?).await?;
    let refused = other.submit(&attempt(1), &plan("a")?).await;
    ensure!(matches!(refused, Err(Refusal::Never(_))), "{refused:?}");
    ensure!(phase(&other, &attempt(1)).await? == Phase::Absent);
    // There is no such image on the node, so it gets no further.
    while phase(&compute, &attempt(1)).await? != Phase::Initializing {
        let hint = tokio::time::timeout(Duration::from_mins(1), hints.next());
        hint.await
            .context("no node takes it")?
            .context("hints end")?;
    }
    compute.submit(&attempt(2), &large_plan(2)?).await?;
    until("both are known", async || {
        Ok(compute.attempts().await? == [attempt(1), attempt(2)])
    })
    .await?;
    ensure!(other.attempts().await?.is_empty());
    compute.cancel(&attempt(1), Duration::ZERO).await?;
    compute.cancel(&attempt(1), Duration::ZERO).await?;
    until("it is gone", async || {
        Ok(phase(&compute, &attempt(1)).await?.is_over())
    })
    .await?;
    until("all is removed", async || {
        compute.remove(&attempt(2)).await?;
        Ok(compute.attempts().await?.is_empty())
    })
    .await?;
    space.remove().await
}

async fn a_secret_that_is_missing_is_named() -> Result<()> {
    let space = Space::new("secret", json!({})).await?;
    let mut settings = Settings::default();
    settings.patience.start = Span(Duration::from_secs(2));
    let compute = open_with(space.cluster("tesk"), settings).await?;
    let task: Task = serde_json::from_value(json!({
        "executors": [{"image": "i:1", "command": ["true"]}],
        "inputs": [{"path": "/data/in", "type": "FILE", "url": "ftp://me:***@host.test/in"}],
    }))?;
    let plan = Plan::new("t1", &task, &UrlSecrets::default())?;
    compute.submit(&attempt(1), &plan).await?;
    // A kubelet with much to do says at first that its cache is not in sync.
    let missing = "secret \"tesk-t1\" not found";
    let mut seen = Phase::Absent;
    let named = until("it is named", async || {
        seen = phase(&compute, &attempt(1)).await?;
        Ok(matches!(&seen, Phase::Lost { reason, .. } if reason.contains(missing)))
    });
    named.await.with_context(|| format!("{seen:?}"))?;
    space.remove().await
}

async fn refusals_of_a_real_server_are_understood() -> Result<()> {
    let space = Space::new("quota", json!({})).await?;
    let compute = open_on(space.cluster("tesk")).await?;
    let quota = serde_json::from_value(json!({
        "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}},
    }))?;
    let quotas = space.cluster("tesk").api::<ResourceQuota>();
    quotas.create(&PostParams::default(), &quota).await?;
    // It is in force a moment later.
    let mut number = 0;
    until("there is no room", async || {
        number += 1;
        match compute.submit(&attempt(number), &plan("a")?).await {
            Err(Refusal::Busy(reason)) => {
                ensure!(reason.contains("exceeded quota"), "{reason}");
                Ok(true)
            }
            Err(other) => bail!("{other:?}"),
            Ok(()) => Ok(false),
        }
    })
    .await?;
    space.remove().await?;

    let labels = json!({"pod-security.kubernetes.io/enforce": "restricted"});
    let space = Space::new("admission", labels).await?;
    let compute = open_on(space.cluster("tesk")).await?;
    let refused = compute.submit(&attempt(1), &plan("a")?).await;
    let Err(Refusal::Never(reason)) = refused else {
        bail!("{refused:?}");
    };
    ensure!(reason.contains("PodSecurity"), "{reason}");
    space.remove().await
}

async fn a_limit_range_that_is_younger_than_the_engine_is_obeyed() -> Result<()> {
    let space = Space::new("younger", json!({})).await?;
    let compute = open_on(space.cluster("tesk")).await?;
    space.limit("200m", "64Mi").await?;
    compute.submit(&attempt(1), &plan("a")?).await?;
    space.remove().await
}
