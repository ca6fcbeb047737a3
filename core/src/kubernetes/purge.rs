//! Removal of everything that an engine has made in its namespace.

use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::Resource;
use kube::api::{DeleteParams, ListParams};
use serde::de::DeserializeOwned;

use super::Settings;
use super::cluster::{ApiError, COMPONENT, Cluster, INSTANCE, MANAGED_BY, Part};

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
    let selector = selector(settings);
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

/// Removes what an engine of [`open_alone()`](super::open_alone) has made, once it is stopped. Pods go
/// with the records that own them. Needs no right that a server has not. An error is for people.
pub async fn purge_alone(settings: &Settings) -> Result<(), String> {
    let cluster = Cluster::connect(settings).await?;
    let failed = |error: ApiError| format!("cannot remove what the task has left: {error}");
    let selector = selector(settings);
    let of_ours = ListParams::default().labels(&selector);
    let maps = cluster.api::<ConfigMap>();
    let there = cluster.answer(maps.list_metadata(&of_ours)).await;
    for map in there.map_err(failed)? {
        let labels = map.metadata.labels.unwrap_or_default();
        let name = map.metadata.name.unwrap_or_default();
        // A note, which tells of a Secret that cannot be listed.
        let noted = labels.get(COMPONENT).map(String::as_str) == Some(Part::Secret.as_str());
        if let Some(secret) = name.strip_suffix(".secret").filter(|_| noted) {
            delete::<Secret>(&cluster, secret).await.map_err(failed)?;
        }
        delete::<ConfigMap>(&cluster, &name).await.map_err(failed)?;
    }
    Ok(())
}

/// Selects all that an engine has made.
fn selector(settings: &Settings) -> String {
    format!("{MANAGED_BY}=tesk,{INSTANCE}={}", settings.instance)
}

async fn delete<K>(cluster: &Cluster, name: &str) -> Result<(), ApiError>
where
    K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
    K::DynamicType: Default,
{
    let (api, params) = (cluster.api::<K>(), DeleteParams::default());
    match cluster.answer(api.delete(name, &params)).await {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
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
