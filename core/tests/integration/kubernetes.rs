//! The parts of the Kubernetes engine, against a stand-in for the API server; and what only a real
//! one can judge, where `$TESK_CLUSTER` says that `$KUBECONFIG` leads to a cluster for tests.

mod compute;
mod manifests;
mod server;
mod store;

use libtest_mimic::Trial;
use tesk_conformance::fake_api::FakeApi;
use tesk_core::kubernetes::{Cluster, Settings};

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = server::trials();
    trials.extend(store::trials());
    trials.extend(compute::trials());
    trials.extend(manifests::trials());
    trials
}

/// Whether there is a cluster for tests; the tests that need it are ignored where there is none.
fn is_there_a_cluster() -> bool {
    std::env::var_os("TESK_CLUSTER").is_some_and(|set| set == "1")
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
