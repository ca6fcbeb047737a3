//! The way of one client to the server.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::{Request, Response};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tower::Service;

use super::{Body, BoxError, FakeApi};

/// The connection of one client, on which requests can be held up: they are carried out later, and
/// also if nobody waits for the answer any more. Clones are the same connection.
#[derive(Clone, Debug)]
pub struct Line {
    server: FakeApi,
    /// The end of the paths that are held up.
    held: Arc<watch::Sender<Option<&'static str>>>,
    runtime: Handle,
}

impl FakeApi {
    /// A connection of its own, for one of several clients. What is under way on it runs on the
    /// present Tokio runtime, and so survives the client.
    ///
    /// # Panics
    ///
    /// Outside of a Tokio runtime.
    pub fn line(&self) -> Line {
        Line {
            server: self.clone(),
            held: Arc::new(watch::Sender::new(None)),
            runtime: Handle::current(),
        }
    }
}

impl Line {
    /// From now on no request arrives whose path ends with `end`, such as `/pods`; with an empty
    /// one none at all. It replaces what was said before. Watches that have begun go on.
    pub fn hold(&self, end: &'static str) {
        self.held.send_replace(Some(end));
    }

    /// What was held up arrives now, all at once, and requests arrive again.
    pub fn release(&self) {
        self.held.send_replace(None);
    }
}

impl<B> Service<Request<B>> for Line
where
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Body>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (mut server, mut held) = (self.server.clone(), self.held.subscribe());
        let path = request.uri().path().to_owned();
        let answer = self.runtime.spawn(async move {
            // It fails only if the line is gone: then the request is carried out at once.
            let arrival = held.wait_for(|held| held.is_none_or(|end| !path.ends_with(end)));
            let _ = arrival.await;
            // The body of the request need not be `Sync`.
            let answer: Pin<Box<dyn Future<Output = _> + Send>> = server.call(request);
            answer.await
        });
        Box::pin(async move { answer.await? })
    }
}
