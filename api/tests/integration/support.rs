//! A server in this process, and a client that speaks to it.

use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use reqwest::{Method, StatusCode};
use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use tempfile::TempDir;
use tesk_api::auth::{Authenticator, UsersFile};
use tesk_api::config::Config;
use tesk_api::service::{App, server};
use tesk_core::local::SqliteStore;
use tesk_core::local::store::OpenError;
use tesk_core::plan::Plan;
use tesk_core::scheduler::compute::{AttemptId, Compute, ComputeError, Observed, Output, Refusal};
use tesk_core::scheduler::{Handles, TaskStore};
use tesk_core::tes::{PrefixRule, Rules};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The base that the specification names.
pub(crate) const BASE: &str = "/ga4gh/tes/v1";

/// A running service with its store. Stops when dropped.
pub(crate) struct Service {
    pub(crate) address: String,
    pub(crate) store: Arc<dyn TaskStore>,
    pub(crate) client: reqwest::Client,
    pub(crate) app: App,
    data: Option<TempDir>,
    stop: CancellationToken,
    done: Option<tokio::task::JoinHandle<()>>,
}

/// Where nothing runs: a task that has an attempt prints its name, and goes on for ever.
#[derive(Debug)]
struct Prints;

#[async_trait]
impl Compute for Prints {
    async fn submit(&self, _: &AttemptId, _: &Plan) -> Result<(), Refusal> {
        Ok(())
    }

    async fn observe(&self, _: &AttemptId) -> Result<Observed, ComputeError> {
        Ok(Observed::absent())
    }

    async fn watch(&self) -> Result<BoxStream<'static, AttemptId>, ComputeError> {
        Ok(stream::pending().boxed())
    }

    async fn cancel(&self, _: &AttemptId, _: Duration) -> Result<(), ComputeError> {
        Ok(())
    }

    async fn remove(&self, _: &AttemptId) -> Result<(), ComputeError> {
        Ok(())
    }

    async fn attempts(&self) -> Result<Vec<AttemptId>, ComputeError> {
        Ok(Vec::new())
    }

    async fn output(
        &self,
        attempt: &AttemptId,
        executor: usize,
    ) -> Result<Option<Output>, ComputeError> {
        let line = format!("executor {executor} of {attempt}\n");
        let line = stream::once(async { Ok(line.into()) });
        Ok(Some(line.chain(stream::pending()).boxed()))
    }
}

/// A reply, read whole.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) text: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {:?}", self.text))
    }

    /// The `msg` of an error with this status.
    pub(crate) fn error(&self, status: u16) -> String {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        let json = self.json();
        assert_eq!(json["status_code"], status);
        json["msg"].as_str().unwrap().to_owned()
    }
}

pub(crate) fn rules() -> Rules {
    let rule = |prefix: &str| PrefixRule {
        prefix: prefix.into(),
        write: true,
        list: !prefix.starts_with("http"),
    };
    Rules {
        prefixes: vec![
            rule("file:///data"),
            rule("http://"),
            rule("ftp://"),
            rule("s3://"),
        ],
        max_cpu_cores: Some(64),
        ..Rules::default()
    }
}

/// Does for this process what `tesk serve` does for its own.
fn set_up() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        rustls::crypto::ring::default_provider()
            .install_default()
            .unwrap();
        // Both ends of each connection of all tests are here.
        let mut limit = getrlimit(Resource::Nofile);
        limit.current = limit.maximum;
        setrlimit(Resource::Nofile, limit).unwrap();
    });
}

impl Service {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// A service whose configuration `change` has changed.
    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::over(TempDir::new().unwrap(), change).await
    }

    async fn over(data: TempDir, change: impl FnOnce(&mut Config)) -> Self {
        let begun = Instant::now();
        let store = loop {
            match SqliteStore::open(data.path()) {
                // The store's lock goes with its last user.
                Err(OpenError::InUse { .. }) if begun.elapsed() < Duration::from_secs(10) => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                opened => break opened.unwrap(),
            }
        };
        let mut service = Self::over_store(Arc::new(store), change).await;
        service.data = Some(data);
        service
    }

    /// A service over any store.
    pub(crate) async fn over_store(
        store: Arc<dyn TaskStore>,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        Self::beside(store, None, change).await
    }

    /// A service over a store that others may share; `schedules` as in [`App::new`].
    pub(crate) async fn beside(
        store: Arc<dyn TaskStore>,
        schedules: Option<watch::Receiver<bool>>,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        set_up();
        let mut config = Config::default();
        config.server.listen = "127.0.0.1:0".parse().unwrap();
        change(&mut config);
        let auth = match &config.auth.users {
            Some(path) => Authenticator::Users(Box::new(UsersFile::open(path).unwrap())),
            None => Authenticator::Open,
        };
        let engine = Handles {
            store: store.clone(),
            compute: Arc::new(Prints),
            schedules,
        };
        let app = App::new(&config, engine, rules(), Arc::new(auth));
        let listener = server::bind(config.server.listen).await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        let done = tokio::spawn({
            let (app, stop) = (app.clone(), stop.clone());
            async move { server::serve(listener, app.router(), &config.server, stop).await }
        });
        Self {
            address,
            store,
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
            app,
            data: None,
            stop,
            done: Some(done),
        }
    }

    /// Stops this one and starts another on the same data.
    pub(crate) async fn restart(mut self) -> Self {
        self.stop.cancel();
        self.done.take().unwrap().await.unwrap();
        let data = self.data.take().unwrap();
        drop(self);
        Self::over(data, |_| {}).await
    }

    pub(crate) fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        self.client
            .request(method, format!("{}{path}", self.address))
    }

    pub(crate) async fn send(&self, request: reqwest::RequestBuilder) -> Reply {
        let response = request.send().await.unwrap();
        Reply {
            status: response.status(),
            headers: response.headers().clone(),
            text: response.text().await.unwrap(),
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(self.request("GET", path)).await
    }

    /// Posts a document below the specification's base.
    pub(crate) async fn create(&self, task: &Value) -> Reply {
        self.send(self.request("POST", &format!("{BASE}/tasks")).json(task))
            .await
    }

    /// Creates a task and returns its id.
    pub(crate) async fn id_of(&self, task: &Value) -> String {
        let reply = self.create(task).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        let json = reply.json();
        assert_eq!(json.as_object().unwrap().len(), 1);
        json["id"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn task(&self, id: &str, view: &str) -> Value {
        let reply = self.get(&format!("{BASE}/tasks/{id}?view={view}")).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.json()
    }

    /// Ids that a list answers, and the token of the next page.
    pub(crate) async fn list(&self, query: &str) -> (Vec<String>, Option<String>) {
        let reply = self.get(&format!("{BASE}/tasks?{query}")).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        let json = reply.json();
        let tasks = json["tasks"].as_array().unwrap();
        let ids = tasks
            .iter()
            .map(|t| t["id"].as_str().unwrap().to_owned())
            .collect();
        (
            ids,
            json.get("next_page_token")
                .map(|t| t.as_str().unwrap().to_owned()),
        )
    }

    pub(crate) async fn end(&self, id: &str, state: tesk_core::tes::State) {
        let id = id.parse().unwrap();
        let head = self.store.head(&id).await.unwrap().unwrap();
        let update = tesk_core::scheduler::Update {
            state: Some(state),
            ..Default::default()
        };
        self.store.update(&id, head.version, update).await.unwrap();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The smallest task there is.
pub(crate) fn minimal() -> Value {
    json!({ "executors": [{ "image": "alpine", "command": ["true"] }] })
}

/// A minimal task with more members.
pub(crate) fn task(more: &Value) -> Value {
    let mut task = minimal();
    for (key, value) in more.as_object().unwrap() {
        task[key] = value.clone();
    }
    task
}
