//! Retention, and what crashes left: objects that no head speaks of.

use std::sync::Arc;
use std::time::Instant;

use futures_util::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Preconditions};
use kube::core::{ObjectMeta, PartialObjectMeta};

use super::super::cluster::{ApiError, Part, age};
use super::object::{Entry, KeyRef, TextRef, head_name, task_of};
use super::text::{Kind, discard, part_names};
use super::{Shared, StoreError, failed, key};
use crate::crash;
use crate::scheduler::TaskId;
use crate::time::Timestamp;

/// Tasks that are removed at once.
const PARALLEL: usize = 8;
/// Objects on a page of a list.
const PAGE: u32 = 500;

impl Shared {
    pub(super) async fn sweep(
        &self,
        before: Timestamp,
        limit: usize,
    ) -> Result<Vec<TaskId>, StoreError> {
        if self.orphans_are_due()
            && let Err(error) = self.sweep_orphans().await
        {
            tracing::warn!(%error, "left-over objects could not be looked for");
        }
        let old = self.index().ended(before, limit);
        let removals = stream::iter(old)
            .map(|entry| async move {
                let removed = self.remove(&entry).await;
                (entry, removed)
            })
            .buffered(PARALLEL);
        let mut removals = std::pin::pin!(removals);
        let mut removed = Vec::new();
        let mut failure = None;
        while let Some((entry, outcome)) = removals.next().await {
            match outcome {
                Ok(true) => removed.push(entry.head.id.clone()),
                Ok(false) => {}
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        match failure {
            Some(error) if removed.is_empty() => Err(failed(&error)),
            _ => Ok(removed),
        }
    }

    /// Removes a task whose time has come. The key goes first: one without a head would stand
    /// for a create that was cut off.
    async fn remove(&self, entry: &Arc<Entry>) -> Result<bool, ApiError> {
        let id = &entry.head.id;
        if let Some(key) = &entry.key {
            self.release(key).await;
            crash::point("sweep.key");
        }
        match self.delete(&head_name(id), &entry.uid).await {
            Ok(()) => {}
            Err(error) if error.is_not_found() => {}
            Err(error) if error.is_conflict() => return Ok(false),
            Err(error) => return Err(error),
        }
        crash::point("sweep.head");
        self.index_mut().remove(id);
        discard(&self.cluster, id, Kind::Document, &entry.document).await;
        discard(&self.cluster, id, Kind::Logs, &entry.logs).await;
        crash::point("sweep.texts");
        if entry.secret {
            self.drop_secrets(id).await;
        }
        Ok(true)
    }

    async fn delete(&self, name: &str, uid: &str) -> Result<(), ApiError> {
        let api = self.cluster.api::<ConfigMap>();
        let params = DeleteParams::default().preconditions(Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        });
        let gone = self.cluster.answer(api.delete(name, &params));
        gone.await.map(drop)
    }

    fn orphans_are_due(&self) -> bool {
        let mut swept = self
            .swept
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let due = swept.is_none_or(|last| last.elapsed() >= self.settings.orphan_interval);
        if due {
            *swept = Some(Instant::now());
        }
        due
    }

    async fn sweep_orphans(&self) -> Result<(), ApiError> {
        let api: Api<PartialObjectMeta<ConfigMap>> = self.cluster.api();
        for part in [Part::Key, Part::Secret, Part::Document, Part::Result] {
            let mut params = ListParams::default()
                .labels(&self.cluster.selector(part))
                .limit(PAGE);
            loop {
                let page = self.cluster.answer(api.list(&params)).await?;
                for object in &page.items {
                    self.judge(part, &object.metadata).await?;
                }
                params.continue_token = page.metadata.continue_.filter(|t| !t.is_empty());
                if params.continue_token.is_none() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Removes an object if nothing speaks of it and nothing will.
    async fn judge(&self, part: Part, metadata: &ObjectMeta) -> Result<(), ApiError> {
        let expired = part == Part::Key && key::is_void(metadata);
        if !expired && age(metadata) < self.settings.orphan_age {
            return Ok(());
        }
        let (Some(name), Some(uid)) = (&metadata.name, &metadata.uid) else {
            return Ok(());
        };
        let Some(id) = task_of(metadata) else {
            return Ok(());
        };
        let is_part = |kind, text: &TextRef| part_names(&id, kind, text).any(|part| part == *name);
        let is_wanted = |entry: &Entry| match part {
            Part::Key => {
                entry.key.as_ref()
                    == Some(&KeyRef {
                        name: name.clone(),
                        uid: uid.clone(),
                    })
            }
            Part::Secret => !entry.head.state.is_terminal(),
            Part::Document => is_part(Kind::Document, &entry.document),
            Part::Result => is_part(Kind::Logs, &entry.logs),
            Part::Attempt | Part::Plan | Part::Config | Part::Record | Part::Lease => true,
        };
        // What cannot be known is left alone.
        let Ok(entry) = self.entry(&id).await else {
            return Ok(());
        };
        if !expired {
            if entry.as_deref().is_some_and(is_wanted) {
                return Ok(());
            }
            // What is known here may be old.
            match self.fetch(&id).await {
                Ok(newest) if !newest.as_deref().is_some_and(is_wanted) => {}
                _ => return Ok(()),
            }
        }
        tracing::debug!(name, "removes an object that nothing speaks of");
        if part == Part::Secret {
            self.drop_secrets(&id).await;
            return Ok(());
        }
        match self.delete(name, uid).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
            _ => {
                crash::point("sweep.orphan");
                Ok(())
            }
        }
    }
}
