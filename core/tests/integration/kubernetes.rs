//! The parts of the Kubernetes engine, against a stand-in for the API server.

mod server;
mod store;

use libtest_mimic::Trial;
use tesk_conformance::fake_api::FakeApi;
use tesk_core::kubernetes::Cluster;

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = server::trials();
    trials.extend(store::trials());
    trials
}

/// A connection to a stand-in.
fn cluster(server: &FakeApi) -> Cluster {
    let client = kube::Client::new(server.clone(), "test");
    Cluster::new(client, "test".to_owned(), "tesk".to_owned())
}
