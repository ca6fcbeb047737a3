//! The parts of the Kubernetes engine, against a stand-in for the API server; and what only a real
//! one can judge, where `$TESK_CLUSTER` says that `$KUBECONFIG` leads to a cluster for tests.

mod compute;
mod election;
mod manifests;
mod replicas;
mod server;
mod store;

use libtest_mimic::Trial;
use tesk_conformance::fake_api::FakeApi;
use tesk_core::kubernetes::{Cluster, Settings};

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = server::trials();
    trials.extend(store::trials());
    trials.extend(compute::trials());
    trials.extend(election::trials());
    trials.extend(replicas::trials());
    let mut real = manifests::trials();
    real.extend(compute::trials_on_a_cluster());
    if std::env::var_os("TESK_CLUSTER").is_none_or(|set| set != "1") {
        let ignored = |trial: Trial| {
            let reason = "needs conformance/cluster/run";
            trial.with_ignored_flag(true).with_kind(reason)
        };
        real = real.into_iter().map(ignored).collect();
    }
    trials.extend(real);
    trials
}

async fn real_client() -> anyhow::Result<kube::Client> {
    let cluster = Cluster::connect(&Settings::default()).await;
    Ok(cluster.map_err(anyhow::Error::msg)?.client().clone())
}

/// A connection to a stand-in.
fn cluster(server: &FakeApi) -> Cluster {
    let client = kube::Client::new(server.clone(), "test");
    Cluster::new(client, "test".to_owned(), "tesk".to_owned())
}
