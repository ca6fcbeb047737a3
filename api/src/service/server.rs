//! Connections, from the socket to a graceful end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::config;

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

/// Serves until `stop`; then takes no new connections, lets running requests end (for
/// `shutdown_timeout` at most), and returns.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    settings: &config::Server,
    stop: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(settings.max_connections));
    let graceful = GracefulShutdown::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(settings.header_timeout.0)
        .max_buf_size(64 << 10);
    loop {
        // A slot first: connections beyond the limit wait in the kernel, not in our memory.
        let accepted = tokio::select! {
            accepted = async {
                let slot = Arc::clone(&slots).acquire_owned().await.ok();
                (slot, listener.accept().await)
            } => accepted,
            () = stop.cancelled() => break,
        };
        let (slot, socket) = match accepted {
            (slot, Ok((socket, _))) => (slot, socket),
            (_, Err(error)) => {
                // Out of file descriptors, most likely: it passes when connections end.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let _ = socket.set_nodelay(true);
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
