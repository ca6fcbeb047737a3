//! What happens to every request, whatever it asks for.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;

use super::error::{ApiError, Internal};
use super::{App, body};

/// Checks where a request comes from, bounds and times it, and makes panics and internal
/// errors into replies that tell only a reference.
pub(super) async fn front(State(app): State<App>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let id = request_id(request.headers());
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let operation = operation(&request);
    let (request, rest) = body::lend(request);

    let mut response = match app.guard.check(&request) {
        Ok(cors) => {
            let mut response = answer(&app, request, next).await;
            if let Some(Internal(detail)) = response.extensions_mut().remove() {
                let reference = id.to_str().unwrap_or_default();
                tracing::error!(request = reference, %method, path, detail, "internal error");
                response = ApiError::reference(reference);
            }
            // Last: a page of a listed origin may read errors too.
            cors.apply(response)
        }
        Err(response) => *response,
    };
    let status = response.status();
    let took = start.elapsed();
    app.metrics
        .answered(operation, &method, status.as_u16(), took);
    // Paths only: a query can hold what a client would not want in a log.
    let ms = (took.as_secs_f64() * 1e5).round() / 1e2;
    let line = || (id.to_str().unwrap_or_default(), ms);
    macro_rules! access {
        ($level:ident) => {{
            let (request, ms) = line();
            tracing::$level!(target: "tesk::access", request, %method, path, status = status.as_u16(), ms);
        }};
    }
    // Clients poll: what only reads would drown the rest.
    if status.is_server_error() || !(method == Method::GET || method == Method::HEAD) {
        access!(info);
    } else {
        access!(debug);
    }
    response.headers_mut().insert("x-request-id", id);
    // Of a body that does not come, no rest will.
    if status != StatusCode::REQUEST_TIMEOUT {
        rest.drain().await;
    }
    response
}

/// Runs the handler; only reads are cut off, because a create that was committed must be
/// answered.
async fn answer(app: &App, request: Request<Body>, next: Next) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let handler = AssertUnwindSafe(next.run(request)).catch_unwind();
    let result = if reads {
        match tokio::time::timeout(app.request_timeout, handler).await {
            Ok(result) => result,
            Err(_) => {
                return ApiError::unavailable("the server is too slow at present").into_response();
            }
        }
    } else {
        handler.await
    };
    result.unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned());
        ApiError::internal(format!("panic: {}", text.unwrap_or_default())).into_response()
    })
}

/// The client's `X-Request-Id` if it is harmless, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let sane = |value: &&HeaderValue| {
        (1..=64).contains(&value.len())
            && value
                .as_bytes()
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
    };
    if let Some(id) = headers.get("x-request-id").filter(sane) {
        return id.clone();
    }
    let id = format!("{:016x}", rand::random::<u64>());
    HeaderValue::try_from(id).unwrap_or_else(|_| HeaderValue::from_static("0"))
}

/// The name of the operation, for metrics: few values, whatever clients send.
fn operation(request: &Request) -> &'static str {
    let Some(route) = request.extensions().get::<MatchedPath>() else {
        return "unknown";
    };
    match route.as_str().rsplit('/').next() {
        Some("tasks") if request.method() == Method::POST => "create_task",
        Some("tasks") => "list_tasks",
        Some("{id}") if request.method() == Method::POST => "cancel_task",
        Some("{id}") if request.uri().path().ends_with(":output") => "task_output",
        Some("{id}") => "get_task",
        Some("service-info") => "service_info",
        Some("healthz" | "readyz" | "metrics") => "operator",
        _ => "docs",
    }
}
