//! What [`Storage`] promises, case by case.
//!
//! In a plugin's `Cargo.toml`:
//!
//! ```toml
//! [[test]]
//! name = "conformance"
//! harness = false
//! ```
//!
//! and in its `tests/conformance.rs`:
//!
//! ```no_run
//! use std::process::ExitCode;
//! use std::sync::Arc;
//! use tesk_conformance::storage::{self, Subject};
//! # use tesk_core::storage::{Registry, Storage};
//! # fn my_storage() -> Arc<dyn Storage> { unimplemented!() }
//!
//! fn main() -> ExitCode {
//!     storage::main(async || {
//!         let scratch = "my://server/scratch".parse()?;
//!         Ok(vec![Subject::new("my", my_storage(), scratch)])
//!     })
//! }
//! ```
//!
//! Every case works in a directory of its own below the scratch URL. A case that needs what the
//! plugin does not claim is reported as ignored, with the reason; for each such claim another
//! case proves that the operation is refused. A subject none of whose cases ran has failed.

mod cases;
mod context;

use std::fmt;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tesk_core::storage::{Capabilities, Storage, StorageUrl};

pub use cases::{CASES, Case, Need};
pub use context::Context;

/// How long one case may take.
const TIMEOUT: Duration = Duration::from_mins(2);

type Seed = Arc<dyn Fn(StorageUrl, Bytes) -> BoxFuture<'static, anyhow::Result<()>> + Send + Sync>;
type Through =
    Arc<dyn Fn(SocketAddr) -> anyhow::Result<(Arc<dyn Storage>, StorageUrl)> + Send + Sync>;

/// What a case returns that finds it cannot judge after all: it is reported as ignored.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Skip(pub &'static str);

/// A storage to be judged.
#[derive(Clone)]
pub struct Subject {
    name: String,
    storage: Arc<dyn Storage>,
    scratch: StorageUrl,
    at_least: Capabilities,
    seed: Option<Seed>,
    network: Option<(SocketAddr, Through)>,
    locked_out: Option<(Arc<dyn Storage>, StorageUrl)>,
    excused: Vec<(&'static str, &'static str)>,
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject")
            .field("name", &self.name)
            .field("storage", &self.storage)
            .finish_non_exhaustive()
    }
}

impl Subject {
    /// A storage, and a directory in it that the suite may fill.
    pub fn new(name: impl Into<String>, storage: Arc<dyn Storage>, scratch: StorageUrl) -> Self {
        Self {
            name: name.into(),
            storage,
            scratch,
            at_least: Capabilities::default(),
            seed: None,
            network: None,
            locked_out: None,
            excused: Vec::new(),
        }
    }

    /// What it must claim, so that a claim that is lost turns into a failure, not into cases that
    /// are ignored.
    #[must_use]
    pub fn at_least(mut self, claims: Capabilities) -> Self {
        self.at_least = claims;
        self
    }

    /// How a file comes to be at a URL, for a storage that does not write.
    #[must_use]
    pub fn seeded<F>(
        mut self,
        seed: impl Fn(StorageUrl, Bytes) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.seed = Some(Arc::new(move |url, bytes| Box::pin(seed(url, bytes))));
        self
    }

    /// Where its server listens, and the same storage and scratch directory by way of another
    /// address, at which a [proxy](crate::proxy) does what networks do.
    #[must_use]
    pub fn reached_through(
        mut self,
        server: SocketAddr,
        through: impl Fn(SocketAddr) -> anyhow::Result<(Arc<dyn Storage>, StorageUrl)>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        self.network = Some((server, Arc::new(through)));
        self
    }

    /// The same server with wrong credentials, and a file there that needs the right ones.
    #[must_use]
    pub fn locked_out(mut self, storage: Arc<dyn Storage>, url: StorageUrl) -> Self {
        self.locked_out = Some((storage, url));
        self
    }

    /// A case that no plugin can pass against this server, and why. It is reported as ignored,
    /// with the reason.
    #[must_use]
    pub fn excused(mut self, case: &'static str, reason: &'static str) -> Self {
        self.excused.push((case, reason));
        self
    }

    fn trials(&self, runtime: &Arc<tokio::runtime::Runtime>, ran: &Arc<AtomicUsize>) -> Vec<Trial> {
        let trial = |case: &'static Case| {
            let (subject, runtime, ran) = (self.clone(), runtime.clone(), ran.clone());
            let run = move || {
                let mut excused = subject.excused.iter();
                if let Some((_, reason)) = excused.find(|(name, _)| *name == case.name) {
                    return Ok(Completion::ignored_with(*reason));
                }
                if let Some(reason) = subject.lacks(case.needs) {
                    return Ok(Completion::ignored_with(reason));
                }
                match runtime.block_on(subject.run(case)) {
                    Err(error) if error.is::<Skip>() => {
                        return Ok(Completion::ignored_with(error));
                    }
                    Err(error) => return Err(Failed::from(format!("{error:?}"))),
                    Ok(()) => ran.fetch_add(1, Ordering::Relaxed),
                };
                Ok(Completion::Completed)
            };
            Trial::ignorable_test(format!("{}::{}", self.name, case.name), run)
        };
        CASES
            .iter()
            .flat_map(|group| group.iter())
            .map(trial)
            .collect()
    }

    async fn run(&self, case: &'static Case) -> anyhow::Result<()> {
        let context = Context::new(self, case.name);
        // A task of its own: a case that panics or hangs takes nothing with it.
        let mut running = tokio::spawn((case.run)(context));
        if let Ok(ended) = tokio::time::timeout(TIMEOUT, &mut running).await {
            ended.context("the case panicked")?
        } else {
            running.abort();
            bail!("it took longer than {} s", TIMEOUT.as_secs());
        }
    }

    /// Why a case cannot run.
    fn lacks(&self, needs: &[Need]) -> Option<String> {
        let claims = self.storage.capabilities();
        let missing = needs.iter().find(|need| match need {
            Need::Claim(_, claimed) => !claimed(&claims),
            Need::NoClaim(_, claimed) => claimed(&claims),
            Need::Files => !claims.write && self.seed.is_none(),
            Need::Network => self.network.is_none(),
            Need::LockedOut => self.locked_out.is_none(),
        })?;
        Some(match missing {
            Need::Claim(name, _) => format!("`{name}` is not claimed"),
            Need::NoClaim(name, _) => format!("`{name}` is claimed"),
            Need::Files => "it writes nothing, and no seed is given".into(),
            Need::Network => "no server address is given".into(),
            Need::LockedOut => "no wrong credentials are given".into(),
        })
    }
}

/// Judges storages, as the `main` of a test with `harness = false`. Takes the arguments of
/// `cargo test`.
pub fn main(subjects: impl AsyncFnOnce() -> anyhow::Result<Vec<Subject>>) -> ExitCode {
    let arguments = Arguments::from_args();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => Arc::new(runtime),
        Err(error) => {
            eprintln!("error: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let subjects = match runtime.block_on(subjects()) {
        Ok(subjects) => subjects,
        Err(error) => {
            eprintln!("error: the storages under test cannot be set up: {error:?}");
            return ExitCode::FAILURE;
        }
    };
    let mut trials = Vec::new();
    let mut counts = Vec::new();
    for subject in &subjects {
        let ran = Arc::<AtomicUsize>::default();
        trials.extend(subject.trials(&runtime, &ran));
        counts.push((&subject.name, ran));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    // With a filter it is for the caller to see how many ran.
    let all = !arguments.list && arguments.filter.is_none() && arguments.skip.is_empty();
    let mut idle = counts
        .iter()
        .filter(|(_, ran)| ran.load(Ordering::Relaxed) == 0)
        .map(|(name, _)| name.as_str())
        .collect::<Vec<_>>();
    if subjects.is_empty() {
        idle.push("(no storage at all)");
    }
    if all && !idle.is_empty() {
        eprintln!("error: not a single case ran for: {}", idle.join(", "));
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}
