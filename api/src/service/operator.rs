//! What operators and their machines ask: alive, ready, numbers. Open in every mode.

use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;

use super::App;
use super::error::ApiError;

/// The process is there.
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// The store answers, and the server is not about to end.
pub(super) async fn readyz(State(app): State<App>) -> Result<&'static str, ApiError> {
    if app.stopping.load(Ordering::Relaxed) {
        return Err(ApiError::unavailable("the server is stopping"));
    }
    app.store.check().await?;
    Ok("ok\n")
}

/// The numbers, in the `OpenMetrics` text format.
pub(super) async fn metrics(State(app): State<App>) -> Result<impl IntoResponse, ApiError> {
    let tasks = app.store.counts().await?;
    let text = app.metrics.show(&tasks).map_err(ApiError::internal)?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text))
}
