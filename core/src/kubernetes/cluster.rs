//! One namespace of a cluster: the connection to it, and how what this engine makes there is
//! named and found.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::Settings;
use crate::scheduler::TaskId;
use crate::time::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::ObjectMeta;
use kube::{Api, Client, Config, Resource};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::time::Instant;

/// The label of everything that this program makes; its value is `tesk`.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The label that tells engines in one namespace apart.
pub const INSTANCE: &str = "app.kubernetes.io/instance";
/// The label that says what an object is for; its values are [`Part`]s.
pub const COMPONENT: &str = "app.kubernetes.io/component";
/// The label that holds the id of the task.
pub const TASK: &str = "tesk.elixir-cloud.org/task";
/// The label of a pod that holds the number of its attempt.
pub const ATTEMPT: &str = "tesk.elixir-cloud.org/attempt";

/// The Secret with the passwords of a task's urls, under the key `secrets.json`.
pub fn secret_name(task: &TaskId) -> String {
    format!("tesk-{task}")
}

/// What tells contents apart in names and labels: the first half of a SHA-256, in hexadecimal digits.
pub(super) fn digest(bytes: &[u8]) -> String {
    hex::encode(&Sha256::digest(bytes)[..16])
}

/// How long an object has been there, by the API server's clock and this machine's.
pub(super) fn age(metadata: &ObjectMeta) -> Duration {
    let created = metadata.creation_timestamp.as_ref();
    created.map_or(Duration::ZERO, |time| {
        Timestamp::now().since(Timestamp::from_millis(time.0.as_millisecond()))
    })
}

/// The key in the data of a task's head without which the pod of an attempt does not start. It is
/// there from when the attempt is reserved until it is concluded.
pub fn permit(attempt: u32) -> String {
    format!("attempt-{attempt}")
}

/// How long the API server may take to answer.
const REQUEST: Duration = Duration::from_secs(30);
/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);

/// One namespace of a cluster, for one engine. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    namespace: String,
    instance: String,
    contact: Arc<Contact>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("namespace", &self.namespace)
            .field("instance", &self.instance)
            .finish_non_exhaustive()
    }
}

/// What an object is for: the value of [`COMPONENT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The pod of an attempt.
    Attempt,
    /// The plan of an attempt, for its pod.
    Plan,
    /// The configuration of the filer.
    Config,
    /// The head of a record.
    Record,
    /// A piece of a large document.
    Document,
    /// What an attempt came to.
    Result,
    /// A used idempotency key.
    Key,
    /// The passwords of a task, and the note that there are any.
    Secret,
    /// What servers agree by on which of them schedules.
    Lease,
}

impl Part {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Attempt => "attempt",
            Self::Plan => "plan",
            Self::Config => "filer-config",
            Self::Record => "record",
            Self::Document => "document",
            Self::Result => "result",
            Self::Key => "idempotency-key",
            Self::Secret => "secret",
            Self::Lease => "lease",
        }
    }
}

impl Cluster {
    /// Reads the credentials and makes a client; nothing is sent yet.
    pub async fn connect(settings: &Settings) -> Result<Self, String> {
        let failed = |error: &dyn fmt::Display| format!("cannot find a cluster: {error}");
        let options = KubeConfigOptions {
            context: settings.context.clone(),
            ..KubeConfigOptions::default()
        };
        let mut config = match (&settings.kubeconfig, &settings.context) {
            (Some(path), _) => {
                let file = Kubeconfig::read_from(path).map_err(|error| {
                    format!("cannot read the kubeconfig {}: {error}", path.display())
                })?;
                Config::from_custom_kubeconfig(file, &options)
                    .await
                    .map_err(|error| failed(&error))?
            }
            (None, Some(_)) => Config::from_kubeconfig(&options)
                .await
                .map_err(|error| failed(&error))?,
            (None, None) => Config::infer().await.map_err(|error| failed(&error))?,
        };
        config.connect_timeout = Some(CONNECT);
        // Whoever asks knows better than the client what to do about a refusal.
        config.default_retry = false;
        let namespace = settings
            .namespace
            .clone()
            .unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(|error| failed(&error))?;
        Ok(Self::new(client, namespace, settings.instance.clone()))
    }

    /// A cluster behind a client, which may be a stand-in.
    pub fn new(client: Client, namespace: String, instance: String) -> Self {
        Self {
            client,
            namespace,
            instance,
            contact: Arc::default(),
        }
    }

    /// The client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The name of this engine.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Whether the API server answers.
    pub(super) fn contact(&self) -> &Contact {
        &self.contact
    }

    /// The objects of one kind in the namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The labels that every object of this engine has.
    pub fn labels(&self, part: Part) -> BTreeMap<String, String> {
        let label = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        BTreeMap::from([
            label(MANAGED_BY, "tesk"),
            label(INSTANCE, &self.instance),
            label(COMPONENT, part.as_str()),
        ])
    }

    /// Selects the objects of this engine that are of one part.
    pub fn selector(&self, part: Part) -> String {
        let labels = self.labels(part);
        let terms: Vec<_> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        terms.join(",")
    }

    /// Waits for an answer, but not for ever, and not while the API server is known to be away.
    /// A request that was given up may still be carried out.
    pub async fn answer<T>(
        &self,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, ApiError> {
        tokio::select! {
            biased;
            reason = self.contact.lost() => Err(ApiError::silence(reason)),
            answer = in_time(REQUEST, request) => answer,
        }
    }
}

async fn in_time<T>(
    limit: Duration,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, ApiError> {
    let Ok(answer) = tokio::time::timeout(limit, request).await else {
        let limit = limit.as_secs_f64();
        return Err(ApiError::silence(format!("no answer within {limit} s")));
    };
    answer.map_err(ApiError::from)
}

/// Whether the API server answers, as far as is known: while it does not, nobody waits for it.
///
/// Somebody has to [try](Contact::try_out) it again and again; the candidate for the
/// [lease](super::lease) does.
#[derive(Debug)]
pub(super) struct Contact {
    /// Why it does not.
    away: watch::Sender<Option<String>>,
    /// Trials in a row without an answer.
    failures: AtomicU32,
    /// When a trial was answered last.
    answered: Mutex<Instant>,
}

impl Default for Contact {
    fn default() -> Self {
        Self {
            away: watch::Sender::default(),
            failures: AtomicU32::default(),
            answered: Mutex::new(Instant::now()),
        }
    }
}

impl Contact {
    /// Makes a request whatever is known, and takes in what comes of it. One connection that
    /// breaks says nothing yet; silence does, and so does a second failure.
    pub(super) async fn try_out<T>(
        &self,
        limit: Duration,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, ApiError> {
        let begun = Instant::now();
        let answer = in_time(limit, request).await;
        match &answer {
            Err(error) if matches!(error.code, 0 | 500..) => {
                let before = self.failures.fetch_add(1, Ordering::Relaxed);
                if before > 0 || begun.elapsed() >= limit {
                    let said = self.away.send_if_modified(|away| {
                        let news = away.is_none();
                        if news {
                            *away = Some(error.message.clone());
                        }
                        news
                    });
                    if said {
                        tracing::warn!(%error, "the API server is away; nothing can be written");
                    }
                }
            }
            _ => {
                self.failures.store(0, Ordering::Relaxed);
                *lock(&self.answered) = Instant::now();
                if self.away.send_if_modified(|away| away.take().is_some()) {
                    tracing::info!("the API server is back");
                }
            }
        }
        answer
    }

    /// Waits until the API server is away; why.
    pub(super) async fn lost(&self) -> String {
        let mut away = self.away.subscribe();
        let lost = away.wait_for(Option::is_some).await;
        match lost.map(|reason| reason.clone()) {
            Ok(Some(reason)) => reason,
            // It fails only if the sender is gone, which is ours.
            _ => std::future::pending().await,
        }
    }

    /// Waits until it is not away any more, if it is.
    pub(super) async fn back(&self) {
        let mut away = self.away.subscribe();
        // As above.
        let _ = away.wait_for(Option::is_none).await;
    }

    /// Whether it is away.
    pub(super) fn is_lost(&self) -> bool {
        self.away.borrow().is_some()
    }

    /// When a trial was answered last.
    pub(super) fn answered(&self) -> Instant {
        *lock(&self.answered)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The API server refused, or did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the cluster's API server: {message}")]
pub struct ApiError {
    /// The status code of the answer; 0 if there was none.
    pub code: u16,
    /// The machine-readable reason, such as `AlreadyExists`.
    pub reason: String,
    /// For people.
    pub message: String,
}

impl ApiError {
    /// There was no answer.
    fn silence(message: String) -> Self {
        Self {
            code: 0,
            reason: String::new(),
            message,
        }
    }

    /// There is no such object.
    pub fn is_not_found(&self) -> bool {
        self.code == 404
    }

    /// Such an object exists already, or is not as the request supposes.
    pub fn is_conflict(&self) -> bool {
        self.code == 409
    }

    /// Such an object exists already.
    pub fn is_there(&self) -> bool {
        self.code == 409 && self.reason == "AlreadyExists"
    }

    /// This engine lacks a right.
    pub fn is_forbidden_to_us(&self) -> bool {
        self.code == 401 || self.code == 403 && self.message.contains("cannot create resource")
    }

    /// This engine is not known or has no right: of old, or because an API server that has just
    /// begun does not know the roles yet. It says nothing of what was asked for.
    pub fn is_denied(&self) -> bool {
        matches!(self.code, 401 | 403)
    }

    /// A quota of the namespace is used up, or not counted yet: it may succeed later.
    pub fn is_quota(&self) -> bool {
        let quota = ["exceeded quota", "status unknown for quota"];
        self.code == 403 && quota.iter().any(|text| self.message.contains(text))
    }

    /// The API server has just begun and cannot judge objects yet.
    fn is_too_early(&self) -> bool {
        self.code == 403 && self.message.contains("not yet ready to handle request")
    }

    /// It may succeed later: no answer, too many requests, or trouble of the server's own.
    pub fn is_temporary(&self) -> bool {
        matches!(self.code, 0 | 408 | 429 | 500..) || self.is_quota() || self.is_too_early()
    }
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self {
                code: status.code,
                reason: status.reason.clone(),
                message: status.message.clone(),
            },
            other => {
                let mut message = other.to_string();
                let mut source = std::error::Error::source(&other);
                while let Some(error) = source {
                    message = format!("{message}: {error}");
                    source = error.source();
                }
                Self::silence(message)
            }
        }
    }
}
