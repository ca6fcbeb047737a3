//! A web server where pods reach it, which keeps what it is given in memory.
//!
//! Below `/slow/` nothing ever comes to an end, and below `/private/` it wants the user `ada`
//! with the password [`PASSWORD`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;

/// Of the user `ada`.
pub(crate) const PASSWORD: &str = "hunter2-is-secret";

#[derive(Clone, Default)]
struct Files(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    files: HashMap<String, Bytes>,
    /// How often each path was asked for.
    asked: HashMap<String, usize>,
}

/// The server; it lives as long as this process.
pub(crate) struct Web {
    address: String,
    files: Files,
}

impl Web {
    /// Listens where pods reach it, or nowhere.
    pub(crate) async fn start(really: bool) -> Result<Self> {
        let files = Files::default();
        let mut address = String::new();
        if really {
            let listener = tokio::net::TcpListener::bind((super::place::host(), 0))
                .await
                .context("cannot listen on TESK_CLUSTER_HOST")?;
            address = listener.local_addr()?.to_string();
            let router = Router::new()
                .fallback(answer)
                .layer(DefaultBodyLimit::disable())
                .with_state(files.clone());
            tokio::spawn(async move { axum::serve(listener, router).await });
        }
        Ok(Self { address, files })
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// With the user and the password in it.
    pub(crate) fn private_url(&self, path: &str) -> String {
        format!("http://ada:{PASSWORD}@{}/private{path}", self.address)
    }

    /// A line for a script that waits until [`Web::open`] is called with this name, so that no
    /// test depends on how fast a machine is.
    pub(crate) fn gate(&self, name: &str) -> String {
        let url = self.url(&format!("/gates/{name}"));
        format!("until wget -q -O - {url} >/dev/null 2>&1; do sleep 0.3; done")
    }

    pub(crate) fn open(&self, name: &str) {
        self.put(&format!("/gates/{name}"), "open");
    }

    pub(crate) fn put(&self, path: &str, content: impl Into<Bytes>) {
        let mut kept = self.files.0.lock().unwrap();
        kept.files.insert(path.to_owned(), content.into());
    }

    pub(crate) fn get(&self, path: &str) -> Option<Bytes> {
        self.files.0.lock().unwrap().files.get(path).cloned()
    }

    /// The content as text; empty if there is none.
    pub(crate) fn text(&self, path: &str) -> String {
        let content = self.get(path).unwrap_or_default();
        String::from_utf8_lossy(&content).into_owned()
    }

    pub(crate) fn asked(&self, path: &str) -> usize {
        let kept = self.files.0.lock().unwrap();
        kept.asked.get(path).copied().unwrap_or_default()
    }

    /// Everything that it was ever given.
    pub(crate) fn all(&self) -> Vec<(String, Bytes)> {
        let kept = self.files.0.lock().unwrap();
        kept.files
            .iter()
            .map(|(path, content)| (path.clone(), content.clone()))
            .collect()
    }
}

async fn answer(
    State(files): State<Files>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: axum::body::Body,
) -> Response {
    let path = uri.path().to_owned();
    *files
        .0
        .lock()
        .unwrap()
        .asked
        .entry(path.clone())
        .or_default() += 1;
    if path.starts_with("/private/") {
        let token = base64::engine::general_purpose::STANDARD.encode(format!("ada:{PASSWORD}"));
        let wanted = format!("Basic {token}");
        let given = headers.get(header::AUTHORIZATION);
        if given.is_none_or(|given| given.as_bytes() != wanted.as_bytes()) {
            let challenge = [(header::WWW_AUTHENTICATE, "Basic realm=\"private\"")];
            return (StatusCode::UNAUTHORIZED, challenge).into_response();
        }
    }
    if path.starts_with("/slow/") {
        tokio::time::sleep(Duration::from_mins(10)).await;
    }
    match method {
        Method::PUT => {
            let Ok(content) = axum::body::to_bytes(body, usize::MAX).await else {
                return StatusCode::BAD_REQUEST.into_response();
            };
            let mut kept = files.0.lock().unwrap();
            kept.files.insert(path, content);
            StatusCode::CREATED.into_response()
        }
        Method::GET | Method::HEAD => {
            let content = files.0.lock().unwrap().files.get(&path).cloned();
            match content {
                Some(content) => content.into_response(),
                None => StatusCode::NOT_FOUND.into_response(),
            }
        }
        _ => StatusCode::METHOD_NOT_ALLOWED.into_response(),
    }
}
