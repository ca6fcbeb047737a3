//! The store in `ConfigMap`s: the promises of every store, and what is its own.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use libtest_mimic::Trial;
use tesk_conformance::fake_api::FakeApi;
use tesk_conformance::store::{CASES, Fixture};
use tesk_core::kubernetes::ConfigMapStore;
use tesk_core::kubernetes::store::StoreSettings;
use tesk_core::scheduler::TaskStore;

use super::cluster;
use crate::trial;

pub(super) fn trials() -> Vec<Trial> {
    let suite = CASES.iter().map(|case| {
        trial(format!("config-maps::{}", case.name), || async {
            (case.run)(Arc::new(Server(FakeApi::new()))).await
        })
    });
    suite.collect()
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

/// What is left over is left over at once.
fn settings() -> StoreSettings {
    StoreSettings {
        patience: Duration::from_millis(200),
        ..StoreSettings::default()
    }
}

async fn open(server: &FakeApi) -> Result<ConfigMapStore> {
    Ok(ConfigMapStore::open(cluster(server), settings()).await?)
}
