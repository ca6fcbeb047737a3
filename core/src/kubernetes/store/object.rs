//! The head of a record as an object of the cluster: names, labels, annotations.
//!
//! What is read here may have been edited by hand, so everything is checked.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

use super::super::cluster::{Cluster, Part, TASK, digest};
use crate::scheduler::{Head, Owner, TaskId};
use crate::tes::State;
use crate::time::Timestamp;

/// The label that holds the state, for people and selectors; the annotation is what counts.
pub(super) const STATE: &str = "tesk.elixir-cloud.org/state";
/// The label that holds a hash of the user's name.
const OWNER: &str = "tesk.elixir-cloud.org/owner";
/// The annotation that holds the head.
pub(super) const HEAD: &str = "tesk.elixir-cloud.org/head";
/// The annotation that holds what lists are filtered by.
const SEARCH: &str = "tesk.elixir-cloud.org/search";
/// How heads are written at present.
const FORMAT: u32 = 1;

/// The name of a record's head.
pub(super) fn head_name(id: &TaskId) -> String {
    format!("tesk-{id}")
}

/// The key in a task's secret; its value is a JSON object as
/// [`UrlSecrets`](crate::tes::UrlSecrets).
pub(super) const SECRETS_KEY: &str = "secrets.json";

/// The name of the note that a task has a secret.
pub(super) fn note_name(id: &TaskId) -> String {
    format!("tesk-{id}.secret")
}

/// All that the index knows of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) head: Head,
    pub(super) uid: String,
    pub(super) search: Search,
    pub(super) document: TextRef,
    pub(super) logs: TextRef,
    pub(super) secret: bool,
    pub(super) key: Option<KeyRef>,
    /// Tells one write from another, when an answer was lost.
    pub(super) write: u64,
}

/// What lists are filtered by, beside the head.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Search {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) tags: Vec<(String, String)>,
}

/// Where a text is and what it must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TextRef {
    /// The beginning of its SHA-256.
    pub(super) hash: String,
    pub(super) bytes: usize,
    /// How many objects it fills; 0 when it lies in the head's own data.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) parts: u32,
    /// The write that made those objects: a part of their names.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) write: u64,
}

/// The idempotency key that a task was made with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeyRef {
    pub(super) name: String,
    pub(super) uid: String,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    format: u32,
    #[serde(flatten)]
    owner: Owner,
    state: State,
    created: Timestamp,
    changed: Timestamp,
    attempt: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    not_before: Option<Timestamp>,
    document: TextRef,
    logs: TextRef,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    secret: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<KeyRef>,
    write: u64,
}

fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The task that an object with this name is the head of.
pub(super) fn id_of(metadata: &ObjectMeta) -> Option<TaskId> {
    let name = metadata.name.as_deref()?;
    name.strip_prefix("tesk-")?.parse().ok()
}

/// The task that an object says it belongs to.
pub(super) fn task_of(metadata: &ObjectMeta) -> Option<TaskId> {
    metadata.labels.as_ref()?.get(TASK)?.parse().ok()
}

impl Entry {
    /// Reads a head.
    pub(super) fn read(id: &TaskId, metadata: &ObjectMeta) -> Result<Self, String> {
        let annotation = |name: &str| {
            let found = metadata.annotations.as_ref().and_then(|all| all.get(name));
            found.ok_or_else(|| format!("it has no annotation {name}"))
        };
        let bad = |name: &str, error: serde_json::Error| format!("annotation {name}: {error}");
        let stored: Stored =
            serde_json::from_str(annotation(HEAD)?).map_err(|error| bad(HEAD, error))?;
        if stored.format != FORMAT {
            return Err(format!(
                "it has format {}; this version of the program knows {FORMAT}",
                stored.format
            ));
        }
        let search = match annotation(SEARCH) {
            Ok(text) => serde_json::from_str(text).map_err(|error| bad(SEARCH, error))?,
            Err(_) => Search::default(),
        };
        let version = metadata.resource_version.as_deref().unwrap_or_default();
        Ok(Self {
            head: Head {
                id: id.clone(),
                owner: stored.owner,
                state: stored.state,
                created: stored.created,
                changed: stored.changed,
                attempt: stored.attempt,
                not_before: stored.not_before,
                version: version
                    .parse()
                    .map_err(|_| format!("its version {version:?} is not a number"))?,
            },
            uid: metadata.uid.clone().unwrap_or_default(),
            search,
            document: stored.document,
            logs: stored.logs,
            secret: stored.secret,
            key: stored.key,
            write: stored.write,
        })
    }

    /// The head's labels.
    pub(super) fn labels(&self, cluster: &Cluster) -> BTreeMap<String, String> {
        let mut labels = cluster.labels(Part::Record);
        labels.insert(TASK.to_owned(), self.head.id.to_string());
        labels.insert(STATE.to_owned(), self.head.state.to_string());
        if !self.head.owner.user.is_empty() {
            labels.insert(OWNER.to_owned(), digest(self.head.owner.user.as_bytes()));
        }
        labels
    }

    /// The labels that an update changes.
    pub(super) fn changing_labels(&self) -> BTreeMap<&'static str, String> {
        BTreeMap::from([(STATE, self.head.state.to_string())])
    }

    /// The head's annotations.
    pub(super) fn annotations(&self) -> Result<BTreeMap<String, String>, serde_json::Error> {
        let mut annotations = BTreeMap::from([(HEAD.to_owned(), self.annotation()?)]);
        if self.search != Search::default() {
            annotations.insert(SEARCH.to_owned(), serde_json::to_string(&self.search)?);
        }
        Ok(annotations)
    }

    /// The text of the annotation [`HEAD`].
    pub(super) fn annotation(&self) -> Result<String, serde_json::Error> {
        let head = &self.head;
        serde_json::to_string(&Stored {
            format: FORMAT,
            owner: head.owner.clone(),
            state: head.state,
            created: head.created,
            changed: head.changed,
            attempt: head.attempt,
            not_before: head.not_before,
            document: self.document.clone(),
            logs: self.logs.clone(),
            secret: self.secret,
            key: self.key.clone(),
            write: self.write,
        })
    }
}
