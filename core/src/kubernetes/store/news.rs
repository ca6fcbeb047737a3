//! What is told of heads goes into the index; and how old the news are.

use std::collections::HashSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::core::{ObjectMeta, PartialObjectMeta};
use tokio::time::Instant;

use super::super::cluster::{ApiError, Contact, Part};
use super::super::follow::Follower;
use super::Shared;
use super::object::{Entry, id_of};
use crate::scheduler::TaskId;

/// How old the news are.
#[derive(Debug)]
pub(super) struct Freshness {
    /// When the watch last told anything, or began.
    heard: Instant,
    /// Whether it is broken.
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
    /// How old the index is while the API server is away, or if the watch has been broken for more
    /// than `patience`.
    pub(super) fn stale(&self, patience: Duration, contact: &Contact) -> Option<Duration> {
        let age = self.of(contact).elapsed();
        let stale = contact.is_lost() || self.failing && age > patience;
        stale.then_some(age)
    }

    /// When the index was last in step. A watch that is not broken may have nothing to tell for a
    /// minute, while other requests are answered.
    fn of(&self, contact: &Contact) -> Instant {
        if self.failing {
            self.heard
        } else {
            self.heard.max(contact.answered())
        }
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
        let contact = self.cluster.contact();
        let mut freshness = self.freshness();
        *freshness = Freshness {
            heard: freshness.of(contact),
            failing: true,
        };
    }
}
