//! The engine of a cluster, put together.

use std::sync::Arc;

use super::cluster::Cluster;
use super::compute::{self, KubernetesCompute};
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

/// Connects, reads what is there, and starts the scheduler. An error is for people.
pub async fn open(settings: ClusterSettings) -> Result<Engine, String> {
    let cluster = Cluster::connect(&settings.kubernetes).await?;
    let store = ConfigMapStore::open(cluster.clone(), StoreSettings::default())
        .await
        .map_err(|error| error.to_string())?;
    let store = Arc::new(store);
    let heads = Arc::clone(&store);
    let options = compute::Options {
        settings: settings.kubernetes,
        filer_config: settings.filer_config,
        grace: settings.scheduler.grace,
        time_limit: settings.scheduler.time_limit,
        owners: Arc::new(move |task: &TaskId| heads.owner_reference(task)),
    };
    let compute = KubernetesCompute::open(cluster, options).await?;
    Ok(Engine::start(store, Arc::new(compute), settings.scheduler))
}
