//! The manifests of the snapshots, judged by a real API server: `conformance/cluster/run` brings
//! one up. Nothing is started (`dryRun=All`).

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, LimitRange, Namespace, Pod, ServiceAccount};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use libtest_mimic::Trial;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tesk_core::kubernetes::Cluster;

use super::real_client;
use crate::trials;

pub(super) fn trials() -> Vec<Trial> {
    trials![
        "api-server":
        all_manifests_are_accepted,
        no_manifest_is_below_the_minimum_of_its_namespace,
        restricted_pods_are_accepted_where_nothing_else_is,
    ]
}

/// A namespace for one test; it goes with the test, or with the cluster.
pub(super) struct Space {
    client: Client,
    name: String,
}

impl Space {
    pub(super) async fn new(kind: &str, labels: Value) -> Result<Self> {
        let space = Self {
            client: real_client().await?,
            name: format!("tesk-manifests-{kind}-{}", std::process::id()),
        };
        let namespace = json!({"metadata": {"name": space.name, "labels": labels}});
        made(&Api::<Namespace>::all(space.client.clone()), namespace).await?;
        // Pods need it, and it comes a moment later.
        let accounts: Api<ServiceAccount> = Api::namespaced(space.client.clone(), &space.name);
        until(async || Ok(accounts.get_opt("default").await?.is_some())).await?;
        Ok(space)
    }

    pub(super) fn cluster(&self, instance: &str) -> Cluster {
        Cluster::new(self.client.clone(), self.name.clone(), instance.to_owned())
    }

    /// Sets the least that a container must ask for.
    pub(super) async fn limit(&self, cpu: &str, memory: &str) -> Result<()> {
        let limit = json!({"type": "Container", "min": {"cpu": cpu, "memory": memory}});
        let range = json!({"metadata": {"name": "least"}, "spec": {"limits": [limit]}});
        let ranges: Api<LimitRange> = Api::namespaced(self.client.clone(), &self.name);
        made(&ranges, range).await?;
        // It is in force a moment later.
        let small = json!({"requests": {"cpu": "1m", "memory": "1"}, "limits": {"memory": "1"}});
        let container = json!({"name": "c", "image": "i", "resources": small});
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [container]}});
        until(async || Ok(self.dry_run::<Pod>(&pod).await.is_err())).await
    }

    async fn dry_run<K>(&self, manifest: &Value) -> kube::Result<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + Serialize
            + DeserializeOwned,
        K::DynamicType: Default,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.name);
        let object = serde_json::from_value(manifest.clone()).map_err(kube::Error::SerdeError)?;
        let params = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        api.create(&params, &object).await
    }

    /// Whether the server takes a snapshot's manifests, and takes them as they are.
    async fn judge(&self, name: &str, manifests: &Value) -> Result<()> {
        let sent = &manifests["pod"];
        let pod: Pod = self.dry_run(sent).await.with_context(|| name.to_owned())?;
        if let Some(lost) = lost(sent, &serde_json::to_value(pod)?, String::new()) {
            bail!("{name}: the server has not taken {lost}");
        }
        for part in manifests["plan"].as_array().into_iter().flatten() {
            let part = self.dry_run::<ConfigMap>(part).await;
            part.with_context(|| name.to_owned())?;
        }
        Ok(())
    }

    pub(super) async fn remove(self) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let params = DeleteParams::background();
        namespaces.delete(&self.name, &params).await?;
        Ok(())
    }
}

/// Creates an object, unless it is there.
async fn made<K>(api: &Api<K>, manifest: Value) -> Result<()>
where
    K: Clone + std::fmt::Debug + Serialize + DeserializeOwned,
{
    let object = serde_json::from_value(manifest)?;
    match api.create(&PostParams::default(), &object).await {
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(()),
        other => {
            other?;
            Ok(())
        }
    }
}

async fn until(mut condition: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    for _ in 0..200 {
        if condition().await? {
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    bail!("never came true")
}

/// The first field of `sent` that is not in `got`. Quantities come back in other words.
fn lost(sent: &Value, got: &Value, at: String) -> Option<String> {
    const QUANTITIES: [&str; 3] = ["requests", "limits", "sizeLimit"];
    match (sent, got) {
        (Value::Object(sent), _) => sent
            .iter()
            .filter(|(key, _)| !QUANTITIES.contains(&key.as_str()))
            .find_map(|(key, sent)| lost(sent, &got[key], format!("{at}.{key}"))),
        (Value::Array(sent), _) => sent
            .iter()
            .enumerate()
            .find_map(|(n, sent)| lost(sent, &got[n], format!("{at}[{n}]"))),
        _ => (sent != got).then_some(at),
    }
}

/// The manifests of all snapshots, by name.
fn snapshots() -> Result<Vec<(String, Value)>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kubernetes/pod/tests");
    let mut snapshots = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "snap") {
            continue;
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let text = std::fs::read_to_string(&path)?;
        let (_, manifests) = text.split_once("\n---\n").context("a snapshot's header")?;
        snapshots.push((name.into_owned(), serde_json::from_str(manifests)?));
    }
    ensure!(snapshots.len() > 10, "only {} snapshots", snapshots.len());
    Ok(snapshots)
}

fn snapshot(name: &str) -> Result<Value> {
    let found = snapshots()?.into_iter().find(|(this, _)| this == name);
    Ok(found.with_context(|| format!("no snapshot {name}"))?.1)
}

async fn all_manifests_are_accepted() -> Result<()> {
    let space = Space::new("all", json!({})).await?;
    let priorities = Api::<PriorityClass>::all(space.client.clone());
    let priority = json!({"metadata": {"name": "tesk-high"}, "value": 1000});
    made(&priorities, priority).await?;
    let runtimes = Api::<RuntimeClass>::all(space.client.clone());
    let runtime = json!({"metadata": {"name": "tesk-sandbox"}, "handler": "runc"});
    made(&runtimes, runtime).await?;
    for (name, manifests) in snapshots()? {
        space.judge(&name, &manifests).await?;
    }
    space.remove().await
}

async fn no_manifest_is_below_the_minimum_of_its_namespace() -> Result<()> {
    for (name, cpu, memory) in [
        ("resources-of-the-pod", "500m", "32Mi"),
        ("resources-of-containers", "10m", "32Mi"),
    ] {
        let space = Space::new(name, json!({})).await?;
        space.limit(cpu, memory).await?;
        space.judge(name, &snapshot(name)?).await?;
        ensure!(space.judge("minimal", &snapshot("minimal")?).await.is_err());
        space.remove().await?;
    }
    Ok(())
}

async fn restricted_pods_are_accepted_where_nothing_else_is() -> Result<()> {
    let labels = json!({"pod-security.kubernetes.io/enforce": "restricted"});
    let space = Space::new("restricted", labels).await?;
    space.judge("restricted", &snapshot("restricted")?).await?;
    let refused = space.dry_run::<Pod>(&snapshot("minimal")?["pod"]).await;
    let Err(kube::Error::Api(status)) = refused else {
        bail!("a pod that is not restricted: {refused:?}");
    };
    ensure!(
        status.code == 403 && status.message.contains("PodSecurity"),
        "{status:?}"
    );
    space.remove().await
}
