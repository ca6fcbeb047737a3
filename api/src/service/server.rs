//! Connections, from the socket to a graceful end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::IntoResponse;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::ApiError;
use crate::config;

/// Connections beyond the limit that are told so, at once.
const BEYOND: usize = 64;
/// How long those may take to ask.
const BRIEF: Duration = Duration::from_secs(1);

/// Opens the socket.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "cannot listen on {address}: another program does so already; choose another port with --listen"
        ),
        io::ErrorKind::PermissionDenied => format!(
            "cannot listen on {address}: not allowed; ports below 1024 need a privilege"
        ),
        io::ErrorKind::AddrNotAvailable => {
            format!("cannot listen on {address}: this machine does not have this address")
        }
        _ => format!("cannot listen on {address}: {error}"),
    })
}

/// How often a client whose connection is silent is asked whether it is there, before it counts as
/// gone: output that is followed may be silent for days, and a packet may be lost.
const PROBES: u32 = 4;

/// Small replies go at once; a client that takes nothing of a reply for `patience`, or is gone
/// without a word, loses its connection.
fn prepare(socket: &TcpStream, patience: Duration) {
    use rustix::net::sockopt;
    let millis = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
    let prepare = || {
        socket.set_nodelay(true)?;
        // It ends silent connections as well, whatever the number of probes (tcp(7)).
        sockopt::set_tcp_user_timeout(socket, millis)?;
        let probe = (patience / PROBES).max(Duration::from_secs(1));
        sockopt::set_tcp_keepidle(socket, probe)?;
        sockopt::set_tcp_keepintvl(socket, probe)?;
        sockopt::set_socket_keepalive(socket, true)?;
        io::Result::Ok(())
    };
    let prepared = prepare();
    if let Err(error) = prepared {
        tracing::debug!(%error, "cannot set an option of a connection");
    }
}

/// The same for a connection beyond the limit: only who looks whether this server lives and is ready
/// has an answer. Else whoever opens enough connections would have it killed as one that hangs.
fn full(router: Router) -> Router {
    router.layer(from_fn(
        async |request: Request, next: Next| match request.uri().path() {
            "/healthz" | "/readyz" => next.run(request).await,
            _ => ApiError::unavailable("this server has too many connections").into_response(),
        },
    ))
}

/// Serves until `stop`; then takes no new connections, lets running requests end (for
/// `shutdown_timeout` at most), and returns.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    settings: &config::Server,
    stop: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(settings.max_connections));
    let beyond = Arc::new(Semaphore::new(BEYOND));
    let full = full(router.clone());
    let graceful = GracefulShutdown::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(settings.header_timeout.0)
        .max_buf_size(64 << 10);
    let mut brief = http.clone();
    brief.header_read_timeout(BRIEF).keep_alive(false);
    loop {
        // First room for one beyond the limit: more wait in the kernel, not in our memory.
        let accepted = tokio::select! {
            accepted = async {
                let room = Arc::clone(&beyond).acquire_owned().await.ok();
                (room, listener.accept().await)
            } => accepted,
            () = stop.cancelled() => break,
        };
        let (room, socket) = match accepted {
            (room, Ok((socket, _))) => (room, socket),
            (_, Err(error)) => {
                // Out of file descriptors, most likely: it passes when connections end.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        prepare(&socket, settings.header_timeout.0);
        let (slot, http, router) = match Arc::clone(&slots).try_acquire_owned() {
            Ok(slot) => (Some(slot), &http, &router),
            Err(_) => (room, &brief, &full),
        };
        let service = TowerToHyperService::new(router.clone());
        let connection = graceful.watch(http.serve_connection(TokioIo::new(socket), service));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
            drop(slot);
        });
    }
    drop(listener);
    let timeout = settings.shutdown_timeout.0;
    if tokio::time::timeout(timeout, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::warn!(
            "requests did not end within {} s; leaving them",
            timeout.as_secs()
        );
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::sockopt;

    use super::*;

    #[tokio::test]
    async fn a_client_that_is_gone_without_a_word_is_noticed() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (socket, _) = accepted.unwrap();
        prepare(&socket, Duration::from_secs(20));
        assert!(sockopt::socket_keepalive(&socket).unwrap());
        let probe = Duration::from_secs(5);
        assert_eq!(sockopt::tcp_keepidle(&socket).unwrap(), probe);
        assert_eq!(sockopt::tcp_keepintvl(&socket).unwrap(), probe);
        assert_eq!(sockopt::tcp_user_timeout(&socket).unwrap(), 20_000);
        drop(client);
    }
}
