//! The operator's patches over the manifests.
//!
//! Strategic merge as the Kubernetes API describes it: objects are merged, `null` is not
//! possible in TOML, lists whose entries have a key are merged by it, and all others are
//! replaced.

use k8s_openapi::api::core::v1::{Container, Pod};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::super::settings::Patches;
use super::{INPUTS, OUTPUTS, PREPARE};

/// Lists whose entries are told apart by a key.
const KEYS: [(&str, &str); 12] = [
    ("containers", "name"),
    ("env", "name"),
    ("hostAliases", "ip"),
    ("imagePullSecrets", "name"),
    ("initContainers", "name"),
    ("ownerReferences", "uid"),
    ("ports", "containerPort"),
    ("resourceClaims", "name"),
    ("topologySpreadConstraints", "topologyKey"),
    ("volumeDevices", "devicePath"),
    ("volumeMounts", "mountPath"),
    ("volumes", "name"),
];

/// Whether the patches are such that the Kubernetes API knows every field of theirs. An error
/// names the first that it does not know.
pub fn check(patches: &Patches) -> Result<(), String> {
    known::<Pod>("pod", &patches.pod)?;
    known::<Pod>("preemptible", &patches.preemptible)?;
    known::<Container>("executor", &patches.executor)?;
    known::<Container>("filer", &patches.filer)
}

fn known<T: Serialize + DeserializeOwned + Default>(
    section: &str,
    patch: &toml::Table,
) -> Result<(), String> {
    let wrong = |error: &dyn std::fmt::Display| format!("kubernetes.patch.{section}: {error}");
    let patch = serde_json::to_value(patch).map_err(|error| wrong(&error))?;
    // Required fields come from what is patched.
    let mut whole = serde_json::to_value(T::default()).map_err(|error| wrong(&error))?;
    merge(&mut whole, &patch, "");
    let read: T = serde_json::from_value(whole).map_err(|error| wrong(&error))?;
    let read = serde_json::to_value(read).map_err(|error| wrong(&error))?;
    match lost(&patch, &read, "") {
        None => Ok(()),
        Some(field) => Err(wrong(&format_args!("Kubernetes has no field {field}"))),
    }
}

/// The first field of `patch` that is not in `read`.
fn lost(patch: &Value, read: &Value, at: &str) -> Option<String> {
    match (patch, read) {
        (Value::Object(patch), Value::Object(read)) => patch.iter().find_map(|(key, value)| {
            let at = if at.is_empty() {
                key.clone()
            } else {
                format!("{at}.{key}")
            };
            match read.get(key) {
                Some(read) => lost(value, read, &at),
                // What is empty is left out when it is written.
                None => (!is_empty(value)).then_some(at),
            }
        }),
        (Value::Array(patch), Value::Array(read)) => patch
            .iter()
            .zip(read)
            .find_map(|(patch, read)| lost(patch, read, at)),
        _ => None,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.values().all(is_empty),
        Value::Array(entries) => entries.is_empty(),
        _ => false,
    }
}

/// Puts the patches over the pod.
pub(super) fn apply(pod: &mut Pod, preemptible: bool, patches: &Patches) -> Result<(), String> {
    let failed = |error: serde_json::Error| format!("kubernetes.patch does not fit: {error}");
    let nothing = [&patches.pod, &patches.executor, &patches.filer]
        .iter()
        .all(|patch| patch.is_empty());
    if nothing && (!preemptible || patches.preemptible.is_empty()) {
        return Ok(());
    }
    let json = |patch: &toml::Table| serde_json::to_value(patch).map_err(failed);
    let (executor, filer) = (json(&patches.executor)?, json(&patches.filer)?);
    let mut value = serde_json::to_value(&*pod).map_err(failed)?;
    for list in ["initContainers", "containers"] {
        let containers = value.pointer_mut(&format!("/spec/{list}"));
        for container in containers
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            let name = container
                .get("name")
                .and_then(Value::as_str)
                .unwrap_or_default();
            let patch = match name {
                INPUTS | OUTPUTS | PREPARE => &filer,
                _ => &executor,
            };
            merge(container, patch, "");
        }
    }
    merge(&mut value, &json(&patches.pod)?, "");
    if preemptible {
        merge(&mut value, &json(&patches.preemptible)?, "");
    }
    *pod = serde_json::from_value(value).map_err(failed)?;
    Ok(())
}

fn merge(target: &mut Value, patch: &Value, field: &str) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (key, value) in patch {
                match target.get_mut(key) {
                    Some(there) => merge(there, value, key),
                    None => {
                        target.insert(key.clone(), value.clone());
                    }
                }
            }
        }
        (Value::Array(target), Value::Array(patch)) => {
            let Some((_, key)) = KEYS.iter().find(|(list, _)| *list == field) else {
                target.clone_from(patch);
                return;
            };
            for entry in patch {
                let same = |there: &&mut Value| there.get(key) == entry.get(key);
                match target.iter_mut().find(same) {
                    Some(there) => merge(there, entry, ""),
                    None => target.push(entry.clone()),
                }
            }
        }
        (target, patch) => target.clone_from(patch),
    }
}
