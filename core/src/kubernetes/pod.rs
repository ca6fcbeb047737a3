//! From a plan to the manifests of its attempt: a pure function.
//!
//! One pod runs the attempt. Its containers start together and hand over through files (see the
//! README of the filer):
//!
//! | container | image | does |
//! |---|---|---|
//! | `inputs` | filer | its hook prepares directories and installs the filer; then inputs |
//! | `executor-0` … | the task's | the filer as entry point: waits for its turn, runs the command |
//! | `outputs` | filer | waits for the last executor, delivers, reports |
//!
//! Where the filer is installed by an init container, that is `prepare` instead of a hook.
//!
//! No text of the task stands in the manifest but images, mount paths and checked parameters:
//! command and environment are in the plan, where Kubernetes expands no `$(…)`.

mod parameters;
mod patch;
mod resources;
mod streams;
#[cfg(test)]
mod tests;
mod volumes;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, ConfigMap, Container, ExecAction, Lifecycle, LifecycleHandler,
    LocalObjectReference, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm,
    Pod, PodSecurityContext, PodSpec, SeccompProfile, SecurityContext,
};
use kube::api::ObjectMeta;

use self::parameters::Asked;
pub(super) use self::parameters::NAMES as PARAMETERS;
pub use self::parameters::checks;
pub use self::patch::check as check_patches;
pub(super) use self::volumes::BINARY;
use self::volumes::Volumes;
use super::cluster::{ATTEMPT, TASK};
use super::{Install, Settings};
use crate::plan::Plan;
use crate::scheduler::AttemptId;

/// The annotation that ends all waiting in a pod: its text is the reason.
pub const STOP: &str = "tesk.elixir-cloud.org/stop";
/// The annotation that holds a small plan, packed.
pub const PLAN: &str = "tesk.elixir-cloud.org/plan";
/// The annotation that says how many `ConfigMap`s hold a large plan.
pub const PLAN_PARTS: &str = "tesk.elixir-cloud.org/plan-parts";

/// The name of the first container.
pub const INPUTS: &str = "inputs";
/// The name of the container before all others, if the filer is installed by one.
pub const PREPARE: &str = "prepare";
/// The name of the last container, whose end is the end of the attempt.
pub const OUTPUTS: &str = "outputs";

/// The most executors of a task: all containers of a pod share 12 KiB of termination messages.
pub const MOST_EXECUTORS: usize = 100;

/// The user of the filer, as in its image.
const FILER_USER: i64 = 65532;
/// The most that a pod's containers may say at their end, together and each alone, in bytes.
const MESSAGES: usize = 12 * 1024;
const MESSAGE: usize = 4 * 1024;
/// Seconds that a supervisor has to end by itself, after its command had its grace.
pub(super) const AFTER_GRACE: u64 = 5;

/// What a pod depends on beside its plan.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The operator's choices.
    pub settings: Settings,
    /// The labels of every pod.
    pub labels: BTreeMap<String, String>,
    /// The labels of the parts of a plan.
    pub plan_labels: BTreeMap<String, String>,
    /// The `ConfigMap` with the configuration of the filer, under the key [`FILER_CONFIG`].
    pub filer_config: String,
    /// Time between a polite and a forced end.
    pub grace: Duration,
    /// How long an attempt may take.
    pub time_limit: Option<Duration>,
    /// What the server can.
    pub features: Features,
}

/// The volume with the filer's configuration.
pub(super) const CONFIG_VOLUME: &str = "config";
/// The key, and the file's name, of the filer's configuration.
pub const FILER_CONFIG: &str = "filer.toml";

/// What depends on the server and the namespace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Features {
    /// Pods have resources of their own, beside those of their containers (1.34).
    pub pod_resources: bool,
    /// What every container must ask for at least: a `LimitRange`.
    pub least: Least,
}

/// What every container must ask for at least.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Least {
    /// Thousandths of a CPU core.
    pub millicores: u64,
    /// Bytes of memory.
    pub memory: u64,
}

/// What is made for an attempt, in this order.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifests {
    /// The parts of a plan that is too large for an annotation.
    pub plan: Vec<ConfigMap>,
    /// The pod.
    pub pod: Pod,
}

/// The manifests of an attempt. An error is why it can never run here.
pub fn manifests(
    attempt: &AttemptId,
    plan: &Plan,
    surroundings: &Surroundings,
) -> Result<Manifests, String> {
    let count = plan.executors.len();
    if count > MOST_EXECUTORS {
        return Err(format!(
            "the task has {count} executors; on a cluster it may have {MOST_EXECUTORS}"
        ));
    }
    let settings = &surroundings.settings;
    if !settings.zone_label.is_empty() {
        // Else the server refuses the pod in words that nobody understands.
        for zone in &plan.resources.zones {
            if !is_label_value(zone) {
                return Err(format!(
                    "there is no zone {zone:?}: no label can have this value"
                ));
            }
        }
    }
    let asked = Asked::new(plan, settings)?;
    let mut plan = Cow::Borrowed(plan);
    let streams = streams::choose(attempt, &mut plan, &settings.mounts);
    let volumes = Volumes::new(attempt, &plan, streams, surroundings, &asked)?;
    let builder = Builder {
        plan: &plan,
        surroundings,
        asked: &asked,
        volumes: &volumes,
    };
    let mut containers = vec![builder.inputs()];
    containers.extend((0..count).map(|number| builder.executor(number)));
    containers.push(builder.outputs());

    let mut pod = Pod {
        metadata: builder.metadata(attempt),
        spec: Some(builder.spec(containers)),
        status: None,
    };
    patch::apply(&mut pod, plan.resources.preemptible, &settings.patch)?;
    Ok(Manifests {
        plan: volumes.plan,
        pod,
    })
}

/// Keeps a pod from starting unless the record of its task has a [permit](super::cluster::permit)
/// for the attempt: the kubelet waits for a volume whose content is not there.
///
/// This is what makes a pod harmless that is made too late, by a request that took long or a
/// scheduler that was stopped in the middle of it: its attempt is over, or another's.
pub(super) fn need_permit(pod: &mut Pod, record: &str, attempt: &AttemptId) {
    let Some(spec) = &mut pod.spec else {
        return;
    };
    let (volume, mount) = volumes::permit(record, attempt);
    spec.volumes.get_or_insert_default().push(volume);
    // Only what a container mounts is waited for.
    if let Some(inputs) = spec.containers.iter_mut().find(|c| c.name == INPUTS) {
        inputs.volume_mounts.get_or_insert_default().push(mount);
    }
}

/// Whether a text can be the value of a label that selects something.
pub(super) fn is_label_value(value: &str) -> bool {
    let outer = |c: char| c.is_ascii_alphanumeric();
    (1..=63).contains(&value.len())
        && value.starts_with(outer)
        && value.ends_with(outer)
        && value.chars().all(|c| outer(c) || "-_.".contains(c))
}

/// The name of a pod.
pub fn name(attempt: &AttemptId) -> String {
    attempt.to_string()
}

/// The name of the container of an executor.
pub fn executor(number: usize) -> String {
    format!("executor-{number}")
}

struct Builder<'a> {
    plan: &'a Plan,
    surroundings: &'a Surroundings,
    asked: &'a Asked,
    volumes: &'a Volumes,
}

impl Builder<'_> {
    fn metadata(&self, attempt: &AttemptId) -> ObjectMeta {
        let entry = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let mut labels = self.surroundings.labels.clone();
        labels.extend([
            entry(TASK, attempt.task.as_str()),
            entry(ATTEMPT, &attempt.number.to_string()),
            entry("sidecar.istio.io/inject", "false"),
        ]);
        if let Some(queue) = &self.asked.queue {
            labels.extend([entry("kueue.x-k8s.io/queue-name", queue)]);
        }
        let mut annotations = BTreeMap::from([
            // Whoever makes room on nodes looks for another pod: work would be lost.
            entry("cluster-autoscaler.kubernetes.io/safe-to-evict", "false"),
            entry("karpenter.sh/do-not-disrupt", "true"),
            // A sidecar would never end.
            entry("linkerd.io/inject", "disabled"),
        ]);
        if let Some(packed) = &self.volumes.packed {
            annotations.extend([entry(PLAN, packed)]);
        } else {
            let parts = self.volumes.plan.len().to_string();
            annotations.extend([entry(PLAN_PARTS, &parts)]);
        }
        ObjectMeta {
            name: Some(name(attempt)),
            labels: Some(labels),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        }
    }

    fn spec(&self, containers: Vec<Container>) -> PodSpec {
        let settings = &self.surroundings.settings;
        let secrets = settings.image_pull_secrets.iter();
        let secrets: Vec<_> = secrets
            .chain(&self.asked.image_pull_secret)
            .map(|name| LocalObjectReference { name: name.clone() })
            .collect();
        let init = (self.install() == Install::Init).then(|| {
            let mut container = self.filer(PREPARE, self.prepare());
            container.volume_mounts = Some(self.volumes.filer());
            vec![container]
        });
        PodSpec {
            init_containers: init,
            containers,
            volumes: Some(self.volumes.all.clone()),
            restart_policy: Some("Never".into()),
            resources: resources::of_pod(self.asked, self.surroundings),
            termination_grace_period_seconds: Some(self.seconds_to_end() as i64),
            active_deadline_seconds: self.active_deadline(),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            service_account_name: settings.service_account.clone(),
            image_pull_secrets: (!secrets.is_empty()).then_some(secrets),
            priority_class_name: self.asked.priority_class.clone(),
            runtime_class_name: self.asked.runtime_class.clone(),
            node_selector: (!self.asked.node_selector.is_empty())
                .then(|| self.asked.node_selector.clone()),
            affinity: self.zones(),
            security_context: Some(PodSecurityContext {
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".into(),
                    localhost_profile: None,
                }),
                // A claimed volume belongs to root; a node's directory is open to everybody.
                fs_group: self.asked.scratch_class.is_some().then_some(FILER_USER),
                fs_group_change_policy: self
                    .asked
                    .scratch_class
                    .is_some()
                    .then(|| "OnRootMismatch".into()),
                ..PodSecurityContext::default()
            }),
            ..PodSpec::default()
        }
    }

    fn seconds_to_end(&self) -> u64 {
        self.surroundings.grace.as_secs() + AFTER_GRACE
    }

    /// The scheduler ends an attempt in time; this is for when there is none.
    fn active_deadline(&self) -> Option<i64> {
        const SLACK: Duration = Duration::from_mins(1);
        let limit = self.surroundings.time_limit.map(|limit| limit + SLACK);
        let limit = limit.into_iter().chain(self.asked.time_limit).min()?;
        // The server takes no more.
        let seconds = limit.as_secs().clamp(1, i32::MAX as u64);
        Some(seconds as i64)
    }

    fn zones(&self) -> Option<Affinity> {
        let label = &self.surroundings.settings.zone_label;
        let zones = &self.plan.resources.zones;
        if label.is_empty() || zones.is_empty() {
            return None;
        }
        Some(Affinity {
            node_affinity: Some(NodeAffinity {
                required_during_scheduling_ignored_during_execution: Some(NodeSelector {
                    node_selector_terms: vec![NodeSelectorTerm {
                        match_expressions: Some(vec![NodeSelectorRequirement {
                            key: label.clone(),
                            operator: "In".into(),
                            values: Some(zones.clone()),
                        }]),
                        match_fields: None,
                    }],
                }),
                ..NodeAffinity::default()
            }),
            ..Affinity::default()
        })
    }

    fn inputs(&self) -> Container {
        let mut container = self.filer(INPUTS, {
            let mut command = words(["/filer", "inputs"]);
            command.extend(self.volumes.for_filer());
            command
        });
        if self.install() == Install::Hook {
            container.lifecycle = Some(Lifecycle {
                post_start: Some(LifecycleHandler {
                    exec: Some(ExecAction {
                        command: Some(self.prepare()),
                    }),
                    ..LifecycleHandler::default()
                }),
                ..Lifecycle::default()
            });
        }
        container.volume_mounts = Some(self.volumes.filer());
        container
    }

    fn outputs(&self) -> Container {
        let mut command = words(["/filer", "outputs"]);
        command.extend(self.volumes.for_filer());
        command.extend(words(["--stop-file", volumes::STOP_FILE]));
        command.extend(words(["--termination-message", volumes::MESSAGE]));
        let containers = self.plan.executors.len() + 2 + self.extra_containers();
        let room = MESSAGE.min(MESSAGES / containers);
        command.extend(["--termination-room".into(), room.to_string()]);
        command.extend(self.tail());
        let mut container = self.filer(OUTPUTS, command);
        container.volume_mounts = Some(self.volumes.filer());
        container
    }

    /// Containers that share the room for messages, beside the usual ones.
    fn extra_containers(&self) -> usize {
        let settings = &self.surroundings.settings;
        let patches = [&settings.patch.pod, &settings.patch.preemptible];
        let specs = patches
            .iter()
            .filter_map(|patch| patch.get("spec")?.as_table());
        let lists = specs.flat_map(|spec| [spec.get("containers"), spec.get("initContainers")]);
        let more: usize = lists
            .filter_map(|list| list?.as_array())
            .map(Vec::len)
            .sum();
        more + usize::from(self.install() == Install::Init)
    }

    /// By the hook nothing is kept from starting if it fails.
    fn install(&self) -> Install {
        if self.volumes.stream() {
            Install::Init
        } else {
            self.surroundings.settings.install
        }
    }

    fn prepare(&self) -> Vec<String> {
        let mut command = words(["/filer", "prepare"]);
        command.extend(self.volumes.for_prepare());
        // What a hook prints is lost.
        command.extend(words(["--reason", volumes::MESSAGE]));
        command
    }

    fn tail(&self) -> [String; 2] {
        let tail = self.surroundings.settings.log_tail.0;
        ["--tail".into(), tail.to_string()]
    }

    fn filer(&self, name: &str, command: Vec<String>) -> Container {
        let settings = &self.surroundings.settings;
        Container {
            name: name.to_owned(),
            image: Some(settings.filer_image.clone()),
            command: Some(command),
            resources: Some(resources::of_filer(self.surroundings)),
            security_context: Some(SecurityContext {
                run_as_user: Some(FILER_USER),
                run_as_group: Some(FILER_USER),
                run_as_non_root: Some(true),
                read_only_root_filesystem: Some(true),
                allow_privilege_escalation: Some(false),
                capabilities: Some(Capabilities {
                    drop: Some(words(["ALL"])),
                    add: None,
                }),
                ..SecurityContext::default()
            }),
            ..Container::default()
        }
    }

    fn executor(&self, number: usize) -> Container {
        let settings = &self.surroundings.settings;
        let planned = &self.plan.executors[number];
        let mut command = words([volumes::BINARY, "exec", "--plan", volumes::EXECUTORS_PLAN]);
        command.extend(["--step".into(), number.to_string()]);
        command.extend(self.volumes.for_executor());
        command.extend(words(["--stop-file", volumes::STOP_FILE]));
        command.extend(words(["--termination-message", volumes::MESSAGE]));
        let grace = self.surroundings.grace.as_secs().to_string();
        command.extend(["--grace".into(), grace]);
        command.extend(self.tail());
        Container {
            name: executor(number),
            image: Some(planned.image.clone()),
            command: Some(command),
            resources: Some(resources::of_executor(
                number,
                self.asked,
                self.surroundings,
            )),
            security_context: Some(SecurityContext {
                allow_privilege_escalation: Some(false),
                run_as_non_root: settings.restricted.then_some(true),
                capabilities: settings.restricted.then(|| Capabilities {
                    drop: Some(words(["ALL"])),
                    add: None,
                }),
                ..SecurityContext::default()
            }),
            volume_mounts: Some(self.volumes.executor(number)),
            ..Container::default()
        }
    }
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).into()
}
