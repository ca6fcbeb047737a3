//! What is known of all pods, kept up to date by a watch.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ObjectMeta;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};

use crate::kubernetes::cluster::{ATTEMPT, Cluster, Part, TASK};
use crate::kubernetes::pod::PLAN;
use crate::scheduler::compute::AttemptId;
use crate::scheduler::hints::Hints;

/// The status of every pod.
#[derive(Debug, Default)]
pub(super) struct Pods {
    known: RwLock<HashMap<AttemptId, Arc<Pod>>>,
    /// Attempts whose pods changed.
    pub(super) hints: Hints,
    /// Whether all pods are known.
    complete: tokio::sync::watch::Sender<bool>,
}

impl Pods {
    pub(super) fn get(&self, attempt: &AttemptId) -> Option<Arc<Pod>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(attempt).cloned()
    }

    /// A pod that this engine has made itself; the watch may have told of it already.
    pub(super) fn insert(&self, attempt: &AttemptId, pod: Pod) {
        let mut known = self.write();
        known
            .entry(attempt.clone())
            .or_insert_with(|| Arc::new(pod));
    }

    pub(super) fn remove(&self, attempt: &AttemptId) {
        self.write().remove(attempt);
    }

    /// All of them; waits until all are known.
    pub(super) async fn all(&self) -> Vec<AttemptId> {
        // It fails only if the sender is gone, which is ours.
        let _ = self
            .complete
            .subscribe()
            .wait_for(|complete| *complete)
            .await;
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.keys().cloned().collect()
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<AttemptId, Arc<Pod>>> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, event: Event<Pod>, listed: &mut HashMap<AttemptId, Arc<Pod>>) {
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(pod) => {
                if let Some(attempt) = attempt_of(&pod.metadata) {
                    listed.insert(attempt, Arc::new(without_plan(pod)));
                }
            }
            Event::InitDone => {
                let before = std::mem::replace(&mut *self.write(), std::mem::take(listed));
                self.complete.send_replace(true);
                let now: Vec<_> = {
                    let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
                    known.keys().cloned().collect()
                };
                // Also those that went while nobody watched.
                for attempt in before.keys().chain(&now) {
                    self.hints.send(attempt);
                }
            }
            Event::Apply(pod) => {
                if let Some(attempt) = attempt_of(&pod.metadata) {
                    let pod = Arc::new(without_plan(pod));
                    self.write().insert(attempt.clone(), pod);
                    self.hints.send(&attempt);
                }
            }
            Event::Delete(pod) => {
                if let Some(attempt) = attempt_of(&pod.metadata) {
                    self.remove(&attempt);
                    self.hints.send(&attempt);
                }
            }
        }
    }
}

/// Keeps `pods` up to date; never ends. A watch that breaks or is too old begins anew with a
/// list, after a wait that grows.
pub(super) async fn follow(cluster: Cluster, pods: Arc<Pods>) {
    let config = watcher::Config::default().labels(&cluster.selector(Part::Attempt));
    let mut events = watcher::watcher(cluster.api::<Pod>(), config)
        .default_backoff()
        .boxed();
    let mut listed = HashMap::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => pods.take(event, &mut listed),
            Err(error) => tracing::warn!(%error, "the watch of pods was interrupted"),
        }
    }
}

/// The attempt that an object is for.
pub(super) fn attempt_of(metadata: &ObjectMeta) -> Option<AttemptId> {
    let labels = metadata.labels.as_ref()?;
    let number = labels.get(ATTEMPT)?.parse().ok()?;
    let task = labels.get(TASK)?.parse().ok()?;
    Some(AttemptId { task, number })
}

/// What is worth being remembered of a pod: thousands of them are.
pub(super) fn without_plan(mut pod: Pod) -> Pod {
    pod.spec = None;
    pod.metadata.managed_fields = None;
    if let Some(annotations) = &mut pod.metadata.annotations {
        annotations.remove(PLAN);
    }
    pod
}
