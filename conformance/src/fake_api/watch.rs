//! Watches: what changed since a version, as it happens.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use serde_json::{Value, json};

use super::answer::{Parameters, Place, answer_of, shown, status};
use super::{Body, BoxError, FakeApi};

/// After how long without a change a bookmark is sent.
const BOOKMARK: Duration = Duration::from_millis(200);

struct Watch {
    server: FakeApi,
    collection: String,
    parameters: Parameters,
    metadata: bool,
    /// Told so far.
    version: u64,
    unsent: VecDeque<Value>,
    newest: tokio::sync::watch::Receiver<u64>,
    cuts: tokio::sync::watch::Receiver<u64>,
    ends: tokio::time::Instant,
    over: bool,
}

pub(super) fn stream(
    server: &FakeApi,
    place: &Place,
    parameters: Parameters,
    metadata: bool,
) -> Response<Body> {
    let seconds = parameters.get("timeoutSeconds").parse().unwrap_or(300);
    let mut watch = Watch {
        collection: place.collection.clone(),
        metadata,
        version: parameters.get("resourceVersion").parse().unwrap_or(0),
        unsent: VecDeque::new(),
        newest: server.0.newest.subscribe(),
        cuts: server.0.cuts.subscribe(),
        ends: tokio::time::Instant::now() + Duration::from_secs(seconds),
        over: false,
        server: server.clone(),
        parameters,
    };
    if matches!(watch.parameters.get("resourceVersion"), "" | "0") {
        let state = server.state();
        for object in state.list(&watch.collection, "") {
            if watch.parameters.select(object) {
                let object = shown((**object).clone(), metadata);
                watch
                    .unsent
                    .push_back(json!({ "type": "ADDED", "object": object }));
            }
        }
        watch.version = state.version();
    }
    let frames = futures_util::stream::unfold(watch, |mut watch| async move {
        let frame = watch.next().await?;
        Some((frame, watch))
    });
    answer_of(200, StreamBody::new(frames).boxed_unsync())
}

impl Watch {
    async fn next(&mut self) -> Option<Result<Frame<Bytes>, BoxError>> {
        loop {
            if let Some(event) = self.unsent.pop_front() {
                return Some(Ok(Frame::data(Bytes::from(format!("{event}\n")))));
            }
            if self.over {
                return None;
            }
            self.newest.mark_unchanged();
            self.collect();
            if !self.unsent.is_empty() {
                continue;
            }
            tokio::select! {
                _ = self.cuts.changed() => {
                    self.over = true;
                    return Some(Err("the connection was reset".into()));
                }
                () = tokio::time::sleep_until(self.ends) => return None,
                _ = self.newest.changed() => {}
                () = tokio::time::sleep(BOOKMARK) => {
                    if self.parameters.get("allowWatchBookmarks") == "true" {
                        self.unsent.push_back(self.bookmark());
                    }
                }
            }
        }
    }

    fn bookmark(&self) -> Value {
        let metadata = json!({
            "resourceVersion": self.version.to_string(), "creationTimestamp": null,
        });
        let object = json!({ "kind": "Bookmark", "apiVersion": "v1", "metadata": metadata });
        json!({ "type": "BOOKMARK", "object": object })
    }

    /// Takes what happened since the last time.
    fn collect(&mut self) {
        let state = self.server.state();
        if self.version < state.compacted {
            let gone = (410, "Expired", "too old resource version".to_owned());
            let event = json!({ "type": "ERROR", "object": status(&gone) });
            self.unsent.push_back(event);
            self.over = true;
            return;
        }
        let first = state
            .history
            .partition_point(|change| change.version <= self.version);
        for change in &state.history[first..] {
            if change.collection != self.collection {
                continue;
            }
            let before = change
                .old
                .as_ref()
                .is_some_and(|old| self.parameters.select(old));
            let after = !change.deleted && self.parameters.select(&change.new);
            let kind = match (before, after) {
                (false, false) => continue,
                (false, true) => "ADDED",
                (true, true) => "MODIFIED",
                (true, false) => "DELETED",
            };
            let object = shown((*change.new).clone(), self.metadata);
            self.unsent
                .push_back(json!({ "type": kind, "object": object }));
        }
        self.version = state.version();
    }
}
