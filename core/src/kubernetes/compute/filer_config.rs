//! The filer's configuration, as pods mount it.

use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams, Preconditions};

use super::watch::Pods;
use crate::crash;
use crate::kubernetes::cluster::{ApiError, Cluster, Part, age, digest};
use crate::kubernetes::pod::FILER_CONFIG;

/// How long another configuration is left alone: two servers of different ones may take turns
/// while one replaces the other.
const OLD: Duration = Duration::from_hours(1);

/// A configuration in a `ConfigMap` whose name tells its content, so that pods of an earlier one
/// keep theirs; and whose it is, as each engine removes its own.
#[derive(Debug)]
pub(super) struct FilerConfig {
    map: ConfigMap,
}

impl FilerConfig {
    pub(super) fn new(cluster: &Cluster, text: String) -> Self {
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
        }
    }

    pub(super) fn name(&self) -> &str {
        self.map.metadata.name.as_deref().unwrap_or_default()
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
        let name_of = |metadata: &ObjectMeta| metadata.name.clone().unwrap_or_default();
        if !there
            .iter()
            .any(|map| name_of(&map.metadata) == self.name())
        {
            tracing::warn!(name = self.name(), "the filer's configuration was removed");
            self.leave(cluster).await?;
        }
        for map in there {
            let name = name_of(&map.metadata);
            let old = name != self.name() && age(&map.metadata) >= OLD;
            if !old || pods.other_configs().contains(&name) {
                continue;
            }
            let params = DeleteParams::default().preconditions(Preconditions {
                uid: map.metadata.uid,
                resource_version: None,
            });
            match cluster.answer(api.delete(&name, &params)).await {
                Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}
