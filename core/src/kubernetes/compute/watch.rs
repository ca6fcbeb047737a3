//! What is known of all pods, kept up to date by a watch.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use kube::api::ObjectMeta;

use crate::kubernetes::cluster::{ATTEMPT, Part, TASK};
use crate::kubernetes::follow::Follower;
use crate::kubernetes::pod::{self, CONFIG_VOLUME, PLAN_PARTS, STOP};
use crate::scheduler::compute::AttemptId;
use crate::scheduler::hints::Hints;

/// How long it may take until all pods are known, at the start.
const COMPLETE: Duration = Duration::from_mins(1);

/// How long it is remembered that a pod was there: longer than the scheduler takes to look.
const REMEMBER: Duration = Duration::from_mins(10);

/// What is noted of a pod that mounts another server's configuration of the filer: its name.
const OTHER_CONFIG: &str = "tesk.elixir-cloud.org/filer-config";

/// The status of every pod.
#[derive(Debug, Default)]
pub(super) struct Pods {
    /// The filer's configuration that new pods mount.
    filer_config: String,
    known: RwLock<HashMap<AttemptId, Arc<Pod>>>,
    /// Attempts whose pods were there.
    past: Mutex<Past>,
    /// Attempts whose pods changed.
    pub(super) hints: Hints,
    /// Whether all pods are known.
    complete: tokio::sync::watch::Sender<bool>,
}

/// Attempts whose pods are gone, or are not known of for a moment. A pod that somebody has removed
/// before its task was said to have begun must not be taken for one that was never made.
#[derive(Debug, Default)]
struct Past {
    attempts: HashSet<AttemptId>,
    order: VecDeque<(Instant, AttemptId)>,
}

impl Past {
    fn note(&mut self, attempt: &AttemptId, now: Instant) {
        while let Some((time, old)) = self.order.front()
            && now.duration_since(*time) > REMEMBER
        {
            self.attempts.remove(old);
            self.order.pop_front();
        }
        if self.attempts.insert(attempt.clone()) {
            self.order.push_back((now, attempt.clone()));
        }
    }
}

impl Pods {
    pub(super) fn new(filer_config: &str) -> Self {
        Self {
            filer_config: filer_config.to_owned(),
            ..Self::default()
        }
    }

    pub(super) fn get(&self, attempt: &AttemptId) -> Option<Arc<Pod>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(attempt).cloned()
    }

    /// Notes that a pod was given an annotation, until the watch tells of it.
    pub(super) fn annotate(&self, attempt: &AttemptId, key: &str, value: &str) {
        if let Some(pod) = self.write().get_mut(attempt) {
            let annotations = &mut Arc::make_mut(pod).metadata.annotations;
            let annotations = annotations.get_or_insert_default();
            annotations.insert(key.to_owned(), value.to_owned());
        }
    }

    /// A pod that this engine has made itself; the watch may have told of it already, even that it
    /// is gone.
    pub(super) fn insert(&self, attempt: &AttemptId, pod: Pod) {
        let mut known = self.write();
        if self.was_there(attempt) {
            return;
        }
        known
            .entry(attempt.clone())
            .or_insert_with(|| Arc::new(self.essence(pod)));
    }

    /// Notes that a pod is gone.
    pub(super) fn remove(&self, attempt: &AttemptId) {
        self.note_past(attempt);
        self.write().remove(attempt);
    }

    /// Whether the pod of an attempt was there lately.
    pub(super) fn was_there(&self, attempt: &AttemptId) -> bool {
        let past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        past.attempts.contains(attempt)
    }

    fn note_past(&self, attempt: &AttemptId) {
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        past.note(attempt, Instant::now());
    }

    /// Waits until all are known, but not for ever; whether they are.
    pub(super) async fn complete(&self) -> bool {
        let mut complete = self.complete.subscribe();
        let complete = complete.wait_for(|complete| *complete);
        // It fails only if the sender is gone, which is ours.
        tokio::time::timeout(COMPLETE, complete).await.is_ok()
    }

    /// All of them; `None` if they are not known in time.
    pub(super) async fn all(&self) -> Option<Vec<AttemptId>> {
        if !self.complete().await {
            return None;
        }
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        Some(known.keys().cloned().collect())
    }

    /// The other configurations of the filer that pods mount.
    pub(super) fn other_configs(&self) -> HashSet<String> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let annotations = known
            .values()
            .filter_map(|p| p.metadata.annotations.as_ref());
        annotations
            .filter_map(|all| all.get(OTHER_CONFIG).cloned())
            .collect()
    }

    /// What is worth being remembered of a pod: thousands of them are.
    pub(super) fn essence(&self, pod: Pod) -> Pod {
        let metadata = pod.metadata;
        let mut annotations = metadata.annotations;
        if let Some(annotations) = &mut annotations {
            annotations.retain(|key, _| [STOP, PLAN_PARTS].contains(&key.as_str()));
        }
        let volumes = pod.spec.and_then(|spec| spec.volumes).unwrap_or_default();
        let config = volumes
            .into_iter()
            .find(|volume| volume.name == CONFIG_VOLUME);
        let config = config.and_then(|volume| volume.config_map);
        if let Some(config) = config.filter(|config| config.name != self.filer_config) {
            let annotations = annotations.get_or_insert_default();
            annotations.insert(OTHER_CONFIG.to_owned(), config.name);
        }
        let container = |status: ContainerStatus| ContainerStatus {
            name: status.name,
            started: status.started,
            state: status.state,
            ..ContainerStatus::default()
        };
        let containers = |statuses: Option<Vec<ContainerStatus>>| {
            let statuses = statuses?.into_iter().map(container);
            Some(statuses.collect::<Vec<_>>())
        };
        let status = pod.status.map(|status| PodStatus {
            conditions: status.conditions,
            container_statuses: containers(status.container_statuses),
            init_container_statuses: containers(status.init_container_statuses),
            message: status.message,
            phase: status.phase,
            reason: status.reason,
            start_time: status.start_time,
            ..PodStatus::default()
        });
        Pod {
            metadata: ObjectMeta {
                annotations,
                creation_timestamp: metadata.creation_timestamp,
                deletion_grace_period_seconds: metadata.deletion_grace_period_seconds,
                deletion_timestamp: metadata.deletion_timestamp,
                uid: metadata.uid,
                ..ObjectMeta::default()
            },
            spec: None,
            status,
        }
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<AttemptId, Arc<Pod>>> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Follower for Pods {
    type Object = Pod;
    type Id = AttemptId;

    const PART: Part = Part::Attempt;
    /// Each is 12 KB and more, several times as much in memory.
    const PAGE: u32 = 200;

    fn id(metadata: &ObjectMeta) -> Option<AttemptId> {
        attempt_of_pod(metadata)
    }

    fn take(&self, attempt: AttemptId, pod: Pod) {
        let pod = Arc::new(self.essence(pod));
        self.write().insert(attempt.clone(), pod);
        self.hints.send(&attempt);
    }

    fn gone(&self, attempt: &AttemptId) {
        self.remove(attempt);
        self.hints.send(attempt);
    }

    /// One that was made since the list is asked for until the watch tells of it.
    fn keep_only(&self, listed: &HashSet<AttemptId>, _version: Option<u64>) {
        let gone: Vec<_> = {
            let mut known = self.write();
            let gone = known.extract_if(|attempt, _| !listed.contains(attempt));
            gone.map(|(attempt, _)| attempt).collect()
        };
        for attempt in &gone {
            self.note_past(attempt);
        }
        self.complete.send_replace(true);
        // Also those that went while nobody watched.
        for attempt in &gone {
            self.hints.send(attempt);
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

/// The same of a pod, which has the attempt's name as well: somebody may have made a copy of one
/// under another name.
pub(super) fn attempt_of_pod(metadata: &ObjectMeta) -> Option<AttemptId> {
    let attempt = attempt_of(metadata)?;
    (metadata.name.as_deref() == Some(&pod::name(&attempt))).then_some(attempt)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::kubernetes::pod::PLAN;

    #[test]
    fn little_is_remembered_of_a_pod() {
        let noise = "x".repeat(100_000);
        let state: Value = json!({"waiting": {"reason": "ContainerCreating"}});
        let pod = serde_json::from_value(json!({
            "metadata": {
                "name": "t1-1", "uid": "u", "labels": {TASK: "t1", ATTEMPT: "1", "more": noise},
                "annotations": {PLAN: noise, STOP: "reason", "more": noise},
                "managedFields": [{"manager": noise, "fieldsV1": {}}],
            },
            "spec": {"containers": [{"name": "c", "image": noise}]},
            "status": {"phase": "Pending", "containerStatuses": [{
                "name": "executor-0", "image": noise, "imageID": noise, "ready": false,
                "restartCount": 0, "state": state, "lastState": {"waiting": {"message": noise}},
                "volumeMounts": [{"name": noise, "mountPath": noise}],
            }]},
        }));
        let kept = Pods::default().essence(pod.unwrap());
        let json = serde_json::to_value(&kept).unwrap();
        assert_eq!(json["metadata"]["uid"], "u");
        assert_eq!(json["metadata"]["annotations"], json!({STOP: "reason"}));
        assert_eq!(json["status"]["containerStatuses"][0]["state"], state);
        assert!(json.to_string().len() < 500, "{json}");
    }
    #[test]
    fn the_late_answer_of_a_create_does_not_bring_back_a_pod_that_is_gone() {
        let pods = Pods::default();
        let attempt = |number| AttemptId {
            task: "t1".parse().unwrap(),
            number,
        };
        pods.take(attempt(1), Pod::default());
        pods.gone(&attempt(1));
        pods.insert(&attempt(1), Pod::default());
        assert!(pods.get(&attempt(1)).is_none());
        pods.insert(&attempt(2), Pod::default());
        assert!(pods.get(&attempt(2)).is_some());
    }
}
