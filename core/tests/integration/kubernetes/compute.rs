//! Attempts as pods of a stand-in, where each call can go wrong.

mod end;
mod observe;
mod real;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{Event, ResourceQuota};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::PostParams;
use libtest_mimic::{Failed, Trial};
use serde_json::{Value, json};
use tesk_conformance::fake_api::{FakeApi, Fault};
use tesk_core::config::Span;
use tesk_core::kubernetes::compute::Options;
use tesk_core::kubernetes::pod::{PLAN, STOP};
use tesk_core::kubernetes::{Cluster, KubernetesCompute, Settings};
use tesk_core::plan::Plan;
use tesk_core::scheduler::compute::{AttemptId, Compute, Outcome, Phase, Refusal, Report};
use tesk_core::staging::report;
use tesk_core::tes::{Task, UrlSecrets};
use tesk_core::time::Timestamp;

use super::cluster;
use super::manifests::Space;
use crate::trials;

pub(super) use self::real::trials as trials_on_a_cluster;

pub(super) fn trials() -> Vec<Trial> {
    let mut trials = trials![
        "pods":
        an_attempt_is_one_pod_however_often_it_is_submitted,
        an_answer_that_was_lost_is_no_second_pod,
        a_refusal_says_whether_to_try_again,
        a_pod_of_somebody_else_is_not_taken_for_an_attempt,
        a_large_plan_goes_with_its_pod,
        a_plan_without_its_pod_is_found,
        a_configuration_of_the_filer_that_was_removed_is_left_again,
        an_old_configuration_of_the_filer_goes_with_the_last_pod_that_mounts_it,
        a_task_costs_one_create_and_no_polling,
    ];
    trials.extend(observe::trials());
    trials.extend(end::trials());
    trials.push(Trial::test(
        "pods::a_server_that_hangs_is_not_waited_for_for_ever",
        || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .start_paused(true)
                .build()?;
            let done = runtime.block_on(a_server_that_hangs_is_not_waited_for_for_ever());
            done.map_err(|error| Failed::from(format!("{error:?}")))
        },
    ));
    trials
}

fn attempt(number: u32) -> AttemptId {
    AttemptId {
        task: "t1".parse().expect("a task id"),
        number,
    }
}

fn plan(content: &str) -> Result<Plan> {
    let task: Task = serde_json::from_value(json!({
        "executors": [{"image": "i:1", "command": ["true"]}],
        "inputs": [{"path": "/data/in", "type": "FILE", "content": content}],
    }))?;
    Ok(Plan::new("t1", &task, &UrlSecrets::default())?)
}

/// A plan that does not fit into an annotation, in `parts` parts.
fn large_plan(parts: usize) -> Result<Plan> {
    let mut random = 1_u64;
    let mut noise = || {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        char::from(b' ' + (random >> 33) as u8 % 64)
    };
    let content: String = (0..650_000 * parts).map(|_| noise()).collect();
    plan(&content)
}

async fn open_on(cluster: Cluster) -> Result<KubernetesCompute> {
    open_with(cluster, Settings::default()).await
}

async fn open_with(cluster: Cluster, settings: Settings) -> Result<KubernetesCompute> {
    open_as(cluster, settings, "", Duration::from_hours(1)).await
}

async fn open_as(
    cluster: Cluster,
    settings: Settings,
    filer_config: &str,
    keep_config: Duration,
) -> Result<KubernetesCompute> {
    let options = Options {
        settings,
        filer_config: filer_config.to_owned(),
        keep_config,
        grace: Duration::from_secs(30),
        time_limit: None,
        owners: None,
    };
    let compute = KubernetesCompute::open(cluster, options).await;
    compute.map_err(anyhow::Error::msg)
}

async fn open(server: &FakeApi) -> Result<KubernetesCompute> {
    open_on(cluster(server)).await
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    for _ in 0..1500 {
        if condition().await? {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bail!("never: {what}")
}

async fn phase(compute: &KubernetesCompute, attempt: &AttemptId) -> Result<Phase> {
    Ok(compute.observe(attempt).await?.phase)
}

pub(super) fn ended(name: &str, message: &str) -> Value {
    json!({
        "name": name, "ready": false, "restartCount": 0, "image": "i", "imageID": "i",
        "started": false, "state": {"terminated": {
            "exitCode": 0, "message": message, "finishedAt": "2026-01-01T00:00:00Z",
        }},
    })
}

fn waiting(name: &str, reason: &str) -> Value {
    json!({
        "name": name, "ready": false, "restartCount": 0, "image": "i", "imageID": "i",
        "started": false, "state": {"waiting": {"reason": reason}},
    })
}

fn scheduled() -> Value {
    let now = present();
    json!([{"type": "PodScheduled", "status": "True", "lastTransitionTime": now}])
}

/// The present time as Kubernetes writes it.
fn present() -> String {
    let now = Timestamp::now().as_millis() / 1000 * 1000;
    Timestamp::from_millis(now).to_string()
}

/// Puts a pod on a node, with these containers.
pub(super) fn run(server: &FakeApi, name: &str, containers: &Value) -> bool {
    server.edit("pods", name, |pod| {
        pod["spec"]["nodeName"] = json!("n");
        pod["status"] = json!({
            "phase": "Running", "startTime": present(), "conditions": scheduled(),
            "containerStatuses": containers,
        });
    })
}

async fn an_attempt_is_one_pod_however_often_it_is_submitted() -> Result<()> {
    let server = FakeApi::new();
    let compute = open(&server).await?;
    compute.submit(&attempt(1), &plan("a")?).await?;
    compute.submit(&attempt(1), &plan("a")?).await?;
    open(&server)
        .await?
        .submit(&attempt(1), &plan("a")?)
        .await?;
    ensure!(server.objects("pods").len() == 1);
    // Also when it has ended.
    run(&server, "t1-1", &json!([ended("outputs", "")]));
    compute.submit(&attempt(1), &plan("a")?).await?;
    ensure!(server.objects("pods").len() == 1);
    Ok(())
}

async fn an_answer_that_was_lost_is_no_second_pod() -> Result<()> {
    let server = FakeApi::new();
    let compute = open(&server).await?;
    server.intercept(|call| (call.verb == "create").then_some(Fault::LoseAnswer));
    let lost = compute.submit(&attempt(1), &plan("a")?).await;
    ensure!(matches!(lost, Err(Refusal::Unknown(_))), "{lost:?}");
    server.heal();
    compute.submit(&attempt(1), &plan("a")?).await?;
    ensure!(server.objects("pods").len() == 1);
    ensure!(phase(&compute, &attempt(1)).await? == Phase::Pending(None));
    Ok(())
}

async fn a_refusal_says_whether_to_try_again() -> Result<()> {
    const QUOTA: &str = "pods \"t1-1\" is forbidden: exceeded quota: q, requested: pods=1, used: \
                         pods=9, limited: pods=9";
    const RBAC: &str = "pods is forbidden: User \"u\" cannot create resource \"pods\" in API \
                        group \"\" in the namespace \"test\"";
    const UNCOUNTED: &str =
        "pods \"t1-1\" is forbidden: status unknown for quota: q, resources: pods";
    const EARLY: &str = "pods \"t1-1\" is forbidden: not yet ready to handle request";
    const ADMISSION: &str = "pods \"t1-1\" is forbidden: violates PodSecurity \"restricted\"";
    let server = FakeApi::new();
    let compute = open(&server).await?;
    for (fault, expected) in [
        (Fault::RefuseWith(403, QUOTA.to_owned()), "busy"),
        (Fault::RefuseWith(403, UNCOUNTED.to_owned()), "busy"),
        (Fault::Refuse(429), "busy"),
        (
            Fault::RefuseWith(
                409,
                "on resourcequotas \"q\": the object has been modified".to_owned(),
            ),
            "busy",
        ),
        (Fault::RefuseWith(403, ADMISSION.to_owned()), "never"),
        (
            Fault::RefuseWith(422, "Pod \"t1-1\" is invalid".to_owned()),
            "never",
        ),
        (Fault::Refuse(400), "never"),
        (Fault::RefuseWith(403, RBAC.to_owned()), "unknown"),
        (Fault::RefuseWith(403, EARLY.to_owned()), "unknown"),
        (Fault::Refuse(401), "unknown"),
        (
            Fault::RefuseWith(404, "namespaces \"test\" not found".to_owned()),
            "unknown",
        ),
        (Fault::Refuse(500), "unknown"),
        (Fault::Refuse(503), "unknown"),
        (Fault::Lose, "unknown"),
    ] {
        let now = fault.clone();
        server.intercept(move |call| {
            (call.verb == "create" && call.resource == "pods").then(|| now.clone())
        });
        let refused = compute.submit(&attempt(1), &plan("a")?).await;
        let (kind, reason) = match &refused {
            Err(Refusal::Busy(reason)) => ("busy", reason.clone()),
            Err(Refusal::Never(reason)) => ("never", reason.clone()),
            Err(Refusal::Unknown(error)) => ("unknown", error.to_string()),
            Ok(()) => bail!("{fault:?}: submitted"),
        };
        ensure!(kind == expected, "{fault:?}: {refused:?}");
        if let Fault::RefuseWith(_, message) = fault {
            ensure!(reason.contains(&message), "{reason}");
        }
    }
    ensure!(server.objects("pods").is_empty());
    server.heal();
    Ok(compute.submit(&attempt(1), &plan("a")?).await?)
}

async fn a_server_that_hangs_is_not_waited_for_for_ever() -> Result<()> {
    let server = FakeApi::new();
    let compute = open(&server).await?;
    let plan = plan("a")?;
    server.intercept(|call| (call.resource == "pods").then_some(Fault::Hang));
    let refused = compute.submit(&attempt(1), &plan).await;
    ensure!(matches!(refused, Err(Refusal::Unknown(_))), "{refused:?}");
    let observed = compute.observe(&attempt(1)).await;
    ensure!(observed.is_err_and(|error| error.to_string().contains("no answer within 30 s")));
    // The watch does not begin, either.
    let compute = open(&server).await?;
    ensure!(compute.attempts().await.is_err());
    Ok(())
}

async fn a_pod_of_somebody_else_is_not_taken_for_an_attempt() -> Result<()> {
    let server = FakeApi::new();
    let foreign = Cluster::new(
        kube::Client::new(server.clone(), "test"),
        "test".to_owned(),
        "another".to_owned(),
    );
    let foreign = open_on(foreign).await?;
    foreign.submit(&attempt(1), &plan("a")?).await?;
    foreign.submit(&attempt(2), &plan("a")?).await?;
    server.edit("pods", "t1-2", |pod| {
        pod["metadata"]["labels"] = json!({"app": "x"});
    });

    let compute = open(&server).await?;
    for number in [1, 2] {
        let refused = compute.submit(&attempt(number), &plan("a")?).await;
        let Err(Refusal::Never(reason)) = refused else {
            bail!("{number}: {refused:?}");
        };
        ensure!(reason.contains("that is not of this engine"), "{reason}");
        ensure!(phase(&compute, &attempt(number)).await? == Phase::Absent);
        compute.cancel(&attempt(number), Duration::ZERO).await?;
        compute.remove(&attempt(number)).await?;
    }
    ensure!(compute.attempts().await?.is_empty());
    ensure!(server.objects("pods").len() == 2);

    // A copy of one of ours, under another name.
    compute.submit(&attempt(3), &plan("a")?).await?;
    let labels = server.object("pods", "t1-3").context("a pod")?["metadata"]["labels"].clone();
    server.edit("pods", "t1-2", |pod| pod["metadata"]["labels"] = labels);
    compute.submit(&attempt(4), &plan("a")?).await?;
    until("the watch", async || {
        Ok(compute.attempts().await?.len() == 2)
    })
    .await?;
    ensure!(compute.attempts().await? == [attempt(3), attempt(4)]);
    server.remove("pods", "t1-2");
    compute.submit(&attempt(5), &plan("a")?).await?;
    until("the watch", async || {
        Ok(compute.attempts().await?.len() == 3)
    })
    .await?;
    ensure!(phase(&compute, &attempt(3)).await? == Phase::Pending(None));
    Ok(())
}

async fn a_large_plan_goes_with_its_pod() -> Result<()> {
    let server = FakeApi::new();
    let compute = open(&server).await?;
    let before = server.objects("configmaps").len();
    compute.submit(&attempt(1), &large_plan(2)?).await?;
    compute.submit(&attempt(1), &large_plan(2)?).await?;
    ensure!(server.objects("configmaps").len() == before + 2);
    let pod = server.object("pods", "t1-1").context("a pod")?;
    ensure!(pod["metadata"]["annotations"][PLAN].is_null());
    compute.submit(&attempt(2), &large_plan(1)?).await?;
    compute.remove(&attempt(1)).await?;
    ensure!(server.object("pods", "t1-1").is_none());
    ensure!(server.objects("configmaps").len() == before + 1);
    compute.remove(&attempt(1)).await?;
    compute.remove(&attempt(2)).await?;
    ensure!(server.objects("configmaps").len() == before);
    Ok(())
}

/// The names of the configurations of the filer that are there.
fn filer_configs(server: &FakeApi) -> Vec<String> {
    let names = server.objects("configmaps").into_iter();
    let names = names.filter_map(|map| Some(map["metadata"]["name"].as_str()?.to_owned()));
    names
        .filter(|name| name.starts_with("tesk-filer-"))
        .collect()
}

async fn a_configuration_of_the_filer_that_was_removed_is_left_again() -> Result<()> {
    let server = FakeApi::new();
    let compute = open(&server).await?;
    let there = filer_configs(&server);
    ensure!(there.len() == 1 && server.remove("configmaps", &there[0]));
    compute.attempts().await?;
    ensure!(filer_configs(&server) == there);
    Ok(())
}

async fn an_old_configuration_of_the_filer_goes_with_the_last_pod_that_mounts_it() -> Result<()> {
    let server = FakeApi::new();
    let opened =
        async |config, keep| open_as(cluster(&server), Settings::default(), config, keep).await;
    let before = opened("a", Duration::ZERO).await?;
    let old = filer_configs(&server);
    let after = opened("b", Duration::from_hours(1)).await?;
    server.edit("configmaps", &old[0], |map| {
        map["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
    });
    after.attempts().await?;
    after.attempts().await?;
    ensure!(filer_configs(&server).len() == 2, "a pod may be on its way");
    drop(after);
    before.submit(&attempt(1), &plan("a")?).await?;
    let after = opened("b", Duration::ZERO).await?;
    after.attempts().await?;
    ensure!(filer_configs(&server).len() == 2, "a pod mounts it");
    server.remove("pods", "t1-1");
    until("its pod is gone", async || {
        Ok(phase(&after, &attempt(1)).await?.is_over())
    })
    .await?;
    after.attempts().await?;
    let left = filer_configs(&server);
    ensure!(left.len() == 1 && left != old, "{left:?}");
    Ok(())
}

async fn a_plan_without_its_pod_is_found() -> Result<()> {
    let server = FakeApi::new();
    let compute = open(&server).await?;
    let before = server.objects("configmaps").len();
    server.intercept(|call| {
        (call.verb == "create" && call.resource == "pods").then_some(Fault::Refuse(422))
    });
    let refused = compute.submit(&attempt(7), &large_plan(1)?).await;
    ensure!(matches!(refused, Err(Refusal::Never(_))));
    ensure!(server.objects("configmaps").len() == before + 1);
    let compute = open(&server).await?;
    ensure!(compute.attempts().await? == [attempt(7)]);
    ensure!(phase(&compute, &attempt(7)).await? == Phase::Absent);
    compute.remove(&attempt(7)).await?;
    ensure!(compute.attempts().await?.is_empty());
    ensure!(server.objects("configmaps").len() == before);
    Ok(())
}

async fn a_task_costs_one_create_and_no_polling() -> Result<()> {
    let server = FakeApi::new();
    let compute = open(&server).await?;
    compute.attempts().await?;
    let mut hints = compute.watch().await?;
    let before = server.request_count();
    compute.submit(&attempt(1), &plan("a")?).await?;
    for _ in 0..20 {
        ensure!(phase(&compute, &attempt(1)).await? == Phase::Pending(None));
    }
    ensure!(
        server.request_count() == before + 1,
        "{:?}",
        server.requests()
    );
    let finished = Report {
        outcome: Outcome::Complete,
        executors: Vec::new(),
        outputs: Vec::new(),
        notes: Vec::new(),
        started: Timestamp::from_millis(1000),
        ended: Timestamp::from_millis(2000),
    };
    let message = report::pack(&finished, 4096)?.message;
    run(&server, "t1-1", &json!([ended("outputs", &message)]));
    while !phase(&compute, &attempt(1)).await?.is_over() {
        hints.next().await.context("hints end")?;
    }
    let Phase::Finished(seen) = phase(&compute, &attempt(1)).await? else {
        bail!("not finished");
    };
    ensure!(*seen == finished);
    ensure!(
        server.request_count() == before + 1,
        "{:?}",
        server.requests()
    );
    compute.remove(&attempt(1)).await?;
    ensure!(
        server.request_count() == before + 2,
        "{:?}",
        server.requests()
    );
    Ok(())
}
