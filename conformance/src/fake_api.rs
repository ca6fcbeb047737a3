//! A stand-in for the API server of Kubernetes, in memory and without sockets.
//!
//! [`FakeApi`] is a [`tower::Service`], so it can be what a `kube::Client` talks to. It knows
//! what is the same for every namespaced resource (`/api/v1/namespaces/…` and
//! `/apis/<group>/<version>/namespaces/…`, whatever the plural): names, uids, resource versions
//! that grow, compare-and-set, preconditions of deletes, finalizers and graceful deletion of
//! pods, selectors by equality, pages, watches with bookmarks and compaction, metadata-only
//! answers, dry runs, immutable `ConfigMaps` and the limits on sizes. Nothing runs pods: a test
//! plays the kubelet with [`FakeApi::edit`] and [`FakeApi::remove`]. The log of a pod is what it
//! has put into the pod's field `log`.
//!
//! Faults come from one hook that sees each call before it is answered: see
//! [`FakeApi::intercept`]. One client among several is cut off by its [`Line`].

mod answer;
mod line;
mod state;
mod watch;

use std::collections::BTreeMap;
use std::error::Error;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use serde_json::Value;

pub use self::line::Line;
use self::state::State;

type BoxError = Box<dyn Error + Send + Sync>;
/// The body of an answer.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// The API server. Clones are the same server.
#[derive(Clone)]
pub struct FakeApi(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    intercept: Mutex<Option<Interceptor>>,
    /// The newest version, for those who wait for changes.
    newest: tokio::sync::watch::Sender<u64>,
    /// Grows when all watches are to be cut.
    cuts: tokio::sync::watch::Sender<u64>,
}

/// Sees each call, and may let it go wrong.
pub type Interceptor = Box<dyn FnMut(&Call) -> Option<Fault> + Send>;

/// One request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete` or `deletecollection`.
    pub verb: &'static str,
    /// The plural, with the subresource if there is one: `pods`, `pods/status`.
    pub resource: String,
    /// The object's name; empty where the call is about all of them, or about a new one.
    pub name: String,
}

/// What goes wrong with a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is refused with this status code and nothing is done.
    Refuse(u16),
    /// It is refused with this status code and message.
    RefuseWith(u16, String),
    /// The connection breaks before it is carried out.
    Lose,
    /// It is carried out and the connection breaks before the answer.
    LoseAnswer,
    /// It is carried out after this time.
    Delay(Duration),
    /// It is never answered.
    Hang,
}

impl std::fmt::Debug for FakeApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeApi").finish_non_exhaustive()
    }
}

impl Default for FakeApi {
    fn default() -> Self {
        Self(Arc::new(Shared {
            state: Mutex::default(),
            intercept: Mutex::default(),
            newest: tokio::sync::watch::Sender::new(0),
            cuts: tokio::sync::watch::Sender::new(0),
        }))
    }
}

impl FakeApi {
    /// An empty server.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on `interceptor` sees each call first. It replaces the one before.
    pub fn intercept(&self, interceptor: impl FnMut(&Call) -> Option<Fault> + Send + 'static) {
        *lock(&self.0.intercept) = Some(Box::new(interceptor));
    }

    /// No call goes wrong from now on.
    pub fn heal(&self) {
        *lock(&self.0.intercept) = None;
    }

    /// Breaks the connections of all watches.
    pub fn cut_watches(&self) {
        self.0.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Forgets all history: a watch that continues from an older version gets 410.
    pub fn compact(&self) {
        self.state().compact();
    }

    /// How many requests there were of each verb and resource, as `create configmaps`.
    pub fn requests(&self) -> BTreeMap<String, u64> {
        self.state().requests.clone()
    }

    /// How many requests there were in all, watches left out.
    pub fn request_count(&self) -> u64 {
        let requests = self.requests();
        let counted = requests.iter().filter(|(key, _)| !key.starts_with("watch"));
        counted.map(|(_, count)| count).sum()
    }

    /// All objects of a plural, in every namespace, by name.
    pub fn objects(&self, plural: &str) -> Vec<Value> {
        self.state().objects(plural)
    }

    /// One object.
    pub fn object(&self, plural: &str, name: &str) -> Option<Value> {
        let all = self.objects(plural);
        all.into_iter()
            .find(|object| object["metadata"]["name"] == name)
    }

    /// Changes an object behind the back of every client, as a kubelet or an operator does.
    /// Whether it is there.
    pub fn edit(&self, plural: &str, name: &str, change: impl FnOnce(&mut Value)) -> bool {
        let done = self.state().edit(plural, name, change);
        self.announce();
        done
    }

    /// Takes an object away, whatever its finalizers, as a kubelet or an operator does. Whether
    /// it was there.
    pub fn remove(&self, plural: &str, name: &str) -> bool {
        let done = self.state().remove_by_name(plural, name);
        self.announce();
        done
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0.state)
    }

    fn announce(&self) {
        let version = self.state().version();
        self.0.newest.send_modify(|newest| *newest = version);
    }

    fn fault(&self, call: &Call) -> Option<Fault> {
        let mut state = self.state();
        let key = format!("{} {}", call.verb, call.resource);
        *state.requests.entry(key).or_default() += 1;
        drop(state);
        lock(&self.0.intercept)
            .as_mut()
            .and_then(|intercept| intercept(call))
    }
}

impl<B> tower::Service<Request<B>> for FakeApi
where
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Body>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let server = self.clone();
        let answer = async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map_err(Into::into)?.to_bytes();
            server.answer(&parts, &body).await
        };
        let answer: Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(answer);
        answer
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
