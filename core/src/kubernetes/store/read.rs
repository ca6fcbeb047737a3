//! Reading records, and pages of them.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::ListParams;
use serde_json::json;

use super::super::cluster::{ApiError, Part};
use super::object::{Entry, STATE, TextRef, head_name, id_of};
use super::text::{self, Kind};
use super::{Shared, StoreError, failed};
use crate::scheduler::store::{Page, Position, Query, RawRecord};
use crate::scheduler::{Head, TaskId};
use crate::tes::State;

/// Bytes of documents and logs in one page, about: a page of very large tasks ends early.
const PAGE_BYTES: usize = 32 << 20;
/// Records that are read at once for one page.
const PARALLEL: usize = 16;
/// Tasks that are looked at before other work has a turn.
const SCAN: usize = 16_384;
/// Heads that are better read by a list than one by one.
const MANY: usize = 100;
/// Whole heads on a page of a list: each has at most two texts of 8 KiB.
const WHOLE_PAGE: u32 = 250;
/// How often a record that changes while it is read is read anew.
const READS: usize = 5;

/// A head, and those of its texts that are in it.
struct WholeHead {
    entry: Arc<Entry>,
    document: Option<Arc<str>>,
    logs: Option<Arc<str>>,
    /// Why one of them is not here, if it is spoilt.
    spoilt: Option<&'static str>,
}

/// What there is of a record.
struct Texts {
    head: Head,
    document: Option<Arc<str>>,
    logs: Option<Arc<str>>,
    /// Why one of them is not here.
    reason: String,
}

impl Shared {
    /// A whole record.
    pub(super) async fn raw(&self, id: &TaskId) -> Result<Option<RawRecord>, StoreError> {
        let texts = self.texts(id).await?;
        texts.map(Texts::whole).transpose()
    }

    /// A record for a reader, with what is left of it if it is damaged.
    pub(super) async fn shown(&self, id: &TaskId) -> Result<Option<RawRecord>, StoreError> {
        Ok(self.texts(id).await?.map(Texts::shown))
    }

    async fn texts(&self, id: &TaskId) -> Result<Option<Texts>, StoreError> {
        let Some(mut entry) = self.entry(id).await? else {
            return Ok(None);
        };
        let mut reason = format!("parts of the record of task {id} are missing");
        for read in 1.. {
            let (mut document, mut logs) = {
                let mut cache = self.cache();
                let document = cache.get(id, &entry.document);
                (document, cache.get(id, &entry.logs))
            };
            let in_head =
                |text: &Option<_>, reference: &TextRef| text.is_none() && reference.parts == 0;
            if in_head(&document, &entry.document) || in_head(&logs, &entry.logs) {
                let Some(whole) = self.whole_head(id).await? else {
                    return Ok(None);
                };
                if whole.entry.logs != entry.logs {
                    logs = None;
                }
                entry = whole.entry;
                document = document.or(whole.document);
                logs = logs.or(whole.logs);
                reason = whole.spoilt.map_or(reason, str::to_owned);
            }
            for (text, kind, reference) in [
                (&mut document, Kind::Document, &entry.document),
                (&mut logs, Kind::Logs, &entry.logs),
            ] {
                if text.is_none() && reference.parts > 0 {
                    match self.load(id, kind, reference).await {
                        Err(StoreError::Corrupt(spoilt)) => reason = spoilt,
                        loaded => *text = loaded?,
                    }
                }
            }
            if (document.is_some() && logs.is_some()) || read == READS {
                return Ok(Some(Texts {
                    head: entry.head.clone(),
                    document,
                    logs,
                    reason,
                }));
            }
            // A part is not there: the logs were replaced meanwhile, or the task is gone.
            match self.fetch(id).await? {
                Some(newest) => entry = newest,
                None => break,
            }
        }
        Ok(None)
    }

    /// A head with the texts in its data.
    async fn whole_head(&self, id: &TaskId) -> Result<Option<WholeHead>, StoreError> {
        let api = self.cluster.api::<ConfigMap>();
        let name = head_name(id);
        let object = self.cluster.answer(api.get_opt(&name)).await;
        let Some(object) = object.map_err(|error| failed(&error))? else {
            self.forget(id);
            return Ok(None);
        };
        self.take_whole(id, object)
    }

    /// Takes in a head with the texts in its data.
    fn take_whole(&self, id: &TaskId, object: ConfigMap) -> Result<Option<WholeHead>, StoreError> {
        let Some(entry) = self.taken(id, &object.metadata)? else {
            return Ok(None);
        };
        let mut data = object.data.unwrap_or_default();
        let mut spoilt = None;
        let mut text = |kind: Kind, reference: &TextRef| {
            let text = data.remove(kind.key());
            let text = text.filter(|_| reference.parts == 0)?;
            if let Err(reason) = text::verified(&text, reference) {
                spoilt = Some(reason);
                return None;
            }
            let text: Arc<str> = text.into();
            self.cache().put(id, reference, &text);
            Some(text)
        };
        let document = text(Kind::Document, &entry.document);
        let logs = text(Kind::Logs, &entry.logs);
        Ok(Some(WholeHead {
            entry,
            document,
            logs,
            spoilt,
        }))
    }

    /// Reads the heads of tasks that are under way page by page, as far as many of their texts are
    /// not in memory: whoever schedules from now on will look at each, and would ask for one after
    /// another. What fails or does not fit is asked for when it is needed.
    pub(super) async fn warm(&self) -> Result<(), ApiError> {
        let mut missing: HashMap<State, usize> = HashMap::new();
        let under_way = self.index().under_way();
        {
            let cache = self.cache();
            for entry in under_way {
                let there = |text: &TextRef| text.parts > 0 || cache.has(&entry.head.id, text);
                if !there(&entry.document) || !there(&entry.logs) {
                    *missing.entry(entry.head.state).or_default() += 1;
                }
            }
        }
        let mut room = self.settings.cache / 2;
        for (state, tasks) in missing {
            if tasks >= MANY {
                self.read_all(state, &mut room).await?;
            }
        }
        Ok(())
    }

    /// Reads whole heads in one state, as long as there is room for their texts.
    async fn read_all(&self, state: State, room: &mut usize) -> Result<(), ApiError> {
        let selector = self.cluster.selector(Part::Record);
        let mut params = ListParams::default()
            .labels(&format!("{selector},{STATE}={state}"))
            .limit(WHOLE_PAGE);
        let api = self.cluster.api::<ConfigMap>();
        // More would drive out what was read first.
        while *room > 0 {
            let page = self.cluster.answer(api.list(&params)).await?;
            for object in page.items {
                let Some(id) = id_of(&object.metadata) else {
                    continue;
                };
                // One that cannot be read is an error of that task alone.
                if let Ok(Some(whole)) = self.take_whole(&id, object) {
                    let texts = [whole.document, whole.logs];
                    let bytes: usize = texts.iter().flatten().map(|text| text.len()).sum();
                    *room = room.saturating_sub(bytes);
                }
            }
            params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                break;
            }
        }
        Ok(())
    }

    async fn load(
        &self,
        id: &TaskId,
        kind: Kind,
        reference: &TextRef,
    ) -> Result<Option<Arc<str>>, StoreError> {
        let text = text::load(&self.cluster, id, kind, reference).await?;
        if let Some(text) = &text {
            self.cache().put(id, reference, text);
        }
        Ok(text)
    }

    pub(super) async fn page(&self, query: &Query) -> Result<Page, StoreError> {
        let (mut found, mut more) = self.matching(query).await;
        if query.documents {
            // By the sizes that heads tell, so that no more is read than is shown.
            let mut bytes = 0;
            let fit = found.iter().take_while(|entry| {
                let room = bytes <= PAGE_BYTES;
                bytes += entry.document.bytes.saturating_add(entry.logs.bytes);
                room
            });
            let fit = fit.count();
            more |= fit < found.len();
            found.truncate(fit);
        }
        let last = found.last().map(|entry| Position {
            created: entry.head.created,
            id: entry.head.id.clone(),
        });
        let next = last.filter(|_| more);
        if !query.documents {
            let empty: Arc<str> = "".into();
            let bare = |entry: Arc<Entry>| RawRecord {
                head: entry.head.clone(),
                document: Arc::clone(&empty),
                logs: Arc::clone(&empty),
            };
            let tasks = found.into_iter().map(bare).collect();
            return Ok(Page { tasks, next });
        }
        let mut records = stream::iter(found)
            .map(|entry| async move { self.shown(&entry.head.id).await })
            .buffered(PARALLEL);
        let mut tasks = Vec::new();
        while let Some(task) = records.next().await {
            tasks.extend(task?);
        }
        Ok(Page { tasks, next })
    }

    /// The entries of one page, and whether another follows. No request is made.
    async fn matching(&self, query: &Query) -> (Vec<Arc<Entry>>, bool) {
        let mut found: Vec<Arc<Entry>> = Vec::new();
        let mut after = query.after.clone();
        loop {
            // One more tells whether another page follows.
            let wanted = query.limit + 1 - found.len();
            let (some, next) = self.index().matching(query, after.as_ref(), wanted, SCAN);
            found.extend(some);
            if found.len() > query.limit {
                found.truncate(query.limit);
                return (found, true);
            }
            if next.is_none() {
                return (found, false);
            }
            after = next;
            tokio::task::yield_now().await;
        }
    }
}

impl Texts {
    fn whole(self) -> Result<RawRecord, StoreError> {
        match (self.document, self.logs) {
            (Some(document), Some(logs)) => Ok(RawRecord {
                head: self.head,
                document,
                logs,
            }),
            _ => Err(StoreError::Corrupt(self.reason)),
        }
    }

    /// What is lost says so in its place: a client that waits for the task learns its state.
    fn shown(self) -> RawRecord {
        let lost = |what: &str| format!("the {what} of this task cannot be read: {}", self.reason);
        let document = self.document.clone().unwrap_or_else(|| {
            let lost = json!({"description": lost("document"), "executors": []});
            lost.to_string().into()
        });
        let logs = self.logs.clone().unwrap_or_else(|| {
            let lost = json!([{"logs": [], "outputs": [], "system_logs": [lost("logs")]}]);
            lost.to_string().into()
        });
        RawRecord {
            head: self.head,
            document,
            logs,
        }
    }
}
