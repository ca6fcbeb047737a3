//! A TCP proxy on the loopback interface that does to connections what networks do.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;

/// What happens to one connection. Bytes are counted on their way from the server, unless it
/// says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Closed as soon as it is accepted.
    Refuse,
    /// Closed after so many bytes.
    CutAfter(u64),
    /// Closed after so many bytes from the client.
    CutUploadAfter(u64),
    /// Silent after so many bytes, and not closed.
    StallAfter(u64),
    /// At most so many bytes a second.
    Slow(u64),
    /// As many bytes come as the server sends, but without any sense.
    Garbage,
}

/// A running proxy; dropped, it closes its port. Connections that are open go on.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    plan: Arc<Plan>,
    accepting: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Plan {
    /// For the next connections, one each.
    next: Mutex<VecDeque<Fault>>,
    connections: AtomicUsize,
    to_client: AtomicU64,
    to_server: AtomicU64,
}

impl Proxy {
    /// Listens on a free port and connects each client to `server`.
    #[allow(clippy::unused_async, reason = "it needs a runtime")]
    pub async fn start(server: SocketAddr) -> io::Result<Self> {
        let (listener, address) = listen()?;
        let plan = Arc::<Plan>::default();
        let shared = plan.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                shared.connections.fetch_add(1, Ordering::Relaxed);
                let mut next = shared.next.lock().unwrap_or_else(PoisonError::into_inner);
                let fault = next.pop_front().unwrap_or(Fault::None);
                tokio::spawn(connect(client, server, fault, shared.clone()));
            }
        });
        Ok(Self {
            address,
            plan,
            accepting,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What happens to the next connections, one after another; later ones go well.
    pub fn faults(&self, faults: impl IntoIterator<Item = Fault>) {
        let mut next = self
            .plan
            .next
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *next = faults.into_iter().collect();
    }

    /// How many connections there have been.
    pub fn connections(&self) -> usize {
        self.plan.connections.load(Ordering::Relaxed)
    }

    /// How many bytes have gone to clients.
    pub fn bytes_to_client(&self) -> u64 {
        self.plan.to_client.load(Ordering::Relaxed)
    }

    /// How many bytes have gone to the server.
    pub fn bytes_to_server(&self) -> u64 {
        self.plan.to_server.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Listens on a free port of the loopback interface. Connections hold little, see [`dial`].
pub fn listen() -> io::Result<(TcpListener, SocketAddr)> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let socket = socket(any)?;
    socket.bind(any)?;
    let listener = socket.listen(1024)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Connects to `server`. The connection holds little: what is on its way has been counted, and who
/// hangs up never gets it.
pub async fn dial(server: SocketAddr) -> io::Result<TcpStream> {
    socket(server)?.connect(server).await
}

fn socket(address: SocketAddr) -> io::Result<TcpSocket> {
    const BUFFER: u32 = 128 << 10;
    let socket = if address.is_ipv6() {
        TcpSocket::new_v6()?
    } else {
        TcpSocket::new_v4()?
    };
    socket.set_send_buffer_size(BUFFER)?;
    socket.set_recv_buffer_size(BUFFER)?;
    Ok(socket)
}

async fn connect(client: TcpStream, server: SocketAddr, fault: Fault, plan: Arc<Plan>) {
    if fault == Fault::Refuse {
        return;
    }
    let Ok(server) = dial(server).await else {
        return;
    };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async {
        let limit = match fault {
            Fault::CutUploadAfter(bytes) => bytes,
            _ => u64::MAX,
        };
        let counter = &plan.to_server;
        let noise = None;
        let ended = relay(
            &mut from_client,
            &mut to_server,
            limit,
            None,
            noise,
            counter,
        )
        .await;
        let _ = to_server.shutdown().await;
        ended
    };
    let down = async {
        let (limit, pace) = match fault {
            Fault::CutAfter(bytes) | Fault::StallAfter(bytes) => (bytes, None),
            Fault::Slow(bytes) => (u64::MAX, Some(bytes)),
            _ => (u64::MAX, None),
        };
        let counter = &plan.to_client;
        let noise = (fault == Fault::Garbage).then(Noise::default);
        let ended = relay(
            &mut from_server,
            &mut to_client,
            limit,
            pace,
            noise,
            counter,
        )
        .await;
        if ended == Ended::Limit && matches!(fault, Fault::StallAfter(_)) {
            std::future::pending::<()>().await;
        }
        ended
    };
    // The end of the server's side ends all; of the client's side only a cut does.
    let (mut up, mut down) = (std::pin::pin!(up), std::pin::pin!(down));
    tokio::select! {
        _ = &mut down => {}
        ended = &mut up => if ended == Ended::Eof {
            down.await;
        },
    }
}

/// Bytes by chance, the same ones in every run (xorshift64).
struct Noise(u64);

impl Default for Noise {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Noise {
    fn next(&mut self) -> u8 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.to_be_bytes()[0]
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Eof,
    Limit,
}

async fn relay(
    from: &mut (impl tokio::io::AsyncRead + Unpin),
    to: &mut (impl tokio::io::AsyncWrite + Unpin),
    mut limit: u64,
    pace: Option<u64>,
    mut noise: Option<Noise>,
    counter: &AtomicU64,
) -> Ended {
    let mut buffer = vec![0; 64 << 10];
    let at_once = pace.map_or(buffer.len(), |pace| (pace / 20).max(1) as usize);
    loop {
        let most = at_once
            .min(buffer.len())
            .min(usize::try_from(limit).unwrap_or(usize::MAX));
        if most == 0 {
            return Ended::Limit;
        }
        match from.read(&mut buffer[..most]).await {
            Ok(0) | Err(_) => return Ended::Eof,
            Ok(read) => {
                if let Some(noise) = &mut noise {
                    buffer[..read].fill_with(|| noise.next());
                }
                if to.write_all(&buffer[..read]).await.is_err() {
                    return Ended::Eof;
                }
                limit -= read as u64;
                counter.fetch_add(read as u64, Ordering::Relaxed);
            }
        }
        if pace.is_some() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
