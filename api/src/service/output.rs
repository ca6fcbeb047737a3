//! What an executor prints, while it does.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::Deserialize;
use serde::de::IgnoredAny;
use tesk_core::scheduler::TaskId;
use tesk_core::scheduler::compute::Output;
use tesk_core::tes::ExecutorLog;

use super::App;
use super::error::ApiError;
use super::tasks::{parameters, turn, visible};

/// How many follow outputs at a time: each may do so for days.
pub(super) const READERS: usize = 256;
/// How often is looked for a beginning.
const LOOK: Duration = Duration::from_millis(500);

/// The output of an executor of the present attempt, until the executor or the task has ended.
/// Waits for its beginning; of a task that has ended it is what its log has.
pub(super) async fn show(
    app: &App,
    id: &str,
    query: Option<&str>,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let id = visible(app, id, headers).await?;
    let executor = parameters(query)
        .filter(|(name, _)| name == "executor")
        .last()
        .map_or(Ok(0), |(_, value)| value.parse())
        .map_err(|_| ApiError::bad_request("executor: must be a number from 0"))?;
    // Each task has one.
    if executor > 0 {
        let count = executors(app, &id).await?;
        if executor >= count {
            let few = format!("executor: this task has {count}, counted from 0");
            return Err(ApiError::bad_request(few));
        }
    }
    let turn = Arc::clone(&app.readers).try_acquire_owned().map_err(|_| {
        ApiError::unavailable("as many outputs of tasks are being followed as may be at a time")
    })?;

    let stopping = app.stopping.clone();
    let begun = begin(app.clone(), id, executor);
    let output = stream::once(begun)
        .try_flatten()
        .take_until(app.stopping.clone().cancelled_owned())
        .inspect(move |_| {
            // It ends with the reply.
            let _ = &turn;
        });
    // Else it would look like the end of the output.
    let broken = async move {
        let broken = || Err(io::Error::other("the server is stopping"));
        stopping.is_cancelled().then(broken)
    };
    let output = output.chain(stream::once(broken).filter_map(std::future::ready));
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    Ok((headers, Body::from_stream(output)).into_response())
}

/// How many executors a task has.
async fn executors(app: &App, id: &TaskId) -> Result<usize, ApiError> {
    #[derive(Deserialize)]
    struct Document {
        executors: Vec<IgnoredAny>,
    }
    let _turn = turn(&app.shown).await?;
    let record = app.store.get_raw(id).await?;
    let document = record.ok_or_else(ApiError::no_such_task)?.document;
    let document: Document = serde_json::from_str(&document).map_err(ApiError::internal)?;
    Ok(document.executors.len())
}

async fn begin(app: App, id: TaskId, executor: usize) -> io::Result<Output> {
    loop {
        let head = app.store.head(&id).await.map_err(io::Error::other)?;
        let Some(head) = head.filter(|head| !head.state.is_terminal()) else {
            let _turn = turn(&app.shown).await;
            let record = app.store.get(&id).await.map_err(io::Error::other)?;
            let mut logs = record.map(|record| record.logs).unwrap_or_default();
            let log = logs
                .pop()
                .and_then(|log| log.logs.into_iter().nth(executor));
            return Ok(stream::iter(log.map(printed).map(Ok)).boxed());
        };
        if let Some(attempt) = head.current_attempt() {
            let output = app.compute.output(&attempt, executor).await;
            if let Some(output) = output.map_err(io::Error::other)? {
                return Ok(output);
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn printed(log: ExecutorLog) -> Bytes {
    let streams = [log.stdout, log.stderr];
    streams.map(Option::unwrap_or_default).concat().into()
}
