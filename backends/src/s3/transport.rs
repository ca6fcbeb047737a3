//! The connection to the server: one HTTP client per entry, and OpenDAL's view of it.

use std::sync::Arc;

use http::header::{CONTENT_RANGE, HeaderMap, RANGE};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use opendal::raw::oio::ReadStream as _;
use opendal::{Buffer, HttpBody, HttpTransport};
use opendal_http_transport_reqwest::ReqwestTransport;
use tesk_core::storage::{ConfigError, Error, ErrorKind, StorageUrl};

use super::options::Options;
use super::reply::{self, MAX_REFUSAL, Refusal};
use super::settings::Settings;
use crate::client::{self, disconnected};
use crate::network::Networks;

/// The metadata services of clouds, which no proxy reaches.
const METADATA: &str = "169.254.169.254,169.254.170.2,169.254.170.23,fd00:ec2::254,fd00:ec2::23";

const CONTENT_MD5: HeaderName = HeaderName::from_static("content-md5");

/// A client of an entry, for the networks that it reaches, or for all. It follows no redirect: a
/// signed request is for one server.
pub(super) fn client(
    options: &Options,
    networks: Option<&Arc<Networks>>,
) -> Result<reqwest::Client, ConfigError> {
    let setup = client::Setup {
        ca_file: options.ca_file.as_deref(),
        connect_timeout_secs: options.connect_timeout_secs,
        proxy: options.proxy.as_deref(),
        not_by_proxy: METADATA,
        networks,
        ..client::Setup::default()
    };
    setup.build()
}

/// What OpenDAL sends its requests through. It turns refusals of the storage into [`Refusal`]s,
/// which keep what OpenDAL's own errors lose, and lets nothing through that is not what was asked
/// for. Requests for credentials go to other servers, wherever those are, and pass unchanged.
pub(super) struct Transport {
    inner: ReqwestTransport,
    credentials: ReqwestTransport,
    /// Host and port of the bucket.
    authority: String,
}

impl Transport {
    pub(super) fn new(settings: &Settings, authority: String) -> Self {
        Self {
            inner: ReqwestTransport::new(settings.client.clone()),
            credentials: ReqwestTransport::new(settings.credentials.clone()),
            authority,
        }
    }
}

impl HttpTransport for Transport {
    async fn fetch(&self, request: Request<Buffer>) -> opendal::Result<Response<HttpBody>> {
        let authority = request.uri().authority().map(http::uri::Authority::as_str);
        if authority != Some(self.authority.as_str()) {
            return self.credentials.fetch(request).await;
        }
        let is_head = request.method() == Method::HEAD;
        let range = request.headers().get(RANGE).cloned();
        let (mut parts, mut body) = self.inner.fetch(request).await?.into_parts();
        if !parts.status.is_success() {
            let mut text = Vec::new();
            // A reply that breaks off is still one.
            while let (false, Ok(chunk)) = (is_head || text.len() >= MAX_REFUSAL, body.read().await)
            {
                if chunk.is_empty() {
                    break;
                }
                text.extend_from_slice(&chunk.to_bytes());
            }
            let refusal = Refusal::new(parts.status, &parts.headers, &text);
            return Err(failed("refused").set_source(refusal));
        }
        if let Some(range) = range
            && (parts.status != StatusCode::PARTIAL_CONTENT
                || start(&range, "bytes=") != start_of(&parts.headers))
        {
            return Err(failed("ignored").set_source(RangeIgnored));
        }
        // OpenDAL passes on this header, but not those that tell whether the tag is an MD5.
        parts.headers.remove(CONTENT_MD5);
        if let Some(md5) = reply::md5(&parts.headers)
            && let Ok(value) = HeaderValue::try_from(reply::content_md5(md5))
        {
            parts.headers.insert(CONTENT_MD5, value);
        }
        Ok(Response::from_parts(parts, body))
    }
}

/// Where a range begins, in the words of a request or a reply.
fn start(range: &HeaderValue, unit: &str) -> Option<u64> {
    let (start, _) = range.to_str().ok()?.strip_prefix(unit)?.split_once('-')?;
    start.parse().ok()
}

fn start_of(headers: &HeaderMap) -> Option<u64> {
    start(headers.get(CONTENT_RANGE)?, "bytes ")
}

fn failed(message: &'static str) -> opendal::Error {
    opendal::Error::new(opendal::ErrorKind::Unexpected, message)
}

/// The server sent something else than the range that was asked for.
#[derive(Debug, thiserror::Error)]
#[error("the server does not serve ranges")]
struct RangeIgnored;

/// A failed request of OpenDAL, classified. OpenDAL's own text is not shown: it holds headers.
pub(super) fn failure(url: &StorageUrl, error: &(dyn std::error::Error + 'static)) -> Error {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(refusal) = error.downcast_ref::<Refusal>() {
            return refusal.at(url);
        }
        if error.is::<RangeIgnored>() {
            return Error::new(ErrorKind::Unsupported, url, error.to_string());
        }
        if let Some(error) = error.downcast_ref::<reqwest::Error>() {
            return disconnected(url, error);
        }
        if error.is::<reqsign_core::Error>() {
            return unsigned(url);
        }
        cause = error.source();
    }
    let temporary = error
        .downcast_ref::<opendal::Error>()
        .is_some_and(opendal::Error::is_temporary);
    let (kind, message) = if temporary {
        (ErrorKind::Unavailable, "the connection broke off")
    } else {
        (ErrorKind::Other, "the server's reply cannot be understood")
    };
    Error::new(kind, url, message)
}

/// A request that could not be signed, because nobody gave credentials. Why each place where they
/// are looked for had none is not told, so it may be a trouble that passes.
pub(super) fn unsigned(url: &StorageUrl) -> Error {
    let message = "no credentials were found for this storage entry, or they could not be renewed";
    Error::new(ErrorKind::Unauthenticated, url, message).with_retryable(true)
}
