//! Idempotency keys: an object named by the key's hash says which task the key is for, and is
//! made before that task's head.
//!
//! The head names the key it was made with, so there are three cases. Head and key know each
//! other: the task is there. There is no head: a create is under way or was cut off, and whoever
//! has the same body completes it under the same id, so that concurrent twins agree. The head is
//! of another key, or nothing came of it for long: the key is void.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::core::{ObjectMeta, PartialObjectMeta};
use serde::{Deserialize, Serialize};

use super::super::cluster::{Part, TASK, age, digest};
use super::object::KeyRef;
use super::{Created, Shared, StoreError, corrupt, failed};
use crate::scheduler::store::IdempotencyKey;
use crate::scheduler::{Owner, TaskId};
use crate::time::Timestamp;

/// The annotation that holds what the key is for.
const KEY: &str = "tesk.elixir-cloud.org/key";
/// How often a void key is replaced before the caller is told to come again.
const TRIES: usize = 8;

/// Whose the key is.
#[derive(Debug)]
pub(super) enum Claim {
    /// The caller's: the task is to be made under its own id.
    Own(KeyRef),
    /// A twin's that has no head yet: the task is to be made under this id.
    Join(TaskId, KeyRef),
    /// The answer is known.
    Decided(Created),
}

#[derive(Serialize, Deserialize)]
struct Stored {
    id: TaskId,
    digest: String,
    expires: Timestamp,
}

impl Shared {
    /// Takes the key for a new task, or finds out whose it is.
    pub(super) async fn claim(
        &self,
        key: &IdempotencyKey,
        owner: &Owner,
        id: &TaskId,
    ) -> Result<Claim, StoreError> {
        let api: Api<PartialObjectMeta<ConfigMap>> = self.cluster.api();
        let full = self.cluster.api::<ConfigMap>();
        let name = self.key_name(key, owner);
        let digest = digest(&key.digest);
        let own = self.key_object(&name, key, id, &digest)?;
        for _ in 0..TRIES {
            let params = PostParams::default();
            let made = self.cluster.answer(full.create(&params, &own)).await;
            match made {
                Ok(made) => {
                    let uid = made.metadata.uid.unwrap_or_default();
                    return Ok(Claim::Own(KeyRef { name, uid }));
                }
                Err(error) if error.is_conflict() => {}
                // It may have been carried out: the look below will tell.
                Err(error) if error.code == 0 || error.code >= 500 => {}
                Err(error) => return Err(failed(&error)),
            }
            let there = self.cluster.answer(api.get_opt(&name)).await;
            let Some(there) = there.map_err(|error| failed(&error))? else {
                continue;
            };
            let reference = KeyRef {
                name: name.clone(),
                uid: there.metadata.uid.clone().unwrap_or_default(),
            };
            let stored = read(&there.metadata).filter(|s| s.expires > Timestamp::now());
            let Some(stored) = stored else {
                self.release(&reference).await;
                continue;
            };
            if stored.id == *id {
                return Ok(Claim::Own(reference));
            }
            let same = stored.digest == digest;
            match self.entry(&stored.id).await? {
                Some(entry) if entry.key.as_ref() == Some(&reference) => {
                    return Ok(Claim::Decided(if same {
                        Created::Existing(stored.id)
                    } else {
                        Created::KeyReused
                    }));
                }
                Some(_) => self.release(&reference).await,
                // Well before the sweep takes what the create has left.
                None if age(&there.metadata) > self.settings.orphan_age / 2 => {
                    self.release(&reference).await;
                }
                None if same => return Ok(Claim::Join(stored.id, reference)),
                None => return Ok(Claim::Decided(Created::KeyReused)),
            }
        }
        Err(StoreError::Unavailable(
            "the idempotency key is being used by others".into(),
        ))
    }

    /// Gives a key back, if it is still this one.
    pub(super) async fn release(&self, key: &KeyRef) {
        let api = self.cluster.api::<ConfigMap>();
        let params = DeleteParams::default().preconditions(Preconditions {
            uid: Some(key.uid.clone()),
            resource_version: None,
        });
        let gone = self.cluster.answer(api.delete(&key.name, &params)).await;
        if let Err(error) = gone
            && !error.is_not_found()
            && !error.is_conflict()
        {
            tracing::debug!(key = key.name, %error, "left to the sweep");
        }
    }

    /// The name of a key's object: it tells nothing of the key.
    fn key_name(&self, key: &IdempotencyKey, owner: &Owner) -> String {
        let instance = &self.cluster.labels(Part::Key)[super::super::cluster::INSTANCE];
        let text = format!("{instance}\0{}\0{}", owner.user, key.key);
        format!("tesk.key-{}", digest(text.as_bytes()))
    }

    fn key_object(
        &self,
        name: &str,
        key: &IdempotencyKey,
        id: &TaskId,
        digest: &str,
    ) -> Result<ConfigMap, StoreError> {
        let stored = Stored {
            id: id.clone(),
            digest: digest.to_owned(),
            expires: Timestamp::now().after(key.ttl),
        };
        let text = serde_json::to_string(&stored).map_err(corrupt)?;
        let mut labels = self.cluster.labels(Part::Key);
        labels.insert(TASK.to_owned(), id.to_string());
        Ok(ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                labels: Some(labels),
                annotations: Some(BTreeMap::from([(KEY.to_owned(), text)])),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        })
    }
}

/// Whether a key has expired, or is none.
pub(super) fn is_void(metadata: &ObjectMeta) -> bool {
    read(metadata).is_none_or(|stored| stored.expires <= Timestamp::now())
}

fn read(metadata: &ObjectMeta) -> Option<Stored> {
    let text = metadata.annotations.as_ref()?.get(KEY)?;
    serde_json::from_str(text).ok()
}
