//! The engine of a cluster, put together.

use std::sync::Arc;
use std::time::Duration;

use super::cluster::Cluster;
use super::compute::{self, KubernetesCompute};
use super::lease::Lease;
use super::settings::Settings;
use super::store::{ConfigMapStore, StoreSettings};
use crate::scheduler::{self, Engine, TaskId};

/// How long the filer's configuration of another server is left alone.
const KEEP_CONFIG: Duration = Duration::from_hours(1);

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
pub async fn open_on(cluster: Cluster, mut settings: ClusterSettings) -> Result<Engine, String> {
    let mut of_store = StoreSettings::default();
    in_haste(&mut settings, &mut of_store);
    open_with(cluster, settings, of_store).await
}

pub(super) async fn open_with(
    cluster: Cluster,
    settings: ClusterSettings,
    of_store: StoreSettings,
) -> Result<Engine, String> {
    let lease = settings.kubernetes.lease;
    let (store, compute, scheduler) = parts(&cluster, settings, of_store).await?;
    let lease = Lease::stand(cluster, lease).await?;
    Ok(Engine::stand(store, compute, scheduler, Arc::new(lease)))
}

/// Connects for one task, beside the servers in the namespace: under an instance that nobody else
/// has, so that neither their tasks nor their lease is touched. [`purge_alone()`](super::purge_alone)
/// removes it. An error is for people.
pub async fn open_alone(settings: ClusterSettings) -> Result<Engine, String> {
    let cluster = Cluster::connect(&settings.kubernetes).await?;
    let (store, compute, scheduler) = parts(&cluster, settings, StoreSettings::default()).await?;
    Ok(Engine::start(store, compute, scheduler))
}

/// An instance that nobody else has, after the one that is configured.
pub fn instance_of_one(configured: &str) -> String {
    // As a label it has at most 63 characters.
    let start: String = configured.chars().take(40).collect();
    format!("{start}-run-{:08x}", rand::random::<u32>())
}

type Parts = (
    Arc<ConfigMapStore>,
    Arc<KubernetesCompute>,
    scheduler::Settings,
);

async fn parts(
    cluster: &Cluster,
    settings: ClusterSettings,
    of_store: StoreSettings,
) -> Result<Parts, String> {
    let store = ConfigMapStore::open(cluster.clone(), of_store)
        .await
        .map_err(|error| error.to_string())?;
    let store = Arc::new(store);
    let heads = Arc::clone(&store);
    let options = compute::Options {
        settings: settings.kubernetes,
        filer_config: settings.filer_config,
        keep_config: KEEP_CONFIG,
        grace: settings.scheduler.grace,
        time_limit: settings.scheduler.time_limit,
        owners: Some(Arc::new(move |task: &TaskId| heads.owner_reference(task))),
    };
    let compute = KubernetesCompute::open(cluster.clone(), options).await?;
    Ok((store, Arc::new(compute), settings.scheduler))
}

/// Sweeps as often as a test wants.
#[cfg(debug_assertions)]
fn in_haste(settings: &mut ClusterSettings, store: &mut StoreSettings) {
    if let Some(sweep) = crate::crash::sweep() {
        settings.scheduler.sweep = sweep;
        store.orphan_interval = sweep;
        store.orphan_age = sweep * 10;
    }
}

#[cfg(not(debug_assertions))]
fn in_haste(_: &mut ClusterSettings, _: &mut StoreSettings) {}
