//! The store in `ConfigMap`s: the promises of every store, and what is its own.

mod faults;
mod objects;
mod real;
pub(super) mod scheduled;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use libtest_mimic::Trial;
use serde_json::Value;
use tesk_conformance::fake_api::FakeApi;
use tesk_conformance::store::{CASES, Fixture};
use tesk_core::kubernetes::store::StoreSettings;
use tesk_core::kubernetes::{Cluster, ConfigMapStore, Settings};
use tesk_core::scheduler::store::IdempotencyKey;
use tesk_core::scheduler::{
    Created, Head, NewTask, Owner, Query, StoreError, TaskId, TaskStore, Update,
};
use tesk_core::tes::{Filter, State, TaskLog, UrlSecrets};

use super::cluster;
use crate::trial;

pub(super) fn trials() -> Vec<Trial> {
    let suite = CASES.iter().map(|case| {
        trial(format!("config-maps::{}", case.name), || async {
            (case.run)(Arc::new(Server(FakeApi::new()))).await
        })
    });
    let mut trials: Vec<_> = suite.collect();
    trials.extend(objects::trials());
    trials.extend(faults::trials());
    trials.extend(scheduled::trials());
    if std::env::var("TESK_CLUSTER").is_ok_and(|on| on == "1") {
        trials.extend(CASES.iter().map(|case| {
            trial(format!("cluster-config-maps::{}", case.name), || async {
                let name = format!("suite-{:016x}", rand::random::<u64>());
                (case.run)(Arc::new(RealCluster(name))).await
            })
        }));
        trials.extend(real::trials());
    } else {
        eprintln!("the store is not tested on a cluster: TESK_CLUSTER is not 1");
    }
    trials
}

/// An engine of its own in the cluster that `KUBECONFIG` names, by the name of its instance.
struct RealCluster(String);

impl RealCluster {
    async fn connect(&self) -> Result<Cluster> {
        let settings = Settings {
            instance: self.0.clone(),
            namespace: Some("default".to_owned()),
            ..Settings::default()
        };
        let cluster = Cluster::connect(&settings).await;
        cluster.map_err(anyhow::Error::msg)
    }
}

impl Fixture for RealCluster {
    fn open(&self) -> BoxFuture<'_, Result<Arc<dyn TaskStore>>> {
        async {
            let cluster = self.connect().await?;
            let store = ConfigMapStore::open(cluster, StoreSettings::default()).await?;
            Ok(Arc::new(store) as Arc<dyn TaskStore>)
        }
        .boxed()
    }

    fn reads_secrets(&self) -> bool {
        false
    }
}

struct Server(FakeApi);

impl Fixture for Server {
    fn open(&self) -> BoxFuture<'_, Result<Arc<dyn TaskStore>>> {
        async { Ok(Arc::new(open(&self.0).await?) as Arc<dyn TaskStore>) }.boxed()
    }

    fn reads_secrets(&self) -> bool {
        false
    }
}

pub(super) async fn open(server: &FakeApi) -> Result<ConfigMapStore> {
    let settings = StoreSettings {
        patience: Duration::from_millis(200),
        ..StoreSettings::default()
    };
    Ok(ConfigMapStore::open(cluster(server), settings).await?)
}

/// A store that takes whatever is left over for so old that it sweeps it at once.
async fn open_to_sweep(server: &FakeApi) -> Result<ConfigMapStore> {
    let settings = StoreSettings {
        orphan_age: Duration::ZERO,
        orphan_interval: Duration::ZERO,
        ..StoreSettings::default()
    };
    Ok(ConfigMapStore::open(cluster(server), settings).await?)
}

fn task() -> NewTask {
    let id = TaskId::random();
    NewTask {
        document: format!(r#"{{"name":"{id}","executors":[]}}"#).into(),
        id,
        owner: Owner::default(),
        name: None,
        tags: Vec::new(),
        secrets: UrlSecrets::default(),
        warnings: Vec::new(),
        idempotency: None,
    }
}

/// A JSON document of about `bytes` bytes that does not compress much.
fn noise(bytes: usize) -> Arc<str> {
    let mut text = String::with_capacity(bytes + 16);
    text.push_str(r#"{"x":""#);
    while text.len() < bytes {
        let random: [u8; 32] = rand::random();
        // Of 94 characters, so that 8 bits stay 6.5.
        text.extend(random.map(|b| match 33 + b % 94 {
            b'"' | b'\\' => '~',
            plain => char::from(plain),
        }));
    }
    text.push_str(r#""}"#);
    text.into()
}

fn keyed(mut task: NewTask, key: &str) -> NewTask {
    task.idempotency = Some(IdempotencyKey {
        key: key.to_owned(),
        digest: [1; 32],
        ttl: Duration::from_hours(1),
    });
    task
}

pub(super) async fn stored(store: &ConfigMapStore, task: NewTask) -> Result<TaskId> {
    let id = task.id.clone();
    ensure!(store.create(task).await? == Created::New(id.clone()));
    Ok(id)
}

async fn set(store: &ConfigMapStore, id: &TaskId, state: State) -> Result<Head> {
    let version = store.head(id).await?.context("a head")?.version;
    let update = Update {
        state: Some(state),
        ..Update::default()
    };
    Ok(store.update(id, version, update).await?)
}

pub(super) async fn all(store: &ConfigMapStore) -> Result<Vec<TaskId>> {
    let query = Query {
        filter: Filter::default(),
        user: None,
        after: None,
        limit: 1000,
        documents: false,
    };
    let page = store.list(&query).await?;
    Ok(page.tasks.into_iter().map(|task| task.head.id).collect())
}

fn logs(text: &str) -> Vec<TaskLog> {
    vec![TaskLog {
        system_logs: Some(vec![text.to_owned()]),
        ..TaskLog::default()
    }]
}

async fn set_logs(store: &ConfigMapStore, id: &TaskId, text: &str) -> Result<Head, StoreError> {
    let head = store.head(id).await?.ok_or(StoreError::NotFound)?;
    let update = Update {
        logs: Some(logs(text)),
        ..Update::default()
    };
    store.update(id, head.version, update).await
}

/// The names of all objects that the store has made.
fn names(server: &FakeApi) -> Vec<String> {
    let objects = ["configmaps", "secrets"].map(|plural| server.objects(plural));
    let names = objects.concat();
    let name = |object: &Value| Some(object["metadata"]["name"].as_str()?.to_owned());
    names.iter().filter_map(name).collect()
}

/// Waits until something holds.
async fn soon<F: Future<Output = Result<bool>>>(what: &str, holds: impl Fn() -> F) -> Result<()> {
    for _ in 0..2000 {
        if holds().await? {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    anyhow::bail!("within 10 s: {what}")
}
