//! What operators and their machines ask: alive, ready, numbers. Open in every mode.

use std::fmt::Write as _;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;

use super::App;
use super::error::ApiError;
use super::metrics::Gauges;

/// The process is there.
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// The store answers reads, and the server is not about to end. Where there may be other servers,
/// the text says which schedules; and how old the answers are, if they are not of now.
pub(super) async fn readyz(State(app): State<App>) -> Result<String, ApiError> {
    if app.stopping.is_cancelled() {
        return Err(ApiError::unavailable("the server is stopping"));
    }
    app.store.check().await?;
    let mut text = "ok\n".to_owned();
    if app.schedules.is_some() {
        text += if app.schedules() {
            "this server schedules\n"
        } else {
            "another server schedules, or is about to\n"
        };
    }
    if let Some(age) = app.store.stale() {
        let age = age.as_secs();
        let _ = writeln!(
            text,
            "records are {age} s old: the API server does not answer"
        );
    }
    Ok(text)
}

/// The numbers, in the `OpenMetrics` text format.
pub(super) async fn metrics(State(app): State<App>) -> Result<impl IntoResponse, ApiError> {
    let tasks = app.store.counts().await?;
    let now = Gauges {
        tasks: &tasks,
        schedules: app.schedules(),
        stale: app.store.stale(),
    };
    let text = app.metrics.show(&now).map_err(ApiError::internal)?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text))
}
