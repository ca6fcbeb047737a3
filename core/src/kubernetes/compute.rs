//! [`Compute`] on a cluster: one bare pod for each attempt.
//!
//! The pod's name is the attempt's id, so that it cannot be made twice, and what the API server
//! refuses it refuses at once. A watch keeps the status of all pods in memory; what it does not
//! know is asked for.

mod filer_config;
mod server;
mod watch;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::stream::{self, BoxStream};
use futures_util::{AsyncRead, AsyncReadExt as _, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{
    DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams, Preconditions,
};
use serde_json::json;
use tokio::task::JoinHandle;

use self::filer_config::FilerConfig;
use self::server::{features, least};
use self::watch::{Pods, attempt_of, attempt_of_pod};
use super::cluster::{ATTEMPT, ApiError, Cluster, Part, TASK};
use super::follow;
use super::pod::{self, Least, OUTPUTS, PLAN_PARTS, STOP, Surroundings};
use super::settings::Settings;
use super::status::{self, Look, Need};
use crate::crash;
use crate::plan::Plan;
use crate::scheduler::TaskId;
use crate::scheduler::compute::{
    AttemptId, Compute, ComputeError, Observed, Output, Phase, Refusal,
};
use crate::time::Timestamp;

/// The lines of a log in which a report is looked for: it is at the end.
const REPORT_LINES: i64 = 4000;
/// How often events of one pod are asked for.
const EVENTS: Duration = Duration::from_mins(1);
/// Bytes of an executor's log that are read at a time.
const LOG_READ: usize = 16 << 10;

/// Who owns what is made for a task, so that it goes with the owner: its record, which also says
/// which attempt may start.
pub type Owners = Arc<dyn Fn(&TaskId) -> Option<OwnerReference> + Send + Sync>;

/// What the compute side needs to know.
pub struct Options {
    /// The operator's choices.
    pub settings: Settings,
    /// The configuration of the filer: storages and transfers, as TOML.
    pub filer_config: String,
    /// How long the one of another server is left alone while no pod is known that mounts it: a pod
    /// may be on its way, and two servers of different ones may take turns while one replaces the
    /// other.
    pub keep_config: Duration,
    /// Time between a polite and a forced end.
    pub grace: Duration,
    /// How long an attempt may take.
    pub time_limit: Option<Duration>,
    /// Who owns pods, if tasks have records in the cluster.
    pub owners: Option<Owners>,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// Attempts as pods.
pub struct KubernetesCompute {
    cluster: Cluster,
    surroundings: RwLock<Arc<Surroundings>>,
    filer_config: FilerConfig,
    owners: Option<Owners>,
    pods: Arc<Pods>,
    asked: Asked,
    watch: JoinHandle<()>,
}

/// When events of which attempts were asked for: the API server keeps them in no cache, and a
/// thousand pods may wait for large images together.
#[derive(Debug, Default)]
struct Asked(Mutex<HashMap<AttemptId, Instant>>);

impl Asked {
    /// Whether it is time to ask for those of an attempt, which then counts as done; `patience` is
    /// how long a pod may be in trouble.
    fn is_due(&self, attempt: &AttemptId, patience: Duration) -> bool {
        let again = patience.min(EVENTS);
        let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if asked
            .get(attempt)
            .is_some_and(|last| last.elapsed() < again)
        {
            return false;
        }
        asked.retain(|_, last| last.elapsed() < again);
        asked.insert(attempt.clone(), Instant::now());
        true
    }
}

impl std::fmt::Debug for KubernetesCompute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubernetesCompute")
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

impl Drop for KubernetesCompute {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl KubernetesCompute {
    /// Asks the server what it can, leaves the filer's configuration there, and begins to watch
    /// pods.
    pub async fn open(cluster: Cluster, options: Options) -> Result<Self, String> {
        options.settings.check()?;
        let features = features(&cluster).await?;
        let filer_config = FilerConfig::new(&cluster, options.filer_config, options.keep_config);
        let left = filer_config.leave(&cluster).await;
        left.map_err(|error| format!("cannot write the filer's configuration: {error}"))?;
        let pods = Arc::new(Pods::new(filer_config.name()));
        let (followed, of) = (Arc::clone(&pods), cluster.clone());
        let watch = tokio::spawn(async move { follow::follow(&of, &*followed, None).await });
        Ok(Self {
            surroundings: RwLock::new(Arc::new(Surroundings {
                labels: cluster.labels(Part::Attempt),
                plan_labels: cluster.labels(Part::Plan),
                settings: options.settings,
                filer_config: filer_config.name().to_owned(),
                grace: options.grace,
                time_limit: options.time_limit,
                features,
            })),
            filer_config,
            owners: options.owners,
            cluster,
            pods,
            asked: Asked::default(),
            watch,
        })
    }

    fn surroundings(&self) -> Arc<Surroundings> {
        let surroundings = self.surroundings.read();
        Arc::clone(&surroundings.unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the limit ranges are others than `used`, by which a pod was made that was refused.
    async fn limits_changed(&self, used: Least) -> Result<bool, ApiError> {
        let least = match least(&self.cluster).await {
            Err(error) if error.is_temporary() => return Err(error),
            // They may not be read.
            Err(_) => return Ok(false),
            Ok(least) => least,
        };
        let surroundings = self.surroundings.write();
        let mut surroundings = surroundings.unwrap_or_else(PoisonError::into_inner);
        // Another task may have read them meanwhile.
        if surroundings.features.least != least {
            Arc::make_mut(&mut surroundings).features.least = least;
        }
        Ok(used != least)
    }

    async fn pod(&self, attempt: &AttemptId) -> Result<Option<Arc<Pod>>, ApiError> {
        if let Some(pod) = self.pods.get(attempt) {
            return Ok(Some(pod));
        }
        let pod = self.ask(attempt).await?;
        Ok(pod
            .filter(|pod| self.is_ours(attempt, pod))
            .map(|pod| Arc::new(self.pods.essence(pod))))
    }

    /// The pod of this name, whoever's it is.
    async fn ask(&self, attempt: &AttemptId) -> Result<Option<Pod>, ApiError> {
        let api = self.cluster.api::<Pod>();
        self.cluster.answer(api.get_opt(&pod::name(attempt))).await
    }

    fn is_ours(&self, attempt: &AttemptId, pod: &Pod) -> bool {
        let there = pod.metadata.labels.as_ref();
        self.surroundings()
            .labels
            .iter()
            .all(|(key, value)| there.is_some_and(|there| there.get(key) == Some(value)))
            && attempt_of_pod(&pod.metadata).as_ref() == Some(attempt)
    }

    /// The end of the log of the container `outputs`.
    async fn report_log(&self, attempt: &AttemptId) -> Result<String, ApiError> {
        let options = LogParams {
            container: Some(OUTPUTS.into()),
            tail_lines: Some(REPORT_LINES),
            ..LogParams::default()
        };
        let api = self.cluster.api::<Pod>();
        let name = pod::name(attempt);
        self.cluster.answer(api.logs(&name, &options)).await
    }

    /// What the cluster has said about a pod of late.
    async fn events(&self, attempt: &AttemptId, pod: &Pod) -> Result<Vec<Event>, ApiError> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let name = pod::name(attempt);
        let params = ListParams::default().fields(&format!(
            "involvedObject.name={name},involvedObject.uid={uid}"
        ));
        let api = self.cluster.api::<Event>();
        Ok(self.cluster.answer(api.list(&params)).await?.items)
    }

    /// Tells the supervisors in a pod to wait no longer.
    async fn stop(&self, attempt: &AttemptId, reason: &str) -> Result<(), ApiError> {
        tracing::info!(%attempt, reason, "it can never go on");
        let patch = json!({ "metadata": { "annotations": { STOP: reason } } });
        let api = self.cluster.api::<Pod>();
        let name = pod::name(attempt);
        let patch = Patch::Merge(&patch);
        let params = PatchParams::default();
        match self.cluster.answer(api.patch(&name, &params, &patch)).await {
            Ok(_) => {
                crash::point("attempt.stopped");
                self.pods.annotate(attempt, STOP, reason);
                Ok(())
            }
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn create(
        &self,
        attempt: &AttemptId,
        plan: &Plan,
        surroundings: &Surroundings,
    ) -> Result<(), Refusal> {
        let mut manifests = pod::manifests(attempt, plan, surroundings).map_err(Refusal::Never)?;
        if let Some(owners) = &self.owners {
            // Without a permit it would run though its record is gone.
            let owner = owners(&attempt.task).ok_or_else(|| {
                ComputeError(format!(
                    "cannot start {attempt}: the record of its task is gone"
                ))
            })?;
            pod::need_permit(&mut manifests.pod, &owner.name, attempt);
            let parts = manifests.plan.iter_mut().map(|part| &mut part.metadata);
            for metadata in parts.chain([&mut manifests.pod.metadata]) {
                metadata.owner_references = Some(vec![owner.clone()]);
            }
        }
        let refused = |error| refusal(attempt, error);
        let params = PostParams::default();
        let parts = self.cluster.api::<ConfigMap>();
        for part in &manifests.plan {
            match self.cluster.answer(parts.create(&params, part)).await {
                Err(error) if error.is_there() => {}
                other => drop(other.map_err(refused)?),
            }
            crash::point("attempt.plan");
        }
        let pods = self.cluster.api::<Pod>();
        let created = self
            .cluster
            .answer(pods.create(&params, &manifests.pod))
            .await;
        match created {
            Ok(pod) => {
                crash::point("attempt.pod");
                self.pods.insert(attempt, pod);
            }
            // By this engine before a crash, or by a request whose answer was lost.
            Err(error) if error.is_there() => {
                if let Some(pod) = self.ask(attempt).await.map_err(refused)?
                    && !self.is_ours(attempt, &pod)
                {
                    return Err(Refusal::Never(format!(
                        "the cluster has a pod {} that is not of this engine",
                        pod::name(attempt)
                    )));
                }
            }
            Err(error) => return Err(refused(error)),
        }
        Ok(())
    }

    async fn delete(
        &self,
        attempt: &AttemptId,
        pod: &Pod,
        grace: Option<u32>,
    ) -> Result<(), ApiError> {
        let params = DeleteParams {
            grace_period_seconds: grace,
            preconditions: Some(Preconditions {
                uid: pod.metadata.uid.clone(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let api = self.cluster.api::<Pod>();
        let name = pod::name(attempt);
        match self.cluster.answer(api.delete(&name, &params)).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => {
                self.pods.remove(attempt);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn delete_plan(&self, attempt: &AttemptId) -> Result<(), ApiError> {
        let api = self.cluster.api::<ConfigMap>();
        let selector = format!(
            "{},{TASK}={},{ATTEMPT}={}",
            self.cluster.selector(Part::Plan),
            attempt.task,
            attempt.number
        );
        let params = ListParams::default().labels(&selector);
        let parts = self.cluster.answer(api.list_metadata(&params)).await?;
        for part in parts {
            let name = part.metadata.name.unwrap_or_default();
            let params = DeleteParams::default();
            match self.cluster.answer(api.delete(&name, &params)).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => crash::point("remove.plan"),
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Compute for KubernetesCompute {
    async fn submit(&self, attempt: &AttemptId, plan: &Plan) -> Result<(), Refusal> {
        let surroundings = self.surroundings();
        let made = self.create(attempt, plan, &surroundings).await;
        if let Err(Refusal::Never(_)) = made {
            let used = surroundings.features.least;
            let changed = self.limits_changed(used).await;
            if changed.map_err(|error| failed(attempt, "start", &error))? {
                return self.create(attempt, plan, &self.surroundings()).await;
            }
        }
        made
    }

    async fn observe(&self, attempt: &AttemptId) -> Result<Observed, ComputeError> {
        let error = |error: ApiError| failed(attempt, "look at", &error);
        let Some(pod) = self.pod(attempt).await.map_err(error)? else {
            let mut observed = Observed::absent();
            if self.pods.was_there(attempt) {
                observed.phase = Phase::Lost {
                    reason: "it has disappeared".to_owned(),
                    preempted: false,
                };
            }
            return Ok(observed);
        };
        let surroundings = self.surroundings();
        let patience = &surroundings.settings.patience;
        let look = |log: Option<&str>| status::look(&pod, log, patience, Timestamp::now());
        let Look { observed, need } = look(None);
        match need {
            None => Ok(observed),
            Some(Need::Stop(reason)) => {
                self.stop(attempt, &reason).await.map_err(error)?;
                Ok(observed)
            }
            Some(Need::Events) => {
                if !self.asked.is_due(attempt, patience.start.0) {
                    return Ok(observed);
                }
                // Without events there is only the time that has passed.
                let trouble = match self.events(attempt, &pod).await {
                    Ok(events) => status::trouble(&events),
                    Err(reason) if reason.is_temporary() => return Err(error(reason)),
                    Err(_) => Some("it does not start, and its events may not be read".into()),
                };
                Ok(match trouble {
                    None => observed,
                    Some(reason) => Observed {
                        phase: Phase::Lost {
                            reason,
                            preempted: false,
                        },
                        ..observed
                    },
                })
            }
            Some(Need::Log) => {
                let log = match self.report_log(attempt).await {
                    Ok(log) => log,
                    // The node has thrown it away, or will never answer.
                    Err(reason)
                        if !(reason.is_temporary() || reason.is_denied())
                            || status::is_stale(&pod, patience, Timestamp::now()) =>
                    {
                        return Ok(Observed {
                            phase: Phase::Lost {
                                reason: format!("its report is in a log that is lost: {reason}"),
                                preempted: false,
                            },
                            ..observed
                        });
                    }
                    Err(reason) => return Err(error(reason)),
                };
                Ok(look(Some(&log)).observed)
            }
        }
    }

    async fn watch(&self) -> Result<BoxStream<'static, AttemptId>, ComputeError> {
        let hints = self.pods.hints.subscribe();
        // Whoever begins to look at attempts would else ask for one after another.
        self.pods.complete().await;
        Ok(hints)
    }

    async fn cancel(&self, attempt: &AttemptId, grace: Duration) -> Result<(), ComputeError> {
        let error = |error: ApiError| failed(attempt, "cancel", &error);
        let Some(pod) = self.pod(attempt).await.map_err(error)? else {
            return Ok(());
        };
        if pod.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let grace = u32::try_from(grace.as_secs()).unwrap_or(u32::MAX);
        // The supervisors need a moment of their own after it.
        let grace = grace.saturating_add(pod::AFTER_GRACE as u32);
        self.delete(attempt, &pod, Some(grace))
            .await
            .map_err(error)?;
        crash::point("cancel.pod");
        Ok(())
    }

    async fn remove(&self, attempt: &AttemptId) -> Result<(), ComputeError> {
        let error = |error: ApiError| failed(attempt, "remove", &error);
        let pod = self.pod(attempt).await.map_err(error)?;
        if let Some(pod) = &pod {
            let surroundings = self.surroundings();
            let patience = &surroundings.settings.patience;
            // What is about to go needs no help, unless its node is silent.
            let silent = status::is_silent(pod, patience, Timestamp::now());
            if silent || pod.metadata.deletion_timestamp.is_none() {
                let grace = silent.then_some(0);
                self.delete(attempt, pod, grace).await.map_err(error)?;
            }
        }
        crash::point("remove.pod");
        let annotations = pod
            .as_ref()
            .and_then(|pod| pod.metadata.annotations.as_ref());
        let in_parts = annotations.is_none_or(|all| all.contains_key(PLAN_PARTS));
        if in_parts {
            self.delete_plan(attempt).await.map_err(error)?;
        }
        Ok(())
    }

    async fn attempts(&self) -> Result<Vec<AttemptId>, ComputeError> {
        let error = |error: ApiError| ComputeError(format!("cannot list attempts: {error}"));
        let Some(mut attempts) = self.pods.all().await else {
            return Err(ComputeError(
                "cannot list attempts: the watch of pods does not begin".into(),
            ));
        };
        let params = ListParams::default().labels(&self.cluster.selector(Part::Plan));
        let api = self.cluster.api::<ConfigMap>();
        let plans = self
            .cluster
            .answer(api.list_metadata(&params))
            .await
            .map_err(error)?;
        attempts.extend(plans.iter().filter_map(|plan| attempt_of(&plan.metadata)));
        attempts.sort_unstable();
        attempts.dedup();
        if let Err(error) = self.filer_config.tend(&self.cluster, &self.pods).await {
            tracing::warn!(%error, "the filer's configuration could not be looked at");
        }
        Ok(attempts)
    }

    async fn output(
        &self,
        attempt: &AttemptId,
        executor: usize,
    ) -> Result<Option<Output>, ComputeError> {
        let error = |error: ApiError| failed(attempt, "look at", &error);
        let pod = self.pod(attempt).await.map_err(error)?;
        if !pod.is_some_and(|pod| status::has_output(&pod, executor)) {
            return Ok(None);
        }
        let options = LogParams {
            container: Some(pod::executor(executor)),
            follow: true,
            ..LogParams::default()
        };
        let (api, name) = (self.cluster.api::<Pod>(), pod::name(attempt));
        // The answer begins with the first byte, which may be hours away.
        let log = async move {
            let log = api.log_stream(&name, &options).await;
            log.map(read_log)
                .map_err(|error| io::Error::other(ApiError::from(error)))
        };
        Ok(Some(stream::once(log).try_flatten().boxed()))
    }
}

/// What it means for an attempt that the server does not make its pod.
fn refusal(attempt: &AttemptId, error: ApiError) -> Refusal {
    if error.is_quota() || error.code == 429 || error.is_conflict() {
        return Refusal::Busy(error.message);
    }
    // What the engine itself may not do, or a namespace that is not there, is not the task's
    // fault.
    if error.is_temporary() || error.is_forbidden_to_us() || error.is_not_found() {
        return Refusal::Unknown(failed(attempt, "start", &error));
    }
    Refusal::Never(format!("the cluster refuses its pod: {}", error.message))
}

fn read_log(log: impl AsyncRead + Send + 'static) -> Output {
    stream::try_unfold(Box::pin(log), async |mut log| {
        let mut bytes = vec![0; LOG_READ];
        let read = log.read(&mut bytes).await?;
        bytes.truncate(read);
        Ok((read > 0).then(|| (bytes.into(), log)))
    })
    .boxed()
}

fn failed(attempt: &AttemptId, what: &str, error: &ApiError) -> ComputeError {
    ComputeError(format!("cannot {what} {attempt}: {error}"))
}
