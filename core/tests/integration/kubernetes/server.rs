//! The stand-in itself, seen through the client that the engine uses.

use std::pin::pin;

use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, ResourceExt as _};
use libtest_mimic::Trial;
use serde_json::json;
use tesk_conformance::fake_api::{FakeApi, Fault};

use super::cluster;
use crate::trials;

pub(super) fn trials() -> Vec<Trial> {
    trials![
        "fake-api":
        an_object_is_changed_only_as_it_was_read,
        a_list_comes_in_pages_and_by_labels,
        a_watch_survives_a_cut_and_a_compaction,
        a_pod_on_a_node_goes_when_its_kubelet_agrees,
        a_fault_hits_the_call_it_is_meant_for,
    ]
}

fn map(name: &str, label: &str) -> Result<ConfigMap> {
    Ok(serde_json::from_value(json!({
        "metadata": { "name": name, "labels": { "kind": label } },
        "data": { "key": "value" },
    }))?)
}

async fn an_object_is_changed_only_as_it_was_read() -> Result<()> {
    let api: Api<ConfigMap> = cluster(&FakeApi::new()).api();
    let first = api.create(&PostParams::default(), &map("a", "x")?).await?;
    let again = api.create(&PostParams::default(), &map("a", "x")?).await;
    ensure!(matches!(again, Err(kube::Error::Api(status)) if status.reason == "AlreadyExists"));
    let mut changed = first.clone();
    changed
        .labels_mut()
        .insert("new".to_owned(), "1".to_owned());
    api.replace("a", &PostParams::default(), &changed).await?;
    let late = api.replace("a", &PostParams::default(), &changed).await;
    ensure!(matches!(late, Err(kube::Error::Api(status)) if status.code == 409));
    let patch = json!({ "metadata": { "labels": { "new": null } }, "immutable": true });
    api.patch("a", &PatchParams::default(), &Patch::Merge(&patch))
        .await?;
    let now = api.get("a").await?;
    ensure!(now.labels().len() == 1 && now.uid() == first.uid());
    let patch = json!({ "data": { "key": "other" } });
    let refused = api
        .patch("a", &PatchParams::default(), &Patch::Merge(&patch))
        .await;
    ensure!(matches!(refused, Err(kube::Error::Api(status)) if status.code == 422));
    Ok(())
}

async fn a_list_comes_in_pages_and_by_labels() -> Result<()> {
    let api: Api<ConfigMap> = cluster(&FakeApi::new()).api();
    for n in 0..9 {
        let object = map(&format!("m{n}"), if n % 3 == 0 { "x" } else { "y" })?;
        api.create(&PostParams::default(), &object).await?;
    }
    let mut names = Vec::new();
    let mut params = ListParams::default().labels("kind=y").limit(4);
    loop {
        let page = api.list(&params).await?;
        ensure!(page.items.len() <= 4);
        names.extend(page.items.iter().map(ConfigMap::name_any));
        params.continue_token = page.metadata.continue_;
        if params.continue_token.is_none() {
            break;
        }
    }
    ensure!(names == ["m1", "m2", "m4", "m5", "m7", "m8"], "{names:?}");
    Ok(())
}

async fn a_watch_survives_a_cut_and_a_compaction() -> Result<()> {
    let server = FakeApi::new();
    let cluster = cluster(&server);
    let api: Api<ConfigMap> = cluster.api();
    api.create(&PostParams::default(), &map("a", "x")?).await?;
    let metadata: Api<PartialObjectMeta<ConfigMap>> = cluster.api();
    let mut seen = pin!(
        watcher(metadata, watcher::Config::default().labels("kind=x"))
            .default_backoff()
            .applied_objects()
            .filter_map(|object| async { Some(object.ok()?.name_any()) })
    );
    ensure!(seen.next().await.as_deref() == Some("a"));
    api.create(&PostParams::default(), &map("other", "y")?)
        .await?;
    api.create(&PostParams::default(), &map("b", "x")?).await?;
    ensure!(seen.next().await.as_deref() == Some("b"));
    server.cut_watches();
    api.create(&PostParams::default(), &map("c", "x")?).await?;
    ensure!(seen.next().await.as_deref() == Some("c"));
    server.intercept(|call| (call.verb == "watch").then_some(Fault::Lose));
    server.cut_watches();
    api.create(&PostParams::default(), &map("d", "x")?).await?;
    server.compact();
    server.heal();
    let mut names = Vec::new();
    while !names.contains(&"d".to_owned()) {
        names.push(seen.next().await.context("the watch ended")?);
    }
    ensure!(names == ["a", "b", "c", "d"], "not listed anew: {names:?}");
    Ok(())
}

async fn a_pod_on_a_node_goes_when_its_kubelet_agrees() -> Result<()> {
    let server = FakeApi::new();
    let api: Api<Pod> = cluster(&server).api();
    let pod = serde_json::from_value(json!({
        "metadata": { "name": "p" },
        "spec": { "nodeName": "n", "containers": [{ "name": "c", "image": "i" }] },
    }))?;
    let uid = api
        .create(&PostParams::default(), &pod)
        .await?
        .uid()
        .context("a uid")?;
    let other = DeleteParams::default().preconditions(kube::api::Preconditions {
        uid: Some("another".to_owned()),
        resource_version: None,
    });
    let refused = api.delete("p", &other).await;
    ensure!(matches!(refused, Err(kube::Error::Api(status)) if status.code == 409));
    let marked = api
        .delete("p", &DeleteParams::default())
        .await?
        .left()
        .context("a pod")?;
    ensure!(marked.uid() == Some(uid) && marked.metadata.deletion_timestamp.is_some());
    ensure!(server.edit("pods", "p", |pod| pod["status"]["phase"] = json!("Failed")));
    ensure!(api.get("p").await?.status.and_then(|s| s.phase).as_deref() == Some("Failed"));
    ensure!(server.remove("pods", "p") && api.get_opt("p").await?.is_none());
    Ok(())
}

async fn a_fault_hits_the_call_it_is_meant_for() -> Result<()> {
    let server = FakeApi::new();
    let api: Api<ConfigMap> = cluster(&server).api();
    server.intercept(|call| match call.verb {
        "create" => Some(Fault::LoseAnswer),
        "delete" => Some(Fault::Refuse(429)),
        _ => None,
    });
    ensure!(
        api.create(&PostParams::default(), &map("a", "x")?)
            .await
            .is_err()
    );
    ensure!(api.get_opt("a").await?.is_some());
    let refused = api.delete("a", &DeleteParams::default()).await;
    ensure!(matches!(refused, Err(kube::Error::Api(status)) if status.code == 429));
    server.heal();
    api.delete("a", &DeleteParams::default()).await?;
    ensure!(server.objects("configmaps").is_empty());
    ensure!(server.requests()["delete configmaps"] == 2);
    Ok(())
}
