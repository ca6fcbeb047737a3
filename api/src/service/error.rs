//! The one shape of every reply that is not a success.

use std::fmt;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;
use tesk_core::scheduler::StoreError;
use tesk_core::tes::{FieldError, Rejection};

/// Why a request is not answered as asked. Becomes [`ErrorBody`].
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    msg: String,
    errors: Vec<FieldError>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// The JSON of every reply that is not a success.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Error")]
pub struct ErrorBody<'a> {
    /// The HTTP status again, for clients that see only the body.
    #[schemars(with = "u16")]
    pub status_code: u16,
    /// What is wrong, in words that a person can act on.
    pub msg: &'a str,
    /// For a task document that breaks rules: every breach with its field.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schemars(with = "Option<Vec<FieldError>>")]
    pub errors: &'a [FieldError],
}

/// What went wrong inside, left in the extensions of a reply: the log gets it, the client
/// only a reference.
#[derive(Clone, Debug)]
pub(crate) struct Internal(pub String);

impl ApiError {
    /// An error with its text.
    pub fn new(status: StatusCode, msg: impl Into<String>) -> Self {
        Self {
            status,
            msg: msg.into(),
            errors: Vec::new(),
            headers: Vec::new(),
        }
    }

    /// 400.
    pub fn bad_request(msg: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, msg)
    }

    /// 404 for a path that is not served.
    pub fn no_such_path() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "there is nothing at this path; tasks are at /ga4gh/tes/v1/tasks",
        )
    }

    /// 404 for a task that does not exist, or that the caller may not see.
    pub fn no_such_task() -> Self {
        Self::new(StatusCode::NOT_FOUND, "there is no task with this id")
    }

    /// 405; `allow` lists the methods that are.
    pub fn method_not_allowed(allow: &'static str) -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            format!("this path answers {allow} only"),
        )
        .with_header(header::ALLOW, HeaderValue::from_static(allow))
    }

    /// 500; `detail` goes to the log only.
    pub fn internal(detail: impl fmt::Display) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, detail.to_string())
    }

    /// 503 with `Retry-After`.
    pub fn unavailable(msg: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, msg)
            .with_header(header::RETRY_AFTER, HeaderValue::from_static("5"))
    }

    /// Adds a header to the reply.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The reply to an internal error, as the client may see it.
    pub(crate) fn reference(request_id: &str) -> Response {
        body(
            StatusCode::INTERNAL_SERVER_ERROR,
            &format!("an error inside the server; its log has the details under {request_id}"),
            &[],
        )
    }
}

fn body(status: StatusCode, msg: &str, errors: &[FieldError]) -> Response {
    let body = ErrorBody {
        status_code: status.as_u16(),
        msg,
        errors,
    };
    let json = serde_json::to_vec(&body).unwrap_or_default();
    (status, [(header::CONTENT_TYPE, "application/json")], json).into_response()
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = if self.status == StatusCode::INTERNAL_SERVER_ERROR {
            let mut response = self.status.into_response();
            response.extensions_mut().insert(Internal(self.msg));
            response
        } else {
            body(self.status, &self.msg, &self.errors)
        };
        for (name, value) in self.headers {
            response.headers_mut().append(name, value);
        }
        response
    }
}

impl From<Rejection> for ApiError {
    fn from(rejection: Rejection) -> Self {
        let mut error = Self::bad_request(rejection.to_string());
        if let Rejection::Invalid(errors) = rejection {
            error.errors = errors;
        }
        error
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound => Self::no_such_task(),
            StoreError::TooLarge { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string())
            }
            StoreError::Unavailable(detail) => {
                tracing::error!(detail, "the task store is not available");
                Self::unavailable("the task store is not available at present")
            }
            StoreError::Full(detail) => {
                tracing::error!(detail, "the task store has no room");
                Self::unavailable("there is no room for another task at present")
            }
            StoreError::Conflict | StoreError::Corrupt(_) => Self::internal(error),
        }
    }
}
