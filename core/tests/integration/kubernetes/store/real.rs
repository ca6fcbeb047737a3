//! What only a real API server can tell: its limits, its watches, its garbage collector, and
//! what things cost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use libtest_mimic::Trial;
use tesk_core::kubernetes::store::StoreSettings;
use tesk_core::kubernetes::{Cluster, ConfigMapStore, secret_name};
use tesk_core::scheduler::{Created, Query, TaskId, TaskStore};
use tesk_core::tes::{Filter, State, UrlSecrets};
use tesk_core::time::Timestamp;

use super::{RealCluster, all, keyed, logs, noise, set, set_logs, soon, stored, task};
use crate::trials;

pub(super) fn trials() -> Vec<Trial> {
    // Nothing else can be tested meanwhile, so it is run by itself, with `--ignored`.
    let alone = trials![
        "cluster-config-maps":
        what_was_acknowledged_survives_the_deaths_of_the_api_server,
    ];
    let mut trials: Vec<_> = alone
        .into_iter()
        .map(|t| t.with_ignored_flag(true))
        .collect();
    trials.extend(trials![
        "cluster-config-maps":
        the_largest_documents_and_logs_fit,
        a_secret_is_there_as_long_as_it_is_needed,
        another_replica_follows,
        a_thousand_tasks_are_stored_and_listed,
    ]);
    trials
}

/// Kills a daemon of the cluster; it comes back.
async fn kill(daemon: &str) -> Result<()> {
    let inside = concat!(env!("CARGO_MANIFEST_DIR"), "/../conformance/cluster/inside");
    let status = tokio::process::Command::new(inside)
        .args(["sh", "-c", &format!("kill -9 $(cat /run/{daemon}.pid)")])
        .status()
        .await?;
    ensure!(status.success(), "cannot kill {daemon}");
    Ok(())
}

async fn what_was_acknowledged_survives_the_deaths_of_the_api_server() -> Result<()> {
    let (cluster, store) = place().await?;
    let watching = open(&cluster).await?;
    let killer = async {
        for daemon in ["kube-apiserver", "etcd", "kube-apiserver"] {
            tokio::time::sleep(Duration::from_secs(3)).await;
            kill(daemon).await?;
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        anyhow::Ok(())
    };
    let mut killer = std::pin::pin!(killer);
    let mut acknowledged: Vec<(TaskId, State)> = Vec::new();
    let mut failures = 0;
    let mut number = 0;
    loop {
        number += 1;
        let mut task = keyed(task(), &number.to_string());
        task.document = noise(if number % 10 == 0 { 1 << 20 } else { 100 });
        let write = async {
            let id = loop {
                let mut again = task.clone();
                again.id = TaskId::random();
                match store.create(again).await {
                    Ok(Created::New(id) | Created::Existing(id)) => break id,
                    Ok(Created::KeyReused) => anyhow::bail!("the body is the same"),
                    Err(_) => failures += 1,
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            };
            // Not tried again: it may or may not have been carried out.
            let state = match set(&store, &id, State::Running).await {
                Ok(head) => head.state,
                Err(_) => State::Unknown,
            };
            acknowledged.push((id, state));
            Ok(())
        };
        tokio::select! {
            done = write => done?,
            killed = &mut killer => {
                killed?;
                break;
            }
        }
    }
    let count = acknowledged.len();
    eprintln!("{count} tasks acknowledged, {failures} creates tried again");
    ensure!(failures > 0 && count > 10);
    soon("the replica is in touch", || async {
        Ok(watching.stale().is_none())
    })
    .await?;
    let fresh = open(&cluster).await?;
    for (id, state) in &acknowledged {
        let record = fresh
            .get(id)
            .await?
            .context("an acknowledged task is lost")?;
        ensure!(*state == State::Unknown || record.head.state == *state);
    }
    let unique = all_pages(&fresh).await?;
    // The last one may be there without having been acknowledged.
    ensure!(
        unique.len() - count <= 1,
        "{} tasks of {count}",
        unique.len()
    );
    soon("the replica has caught up", || async {
        Ok(all_pages(&watching).await? == unique)
    })
    .await
}

async fn all_pages(store: &ConfigMapStore) -> Result<Vec<TaskId>> {
    let mut query = Query {
        filter: Filter::default(),
        user: None,
        after: None,
        limit: 1000,
        documents: false,
    };
    let mut ids = Vec::new();
    loop {
        let page = store.list(&query).await?;
        ids.extend(page.tasks.into_iter().map(|task| task.head.id));
        query.after = page.next;
        if query.after.is_none() {
            return Ok(ids);
        }
    }
}

async fn place() -> Result<(Cluster, ConfigMapStore)> {
    let name = format!("real-{:016x}", rand::random::<u64>());
    let cluster = RealCluster(name).connect().await?;
    let store = open(&cluster).await?;
    Ok((cluster, store))
}

async fn open(cluster: &Cluster) -> Result<ConfigMapStore> {
    let settings = StoreSettings {
        orphan_age: Duration::ZERO,
        orphan_interval: Duration::ZERO,
        ..StoreSettings::default()
    };
    Ok(ConfigMapStore::open(cluster.clone(), settings).await?)
}

/// The names of what one engine has made.
async fn names(cluster: &Cluster) -> Result<Vec<String>> {
    let labels = cluster.selector(tesk_core::kubernetes::cluster::Part::Record);
    let instance = labels.split(',').find(|term| term.contains("instance="));
    let params = ListParams::default().labels(instance.context("an instance")?);
    let maps: Api<ConfigMap> = cluster.api();
    let secrets: Api<Secret> = cluster.api();
    let mut names: Vec<_> = maps
        .list(&params)
        .await?
        .iter()
        .map(ConfigMap::name_any)
        .collect();
    names.extend(secrets.list(&params).await?.iter().map(Secret::name_any));
    Ok(names)
}

async fn the_largest_documents_and_logs_fit() -> Result<()> {
    let (cluster, store) = place().await?;
    for bytes in [100, 8 << 10, 2 << 20, (16 << 20) - 100] {
        let mut task = keyed(task(), &bytes.to_string());
        task.document = noise(bytes);
        task.tags = vec![("\"".repeat(100), "\"".repeat(16_000))];
        let document = Arc::clone(&task.document);
        let id = stored(&store, task).await?;
        let text = noise(bytes);
        set_logs(&store, &id, &text).await?;
        let record = open(&cluster).await?.get(&id).await?.context("a task")?;
        ensure!(record.document == document && record.logs == logs(&text));
        set(&store, &id, State::Complete).await?;
    }
    let later = Timestamp::now().after(Duration::from_secs(1));
    ensure!(store.sweep(later, 10).await?.len() == 4);
    ensure!(names(&cluster).await?.is_empty());
    Ok(())
}

async fn a_secret_is_there_as_long_as_it_is_needed() -> Result<()> {
    let (cluster, store) = place().await?;
    let mut task = task();
    task.secrets = UrlSecrets(BTreeMap::from([("x".to_owned(), "y".to_owned())]));
    let id = stored(&store, task).await?;
    let secrets: Api<Secret> = cluster.api();
    let secret = secrets.get(&secret_name(&id)).await?;
    ensure!(secret.data.context("data")?["secrets.json"].0 == br#"{"x":"y"}"#);
    store.sweep(Timestamp::from_millis(1), 10).await?;
    set(&store, &id, State::Running).await?;
    ensure!(secrets.get_opt(&secret_name(&id)).await?.is_some());
    set(&store, &id, State::Complete).await?;
    ensure!(names(&cluster).await? == [format!("tesk-{id}")]);
    Ok(())
}

async fn another_replica_follows() -> Result<()> {
    let (cluster, one) = place().await?;
    let two = open(&cluster).await?;
    let id = stored(&one, task()).await?;
    ensure!(two.get(&id).await?.is_some());
    let states = [State::Initializing, State::Running, State::Complete];
    for state in states {
        let head = set(&one, &id, state).await?;
        soon("the change is known", || async {
            Ok(two.head(&id).await? == Some(head.clone()))
        })
        .await?;
    }
    let later = Timestamp::now().after(Duration::from_secs(1));
    ensure!(one.sweep(later, 10).await? == [id]);
    soon("the task is gone", || async {
        Ok(all(&two).await?.is_empty())
    })
    .await?;
    ensure!(two.stale().is_none());
    Ok(())
}

async fn a_thousand_tasks_are_stored_and_listed() -> Result<()> {
    const TASKS: usize = 1000;
    let (cluster, store) = place().await?;
    let begun = Instant::now();
    let ids: Vec<TaskId> = stream::iter(0..TASKS)
        .map(|_| stored(&store, task()))
        .buffer_unordered(32)
        .try_collect()
        .await?;
    let made = begun.elapsed();
    let begun = Instant::now();
    let other = open(&cluster).await?;
    let opened = begun.elapsed();
    ensure!(all(&other).await?.len() == TASKS);
    let begun = Instant::now();
    let sample = &ids[..100];
    for id in sample {
        set(&store, id, State::Running).await?;
    }
    let updated = begun.elapsed() / 100;
    let begun = Instant::now();
    for id in sample {
        other.get(id).await?.context("a task")?;
    }
    let read = begun.elapsed() / 100;
    let object = cluster
        .api::<ConfigMap>()
        .get(&format!("tesk-{}", ids[0]))
        .await?;
    let mut bare = object.clone();
    bare.metadata.managed_fields = None;
    eprintln!(
        "{TASKS} tasks stored in {made:?}, index filled in {opened:?}, an update {updated:?}, a read {read:?}, \
         a head of {} bytes as JSON, {} of them managed fields",
        serde_json::to_vec(&object)?.len(),
        serde_json::to_vec(&object)?.len() - serde_json::to_vec(&bare)?.len(),
    );
    stream::iter(ids)
        .map(|id| {
            let store = &store;
            async move { set(store, &id, State::Canceled).await.map(drop) }
        })
        .buffer_unordered(32)
        .try_collect::<Vec<()>>()
        .await?;
    let later = Timestamp::now().after(Duration::from_secs(1));
    ensure!(store.sweep(later, TASKS).await?.len() == TASKS);
    ensure!(names(&cluster).await?.is_empty());
    Ok(())
}
