//! A web server in this process, with WebDAV or without: files in memory, and any misbehaviour
//! that a test scripts.

#![allow(
    dead_code,
    reason = "two test programs share this, and neither needs all of it"
)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use dav_server::DavHandler;
use dav_server::memfs::MemFs;

/// Answers a request in place of the server; `None` lets the server answer.
pub(crate) type Script = Box<dyn Fn(&Method, &str, &HeaderMap) -> Option<Response> + Send + Sync>;

/// A running server. It stops with the runtime it was started on.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    files: Mutex<BTreeMap<String, (Bytes, u64)>>,
    writes: Mutex<u64>,
    script: Mutex<Option<Script>>,
    requests: Mutex<Vec<(Method, String, HeaderMap)>>,
    password: Option<String>,
    dav: Option<DavHandler>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_with_password(None).await
    }

    /// With a password every request needs it, whoever the user is.
    pub(crate) async fn start_with_password(password: Option<&str>) -> Self {
        let inner = Inner {
            password: password.map(str::to_owned),
            ..Inner::default()
        };
        Self::serve(inner).await
    }

    /// With WebDAV; its files are its own.
    pub(crate) async fn start_dav(password: Option<&str>) -> Self {
        let inner = Inner {
            password: password.map(str::to_owned),
            dav: Some(
                DavHandler::builder()
                    .filesystem(MemFs::new())
                    .build_handler(),
            ),
            ..Inner::default()
        };
        Self::serve(inner).await
    }

    async fn serve(inner: Inner) -> Self {
        let inner = Arc::new(inner);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(answer).with_state(inner.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, inner }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn put(&self, path: &str, content: impl Into<Bytes>) {
        self.inner.put(path, content.into());
    }

    pub(crate) fn get(&self, path: &str) -> Option<Bytes> {
        let files = self.inner.files.lock().unwrap();
        files.get(path).map(|(bytes, _)| bytes.clone())
    }

    /// The temporary files that are there, with WebDAV.
    pub(crate) async fn temporaries(&self) -> Vec<String> {
        let Some(dav) = &self.inner.dav else {
            return Vec::new();
        };
        let request = Request::builder()
            .method("PROPFIND")
            .uri("/")
            .header("depth", "infinity")
            // Else it lists nothing with all that is in it.
            .header("x-litmus", "1");
        let reply = dav.handle(request.body(Body::empty()).unwrap()).await;
        assert_eq!(reply.status(), StatusCode::MULTI_STATUS);
        let reply = axum::body::to_bytes(Body::new(reply.into_body()), usize::MAX).await;
        let names = String::from_utf8(reply.unwrap().to_vec()).unwrap();
        let names = names
            .split(['<', '>'])
            .filter(|text| text.contains("/.tesk-"));
        names.map(str::to_owned).collect()
    }

    pub(crate) fn script(
        &self,
        script: impl Fn(&Method, &str, &HeaderMap) -> Option<Response> + Send + Sync + 'static,
    ) {
        *self.inner.script.lock().unwrap() = Some(Box::new(script));
    }

    /// Method, path with query, and headers of every request so far.
    pub(crate) fn requests(&self) -> Vec<(Method, String, HeaderMap)> {
        self.inner.requests.lock().unwrap().clone()
    }
}

impl Inner {
    fn put(&self, path: &str, content: Bytes) {
        let mut writes = self.writes.lock().unwrap();
        *writes += 1;
        let mut files = self.files.lock().unwrap();
        files.insert(path.to_owned(), (content, *writes));
    }
}

async fn answer(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let whole = parts
        .uri
        .path_and_query()
        .map_or("", |p| p.as_str())
        .to_owned();
    let (method, headers) = (parts.method.clone(), parts.headers.clone());
    let seen = (method.clone(), whole.clone(), headers.clone());
    inner.requests.lock().unwrap().push(seen);
    let scripted = inner
        .script
        .lock()
        .unwrap()
        .as_ref()
        .and_then(|s| s(&method, &whole, &headers));
    if let Some(response) = scripted {
        return response;
    }
    if let Some(password) = &inner.password {
        use base64::Engine as _;
        let sent = headers
            .get(header::AUTHORIZATION)
            .and_then(|v| v.to_str().ok());
        let sent = sent.and_then(|v| v.strip_prefix("Basic "));
        let sent = sent.and_then(|v| base64::engine::general_purpose::STANDARD.decode(v).ok());
        let sent = sent
            .and_then(|v| String::from_utf8(v).ok())
            .unwrap_or_default();
        if sent.split_once(':').is_none_or(|(_, p)| p != password) {
            return StatusCode::UNAUTHORIZED.into_response();
        }
    }
    if let Some(dav) = &inner.dav {
        let request = Request::from_parts(parts, body);
        return dav.handle(request).await.map(Body::new);
    }
    if method == Method::PUT {
        // A length, as servers that store need it.
        if !headers.contains_key(header::CONTENT_LENGTH) {
            return StatusCode::LENGTH_REQUIRED.into_response();
        }
        return match axum::body::to_bytes(body, usize::MAX).await {
            Ok(content) => {
                inner.put(&path, content);
                StatusCode::CREATED.into_response()
            }
            Err(_) => StatusCode::BAD_REQUEST.into_response(),
        };
    }
    let Some((content, version)) = inner.files.lock().unwrap().get(&path).cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    file(&method, &headers, &content, version)
}

fn file(method: &Method, headers: &HeaderMap, content: &Bytes, version: u64) -> Response {
    let tag = format!("\"{version}\"");
    let sent = |name| headers.get(name).and_then(|v| v.to_str().ok());
    if sent(header::IF_MATCH).is_some_and(|wanted| wanted != tag) {
        return StatusCode::PRECONDITION_FAILED.into_response();
    }
    let size = content.len() as u64;
    let reply = Response::builder()
        .header(header::ETAG, tag)
        .header(header::ACCEPT_RANGES, "bytes");
    let (reply, part) = match sent(header::RANGE).and_then(|range| wanted(range, size)) {
        None => (reply, content.clone()),
        Some(Err(())) => {
            let reply = reply
                .status(StatusCode::RANGE_NOT_SATISFIABLE)
                .header(header::CONTENT_RANGE, format!("bytes */{size}"));
            (reply, Bytes::new())
        }
        Some(Ok((start, end))) => {
            let range = format!("bytes {start}-{}/{size}", end - 1);
            let reply = reply
                .status(StatusCode::PARTIAL_CONTENT)
                .header(header::CONTENT_RANGE, range);
            (reply, content.slice(start as usize..end as usize))
        }
    };
    let reply = reply.header(header::CONTENT_LENGTH, part.len());
    let body = if method == Method::HEAD {
        Body::empty()
    } else {
        Body::from(part)
    };
    reply.body(body).unwrap()
}

/// `bytes=a-b` as start and exclusive end within the size.
fn wanted(range: &str, size: u64) -> Option<Result<(u64, u64), ()>> {
    let (start, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let start: u64 = start.parse().ok()?;
    let end = last
        .parse::<u64>()
        .map_or(size, |last| (last + 1).min(size));
    Some(if start < end {
        Ok((start, end))
    } else {
        Err(())
    })
}
