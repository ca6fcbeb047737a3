//! The filer's configuration, as pods mount it.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams, Preconditions};

use super::watch::Pods;
use crate::crash;
use crate::kubernetes::cluster::{ApiError, Cluster, Part, digest};
use crate::kubernetes::pod::FILER_CONFIG;

/// A configuration in a `ConfigMap` whose name tells its content, so that pods of an earlier one
/// keep theirs; and whose it is, as each engine removes its own.
#[derive(Debug)]
pub(super) struct FilerConfig {
    map: ConfigMap,
    /// How long another is left alone after the first time that no pod was known to mount it.
    keep: Duration,
    /// Which others those are, and since when.
    unused: Mutex<HashMap<String, Instant>>,
}

impl FilerConfig {
    pub(super) fn new(cluster: &Cluster, text: String, keep: Duration) -> Self {
        let content = format!("{}\n{text}", cluster.instance());
        let name = format!("tesk-filer-{}", &digest(content.as_bytes())[..12]);
        let metadata = ObjectMeta {
            name: Some(name),
            labels: Some(cluster.labels(Part::Config)),
            ..ObjectMeta::default()
        };
        Self {
            map: ConfigMap {
                metadata,
                immutable: Some(true),
                data: Some([(FILER_CONFIG.to_owned(), text)].into()),
                binary_data: None,
            },
            keep,
            unused: Mutex::default(),
        }
    }

    pub(super) fn name(&self) -> &str {
        name_of(&self.map.metadata)
    }

    /// Sees to it that it is there.
    pub(super) async fn leave(&self, cluster: &Cluster) -> Result<(), ApiError> {
        let api = cluster.api::<ConfigMap>();
        let params = PostParams::default();
        match cluster.answer(api.create(&params, &self.map)).await {
            Err(error) if !error.is_there() => Err(error),
            _ => {
                crash::point("start.config");
                Ok(())
            }
        }
    }

    /// Leaves it again if somebody has removed it, as no pod would start, and removes those of
    /// earlier servers that no pod mounts.
    pub(super) async fn tend(&self, cluster: &Cluster, pods: &Pods) -> Result<(), ApiError> {
        let api = cluster.api::<ConfigMap>();
        let params = ListParams::default().labels(&cluster.selector(Part::Config));
        let there = cluster.answer(api.list_metadata(&params)).await?;
        if !there
            .iter()
            .any(|map| name_of(&map.metadata) == self.name())
        {
            tracing::warn!(name = self.name(), "the filer's configuration was removed");
            self.leave(cluster).await?;
        }
        let there = there.into_iter().map(|map| map.metadata);
        for map in self.unused_for_long(there, &pods.other_configs()) {
            let name = name_of(&map);
            let params = DeleteParams::default().preconditions(Preconditions {
                uid: map.uid.clone(),
                resource_version: None,
            });
            match cluster.answer(api.delete(name, &params)).await {
                Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// The others that no call has found `mounted` for as long as they are kept.
    fn unused_for_long(
        &self,
        there: impl IntoIterator<Item = ObjectMeta>,
        mounted: &HashSet<String>,
    ) -> Vec<ObjectMeta> {
        let mut before = self.unused.lock().unwrap_or_else(PoisonError::into_inner);
        let mut unused = HashMap::new();
        let mut long = Vec::new();
        for map in there {
            let name = name_of(&map);
            if name == self.name() || mounted.contains(name) {
                continue;
            }
            let since = before.get(name).copied().unwrap_or_else(Instant::now);
            unused.insert(name.to_owned(), since);
            if since.elapsed() >= self.keep {
                long.push(map);
            }
        }
        *before = unused;
        long
    }
}

fn name_of(metadata: &ObjectMeta) -> &str {
    metadata.name.as_deref().unwrap_or_default()
}
