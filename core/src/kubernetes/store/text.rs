//! Documents and logs: in the head's own data when they are small, else compressed and cut into
//! objects of their own that never change.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::sync::Arc;

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, PostParams};
use kube::core::ObjectMeta;

use super::super::cluster::digest;
use super::super::cluster::{ApiError, Cluster, Part, TASK};
use super::object::TextRef;
use super::{MAX_LOGS, StoreError, corrupt, failed};
use crate::scheduler::TaskId;

/// Bytes of a text that lies in the head itself, so that most tasks are one object.
const INLINE: usize = 8 << 10;
/// Bytes of a part: an object's data may have 1 MiB.
const PART: usize = 900 << 10;
/// Parts of one text at most; what an edited head says is not believed beyond this.
const MAX_PARTS: u32 = (MAX_LOGS / PART) as u32 + 2;
/// Parts that are moved at once.
const PARALLEL: usize = 4;
/// Texts from this size on are compressed on a thread of their own.
const BLOCKING: usize = 256 << 10;
/// The one key in a part's data.
const KEY: &str = "part";

/// Which of a record's texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Document,
    Logs,
}

impl Kind {
    /// The key of the text in the head's data.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Document => "document",
            Self::Logs => "logs",
        }
    }

    fn part(self) -> Part {
        match self {
            Self::Document => Part::Document,
            Self::Logs => Part::Result,
        }
    }
}

/// A text on its way to the cluster.
#[derive(Debug)]
pub(super) struct Text {
    pub(super) kind: Kind,
    pub(super) whole: Arc<str>,
    pub(super) reference: TextRef,
    parts: Vec<Vec<u8>>,
}

impl Text {
    pub(super) async fn new(kind: Kind, text: Arc<str>, write: u64) -> Result<Self, StoreError> {
        if text.len() < BLOCKING {
            return Self::pack(kind, text, write);
        }
        tokio::task::spawn_blocking(move || Self::pack(kind, text, write))
            .await
            .map_err(|error| StoreError::Unavailable(error.to_string()))?
    }

    fn pack(kind: Kind, text: Arc<str>, write: u64) -> Result<Self, StoreError> {
        let mut reference = TextRef {
            hash: digest(text.as_bytes()),
            bytes: text.len(),
            parts: 0,
            write: 0,
        };
        let mut parts = Vec::new();
        if text.len() > INLINE {
            let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
            let packed = encoder
                .write_all(text.as_bytes())
                .and_then(|()| encoder.finish())
                .map_err(corrupt)?;
            parts = packed.chunks(PART).map(<[u8]>::to_vec).collect();
            reference.parts = parts.len() as u32;
            reference.write = write;
        }
        Ok(Self {
            kind,
            whole: text,
            reference,
            parts,
        })
    }

    /// The text, if it belongs in the head's data.
    pub(super) fn inline(&self) -> Option<&str> {
        self.parts.is_empty().then_some(&*self.whole)
    }

    /// Makes the objects of the text. They must be there before a head speaks of them.
    pub(super) async fn store(&self, cluster: &Cluster, id: &TaskId) -> Result<(), StoreError> {
        let (api, params) = (cluster.api::<ConfigMap>(), PostParams::default());
        let mut labels = cluster.labels(self.kind.part());
        labels.insert(TASK.to_owned(), id.to_string());
        let names = part_names(id, self.kind, &self.reference);
        stream::iter(names.zip(self.parts.clone()))
            .map(|(name, part)| {
                let object = ConfigMap {
                    metadata: ObjectMeta {
                        name: Some(name),
                        labels: Some(labels.clone()),
                        ..ObjectMeta::default()
                    },
                    immutable: Some(true),
                    binary_data: Some(BTreeMap::from([(KEY.to_owned(), ByteString(part.clone()))])),
                    ..ConfigMap::default()
                };
                let (api, params) = (&api, &params);
                async move {
                    let made = cluster.answer(api.create(params, &object));
                    made.await.map(drop).map_err(|error| failed(&error))
                }
            })
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await
    }
}

/// The names of a text's objects.
pub(super) fn part_names(
    id: &TaskId,
    kind: Kind,
    reference: &TextRef,
) -> impl Iterator<Item = String> + Send + use<> {
    let (stem, parts) = (
        format!(
            "tesk-{id}.{}-{:016x}",
            kind.part().as_str(),
            reference.write
        ),
        reference.parts.min(MAX_PARTS),
    );
    (0..parts).map(move |n| format!("{stem}-{n}"))
}

/// Reads the objects of a text; `None` when one is not there.
pub(super) async fn load(
    cluster: &Cluster,
    id: &TaskId,
    kind: Kind,
    reference: &TextRef,
) -> Result<Option<Arc<str>>, StoreError> {
    if reference.parts > MAX_PARTS || reference.bytes > MAX_LOGS {
        return Err(StoreError::Corrupt(format!(
            "task {id}: no {} is that large",
            kind.key()
        )));
    }
    let api = cluster.api::<ConfigMap>();
    let parts: Result<Vec<Vec<u8>>, Option<ApiError>> =
        stream::iter(part_names(id, kind, reference))
            .map(|name| {
                let api = &api;
                async move {
                    let object = cluster.answer(api.get_opt(&name)).await.map_err(Some)?;
                    let mut data = object.and_then(|object| object.binary_data);
                    let part = data.as_mut().and_then(|data| data.remove(KEY));
                    part.map(|part| part.0).ok_or(None)
                }
            })
            .buffered(PARALLEL)
            .try_collect()
            .await;
    let parts = match parts {
        Ok(parts) => parts,
        Err(None) => return Ok(None),
        Err(Some(error)) => return Err(failed(&error)),
    };
    let reference = reference.clone();
    let unpack = move || {
        let mut text = String::new();
        let packed = parts.concat();
        DeflateDecoder::new(&*packed)
            .take(reference.bytes as u64 + 1)
            .read_to_string(&mut text)
            .map_err(corrupt)?;
        verified(&text, &reference).map_err(corrupt)?;
        Ok(Some(text.into()))
    };
    tokio::task::spawn_blocking(unpack)
        .await
        .map_err(|error| StoreError::Unavailable(error.to_string()))?
}

/// Refuses a text that is not what the head says.
pub(super) fn verified(text: &str, reference: &TextRef) -> Result<(), &'static str> {
    if text.len() != reference.bytes || digest(text.as_bytes()) != reference.hash {
        return Err("a text is not what the head says of it");
    }
    Ok(())
}

/// Removes the objects of a text, as far as that is possible now; the sweep finds the others.
pub(super) async fn discard(cluster: &Cluster, id: &TaskId, kind: Kind, reference: &TextRef) {
    let (api, params) = (cluster.api::<ConfigMap>(), DeleteParams::default());
    stream::iter(part_names(id, kind, reference))
        .for_each_concurrent(PARALLEL, |name| {
            let (api, params) = (&api, &params);
            async move {
                let gone = cluster.answer(api.delete(&name, params));
                if let Err(error) = gone.await
                    && !error.is_not_found()
                {
                    tracing::debug!(name, %error, "left to the sweep");
                }
            }
        })
        .await;
}
