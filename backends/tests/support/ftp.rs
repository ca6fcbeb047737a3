//! An FTP server in this process, over a directory of this machine; and a way to put a proxy
//! before its data connections too.

#![allow(
    dead_code,
    reason = "two test programs share this, and neither needs all of it"
)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

use libunftp::ServerBuilder;
use libunftp::options::Binder;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use unftp_core::auth::{AuthenticationError, Authenticator, Credentials, Principal};
use unftp_sbe_fs::Filesystem;

/// A running server: user `me`, password `right`, or anybody where there is no password. It
/// stops with the runtime it was started on.
pub(crate) struct FtpServer {
    pub(crate) address: SocketAddr,
    pub(crate) root: tempfile::TempDir,
    /// The certificate to trust, where it has one.
    pub(crate) ca_file: Option<PathBuf>,
    connections: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct OnlyMe;

#[async_trait::async_trait]
impl Authenticator for OnlyMe {
    async fn authenticate(
        &self,
        user: &str,
        given: &Credentials,
    ) -> Result<Principal, AuthenticationError> {
        if user != "me" || given.password.as_deref() != Some("right") {
            return Err(AuthenticationError::BadPassword);
        }
        Ok(Principal {
            username: user.to_owned(),
        })
    }
}

/// The ports for data connections to one server, taken in turn.
///
/// Left to itself, the server takes one by chance, and closes the control connection if another
/// session has the same just then.
#[derive(Clone, Debug)]
struct DataPorts {
    first: u16,
    next: Arc<AtomicU16>,
}

impl DataPorts {
    const COUNT: u16 = 700;

    /// Below those that the kernel hands out: no client of another server, with or without
    /// encryption, ever meets this one.
    fn of_a_new_server() -> Self {
        static SERVERS: AtomicU16 = AtomicU16::new(0);
        Self {
            first: 10_000 + Self::COUNT * (SERVERS.fetch_add(1, Ordering::Relaxed) % 30),
            next: Arc::default(),
        }
    }
}

#[async_trait::async_trait]
impl Binder for DataPorts {
    async fn bind(&mut self, here: IpAddr, _: RangeInclusive<u16>) -> io::Result<TcpSocket> {
        let mut bound = Err(io::ErrorKind::AddrInUse.into());
        for _ in 0..Self::COUNT {
            let port = self.first + self.next.fetch_add(1, Ordering::Relaxed) % Self::COUNT;
            let socket = TcpSocket::new_v4()?;
            // One that was in use a moment ago will do.
            socket.set_reuseaddr(true)?;
            bound = socket.bind((here, port).into()).map(|()| socket);
            if bound.is_ok() {
                break;
            }
        }
        bound
    }
}

impl FtpServer {
    /// Without encryption.
    pub(crate) async fn start() -> Self {
        Self::build(false, true).await
    }

    /// With encryption required on both kinds of connections.
    pub(crate) async fn start_encrypted() -> Self {
        Self::build(true, true).await
    }

    /// For anybody.
    pub(crate) async fn start_anonymous() -> Self {
        Self::build(false, false).await
    }

    async fn build(encrypted: bool, password: bool) -> Self {
        let root = tempfile::tempdir().unwrap();
        let keys = encrypted.then(|| certificate(root.path()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let data_ports = DataPorts::of_a_new_server();
        let connections = Arc::<AtomicUsize>::default();
        let files = root.path().join("files");
        std::fs::create_dir(&files).unwrap();
        let (count, ca_file) = (
            connections.clone(),
            keys.as_ref().map(|keys| keys.0.clone()),
        );
        tokio::spawn(async move {
            while let Ok((control, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let files = files.clone();
                let files = move || Filesystem::new(files.clone()).unwrap();
                let mut server = ServerBuilder::new(Box::new(files)).binder(data_ports.clone());
                if password {
                    server = server.authenticator(Arc::new(OnlyMe));
                }
                if let Some((certificate, key)) = &keys {
                    server = server.ftps(certificate, key).ftps_required(
                        libunftp::options::FtpsRequired::All,
                        libunftp::options::FtpsRequired::All,
                    );
                }
                tokio::spawn(server.build().unwrap().service(control));
            }
        });
        Self {
            address,
            root,
            ca_file,
            connections,
        }
    }

    /// The directory that it serves.
    pub(crate) fn files(&self) -> PathBuf {
        self.root.path().join("files")
    }

    /// Puts a file there.
    pub(crate) fn put(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.files().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// What is in a file.
    pub(crate) fn get(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.files().join(path)).unwrap()
    }

    /// The URL of a path, with the right login.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("ftp://me:right@{}{path}", self.address)
    }

    /// How many control connections there have been.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

/// A new certificate for `localhost` and 127.0.0.1, and its key.
fn certificate(directory: &Path) -> (PathBuf, PathBuf) {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let (certificate, key) = (directory.join("cert.pem"), directory.join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    (certificate, key)
}

/// Connects to the port of this machine that the first two bytes of a connection name.
///
/// A proxy before it carries control and data connections alike.
pub(crate) async fn switchboard() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            tokio::spawn(async move {
                let port = from.read_u16().await?;
                let mut to = TcpStream::connect(("127.0.0.1", port)).await?;
                tokio::io::copy_bidirectional(&mut from, &mut to).await
            });
        }
    });
    address
}

/// Listens for FTP clients and connects them to the server at `server`, data connections too,
/// all by way of `proxy`, which leads to a [`switchboard`].
pub(crate) fn gateway(server: SocketAddr, proxy: SocketAddr) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let listener = TcpListener::from_std(listener).unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(control(client, server.port(), proxy));
        }
    });
    address
}

async fn through(proxy: SocketAddr, port: u16) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(proxy).await?;
    stream.write_u16(port).await?;
    Ok(stream)
}

async fn control(client: TcpStream, port: u16, proxy: SocketAddr) -> io::Result<()> {
    let server = through(proxy, port).await?;
    let (mut from_client, mut to_client) = client.into_split();
    let (from_server, mut to_server) = server.into_split();
    let up = tokio::io::copy(&mut from_client, &mut to_server);
    let down = async {
        let mut lines = BufReader::new(from_server).lines();
        while let Some(mut line) = lines.next_line().await? {
            if line.starts_with("229 ") {
                let port = line.split('|').nth(3).and_then(|port| port.parse().ok());
                line = format!("229 here (|||{}|)", data(port.unwrap(), proxy).await?);
            }
            to_client
                .write_all(format!("{line}\r\n").as_bytes())
                .await?;
        }
        Ok(())
    };
    tokio::select! {
        ended = up => ended.map(drop),
        ended = down => ended,
    }
}

/// A port for one data connection to the server's port `port`.
async fn data(port: u16, proxy: SocketAddr) -> io::Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let here = listener.local_addr()?.port();
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await?;
        let mut server = through(proxy, port).await?;
        tokio::io::copy_bidirectional(&mut client, &mut server).await
    });
    Ok(here)
}
