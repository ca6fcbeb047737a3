//! How the engine works on a cluster: the section `[kubernetes]` of the configuration.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{ByteSize, Span};
use crate::plan::paths;
use crate::rooted::RelPath;
use crate::storage::StorageUrl;

/// The section `[kubernetes]`; `tesk.example.toml` describes each key.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// A kubeconfig file; `None` is `$KUBECONFIG`, `~/.kube/config`, or a pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig; `None` is its current one.
    pub context: Option<String>,
    /// The namespace; `None` is that of the context or of the pod.
    pub namespace: Option<String>,
    /// The name of this engine, a label value: engines that share a namespace differ in it.
    pub instance: String,
    /// The image of the filer.
    pub filer_image: String,
    /// The memory that each of the two filers of a pod may use.
    pub filer_memory: ByteSize,
    /// How the filer gets beside the executors.
    pub install: Install,
    /// Secrets for pulling images, of executors and of the filer.
    pub image_pull_secrets: Vec<String>,
    /// The service account of pods; they get no token of it.
    pub service_account: Option<String>,
    /// Executors run under the `restricted` Pod Security Standard: images whose user is root do
    /// not start.
    pub restricted: bool,
    /// CPU cores of a task that does not say; 0 is neither a request nor a limit.
    pub default_cpu_cores: u32,
    /// Memory of a task that does not say.
    pub default_memory: ByteSize,
    /// The least memory of a task, whatever it says.
    pub min_memory: ByteSize,
    /// The scratch space of a task that does not say; zero is no limit.
    pub default_scratch: ByteSize,
    /// The storage class of scratch volumes; `None` is the node's own disk (`emptyDir`).
    pub scratch_class: Option<String>,
    /// The size of `/dev/shm` in executors; `None` is the runtime's default.
    pub shm_size: Option<ByteSize>,
    /// Bytes kept of the end of what an executor writes, of each stream.
    pub log_tail: ByteSize,
    /// The node label that `resources.zones` selects by; empty ignores zones.
    pub zone_label: String,
    /// Volumes and secrets that pods see besides their own.
    pub mounts: Vec<ExtraMount>,
    /// What tasks may ask for in `backend_parameters`.
    pub parameters: Parameters,
    /// How long a pod may be stuck.
    pub patience: Patience,
    /// How servers agree on which of them schedules.
    pub lease: LeaseSettings,
    /// What is merged over the manifests.
    pub patch: Patches,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            kubeconfig: None,
            context: None,
            namespace: None,
            instance: "tesk".into(),
            filer_image: concat!("tesk-filer:", env!("CARGO_PKG_VERSION")).into(),
            filer_memory: ByteSize(256 << 20),
            install: Install::default(),
            image_pull_secrets: Vec::new(),
            service_account: None,
            restricted: false,
            default_cpu_cores: 1,
            default_memory: ByteSize(2 << 30),
            min_memory: ByteSize(64 << 20),
            default_scratch: ByteSize(0),
            scratch_class: None,
            shm_size: None,
            log_tail: ByteSize(64 << 10),
            zone_label: "topology.kubernetes.io/zone".into(),
            mounts: Vec::new(),
            parameters: Parameters::default(),
            patience: Patience::default(),
            lease: LeaseSettings::default(),
            patch: Patches::default(),
        }
    }
}

impl Settings {
    /// What the types do not say. An error names the key.
    pub fn check(&self) -> Result<(), String> {
        super::pod::check_patches(&self.patch)?;
        if !super::pod::is_label_value(&self.instance) {
            return Err(format!(
                "kubernetes.instance: `{}` must be a label value: letters, digits and -_. , at \
                 most 63",
                self.instance
            ));
        }
        let parameters = &self.parameters;
        let own = parameters
            .resources
            .keys()
            .chain(parameters.node_selector.keys());
        for key in own {
            if key.is_empty() || key.chars().any(|c| c.is_ascii_uppercase()) {
                return Err(format!(
                    "kubernetes.parameters: `{key}` must be in lower case; tasks may write it in any case"
                ));
            }
            if super::pod::PARAMETERS.contains(&key.as_str()) {
                return Err(format!(
                    "kubernetes.parameters: `{key}` has a meaning already; take another name"
                ));
            }
        }
        let mut resources = parameters.resources.keys();
        if let Some(key) = resources.find(|key| parameters.node_selector.contains_key(*key)) {
            return Err(format!(
                "kubernetes.parameters: `{key}` cannot be both a resource and a label"
            ));
        }
        for mount in &self.mounts {
            let sources = [&mount.claim, &mount.secret, &mount.config_map];
            if sources.iter().filter(|source| source.is_some()).count() != 1 {
                return Err(format!(
                    "kubernetes.mounts: {} needs one of claim, secret and config_map",
                    mount.path
                ));
            }
            if mount.sub_path.is_some() && mount.claim.is_none() {
                return Err(format!(
                    "kubernetes.mounts: {}: sub_path is a directory of a claim",
                    mount.path
                ));
            }
        }
        self.check_streamable()?;
        self.check_paths()?;
        self.lease.check()?;
        if self.log_tail.0 < 10 << 10 {
            return Err("kubernetes.log_tail: must be at least 10KiB".into());
        }
        Ok(())
    }

    fn check_streamable(&self) -> Result<(), String> {
        for mount in &self.mounts {
            let Some(prefix) = &mount.streamable else {
                continue;
            };
            if mount.claim.is_none() || mount.audience != Audience::Filer {
                return Err(format!(
                    "kubernetes.mounts: {}: only a claim of the filer can be streamable",
                    mount.path
                ));
            }
            if file_path(prefix).is_none() {
                return Err(format!(
                    "kubernetes.mounts: {}: streamable must be a url such as file:///data, that of \
                     the storage there",
                    mount.path
                ));
            }
        }
        Ok(())
    }

    /// Whether all that may be mounted into one container has a place of its own there.
    fn check_paths(&self) -> Result<(), String> {
        let data = self.parameters.reference_data.values();
        let data = data.map(|data| (&data.path, Audience::Executors));
        let mounts = self
            .mounts
            .iter()
            .map(|mount| (&mount.path, mount.audience));
        let mut seen: Vec<(&String, Audience)> = Vec::new();
        for (path, audience) in mounts.chain(data) {
            if paths::normal(path).as_ref() != Ok(path) || path == "/" || path.contains(':') {
                return Err(format!(
                    "kubernetes: the mount path `{path}` must be absolute, without a colon, \
                     `..` or a final slash"
                ));
            }
            if let Some(msg) = paths::reserved(path) {
                return Err(format!("kubernetes: the mount path `{path}` {msg}"));
            }
            if seen.contains(&(path, audience)) {
                return Err(format!("kubernetes: two mounts have the path `{path}`"));
            }
            seen.push((path, audience));
        }
        Ok(())
    }
}

/// The path of a `file:` URL without anything else.
pub(super) fn file_path(url: &str) -> Option<RelPath> {
    let url: StorageUrl = url.parse().ok()?;
    let bare = url.scheme() == "file"
        && url.host().is_empty()
        && url.user().is_none()
        && url.path() == url.path_and_rest();
    url.file_path().filter(|_| bare)
}

/// How the filer's binary gets into the executors' containers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Install {
    /// By a hook of the first container, which the kubelet waits for before it starts the next:
    /// one second faster, by a behaviour that is old but not promised.
    #[default]
    Hook,
    /// By an init container.
    Init,
}

/// `[[kubernetes.mounts]]`: exactly one of `claim`, `secret` and `config_map`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ExtraMount {
    /// Where containers see it.
    pub path: String,
    /// A `PersistentVolumeClaim`.
    #[serde(default)]
    pub claim: Option<String>,
    /// A `Secret`, one file for each key.
    #[serde(default)]
    pub secret: Option<String>,
    /// A `ConfigMap`, one file for each key.
    #[serde(default)]
    pub config_map: Option<String>,
    /// A directory of the claim, instead of its root.
    #[serde(default)]
    pub sub_path: Option<String>,
    /// The `file:` URL of what is at `path`: inputs below it that tasks mark as streamable are
    /// mounted into executors, read-only, instead of being copied.
    #[serde(default)]
    pub streamable: Option<String>,
    /// Nobody writes to it. Executors never do.
    #[serde(default)]
    pub read_only: bool,
    /// Who sees it.
    #[serde(default, rename = "in")]
    pub audience: Audience,
}

/// Who sees a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Audience {
    /// The filer only: storages and their credentials.
    #[default]
    Filer,
    /// Executors only, read-only: reference data, licences.
    Executors,
}

/// `[kubernetes.parameters]`: what `backend_parameters` mean. What is not listed is not
/// supported.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// Parameters that ask for a number of an extended resource: `gpu = "nvidia.com/gpu"`.
    pub resources: BTreeMap<String, String>,
    /// Parameters that select nodes by a label: `disktype = "example.com/disktype"`.
    pub node_selector: BTreeMap<String, String>,
    /// The values of `priority_class`.
    pub priority_classes: Vec<String>,
    /// The values of `queue`, which are local queues of Kueue.
    pub queues: Vec<String>,
    /// The values of `runtime_class`.
    pub runtime_classes: Vec<String>,
    /// The values of `storage_class`, for scratch.
    pub storage_classes: Vec<String>,
    /// The values of `image_pull_secret`.
    pub image_pull_secrets: Vec<String>,
    /// The values of `reference_data`, a list with commas: claims that executors see read-only.
    pub reference_data: BTreeMap<String, ReferenceData>,
    /// Whether tasks may shorten their time limit by `time_limit`.
    pub time_limit: bool,
}

/// A claim with data for executors.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ReferenceData {
    /// The `PersistentVolumeClaim`.
    pub claim: String,
    /// Where executors see it.
    pub path: String,
    /// A directory of the claim, instead of its root.
    #[serde(default)]
    pub sub_path: Option<String>,
}

/// `[kubernetes.patience]`: how long a pod may be stuck before its task ends with the reason.
/// Zero is for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Patience {
    /// An image cannot be pulled.
    pub image_pull: Span,
    /// No node has room.
    pub schedule: Span,
    /// On a node, and no container is seen to start: then the pod's events decide whether
    /// something is wrong, or its images are large.
    pub start: Span,
    /// The pod is to go, and its node does not answer.
    pub node_lost: Span,
}

impl Default for Patience {
    fn default() -> Self {
        let minutes = |m: u64| Span(Duration::from_secs(m * 60));
        Self {
            image_pull: minutes(5),
            schedule: minutes(0),
            start: minutes(15),
            node_lost: minutes(10),
        }
    }
}

/// `[kubernetes.lease]`: how servers of one instance agree on which of them schedules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct LeaseSettings {
    /// After how long without a sign of life another takes over.
    pub duration: Span,
    /// How often the one that schedules gives it. The others look five times as often.
    pub renew: Span,
}

impl Default for LeaseSettings {
    fn default() -> Self {
        Self {
            duration: Span(Duration::from_secs(15)),
            renew: Span(Duration::from_secs(5)),
        }
    }
}

impl LeaseSettings {
    fn check(self) -> Result<(), String> {
        let Self { duration, renew } = self;
        if renew.0 < Duration::from_millis(100) || renew.0 * 3 > duration.0 {
            return Err(format!(
                "kubernetes.lease: renew is {renew} and duration {duration}; renew must be at \
                 least 100ms, and duration three times as long"
            ));
        }
        Ok(())
    }
}

/// `[kubernetes.patch]`: strategic merge patches over the manifests, in the words of the
/// Kubernetes API.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Patches {
    /// Over every pod.
    pub pod: toml::Table,
    /// Over the pod of a task that is `preemptible`, after `pod`.
    pub preemptible: toml::Table,
    /// Over each executor's container.
    pub executor: toml::Table,
    /// Over each container of the filer.
    pub filer: toml::Table,
}
