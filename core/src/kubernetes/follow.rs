//! Keeps what is known of one part of the cluster in step with it: one list, then a watch, for
//! ever.
//!
//! This is not `kube`'s own watcher because that does not tell of bookmarks and of watches that
//! began anew, and a store must know how old its news are.

use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use k8s_openapi::NamespaceResourceScope;
use kube::Resource;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::ObjectMeta;
use serde::de::DeserializeOwned;

use super::cluster::{ApiError, Cluster, Part};

/// The first wait after a failure; it doubles up to [`MAX_WAIT`].
const WAIT: Duration = Duration::from_millis(100);
const MAX_WAIT: Duration = Duration::from_secs(15);
/// How long a watch lasts, in seconds. A connection that broke silently is noticed after that.
const LASTS: u32 = 120;
/// How much later than it should a watch may end.
const LATE: Duration = Duration::from_secs(15);

/// What is told of the objects of one part.
pub(super) trait Follower: Send + Sync {
    /// The objects; `PartialObjectMeta` of a kind transfers metadata only.
    type Object: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + fmt::Debug
        + DeserializeOwned
        + Send
        + 'static;
    /// What tells objects apart.
    type Id: Eq + Hash + Send + Sync;

    /// The part that is followed.
    const PART: Part;
    /// Objects on a page of the list.
    const PAGE: u32 = 500;

    /// `None` for an object that is nothing of ours.
    fn id(metadata: &ObjectMeta) -> Option<Self::Id>;

    /// The object is there, and is new or has changed.
    fn take(&self, id: Self::Id, object: Self::Object);

    /// The object is gone.
    fn gone(&self, id: &Self::Id);

    /// A list is complete, all of which was taken: what is not in it was gone at this version.
    fn keep_only(&self, listed: &HashSet<Self::Id>, version: Option<u64>);

    /// The API server was heard of.
    fn heard(&self) {}

    /// It was not.
    fn failed(&self, _error: &ApiError) {}
}

/// What a watch came to.
enum End {
    /// It can be continued from where it was.
    Over,
    /// What happened since is forgotten: only a new list helps.
    Expired,
    Failed(ApiError),
}

/// Reads the list of all objects; the version from which a watch continues it.
pub(super) async fn list<F: Follower>(cluster: &Cluster, follower: &F) -> Result<String, ApiError> {
    let api = cluster.api::<F::Object>();
    let mut params = ListParams::default()
        .labels(&cluster.selector(F::PART))
        .limit(F::PAGE);
    let mut listed = HashSet::new();
    loop {
        let page = cluster.answer(api.list(&params)).await?;
        for object in page.items {
            listed.extend(F::id(object.meta()));
            if let Some(id) = F::id(object.meta()) {
                follower.take(id, object);
            }
        }
        // A page is slow for a great many objects; it is news all the same.
        follower.heard();
        params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
        if params.continue_token.is_none() {
            let version = page.metadata.resource_version.unwrap_or_default();
            follower.keep_only(&listed, version.parse().ok());
            return Ok(version);
        }
    }
}

/// Follows the cluster from `version` on, until it is dropped. Without a version a list comes
/// first.
pub(super) async fn follow<F: Follower>(
    cluster: &Cluster,
    follower: &F,
    mut version: Option<String>,
) {
    let mut wait = WAIT;
    loop {
        let begun = Instant::now();
        let end = match &mut version {
            Some(version) => watch(cluster, follower, version).await,
            None => End::Expired,
        };
        if begun.elapsed() > MAX_WAIT {
            wait = WAIT;
        }
        let failure = match end {
            End::Over => None,
            End::Expired => match list(cluster, follower).await {
                Ok(newest) => {
                    version = Some(newest);
                    None
                }
                Err(error) => Some(error),
            },
            End::Failed(error) => Some(error),
        };
        if let Some(error) = failure {
            tracing::warn!(%error, part = F::PART.as_str(), "a watch was interrupted");
            follower.failed(&error);
        }
        // Also after an end that was in order, so that a server that ends every watch at once
        // is not asked without pause.
        let pause = tokio::time::sleep(wait.mul_f64(rand::random_range(0.5..1.0)));
        let contact = cluster.contact();
        if contact.is_lost() {
            tokio::select! {
                () = pause => {}
                () = contact.back() => wait = WAIT,
            }
        } else {
            pause.await;
        }
        wait = (wait * 2).min(MAX_WAIT);
    }
}

async fn watch<F: Follower>(cluster: &Cluster, follower: &F, version: &mut String) -> End {
    let api = cluster.api::<F::Object>();
    let params = WatchParams::default()
        .labels(&cluster.selector(F::PART))
        .timeout(LASTS);
    let events = cluster.answer(api.watch(&params, version)).await;
    let mut events = match events {
        Ok(events) => Box::pin(events),
        Err(error) if error.code == 410 => return End::Expired,
        Err(error) => return End::Failed(error),
    };
    follower.heard();
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
        let newest = match event {
            None => return End::Over,
            Some(Ok(WatchEvent::Error(status))) if status.code == 410 => return End::Expired,
            Some(Ok(WatchEvent::Error(status))) => {
                return End::Failed(kube::Error::Api(status).into());
            }
            Some(Err(error)) => return End::Failed(error.into()),
            Some(Ok(WatchEvent::Bookmark(bookmark))) => Some(bookmark.metadata.resource_version),
            Some(Ok(WatchEvent::Added(object) | WatchEvent::Modified(object))) => {
                let newest = object.meta().resource_version.clone();
                if let Some(id) = F::id(object.meta()) {
                    follower.take(id, object);
                }
                newest
            }
            Some(Ok(WatchEvent::Deleted(object))) => {
                if let Some(id) = F::id(object.meta()) {
                    follower.gone(&id);
                }
                object.meta().resource_version.clone()
            }
        };
        if let Some(newest) = newest {
            *version = newest;
        }
        follower.heard();
    }
}
