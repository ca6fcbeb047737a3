//! What is told of heads goes into the index; and how old the news are.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::core::{ObjectMeta, PartialObjectMeta};

use super::super::cluster::{ApiError, Part};
use super::super::follow::Follower;
use super::Shared;
use super::object::{Entry, id_of};
use crate::scheduler::TaskId;

/// How old the news are.
#[derive(Debug)]
pub(super) struct Freshness {
    /// When the API server was last heard of.
    heard: Instant,
    /// Whether it is not heard of now.
    failing: bool,
}

impl Default for Freshness {
    fn default() -> Self {
        Self {
            heard: Instant::now(),
            failing: false,
        }
    }
}

impl Freshness {
    /// How old the index is, if it is out of step for more than `patience`. `lost` says that the
    /// API server is known to be away.
    pub(super) fn stale(&self, patience: Duration, lost: bool) -> Option<Duration> {
        let silent = self.heard.elapsed();
        let failing = lost || self.failing;
        (failing && silent > patience).then_some(silent)
    }
}

impl Follower for Shared {
    type Object = PartialObjectMeta<ConfigMap>;
    type Id = TaskId;

    const PART: Part = Part::Record;

    fn id(metadata: &ObjectMeta) -> Option<TaskId> {
        id_of(metadata)
    }

    /// Takes a head into the index. One that cannot be read is told of once and harms no other.
    fn take(&self, id: TaskId, object: Self::Object) {
        match Entry::read(&id, &object.metadata) {
            Ok(entry) => self.apply(entry),
            Err(reason) => self.broke(&id, &reason),
        }
    }

    fn gone(&self, id: &TaskId) {
        self.index_mut().remove(id);
    }

    fn keep_only(&self, listed: &HashSet<TaskId>, version: Option<u64>) {
        if let Some(version) = version {
            self.index_mut().retain(listed, version);
        }
    }

    fn heard(&self) {
        *self.freshness() = Freshness::default();
    }

    fn failed(&self, _: &ApiError) {
        self.freshness().failing = true;
    }
}
