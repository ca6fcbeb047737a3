//! Keeps the index in step with the cluster: one list, then a watch, for ever.
//!
//! Only metadata is transferred. This is not `kube`'s own watcher because that does not tell of
//! bookmarks and of watches that began anew, and a store must know how old its news are.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::PartialObjectMeta;

use super::super::cluster::{ApiError, Part};
use super::object::{Entry, id_of};
use super::{Shared, StoreError};

/// Objects on a page of a list.
const PAGE: u32 = 500;
/// The first wait after a failure; it doubles up to [`MAX_WAIT`].
const WAIT: Duration = Duration::from_millis(100);
const MAX_WAIT: Duration = Duration::from_secs(15);
/// How long a watch lasts, in seconds. A connection that broke silently is noticed after that.
const LASTS: u32 = 120;
/// How much later than it should a watch may end.
const LATE: Duration = Duration::from_secs(15);

/// How old the news are.
#[derive(Debug)]
pub(super) struct Freshness {
    /// When the API server was last heard of.
    heard: Instant,
    /// Why it is not heard of now.
    failing: Option<String>,
}

impl Default for Freshness {
    fn default() -> Self {
        Self {
            heard: Instant::now(),
            failing: None,
        }
    }
}

impl Freshness {
    pub(super) fn heard(&mut self) {
        *self = Self::default();
    }

    /// Whether the index is in step, but for a gap of `patience`.
    pub(super) fn check(&self, patience: Duration) -> Result<(), StoreError> {
        let silent = self.heard.elapsed();
        match &self.failing {
            Some(reason) if silent > patience => Err(StoreError::Unavailable(format!(
                "no news from the cluster for {} s: {reason}",
                silent.as_secs()
            ))),
            _ => Ok(()),
        }
    }
}

/// What a watch came to.
enum End {
    /// It can be continued from where it was.
    Over,
    /// What happened since is forgotten: only a new list helps.
    Expired,
    Failed(ApiError),
}

/// Reads the list of all tasks; the version from which a watch continues it.
pub(super) async fn list(shared: &Shared) -> Result<String, ApiError> {
    let api: Api<PartialObjectMeta<ConfigMap>> = shared.cluster.api();
    let mut params = ListParams::default()
        .labels(&shared.cluster.selector(Part::Record))
        .limit(PAGE);
    let mut listed = HashSet::new();
    loop {
        let page = shared.cluster.answer(api.list(&params)).await?;
        for object in &page.items {
            listed.extend(id_of(&object.metadata));
            take(shared, object);
        }
        // A page is slow for a great many tasks; it is news all the same.
        shared.freshness().heard();
        params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
        if params.continue_token.is_none() {
            let version = page.metadata.resource_version.unwrap_or_default();
            if let Ok(number) = version.parse() {
                shared.index_mut().retain(&listed, number);
            }
            return Ok(version);
        }
    }
}

/// Follows the cluster from `version` on, until it is dropped.
pub(super) async fn follow(shared: Arc<Shared>, mut version: String) {
    let mut wait = WAIT;
    loop {
        let begun = Instant::now();
        let end = watch(&shared, &mut version).await;
        if begun.elapsed() > MAX_WAIT {
            wait = WAIT;
        }
        let failure = match end {
            End::Over => None,
            End::Expired => match list(&shared).await {
                Ok(newest) => {
                    version = newest;
                    None
                }
                Err(error) => Some(error),
            },
            End::Failed(error) => Some(error),
        };
        if let Some(error) = failure {
            tracing::debug!(%error, "the watch of task records failed");
            shared.freshness().failing = Some(error.to_string());
        }
        // Also after an end that was in order, so that a server that ends every watch at once
        // is not asked without pause.
        tokio::time::sleep(wait.mul_f64(rand::random_range(0.5..1.0))).await;
        wait = (wait * 2).min(MAX_WAIT);
    }
}

async fn watch(shared: &Shared, version: &mut String) -> End {
    let api: Api<PartialObjectMeta<ConfigMap>> = shared.cluster.api();
    let params = WatchParams::default()
        .labels(&shared.cluster.selector(Part::Record))
        .timeout(LASTS);
    let events = shared.cluster.answer(api.watch(&params, version)).await;
    let mut events = match events {
        Ok(events) => Box::pin(events),
        Err(error) if error.code == 410 => return End::Expired,
        Err(error) => return End::Failed(error),
    };
    shared.freshness().heard();
    let ends = tokio::time::sleep(Duration::from_secs(LASTS.into()) + LATE);
    let mut ends = std::pin::pin!(ends);
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = &mut ends => {
                return End::Failed(ApiError {
                    code: 0,
                    reason: String::new(),
                    message: "the watch went silent".to_owned(),
                });
            }
        };
        match event {
            None => return End::Over,
            Some(Ok(WatchEvent::Error(status))) if status.code == 410 => return End::Expired,
            Some(Ok(WatchEvent::Error(status))) => {
                return End::Failed(kube::Error::Api(status).into());
            }
            Some(Err(error)) => return End::Failed(error.into()),
            Some(Ok(WatchEvent::Bookmark(bookmark))) => {
                version.clone_from(&bookmark.metadata.resource_version);
            }
            Some(Ok(WatchEvent::Added(object) | WatchEvent::Modified(object))) => {
                take(shared, &object);
                if let Some(newest) = object.metadata.resource_version {
                    *version = newest;
                }
            }
            Some(Ok(WatchEvent::Deleted(object))) => {
                if let Some(id) = id_of(&object.metadata) {
                    shared.index_mut().remove(&id);
                }
                if let Some(newest) = object.metadata.resource_version {
                    *version = newest;
                }
            }
        }
        shared.freshness().heard();
    }
}

/// Takes a head into the index. One that cannot be read is told of once and harms no other.
fn take(shared: &Shared, object: &PartialObjectMeta<ConfigMap>) {
    let Some(id) = id_of(&object.metadata) else {
        return;
    };
    match Entry::read(&id, &object.metadata) {
        Ok(entry) => shared.apply(entry),
        Err(reason) => shared.broke(&id, &reason),
    }
}
