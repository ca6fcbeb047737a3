//! The engine of a cluster, put together.

use std::sync::Arc;

use super::cluster::Cluster;
use super::compute::{self, KubernetesCompute};
use super::lease::Lease;
use super::settings::Settings;
use super::store::{ConfigMapStore, StoreSettings};
use crate::scheduler::{self, Engine, TaskId};

/// How the engine of a cluster works.
#[derive(Clone, Debug)]
pub struct ClusterSettings {
    /// The operator's choices.
    pub kubernetes: Settings,
    /// The configuration of the filer: storages and transfers, as TOML.
    pub filer_config: String,
    /// How the scheduler decides.
    pub scheduler: scheduler::Settings,
}

/// Connects, reads what is there, and stands for the election of the one that schedules. An error
/// is for people.
pub async fn open(settings: ClusterSettings) -> Result<Engine, String> {
    let cluster = Cluster::connect(&settings.kubernetes).await?;
    open_on(cluster, settings).await
}

/// [`open()`] on a cluster that is connected already.
pub async fn open_on(cluster: Cluster, settings: ClusterSettings) -> Result<Engine, String> {
    let store = ConfigMapStore::open(cluster.clone(), StoreSettings::default())
        .await
        .map_err(|error| error.to_string())?;
    let store = Arc::new(store);
    let heads = Arc::clone(&store);
    let lease = settings.kubernetes.lease;
    let options = compute::Options {
        settings: settings.kubernetes,
        filer_config: settings.filer_config,
        grace: settings.scheduler.grace,
        time_limit: settings.scheduler.time_limit,
        owners: Arc::new(move |task: &TaskId| heads.owner_reference(task)),
    };
    let compute = KubernetesCompute::open(cluster.clone(), options).await?;
    let lease = Lease::stand(cluster, lease).await?;
    Ok(Engine::stand(
        store,
        Arc::new(compute),
        settings.scheduler,
        Arc::new(lease),
    ))
}
