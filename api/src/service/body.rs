//! Reading request bodies: bounded in size, in time, and in memory over all requests; and what is
//! left of them.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, SizeHint};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::error::ApiError;

/// How much of a body that nobody wants is still read (and thrown away), and for how long.
const DRAIN: usize = 64 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(10);
/// Bytes of bodies that are in memory at the same time; one of the largest is always possible.
const BODIES: usize = 64 << 20;
/// One permit of the budget.
const UNIT: usize = 4 << 10;

/// Reads bodies within a budget of memory that all requests share.
#[derive(Debug)]
pub(crate) struct BodyReader {
    limit: usize,
    timeout: Duration,
    budget: Semaphore,
}

/// A body, and its share of the budget until it is dropped.
#[derive(Debug)]
pub(crate) struct Whole<'a> {
    pub(crate) bytes: Bytes,
    _share: SemaphorePermit<'a>,
}

impl BodyReader {
    /// Bodies of at most `limit` bytes that arrive within `timeout`.
    pub(crate) fn new(limit: usize, timeout: Duration) -> Self {
        Self {
            limit,
            timeout,
            budget: Semaphore::new(permits(limit.max(BODIES)) as usize),
        }
    }

    /// The whole body.
    pub(crate) async fn read(
        &self,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Whole<'_>, ApiError> {
        match tokio::time::timeout(self.timeout, self.read_slowly(headers, body)).await {
            Ok(result) => result,
            Err(_) => Err(ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                format!(
                    "the request body did not arrive within {} seconds",
                    self.timeout.as_secs()
                ),
            )),
        }
    }

    async fn read_slowly(
        &self,
        headers: &HeaderMap,
        mut body: Body,
    ) -> Result<Whole<'_>, ApiError> {
        let announced = headers
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        if announced.is_some_and(|length| length > self.limit) {
            return Err(self.too_large());
        }
        // What has arrived is what counts: who only announces much holds nothing.
        let mut share = self.share(0)?;
        let mut whole = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| {
                ApiError::bad_request("the request body ended before it was complete")
            })?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            let length = whole.len() + data.len();
            if length > self.limit {
                return Err(self.too_large());
            }
            self.grow(&mut share, length)?;
            if whole.is_empty() && announced == Some(data.len()) {
                // The usual small body, in one piece: no copy.
                return Ok(Whole {
                    bytes: data,
                    _share: share,
                });
            }
            whole.extend_from_slice(&data);
        }
        Ok(Whole {
            bytes: whole.freeze(),
            _share: share,
        })
    }

    /// A share for `length` bytes.
    fn share(&self, length: usize) -> Result<SemaphorePermit<'_>, ApiError> {
        self.budget
            .try_acquire_many(permits(length))
            .map_err(|_| ApiError::unavailable("too many large task documents arrive at present"))
    }

    fn grow<'a>(&'a self, share: &mut SemaphorePermit<'a>, length: usize) -> Result<(), ApiError> {
        let more = (permits(length) as usize).saturating_sub(share.num_permits());
        if more > 0 {
            share.merge(self.share(more * UNIT)?);
        }
        Ok(())
    }

    fn too_large(&self) -> ApiError {
        ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!(
                "the task document is larger than the {} that this server accepts",
                tesk_core::config::ByteSize(self.limit as u64)
            ),
        )
    }
}

fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
}

/// A body that a handler may read, or not.
#[derive(Debug)]
struct Lent(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    body: Body,
    /// The client waits until it is asked for the body (`Expect: 100-continue`).
    waits: bool,
    ended: bool,
}

/// What a handler leaves of a body.
#[derive(Debug)]
pub(crate) struct Rest(Option<Lent>);

impl Lent {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl hyper::body::Body for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut inner = self.inner();
        inner.waits = false;
        let frame = Pin::new(&mut inner.body).poll_frame(context);
        inner.ended |= matches!(frame, Poll::Ready(None | Some(Err(_))));
        frame
    }

    fn is_end_stream(&self) -> bool {
        let inner = self.inner();
        inner.ended || inner.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner().body.size_hint()
    }
}

/// A request whose body stays in reach.
pub(crate) fn lend(request: Request) -> (Request, Rest) {
    if request.body().is_end_stream() {
        return (request, Rest(None));
    }
    let (parts, body) = request.into_parts();
    let inner = Arc::new(Mutex::new(Inner {
        body,
        waits: parts.headers.contains_key(header::EXPECT),
        ended: false,
    }));
    let rest = Rest(Some(Lent(Arc::clone(&inner))));
    (Request::from_parts(parts, Body::new(Lent(inner))), rest)
}

impl Rest {
    /// Takes what the client still sends, within bounds: one that is cut off while it sends sees a
    /// broken connection instead of its reply.
    pub(crate) async fn drain(self) {
        let Some(mut rest) = self.0.filter(|rest| !rest.is_end_stream()) else {
            return;
        };
        // It need not send it at all.
        if rest.inner().waits {
            return;
        }
        let drained = async {
            let mut left = DRAIN;
            while let Some(Ok(frame)) = rest.frame().await {
                let read = frame.data_ref().map_or(0, Bytes::len);
                match left.checked_sub(read) {
                    Some(less) => left = less,
                    None => return,
                }
            }
        };
        let _ = tokio::time::timeout(DRAIN_TIME, drained).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::response::IntoResponse;
    use futures_util::stream::{self, StreamExt};

    use super::*;

    /// Sends `length` bytes, and never ends.
    fn stuck(length: usize) -> Body {
        let sent = stream::iter([Ok::<_, std::io::Error>(Bytes::from(vec![b' '; length]))]);
        Body::from_stream(sent.chain(stream::pending()))
    }

    #[tokio::test]
    async fn bodies_share_a_budget_by_what_has_arrived_and_give_it_back() {
        const LIMIT: usize = 4 << 20;
        let reader = Arc::new(BodyReader::new(LIMIT, Duration::from_mins(1)));
        let stuck: Vec<_> = (0..16)
            .map(|_| {
                let reader = reader.clone();
                tokio::spawn(async move {
                    let read = reader.read(&HeaderMap::new(), stuck(LIMIT)).await;
                    read.map(drop)
                })
            })
            .collect();
        let none = HeaderMap::new();
        let small = || reader.read(&none, Body::from("{}"));
        while reader.budget.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let refused = small().await.unwrap_err().into_response();
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(refused.headers().contains_key(header::RETRY_AFTER));
        for body in stuck {
            body.abort();
            body.await.unwrap_err();
        }
        assert_eq!(small().await.unwrap().bytes, "{}");
        assert_eq!(reader.budget.available_permits(), BODIES / UNIT);
    }

    #[tokio::test]
    async fn a_body_that_is_larger_than_the_budget_is_possible() {
        let reader = BodyReader::new(BODIES + UNIT, Duration::from_mins(1));
        let body = vec![b' '; BODIES + UNIT];
        let whole = reader.read(&HeaderMap::new(), body.into()).await.unwrap();
        assert_eq!(whole.bytes.len(), BODIES + UNIT);
    }
}
