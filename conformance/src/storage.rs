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
//! case proves that the operation is refused. A subject none of whose cases ran has failed. What a
//! case has written is removed after it, where the storage can list and remove: a case after which
//! something stays has failed. What a storage does not show, its [server](Subject::leftovers) tells.
//!
//! With [`REPORT`] in the environment, [`main`] also writes [`Report`]s. The command
//! `tesk-conformance` judges the storages of a configuration.

mod cases;
mod clean;
mod context;
mod report;
mod watched;

use std::fmt;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tesk_core::storage::{Capabilities, Storage, StorageUrl};

pub use cases::{CASES, Case, Need};
pub use context::Context;
use watched::Secrets;

pub use report::{Judged, Outcome, REPORT, Report};

/// How long one case may take.
const TIMEOUT: Duration = Duration::from_mins(10);
/// How long a storage may go on to clean up after what was dropped.
const CLEANING: Duration = Duration::from_secs(5);

/// What is judged when all cases are over, where a subject tells its [leftovers](Subject::leftovers).
pub const NOTHING_IS_LEFT: &str = "nothing_is_left_at_the_server";

type Seed = Arc<dyn Fn(StorageUrl, Bytes) -> BoxFuture<'static, anyhow::Result<()>> + Send + Sync>;
type Leftovers = Arc<dyn Fn() -> BoxFuture<'static, Vec<String>> + Send + Sync>;
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
    server: Option<String>,
    storage: Arc<dyn Storage>,
    scratch: StorageUrl,
    at_least: Capabilities,
    seed: Option<Seed>,
    network: Option<(SocketAddr, Through)>,
    locked_out: Option<(Arc<dyn Storage>, StorageUrl)>,
    excused: Vec<(&'static str, &'static str)>,
    leftovers: Option<Leftovers>,
    secrets: Vec<String>,
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
            secrets: scratch.password().map(str::to_owned).into_iter().collect(),
            name: name.into(),
            server: None,
            storage,
            scratch,
            at_least: Capabilities::default(),
            seed: None,
            network: None,
            locked_out: None,
            excused: Vec::new(),
            leftovers: None,
        }
    }

    /// Which server it is judged against, for reports.
    #[must_use]
    pub fn on(mut self, server: impl Into<String>) -> Self {
        self.server = Some(server.into());
        self
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

    /// What the storage was configured with and no error may show, in any case: passwords, keys,
    /// tokens. Those in URLs are known anyway.
    #[must_use]
    pub fn secrets(mut self, secrets: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.secrets.extend(secrets.into_iter().map(Into::into));
        self
    }

    /// A case that no plugin can pass against this server, and why. It is reported as ignored,
    /// with the reason.
    #[must_use]
    pub fn excused(mut self, case: &'static str, reason: &'static str) -> Self {
        self.excused.push((case, reason));
        self
    }

    /// What is left at its server that the storage itself does not show: temporary files, uploads
    /// in parts that nobody ends. Looked at when all cases are over; there must be none.
    #[must_use]
    pub fn leftovers<F>(mut self, look: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Vec<String>> + Send + 'static,
    {
        self.leftovers = Some(Arc::new(move || Box::pin(look())));
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn trials(
        &self,
        runtime: &Arc<tokio::runtime::Runtime>,
        judged: &Arc<Mutex<Vec<Judged>>>,
    ) -> Vec<Trial> {
        let trial = |case: &'static Case| {
            let (subject, runtime, all) = (self.clone(), runtime.clone(), judged.clone());
            let run = move || {
                let judged = runtime.block_on(subject.judge(case));
                let outcome = judged.outcome.clone();
                all.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(judged);
                match outcome {
                    Outcome::Passed => Ok(Completion::Completed),
                    Outcome::Ignored(reason) => Ok(Completion::ignored_with(reason)),
                    Outcome::Failed(why) => Err(Failed::from(why)),
                }
            };
            Trial::ignorable_test(format!("{}::{}", self.name, case.name), run)
        };
        cases().map(trial).collect()
    }

    /// Judges one case, and removes what it has written, where the storage can.
    pub async fn judge(&self, case: &'static Case) -> Judged {
        let begin = Instant::now();
        let mut excused = self.excused.iter();
        let excuse = excused.find(|(name, _)| *name == case.name);
        let excuse = excuse.map(|(_, reason)| (*reason).to_owned());
        let outcome = match excuse.or_else(|| self.lacks(case.needs)) {
            Some(reason) => Outcome::Ignored(reason),
            None => match self.run(case).await {
                Ok(()) => Outcome::Passed,
                Err(error) if error.is::<Skip>() => Outcome::Ignored(error.to_string()),
                Err(error) => Outcome::Failed(told(&error)),
            },
        };
        Judged {
            case: case.name,
            outcome,
            took: begin.elapsed(),
        }
    }

    /// Judges what is left at the server after these cases, where that is known.
    async fn judge_leftovers(&self, cases: &[Judged]) -> Option<Judged> {
        let look = self.leftovers.as_ref()?;
        let ran = |judged: &Judged| !matches!(judged.outcome, Outcome::Ignored(_));
        if !cases.iter().any(ran) {
            return None;
        }
        let begin = Instant::now();
        let outcome = loop {
            let left = look().await;
            if left.is_empty() {
                break Outcome::Passed;
            }
            if begin.elapsed() > CLEANING {
                break Outcome::Failed(format!("{} are left: {}", left.len(), left.join(", ")));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        Some(Judged {
            case: NOTHING_IS_LEFT,
            outcome,
            took: begin.elapsed(),
        })
    }

    /// Judges all cases of which `chosen` is true, `at_once` of them at the same time, and calls
    /// `each` as they end; in the end also what is [left](Self::leftovers).
    pub async fn judge_all(
        &self,
        chosen: impl Fn(&Case) -> bool,
        at_once: usize,
        mut each: impl FnMut(&Judged),
    ) -> Report {
        let chosen = cases().filter(|case| chosen(case));
        let mut judged = stream::iter(chosen.map(|case| self.judge(case)).collect::<Vec<_>>())
            .buffer_unordered(at_once.max(1));
        let mut all = Vec::new();
        while let Some(judged) = judged.next().await {
            each(&judged);
            all.push(judged);
        }
        if let Some(judged) = self.judge_leftovers(&all).await {
            each(&judged);
            all.push(judged);
        }
        self.report(all)
    }

    /// Removes the scratch directory with all that is in it, where the storage can. Gives the
    /// reason why something is left.
    pub async fn remove_scratch(&self) -> Result<(), String> {
        clean::remove(&self.storage, &self.scratch, CLEANING).await
    }

    fn report(&self, mut cases: Vec<Judged>) -> Report {
        let place = |judged: &Judged| {
            let found = self::cases().position(|case| case.name == judged.case);
            found.unwrap_or(usize::MAX)
        };
        cases.sort_by_key(place);
        Report {
            subject: self.name.clone(),
            server: self.server.clone(),
            claims: self.storage.capabilities(),
            cases,
        }
    }

    async fn run(&self, case: &'static Case) -> anyhow::Result<()> {
        let secrets = Secrets::new(&self.secrets);
        let context = Context::new(self, case.name, &secrets);
        let directory = context.directory().clone();
        // A task of its own: a case that panics or hangs takes nothing with it.
        let mut running = tokio::spawn((case.run)(context));
        let ended = if let Ok(ended) = tokio::time::timeout(TIMEOUT, &mut running).await {
            ended.context("the case panicked").flatten()
        } else {
            running.abort();
            Err(anyhow!("it took longer than {} s", TIMEOUT.as_secs()))
        };
        // What has failed need not be waited for.
        let patience = ended.as_ref().map_or(Duration::ZERO, |()| CLEANING);
        let cleaned = clean::remove(&self.storage, &directory, patience).await;
        ended?;
        if let Some(told) = secrets.told() {
            bail!("an error shows a secret: {told}");
        }
        let claims = self.storage.capabilities();
        if claims.list && claims.remove {
            cleaned.map_err(|why| anyhow!("what it has written cannot be removed: {why}"))?;
        }
        Ok(())
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
    let mut all = Vec::new();
    for subject in &subjects {
        let judged = Arc::default();
        trials.extend(subject.trials(&runtime, &judged));
        all.push((subject, judged));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    let mut reports = Vec::new();
    let mut left = false;
    for (subject, judged) in all {
        let judged = std::mem::take(&mut *judged.lock().unwrap_or_else(PoisonError::into_inner));
        let mut judged: Vec<Judged> = judged;
        if let Some(last) = runtime.block_on(subject.judge_leftovers(&judged)) {
            if let Outcome::Failed(why) = &last.outcome {
                eprintln!("error: {}::{NOTHING_IS_LEFT}: {why}", subject.name);
                left = true;
            }
            judged.push(last);
        }
        reports.push(subject.report(judged));
    }
    // With a filter it is for the caller to see how many ran.
    let all = !arguments.list && arguments.filter.is_none() && arguments.skip.is_empty();
    if all && let Some(complaint) = Report::idle(&reports) {
        eprintln!("error: {complaint}");
        return ExitCode::FAILURE;
    }
    if let Err(error) = Report::append(&reports) {
        eprintln!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    if left {
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}

/// An error with its causes in one line, and without a backtrace: reports are for other machines.
fn told(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for (cause, next) in error.chain().zip(error.chain().skip(1)) {
        // It tells its own causes.
        if cause.is::<tesk_core::storage::Error>() {
            break;
        }
        text.push_str(": ");
        text.push_str(&next.to_string());
    }
    text
}

/// All cases in their order.
fn cases() -> impl Iterator<Item = &'static Case> {
    CASES.iter().flat_map(|group| group.iter())
}
