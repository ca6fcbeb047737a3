//! Making and changing records. Each is one request that counts, the one for the head; what
//! comes before it can be lost, what comes after it can be made up for by the sweep.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::{ObjectMeta, PartialObjectMeta};
use serde_json::{Value, json};

use super::super::cluster::permit;
use super::index::Known;
use super::key::Claim;
use super::object::{Entry, HEAD, KeyRef, Search, head_name};
use super::text::{Kind, Text, discard};
use super::{
    Created, MAX_DOCUMENT, MAX_LOGS, MAX_SEARCH, NewTask, Shared, StoreError, Update, corrupt,
    failed,
};
use crate::crash;
use crate::scheduler::store::within;
use crate::scheduler::{Head, TaskId};
use crate::tes::TaskLog;
use crate::time::Timestamp;

/// How long a create or an update may take in all. What it leaves is swept much later.
const WRITE: Duration = Duration::from_mins(2);

/// What became of a head that was to be made.
enum Made {
    Yes,
    /// There is one of this name already.
    There,
}

impl Shared {
    pub(super) async fn create(&self, task: NewTask) -> Result<Created, StoreError> {
        // Boxed: with the requests of every branch it is large.
        in_time(Box::pin(self.create_in_time(task))).await
    }

    async fn create_in_time(&self, task: NewTask) -> Result<Created, StoreError> {
        let search = search_of(&task)?;
        let Some(key) = &task.idempotency else {
            return match self.make(&task, &task.id, search, None).await? {
                Made::Yes => Ok(Created::New(task.id)),
                Made::There => Err(StoreError::Conflict),
            };
        };
        let (id, key, own) = match self.claim(key, &task.owner, &task.id).await? {
            Claim::Own(key) => (task.id.clone(), key, true),
            Claim::Join(id, key) => (id, key, false),
            Claim::Decided(created) => return Ok(created),
        };
        crash::point("create.key");
        let made = self.make(&task, &id, search, Some(key.clone())).await;
        match made {
            Ok(Made::Yes) => Ok(Created::New(id)),
            Ok(Made::There) => {
                let there = self.entry(&id).await?;
                if there.is_some_and(|entry| entry.key.as_ref() == Some(&key)) {
                    // A twin was faster.
                    return Ok(Created::Existing(id));
                }
                if own {
                    self.release(&key).await;
                }
                Err(StoreError::Conflict)
            }
            // What was not answered may yet be carried out: the key stays, and whoever comes
            // with it again completes the task.
            Err(StoreError::Unavailable(reason)) => Err(StoreError::Unavailable(reason)),
            Err(error) => {
                if own {
                    self.release(&key).await;
                }
                Err(error)
            }
        }
    }

    /// Makes a record: first what the head speaks of, then the head.
    async fn make(
        &self,
        task: &NewTask,
        id: &TaskId,
        search: Search,
        key: Option<KeyRef>,
    ) -> Result<Made, StoreError> {
        if !matches!(self.index().get(id), Known::No) {
            return Ok(Made::There);
        }
        let write = rand::random();
        let first = TaskLog {
            system_logs: Some(task.warnings.clone()).filter(|w| !w.is_empty()),
            ..TaskLog::default()
        };
        let document = Text::new(Kind::Document, Arc::clone(&task.document), write).await?;
        let logs = Text::new(Kind::Logs, to_json(&[first])?, write).await?;
        document.store(&self.cluster, id).await?;
        logs.store(&self.cluster, id).await?;
        crash::point("create.document");
        let secret = !task.secrets.0.is_empty();
        if secret {
            self.keep_secrets(id, &task.secrets).await?;
            crash::point("create.secret");
        }
        let now = self.clock.now();
        let entry = Entry {
            head: Head {
                // The API server's to say.
                version: 0,
                ..Head::queued(id.clone(), task.owner.clone(), now)
            },
            uid: String::new(),
            search,
            document: document.reference.clone(),
            logs: logs.reference.clone(),
            secret,
            key,
            write,
        };
        let made = self.make_head(&entry, &document, &logs).await?;
        match made {
            Made::Yes => {
                let mut cache = self.cache();
                for text in [&document, &logs] {
                    cache.put(id, &text.reference, &text.whole);
                }
            }
            Made::There => {
                for text in [&document, &logs] {
                    discard(&self.cluster, id, text.kind, &text.reference).await;
                }
            }
        }
        Ok(made)
    }

    async fn make_head(
        &self,
        entry: &Entry,
        document: &Text,
        logs: &Text,
    ) -> Result<Made, StoreError> {
        let id = &entry.head.id;
        let mut data = BTreeMap::new();
        for text in [document, logs] {
            if let Some(inline) = text.inline() {
                data.insert(text.kind.key().to_owned(), inline.to_owned());
            }
        }
        let object = ConfigMap {
            metadata: ObjectMeta {
                name: Some(head_name(id)),
                labels: Some(entry.labels(&self.cluster)),
                annotations: Some(entry.annotations().map_err(corrupt)?),
                ..ObjectMeta::default()
            },
            data: Some(data),
            ..ConfigMap::default()
        };
        let (api, params) = (self.cluster.api::<ConfigMap>(), PostParams::default());
        match self.cluster.answer(api.create(&params, &object)).await {
            Ok(made) => {
                crash::point("create.head");
                self.taken(id, &made.metadata)?;
                Ok(Made::Yes)
            }
            Err(error) if error.is_conflict() => Ok(Made::There),
            Err(error) if error.is_temporary() && !error.is_quota() => {
                // It may have been carried out all the same.
                match self.fetch(id).await {
                    Ok(Some(there)) if there.write == entry.write => Ok(Made::Yes),
                    Ok(Some(_)) => Ok(Made::There),
                    _ => Err(failed(&error)),
                }
            }
            Err(error) => Err(failed(&error)),
        }
    }

    pub(super) async fn update(
        &self,
        id: &TaskId,
        expected: u64,
        update: Update,
    ) -> Result<Head, StoreError> {
        in_time(self.update_in_time(id, expected, update)).await
    }

    async fn update_in_time(
        &self,
        id: &TaskId,
        expected: u64,
        update: Update,
    ) -> Result<Head, StoreError> {
        let mut current = self.entry(id).await?.ok_or(StoreError::NotFound)?;
        if current.head.version < expected {
            // The caller has heard of more than the index has.
            current = self.fetch(id).await?.ok_or(StoreError::NotFound)?;
        }
        if current.head.version != expected || current.head.state.is_terminal() {
            return Err(StoreError::Conflict);
        }
        let mut next = Entry::clone(&current);
        next.write = rand::random();
        let head = &mut next.head;
        if let Some(state) = update.state.filter(|state| *state != head.state) {
            head.state = state;
            head.changed = Timestamp::now().max(head.changed);
        }
        head.attempt = update.attempt.unwrap_or(head.attempt);
        head.not_before = update.not_before.unwrap_or(head.not_before);
        let ends = head.state.is_terminal();
        let logs = match &update.logs {
            Some(logs) => {
                let logs = to_json(logs)?;
                within("the log of the task", logs.len(), MAX_LOGS)?;
                let text = Text::new(Kind::Logs, logs, next.write).await?;
                text.store(&self.cluster, id).await?;
                crash::point("update.logs");
                next.logs = text.reference.clone();
                Some(text)
            }
            None => None,
        };
        let result = self.patch(&current, &next, logs.as_ref()).await;
        if result.is_ok() {
            crash::point("update.head");
        }
        match (&result, &logs) {
            (Ok(_), Some(text)) => {
                self.cache().put(id, &text.reference, &text.whole);
                discard(&self.cluster, id, Kind::Logs, &current.logs).await;
                crash::point("update.discard");
            }
            (Err(StoreError::Conflict | StoreError::NotFound), Some(text)) => {
                discard(&self.cluster, id, Kind::Logs, &text.reference).await;
            }
            // Whether it was carried out is not known.
            _ => {}
        }
        if result.is_ok() && ends && next.secret {
            self.drop_secrets(id).await;
        }
        result
    }

    /// Writes the head anew, if it is still what it was.
    async fn patch(
        &self,
        current: &Entry,
        next: &Entry,
        logs: Option<&Text>,
    ) -> Result<Head, StoreError> {
        let id = &next.head.id;
        let mut patch = json!({
            "metadata": {
                "resourceVersion": next.head.version.to_string(),
                "uid": next.uid,
                "labels": next.changing_labels(),
                "annotations": { HEAD: next.annotation().map_err(corrupt)? },
            },
        });
        let mut data = serde_json::Map::new();
        if let Some(logs) = logs {
            let inline = logs.inline().map_or(Value::Null, Value::from);
            data.insert(Kind::Logs.key().to_owned(), inline);
        }
        let (old, new) = (permit_of(&current.head), permit_of(&next.head));
        if old != new {
            data.extend(old.map(|old| (old, Value::Null)));
            data.extend(new.map(|new| (new, Value::from(""))));
        }
        if !data.is_empty() {
            patch["data"] = data.into();
        }
        let api: Api<PartialObjectMeta<ConfigMap>> = self.cluster.api();
        let (name, params) = (head_name(id), PatchParams::default());
        let patch = Patch::Merge(&patch);
        let answer = self.cluster.answer(api.patch(&name, &params, &patch));
        let error = match answer.await {
            Ok(object) => {
                let entry = self.taken(id, &object.metadata)?;
                return entry.map_or(Err(StoreError::NotFound), |e| Ok(e.head.clone()));
            }
            Err(error) => error,
        };
        if error.is_not_found() {
            self.forget(id);
            return Err(StoreError::NotFound);
        }
        if !error.is_conflict() && (!error.is_temporary() || error.is_quota()) {
            return Err(failed(&error));
        }
        // What is there now, for the caller's next try; and it may be this very update.
        match self.fetch(id).await? {
            Some(there) if there.write == next.write => Ok(there.head.clone()),
            Some(there) if error.is_conflict() || there.head.version != next.head.version => {
                Err(StoreError::Conflict)
            }
            Some(_) => Err(failed(&error)),
            None => Err(StoreError::NotFound),
        }
    }
}

/// The permit that a head gives: to the attempt that it has for the current one.
fn permit_of(head: &Head) -> Option<String> {
    let current = head.current_attempt().filter(|_| !head.state.is_terminal());
    current.map(|attempt| permit(attempt.number))
}

async fn in_time<T>(write: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    match tokio::time::timeout(WRITE, write).await {
        Ok(done) => done,
        Err(_) => Err(StoreError::Unavailable("the cluster is too slow".into())),
    }
}

/// What lists are filtered by, if it and the document can be stored.
fn search_of(task: &NewTask) -> Result<Search, StoreError> {
    within("the task document", task.document.len(), MAX_DOCUMENT)?;
    let tags = task.tags.iter().map(|(key, value)| key.len() + value.len());
    let size = tags.sum::<usize>() + task.name.as_ref().map_or(0, String::len);
    within("the name of the task with its tags", size, MAX_SEARCH)?;
    Ok(Search {
        name: task.name.clone(),
        tags: task.tags.clone(),
    })
}

fn to_json(logs: &[TaskLog]) -> Result<Arc<str>, StoreError> {
    Ok(serde_json::to_string(logs).map_err(corrupt)?.into())
}
