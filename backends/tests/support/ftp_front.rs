//! What stands before an FTP server: encryption, and a way by a proxy for every connection.
//!
//! The server in this process is never asked to encrypt anything: it may read the handshake as a
//! command, as it waits for the next line and for its own word to encrypt at the same time.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tesk_conformance::proxy::{dial, listen};
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::{HandshakeKind, ServerConfig};

/// Where a front leads, and how its clients encrypt.
#[derive(Clone, Debug)]
pub(crate) struct Front {
    /// Of the server, on this machine.
    pub(crate) port: u16,
    pub(crate) encryption: Option<Arc<Encryption>>,
}

/// Encryption that is required on both kinds of connections.
pub(crate) struct Encryption {
    acceptor: TlsAcceptor,
    /// From the first byte on, not after `AUTH TLS`.
    implicit: bool,
    /// Data connections that resumed the session of a control connection.
    pub(crate) resumed: AtomicUsize,
    /// Data connections that did not.
    pub(crate) not_resumed: AtomicUsize,
}

impl std::fmt::Debug for Encryption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encryption").finish_non_exhaustive()
    }
}

impl Encryption {
    /// With a new certificate for `localhost` and 127.0.0.1, which is written to `ca_file`.
    pub(crate) fn new(ca_file: &Path, implicit: bool) -> Self {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        std::fs::write(ca_file, made.cert.pem()).unwrap();
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            implicit,
            resumed: AtomicUsize::new(0),
            not_resumed: AtomicUsize::new(0),
        }
    }
}

/// A connection, encrypted or not.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Connects to the port of this machine that the first two bytes of a connection name.
///
/// A proxy before it carries control and data connections alike.
pub(crate) fn switchboard() -> SocketAddr {
    let (listener, address) = listen().unwrap();
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            tokio::spawn(async move {
                let port = from.read_u16().await?;
                let mut to = dial(([127, 0, 0, 1], port).into()).await?;
                tokio::io::copy_bidirectional(&mut from, &mut to).await
            });
        }
    });
    address
}

impl Front {
    /// Listens for clients, which come by way of `proxy`, if there is one, with their data
    /// connections too; it leads to a [`switchboard`].
    pub(crate) fn listen(&self, proxy: Option<SocketAddr>) -> SocketAddr {
        let (listener, address) = listen().unwrap();
        let front = self.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let _ = client.set_nodelay(true);
                let front = front.clone();
                tokio::spawn(async move { front.control(client, proxy).await });
            }
        });
        match proxy {
            Some(proxy) => relay(address.port(), proxy).unwrap(),
            None => address,
        }
    }

    async fn control(&self, client: TcpStream, proxy: Option<SocketAddr>) -> io::Result<()> {
        let server = connect(self.port).await?;
        let (from_server, mut to_server) = server.into_split();
        let mut replies = BufReader::new(from_server).split(b'\n');
        let client: Box<dyn Stream> = match self.encryption.as_deref() {
            None => Box::new(client),
            Some(tls) if tls.implicit => Box::new(tls.acceptor.accept(client).await?),
            Some(tls) => {
                let mut client = client;
                let greeting = replies.next_segment().await?.unwrap_or_default();
                client.write_all(&[&greeting[..], b"\n"].concat()).await?;
                while line(&mut client).await? != "AUTH TLS" {
                    client.write_all(b"530 not in the clear\r\n").await?;
                }
                client.write_all(b"234 go on\r\n").await?;
                Box::new(tls.acceptor.accept(client).await?)
            }
        };
        let (from_client, mut to_client) = tokio::io::split(client);
        let mut commands = BufReader::new(from_client).split(b'\n');
        loop {
            let reply = tokio::select! {
                command = commands.next_segment() => {
                    let Some(mut command) = command? else { break };
                    match command.trim_ascii() {
                        b"PBSZ 0" | b"PROT P" if self.encryption.is_some() => b"200 yes\r\n".to_vec(),
                        _ => {
                            command.push(b'\n');
                            to_server.write_all(&command).await?;
                            continue;
                        }
                    }
                }
                reply = replies.next_segment() => {
                    let Some(mut reply) = reply? else { break };
                    if reply.starts_with(b"229 ") {
                        let port = String::from_utf8_lossy(&reply);
                        let port = port.split('|').nth(3).and_then(|port| port.parse().ok());
                        let port = self.data(port.unwrap(), proxy)?;
                        reply = format!("229 here (|||{port}|)\r").into_bytes();
                    }
                    reply.push(b'\n');
                    reply
                }
            };
            to_client.write_all(&reply).await?;
            to_client.flush().await?;
        }
        to_client.shutdown().await
    }

    /// A port for one data connection to the server's port `port`.
    fn data(&self, port: u16, proxy: Option<SocketAddr>) -> io::Result<u16> {
        let (listener, address) = listen()?;
        let encryption = self.encryption.clone();
        tokio::spawn(async move {
            let (mut client, _) = listener.accept().await?;
            client.set_nodelay(true)?;
            let mut server = connect(port).await?;
            let Some(tls) = encryption else {
                return tokio::io::copy_bidirectional(&mut client, &mut server).await;
            };
            let mut client = tls.acceptor.accept(client).await?;
            let resumed = client.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
            let counter = if resumed {
                &tls.resumed
            } else {
                &tls.not_resumed
            };
            counter.fetch_add(1, Ordering::Relaxed);
            let copied = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            if copied.is_err() {
                // The server must not take what was cut for the whole.
                server.set_zero_linger()?;
            }
            copied
        });
        match proxy {
            Some(proxy) => Ok(relay(address.port(), proxy)?.port()),
            None => Ok(address.port()),
        }
    }
}

async fn connect(port: u16) -> io::Result<TcpStream> {
    let server = dial(([127, 0, 0, 1], port).into()).await?;
    server.set_nodelay(true)?;
    Ok(server)
}

/// Where clients come by `proxy` to the port `port` of this machine.
fn relay(port: u16, proxy: SocketAddr) -> io::Result<SocketAddr> {
    let (listener, address) = listen()?;
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut server = dial(proxy).await?;
                server.write_u16(port).await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    Ok(address)
}

/// A line, and not a byte of what follows it.
async fn line(client: &mut TcpStream) -> io::Result<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(client.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(line.trim_ascii()).into_owned())
}
