//! The volumes of a pod, and which container sees what of them, where.

use std::collections::{BTreeMap, HashSet};

use k8s_openapi::api::core::v1::{
    ConfigMap, ConfigMapProjection, ConfigMapVolumeSource, DownwardAPIProjection,
    DownwardAPIVolumeFile, DownwardAPIVolumeSource, EmptyDirVolumeSource, EphemeralVolumeSource,
    KeyToPath, ObjectFieldSelector, PersistentVolumeClaimSpec, PersistentVolumeClaimTemplate,
    PersistentVolumeClaimVolumeSource, ProjectedVolumeSource, SecretVolumeSource, Volume,
    VolumeMount, VolumeProjection, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::ObjectMeta;

use super::parameters::Asked;
use super::{CONFIG_VOLUME, FILER_CONFIG, PLAN, STOP, Surroundings, executor};
use crate::kubernetes::cluster::{self, ATTEMPT, TASK};
use crate::kubernetes::{Audience, ExtraMount, secret_name};
use crate::plan::{Plan, packed, paths};
use crate::scheduler::AttemptId;

/// The supervisor, as executors see it.
pub(in super::super) const BINARY: &str = "/.tesk/bin/filer";
pub(super) const EXECUTORS_PLAN: &str = "/.tesk/bin/plan.json";
pub(super) const STOP_FILE: &str = "/.tesk/control/stop";
/// Where the kubelet reads what a container says at its end.
pub(super) const MESSAGE: &str = "/dev/termination-log";

const BIN: &str = "/.tesk/bin";
const CONTROL: &str = "/.tesk/control";
const HANDOVER: &str = "/.tesk/handover";
const SCRATCH: &str = "/.tesk/scratch";
const PLAN_DIRECTORY: &str = "/.tesk/plan";
/// Where the filer finds things, in every container of its.
const PLACES: [&str; 6] = [
    "--plan",
    PLAN_DIRECTORY,
    "--scratch",
    SCRATCH,
    "--handover",
    HANDOVER,
];
const CONFIG: &str = "/.tesk/config";
const SECRETS: &str = "/.tesk/secrets";
const COLLECT: &str = "/.tesk/collect";
const PERMIT: &str = "/.tesk/permit";

/// The largest packed plan in an annotation; every change of the pod's status carries it along.
const ANNOTATION: usize = 16 * 1024;
/// The largest part of a plan in a `ConfigMap`, which may have 1 MiB in all.
const PART: usize = 1000 * 1024;
/// The size of a scratch volume of a task that does not say.
const CLAIM: u64 = 10 << 30;

#[derive(Clone, Debug)]
pub(super) struct Volumes {
    pub(super) all: Vec<Volume>,
    /// The plan, if it is small enough for an annotation.
    pub(super) packed: Option<String>,
    /// Else the parts of it.
    pub(super) plan: Vec<ConfigMap>,
    /// What executors see of scratch, and inputs that they see where they are.
    parts: Vec<VolumeMount>,
    /// What they see besides.
    extra: Vec<VolumeMount>,
    /// What filers see besides.
    filer: Vec<VolumeMount>,
    /// Whether executors collect outputs from their images.
    collects: bool,
    /// Whether the plan's urls miss their passwords.
    secrets: bool,
    /// Whether inputs are mounted.
    streams: bool,
}

impl Volumes {
    pub(super) fn new(
        attempt: &AttemptId,
        plan: &Plan,
        streams: Vec<VolumeMount>,
        surroundings: &Surroundings,
        asked: &Asked,
    ) -> Result<Self, String> {
        let mut volumes = Self {
            all: vec![
                scratch(asked),
                empty("bin", None),
                empty("handover", None),
                control(),
                config(&surroundings.filer_config),
            ],
            packed: None,
            plan: Vec::new(),
            extra: Vec::new(),
            filer: Vec::new(),
            collects: plan.outputs.iter().any(|o| o.collected_at.is_some()),
            secrets: plan.is_masked(),
            streams: !streams.is_empty(),
            parts: parts(plan, streams)?,
        };
        volumes.add_plan(attempt, plan, surroundings);
        if volumes.secrets {
            volumes.all.push(Volume {
                name: "secrets".into(),
                secret: Some(SecretVolumeSource {
                    secret_name: Some(secret_name(&attempt.task)),
                    ..SecretVolumeSource::default()
                }),
                ..Volume::default()
            });
        }
        if let Some(size) = surroundings.settings.shm_size {
            let mut shm = empty("shm", Some(size.0));
            if let Some(source) = &mut shm.empty_dir {
                source.medium = Some("Memory".into());
            }
            volumes.all.push(shm);
            volumes.extra.push(mount("shm", "/dev/shm"));
        }
        let reference = asked.reference_data.iter().map(|data| ExtraMount {
            path: data.path.clone(),
            claim: Some(data.claim.clone()),
            secret: None,
            config_map: None,
            sub_path: data.sub_path.clone(),
            streamable: None,
            read_only: true,
            audience: Audience::Executors,
        });
        let extra: Vec<_> = surroundings
            .settings
            .mounts
            .iter()
            .cloned()
            .chain(reference)
            .collect();
        for (number, extra) in extra.iter().enumerate() {
            volumes.add_extra(number, extra)?;
        }
        Ok(volumes)
    }

    fn add_plan(&mut self, attempt: &AttemptId, plan: &Plan, surroundings: &Surroundings) {
        let packed = packed::pack(plan);
        let sources = if packed.len() <= ANNOTATION {
            self.packed = Some(packed);
            vec![VolumeProjection {
                downward_api: Some(DownwardAPIProjection {
                    items: Some(vec![annotation(PLAN, "plan")]),
                }),
                ..VolumeProjection::default()
            }]
        } else {
            let mut sources = Vec::new();
            let mut rest = packed.as_str();
            while !rest.is_empty() {
                let (part, after) = rest.split_at(rest.len().min(PART));
                let name = format!("tesk-{attempt}-plan-{}", self.plan.len());
                let key = format!("plan.{:04}", self.plan.len());
                sources.push(VolumeProjection {
                    config_map: Some(ConfigMapProjection {
                        name: name.clone(),
                        items: Some(vec![KeyToPath {
                            key: key.clone(),
                            path: key.clone(),
                            mode: None,
                        }]),
                        optional: None,
                    }),
                    ..VolumeProjection::default()
                });
                self.plan
                    .push(part_of_plan(attempt, surroundings, name, key, part));
                rest = after;
            }
            sources
        };
        self.all.push(Volume {
            name: "plan".into(),
            projected: Some(ProjectedVolumeSource {
                sources: Some(sources),
                default_mode: None,
            }),
            ..Volume::default()
        });
    }

    fn add_extra(&mut self, number: usize, extra: &ExtraMount) -> Result<(), String> {
        let volume = Volume {
            name: extra_name(number),
            persistent_volume_claim: extra.claim.as_ref().map(|claim| {
                PersistentVolumeClaimVolumeSource {
                    claim_name: claim.clone(),
                    // The same claim may be written to by another mount of this pod.
                    read_only: None,
                }
            }),
            secret: extra.secret.as_ref().map(|secret| SecretVolumeSource {
                secret_name: Some(secret.clone()),
                ..SecretVolumeSource::default()
            }),
            config_map: extra.config_map.as_ref().map(|name| ConfigMapVolumeSource {
                name: name.clone(),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        };
        let seen = VolumeMount {
            read_only: (extra.read_only || extra.audience == Audience::Executors).then_some(true),
            sub_path: extra.sub_path.clone(),
            ..mount(&volume.name, &extra.path)
        };
        match extra.audience {
            Audience::Filer => self.filer.push(seen),
            Audience::Executors => {
                let taken = self.parts.iter().find(|part| {
                    paths::is_within(&part.mount_path, &extra.path)
                        || paths::is_within(&extra.path, &part.mount_path)
                });
                if let Some(part) = taken {
                    return Err(format!(
                        "the task's {} collides with {}, where this server has data for all tasks",
                        part.mount_path, extra.path
                    ));
                }
                self.extra.push(seen);
            }
        }
        self.all.push(volume);
        Ok(())
    }

    /// What the two filers see: everything but the executors' extra mounts.
    pub(super) fn filer(&self) -> Vec<VolumeMount> {
        let mut mounts = vec![
            mount("scratch", SCRATCH),
            mount("bin", BIN),
            mount("handover", HANDOVER),
            read_only("control", CONTROL),
            read_only(CONFIG_VOLUME, CONFIG),
            read_only("plan", PLAN_DIRECTORY),
        ];
        if self.secrets {
            mounts.push(read_only("secrets", SECRETS));
        }
        mounts.extend(self.filer.iter().cloned());
        mounts
    }

    pub(super) fn executor(&self, number: usize) -> Vec<VolumeMount> {
        let name = executor(number);
        let mut mounts = vec![
            read_only("bin", BIN),
            read_only("handover", HANDOVER),
            VolumeMount {
                sub_path: Some(name.clone()),
                ..mount("handover", &format!("{HANDOVER}/{name}"))
            },
            read_only("control", CONTROL),
        ];
        if self.collects {
            mounts.push(VolumeMount {
                sub_path: Some(relative(paths::COLLECTED)),
                ..mount("scratch", &format!("{COLLECT}{}", paths::COLLECTED))
            });
        }
        mounts.extend(self.extra.iter().cloned());
        mounts.extend(self.parts.iter().cloned());
        mounts
    }

    /// Whether inputs are mounted. They are to be looked at before any other container starts:
    /// the kubelet makes a directory of what is not there.
    pub(super) fn stream(&self) -> bool {
        self.streams
    }

    pub(super) fn for_prepare(&self) -> Vec<String> {
        let mut arguments = super::words(PLACES);
        arguments.extend(super::words(["--install", BIN]));
        if self.streams {
            arguments.extend(config_file());
        }
        arguments
    }

    pub(super) fn for_filer(&self) -> Vec<String> {
        let mut arguments = super::words(PLACES);
        arguments.extend(config_file());
        if self.secrets {
            arguments.extend(["--secrets".into(), format!("{SECRETS}/secrets.json")]);
        }
        arguments
    }

    pub(super) fn for_executor(&self) -> Vec<String> {
        let mut arguments = super::words(["--handover", HANDOVER]);
        if self.collects {
            arguments.extend(super::words(["--scratch", COLLECT]));
        }
        arguments
    }
}

fn config_file() -> [String; 2] {
    ["--config".into(), format!("{CONFIG}/{FILER_CONFIG}")]
}

/// What executors see of scratch, and in it or instead of it `streams`.
fn parts(plan: &Plan, streams: Vec<VolumeMount>) -> Result<Vec<VolumeMount>, String> {
    let part = |planned: &crate::plan::Mount| {
        let path = &planned.path;
        if path.contains(':') {
            return Err(format!(
                "{path}: a cluster cannot mount a path with a colon"
            ));
        }
        Ok(VolumeMount {
            sub_path: Some(relative(path)),
            ..mount("scratch", path)
        })
    };
    let instead: HashSet<&str> = streams.iter().map(|s| s.mount_path.as_str()).collect();
    let parts = plan.mounts.iter();
    let parts = parts.filter(|mount| !instead.contains(mount.path.as_str()));
    let mut parts = parts.map(part).collect::<Result<Vec<_>, _>>()?;
    parts.extend(streams);
    Ok(parts)
}

/// The volume of the mount of this number in the configuration.
pub(super) fn extra_name(number: usize) -> String {
    format!("extra-{number}")
}

fn relative(path: &str) -> String {
    path.trim_start_matches('/').to_owned()
}

fn mount(volume: &str, path: &str) -> VolumeMount {
    VolumeMount {
        name: volume.to_owned(),
        mount_path: path.to_owned(),
        ..VolumeMount::default()
    }
}

pub(super) fn read_only(volume: &str, path: &str) -> VolumeMount {
    VolumeMount {
        read_only: Some(true),
        ..mount(volume, path)
    }
}

fn empty(name: &str, limit: Option<u64>) -> Volume {
    Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: None,
            size_limit: limit.map(|bytes| Quantity(bytes.to_string())),
        }),
        ..Volume::default()
    }
}

/// A directory of the node, or a volume of its own that goes with the pod.
fn scratch(asked: &Asked) -> Volume {
    let Some(class) = &asked.scratch_class else {
        return empty("scratch", asked.scratch);
    };
    let size = Quantity(asked.scratch.unwrap_or(CLAIM).to_string());
    Volume {
        name: "scratch".into(),
        ephemeral: Some(EphemeralVolumeSource {
            volume_claim_template: Some(PersistentVolumeClaimTemplate {
                metadata: None,
                spec: PersistentVolumeClaimSpec {
                    access_modes: Some(super::words(["ReadWriteOnce"])),
                    storage_class_name: Some(class.clone()),
                    resources: Some(VolumeResourceRequirements {
                        requests: Some(BTreeMap::from([("storage".to_owned(), size)])),
                        limits: None,
                    }),
                    ..PersistentVolumeClaimSpec::default()
                },
            }),
        }),
        ..Volume::default()
    }
}

fn annotation(name: &str, file: &str) -> DownwardAPIVolumeFile {
    DownwardAPIVolumeFile {
        path: file.to_owned(),
        field_ref: Some(ObjectFieldSelector {
            api_version: None,
            field_path: format!("metadata.annotations['{name}']"),
        }),
        ..DownwardAPIVolumeFile::default()
    }
}

fn control() -> Volume {
    Volume {
        name: "control".into(),
        downward_api: Some(DownwardAPIVolumeSource {
            items: Some(vec![annotation(STOP, "stop")]),
            default_mode: None,
        }),
        ..Volume::default()
    }
}

fn config(name: &str) -> Volume {
    Volume {
        name: CONFIG_VOLUME.into(),
        config_map: Some(ConfigMapVolumeSource {
            name: name.to_owned(),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// What is there only while the record has the attempt for the current one.
pub(super) fn permit(record: &str, attempt: &AttemptId) -> (Volume, VolumeMount) {
    let volume = Volume {
        name: "permit".into(),
        config_map: Some(ConfigMapVolumeSource {
            name: record.to_owned(),
            items: Some(vec![KeyToPath {
                key: cluster::permit(attempt.number),
                path: "attempt".into(),
                mode: None,
            }]),
            optional: Some(false),
            default_mode: None,
        }),
        ..Volume::default()
    };
    (volume, read_only("permit", PERMIT))
}

fn part_of_plan(
    attempt: &AttemptId,
    surroundings: &Surroundings,
    name: String,
    key: String,
    part: &str,
) -> ConfigMap {
    let mut labels = surroundings.plan_labels.clone();
    labels.insert(TASK.to_owned(), attempt.task.to_string());
    labels.insert(ATTEMPT.to_owned(), attempt.number.to_string());
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        immutable: Some(true),
        data: Some(BTreeMap::from([(key, part.to_owned())])),
        binary_data: None,
    }
}
