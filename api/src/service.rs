//! The HTTP service: GA4GH TES 1.1 over any [`TaskStore`].
//!
//! - [`front`]: what happens to every request, before and after its handler.
//! - [`tasks`]: create, get, list, cancel.
//! - [`output`]: what an executor prints, while it does.
//! - [`info`]: the description of the service.
//! - [`openapi`] and [`docs`]: the description of the API, for programs and for people.
//! - [`operator`]: health, readiness, metrics.
//! - [`error`]: the one shape of every reply that is not a success.
//! - [`reply`]: room for large replies.
//! - [`server`]: connections, from the socket to a graceful end.

mod body;
mod docs;
mod error;
mod front;
mod info;
mod metrics;
pub mod openapi;
mod operator;
mod origin;
mod output;
mod reply;
pub mod server;
mod tasks;

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::middleware::from_fn_with_state;
use axum::routing::{any, get};
use bytes::Bytes;
use tesk_core::scheduler::{Compute, Handles, TaskStore};
use tesk_core::tes::Rules;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

pub use error::{ApiError, ErrorBody};
pub use info::LegacyServiceInfo;

use crate::auth::{Authenticator, Caller};
use crate::config::Config;
use body::BodyReader;
use metrics::Metrics;
use origin::OriginGuard;
use reply::Replies;

/// The bases of the API: the specification's, and the one of older clients.
pub const BASES: [&str; 2] = ["/ga4gh/tes/v1", "/v1"];

/// Large documents that are read at the same time: while it is read, one can take a hundred
/// times its size, 70 MiB at most.
const LARGE_READS: usize = 1;
/// Lists with documents that are read from the store at the same time: 32 MiB and a record each.
const LISTS: usize = 2;
/// Tasks with documents that are read from the store at the same time.
const SHOWN: usize = 4;
/// Bytes of large replies that are in memory at the same time: two of the largest lists.
const REPLIES: usize = 96 << 20;

/// The state that all handlers share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct App(Arc<Inner>);

/// See [`App`].
#[derive(Debug)]
pub struct Inner {
    store: Arc<dyn TaskStore>,
    compute: Arc<dyn Compute>,
    schedules: Option<watch::Receiver<bool>>,
    rules: Rules,
    auth: Arc<Authenticator>,
    guard: OriginGuard,
    bodies: BodyReader,
    large_reads: Arc<Semaphore>,
    lists: Arc<Semaphore>,
    shown: Arc<Semaphore>,
    readers: Arc<Semaphore>,
    replies: Replies,
    metrics: Metrics,
    service_info: Bytes,
    legacy_service_info: Bytes,
    openapi: Bytes,
    context_path: String,
    request_timeout: Duration,
    idempotency: Duration,
    stopping: CancellationToken,
}

impl Deref for App {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl App {
    /// The service of `config` over an engine. `rules` name the storages that are served.
    pub fn new(config: &Config, engine: Handles, rules: Rules, auth: Arc<Authenticator>) -> Self {
        let Handles {
            store,
            compute,
            schedules,
        } = engine;
        let open = matches!(*auth, Authenticator::Open);
        let server = &config.server;
        let info = info::describe(&config.service_info, &rules);
        Self(Arc::new(Inner {
            store,
            compute,
            schedules,
            guard: OriginGuard::new(&server.allowed_origins, server.listen, open),
            bodies: BodyReader::new(server.max_body.0 as usize, server.request_timeout.0),
            large_reads: Arc::new(Semaphore::new(LARGE_READS)),
            lists: Arc::new(Semaphore::new(LISTS)),
            shown: Arc::new(Semaphore::new(SHOWN)),
            readers: Arc::new(Semaphore::new(output::READERS)),
            replies: Replies::new(REPLIES),
            metrics: Metrics::new(),
            legacy_service_info: json(&LegacyServiceInfo::from(&info)),
            service_info: json(&info),
            openapi: json(&openapi::document(open)),
            context_path: server.context_path.clone(),
            request_timeout: server.request_timeout.0,
            idempotency: config.limits.idempotency.0,
            stopping: CancellationToken::new(),
            rules,
            auth,
        }))
    }

    /// From now on no task is taken: the server is about to end.
    pub fn stop(&self) {
        self.stopping.cancel();
    }

    /// Whether it is the engine of this process that schedules.
    fn schedules(&self) -> bool {
        let schedules = self.schedules.as_ref();
        schedules.is_none_or(|schedules| *schedules.borrow())
    }

    /// Every path that is served.
    pub fn router(&self) -> Router {
        let mut router = Router::new()
            .route("/healthz", get(operator::healthz))
            .route("/readyz", get(operator::readyz))
            .route("/metrics", get(operator::metrics));
        let mut contexts = vec![""];
        if !self.context_path.is_empty() {
            contexts.push(&self.context_path);
            router = router.route(&self.context_path, get(docs::redirect));
        }
        for context in contexts {
            for base in BASES {
                let base = format!("{context}{base}");
                router = router
                    .route(&format!("{base}/service-info"), get(info::service_info))
                    .route(&format!("{base}/tasks/service-info"), get(info::legacy))
                    .route(&format!("{base}/openapi.json"), get(openapi::serve))
                    .route(
                        &format!("{base}/tasks"),
                        get(tasks::list).post(tasks::create),
                    )
                    .route(&format!("{base}/tasks/{{id}}"), any(tasks::one));
            }
            router = router
                .route(&format!("{context}/"), get(docs::redirect))
                .route(&format!("{context}/docs"), get(docs::redirect))
                .route(&format!("{context}/docs/"), get(docs::page))
                .route(&format!("{context}/docs/{{file}}"), get(docs::asset));
        }
        router
            .fallback(async || ApiError::no_such_path())
            .method_not_allowed_fallback(async |request: axum::extract::Request| {
                let tasks = request.uri().path().ends_with("/tasks");
                ApiError::method_not_allowed(if tasks {
                    "GET, HEAD, POST"
                } else {
                    "GET, HEAD"
                })
            })
            .layer(from_fn_with_state(self.clone(), front::front))
            .with_state(self.clone())
    }
}

/// JSON that is the same in every reply.
fn json(value: &impl serde::Serialize) -> Bytes {
    serde_json::to_vec(value).unwrap_or_default().into()
}

/// Asks for credentials; handlers that do not take a [`Caller`] are open to all.
impl FromRequestParts<App> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        app.auth.authenticate(&parts.headers).await
    }
}
