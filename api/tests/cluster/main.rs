//! Tasks from end to end on a real Kubernetes: the `tesk` program as a process beside it, a client
//! that speaks HTTP, storages that listen where pods reach them.
//!
//! `conformance/cluster/run` brings the cluster up; without one (`TESK_CLUSTER=1`, `KUBECONFIG`)
//! every test is reported as ignored, with the reason.
//!
//! - `place`: a namespace with a server over it, and a client.
//! - `web`: a web server in this process that keeps count, and is slow where it is told to.
//! - `executors`, `images`, `storages`, `passwords`, `ends`, `cancel`, `security`, `operator`,
//!   `many`, `ha`, `streams`: the subjects.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

mod place;
mod web;

mod cancel;
mod ends;
mod executors;
mod ha;
mod images;
mod many;
mod operator;
mod passwords;
mod security;
mod storages;
mod streams;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;
use tokio::sync::{OnceCell, RwLock};

use place::Place;
use web::Web;

/// What all tests share.
struct Suite {
    web: Web,
    place: OnceCell<Place>,
    /// Held for reading by each test, and for writing by one that fills the node.
    node: RwLock<()>,
}

impl Suite {
    /// The server that most tests use.
    async fn place(&self) -> Result<&Place> {
        self.place.get_or_try_init(storages::place).await
    }
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They mostly wait for pods.
    arguments.test_threads.get_or_insert(8);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let here = set("TESK_CLUSTER") && set("KUBECONFIG") && set("TESK_CLUSTER_HOST");
    let web = runtime.block_on(Web::start(here)).unwrap();
    let suite = Arc::new(Suite {
        web,
        place: OnceCell::new(),
        node: RwLock::new(()),
    });
    let runtime = Arc::new(runtime);
    let trials = subjects(&Tests {
        runtime: Arc::clone(&runtime),
        suite: Arc::clone(&suite),
    });
    let trials = trials.into_iter().map(|trial| {
        if here {
            trial
        } else {
            trial
                .with_ignored_flag(true)
                .with_kind("no cluster: see conformance/cluster/run")
        }
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    if let Ok(Suite { place, .. }) = Arc::try_unwrap(suite).map_err(|_| ()) {
        drop(place);
    }
    conclusion.exit_code()
}

fn subjects(tests: &Tests) -> Vec<Trial> {
    let mut trials = executors::trials(tests);
    trials.extend(images::trials(tests));
    trials.extend(storages::trials(tests));
    trials.extend(passwords::trials(tests));
    trials.extend(ends::trials(tests));
    trials.extend(cancel::trials(tests));
    trials.extend(security::trials(tests));
    trials.extend(operator::trials(tests));
    trials.extend(many::trials(tests));
    trials.extend(ha::trials(tests));
    trials.extend(streams::trials(tests));
    trials
}

/// What tests are made with.
struct Tests {
    runtime: Arc<Runtime>,
    suite: Arc<Suite>,
}

impl Tests {
    fn trial<F>(&self, name: &str, test: fn(Arc<Suite>) -> F) -> Trial
    where
        F: Future<Output = Result<()>> + 'static,
    {
        self.run(name, move |suite| async move {
            let _beside = suite.node.read().await;
            test(Arc::clone(&suite)).await
        })
    }

    /// One beside which no other runs: it would be starved.
    fn alone<F>(&self, name: &str, test: fn(Arc<Suite>) -> F) -> Trial
    where
        F: Future<Output = Result<()>> + 'static,
    {
        self.run(name, move |suite| async move {
            let _alone = suite.node.write().await;
            test(Arc::clone(&suite)).await
        })
    }

    fn run<F>(&self, name: &str, test: impl FnOnce(Arc<Suite>) -> F + Send + 'static) -> Trial
    where
        F: Future<Output = Result<()>>,
    {
        let (runtime, suite) = (Arc::clone(&self.runtime), Arc::clone(&self.suite));
        Trial::test(name, move || {
            runtime
                .block_on(test(suite))
                .map_err(|error| Failed::from(format!("{error:#}")))
        })
    }
}

/// Trials of async functions, under their own names.
#[macro_export]
macro_rules! trials {
    ($tests:ident, $group:literal: $($name:ident),* $(,)?) => {
        vec![$($tests.trial(concat!($group, "::", stringify!($name)), $name)),*]
    };
}
