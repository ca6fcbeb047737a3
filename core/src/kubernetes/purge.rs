//! Removal of everything that an engine has made in its namespace.

use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::Resource;
use kube::api::{DeleteParams, ListParams};
use serde::de::DeserializeOwned;

use super::Settings;
use super::cluster::{ApiError, Cluster, INSTANCE, MANAGED_BY};

/// How long pods may take to go.
const PATIENCE: Duration = Duration::from_mins(2);
/// How often is looked.
const LOOK: Duration = Duration::from_millis(500);

/// Removes records, pods, plans, Secrets, the filer's configuration and the lease of an engine, and
/// waits until its pods are gone. No server of it may be left that could make more.
///
/// Needs `deletecollection` on `pods`, `secrets`, `configmaps` and `leases`, and `list` on `pods`,
/// which a server's own Role need not give. May be repeated. An error is for people.
pub async fn purge(settings: &Settings) -> Result<(), String> {
    let cluster = Cluster::connect(settings).await?;
    let selector = format!("{MANAGED_BY}=tesk,{INSTANCE}={}", settings.instance);
    remove_all::<Pod>(&cluster, &selector, "pods").await?;
    remove_all::<Secret>(&cluster, &selector, "Secrets").await?;
    remove_all::<ConfigMap>(&cluster, &selector, "ConfigMaps").await?;
    remove_all::<Lease>(&cluster, &selector, "leases").await?;
    let gone = tokio::time::timeout(PATIENCE, until_gone(&cluster, &selector)).await;
    gone.map_err(|_| {
        format!(
            "pods are still there after {} s; they were told to end",
            PATIENCE.as_secs()
        )
    })?
    .map_err(|error| format!("cannot list pods: {error}"))
}

async fn remove_all<K>(cluster: &Cluster, selector: &str, what: &str) -> Result<(), String>
where
    K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
    K::DynamicType: Default,
{
    let api = cluster.api::<K>();
    let of_ours = ListParams::default().labels(selector);
    let params = DeleteParams::default();
    let removed = cluster.answer(api.delete_collection(&params, &of_ours));
    removed
        .await
        .map(drop)
        .map_err(|error| format!("cannot remove {what}: {error}"))
}

async fn until_gone(cluster: &Cluster, selector: &str) -> Result<(), ApiError> {
    let api = cluster.api::<Pod>();
    let one = ListParams::default().labels(selector).limit(1);
    while !cluster
        .answer(api.list_metadata(&one))
        .await?
        .items
        .is_empty()
    {
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}
