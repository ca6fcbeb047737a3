//! Passwords of a task's URLs, in an object of the kind that is meant for them.
//!
//! The engine may make and remove secrets, but neither read nor list them. So a note, an
//! ordinary object, is made before the secret and removed after it: by the notes the sweep knows
//! what there is to be removed.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{DeleteParams, PostParams};
use kube::core::ObjectMeta;

use super::super::cluster::{Part, TASK, secret_name};
use super::object::{SECRETS_KEY, note_name};
use super::{Shared, StoreError, corrupt, failed};
use crate::crash;
use crate::scheduler::TaskId;
use crate::tes::UrlSecrets;

impl Shared {
    pub(super) async fn keep_secrets(
        &self,
        id: &TaskId,
        secrets: &UrlSecrets,
    ) -> Result<(), StoreError> {
        let mut labels = self.cluster.labels(Part::Secret);
        labels.insert(TASK.to_owned(), id.to_string());
        let metadata = |name: String| ObjectMeta {
            name: Some(name),
            labels: Some(labels.clone()),
            ..ObjectMeta::default()
        };
        let note = ConfigMap {
            metadata: metadata(note_name(id)),
            ..ConfigMap::default()
        };
        let text = serde_json::to_vec(secrets).map_err(corrupt)?;
        let secret = Secret {
            metadata: metadata(secret_name(id)),
            data: Some(BTreeMap::from([(SECRETS_KEY.to_owned(), ByteString(text))])),
            ..Secret::default()
        };
        let params = PostParams::default();
        let notes = self.cluster.api::<ConfigMap>();
        let made = self.cluster.answer(notes.create(&params, &note)).await;
        let made = made.map(drop);
        // One that is there already is of a twin, which has the same passwords.
        if let Err(error) = made
            && !error.is_conflict()
        {
            return Err(failed(&error));
        }
        crash::point("create.note");
        let secrets = self.cluster.api::<Secret>();
        match self.cluster.answer(secrets.create(&params, &secret)).await {
            Err(error) if !error.is_conflict() => Err(failed(&error)),
            _ => Ok(()),
        }
    }

    /// Removes a task's passwords, or leaves them to the sweep.
    pub(super) async fn drop_secrets(&self, id: &TaskId) {
        let params = DeleteParams::default();
        let secrets = self.cluster.api::<Secret>();
        let name = secret_name(id);
        let gone = self.cluster.answer(secrets.delete(&name, &params)).await;
        let gone = match gone {
            Err(error) if !error.is_not_found() => Err(error),
            _ => {
                crash::point("secret.removed");
                let notes = self.cluster.api::<ConfigMap>();
                let name = note_name(id);
                let gone = self.cluster.answer(notes.delete(&name, &params)).await;
                gone.map(drop)
            }
        };
        if let Err(error) = gone
            && !error.is_not_found()
        {
            tracing::warn!(task = %id, %error, "the passwords of a task are left to the sweep");
        }
    }
}
