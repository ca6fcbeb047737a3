//! An FTP server in this process, over a directory of this machine.

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
use tesk_core::rooted::is_temp_name;
use tokio::net::{TcpListener, TcpSocket};
use unftp_core::auth::{AuthenticationError, Authenticator, Credentials, Principal};
use unftp_sbe_fs::Filesystem;

#[path = "ftp_front.rs"]
pub(crate) mod front;

use front::{Encryption, Front};

/// A running server: user `me`, password `right`, or anybody where there is no password. It
/// stops with the runtime it was started on.
pub(crate) struct FtpServer {
    pub(crate) address: SocketAddr,
    pub(crate) root: tempfile::TempDir,
    front: Front,
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
        Self::build(true).await
    }

    /// For anybody.
    pub(crate) async fn start_anonymous() -> Self {
        Self::build(false).await
    }

    /// With encryption required on both kinds of connections: after `AUTH TLS`, or `implicit`.
    pub(crate) async fn start_encrypted(implicit: bool) -> Self {
        let mut server = Self::build(true).await;
        let encryption = Encryption::new(&server.ca_file(), implicit);
        server.front.encryption = Some(Arc::new(encryption));
        server.address = server.front.listen(None);
        server
    }

    async fn build(password: bool) -> Self {
        let root = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let data_ports = DataPorts::of_a_new_server();
        let connections = Arc::<AtomicUsize>::default();
        let files = root.path().join("files");
        std::fs::create_dir(&files).unwrap();
        let count = connections.clone();
        tokio::spawn(async move {
            while let Ok((control, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let files = files.clone();
                let files = move || Filesystem::new(files.clone()).unwrap();
                let mut server = ServerBuilder::new(Box::new(files)).binder(data_ports.clone());
                if password {
                    server = server.authenticator(Arc::new(OnlyMe));
                }
                tokio::spawn(server.build().unwrap().service(control));
            }
        });
        let front = Front {
            port: address.port(),
            encryption: None,
        };
        Self {
            address,
            root,
            front,
            connections,
        }
    }

    /// Where clients reach it by way of `proxy`, which leads to a [`front::switchboard`].
    pub(crate) fn through(&self, proxy: SocketAddr) -> SocketAddr {
        self.front.listen(Some(proxy))
    }

    /// The certificate to trust, where it has one.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.root.path().join("cert.pem")
    }

    /// How many data connections resumed the session of their control connection, and how many
    /// did not.
    pub(crate) fn resumed_sessions(&self) -> (usize, usize) {
        let encryption = self.front.encryption.as_ref().unwrap();
        (
            encryption.resumed.load(Ordering::Relaxed),
            encryption.not_resumed.load(Ordering::Relaxed),
        )
    }

    /// The directory that it serves.
    pub(crate) fn files(&self) -> PathBuf {
        self.root.path().join("files")
    }

    /// The temporary files that are there.
    pub(crate) fn temporaries(&self) -> Vec<String> {
        temporaries(&self.files())
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

/// The files below a directory of this machine that are named as what is not finished.
pub(crate) fn temporaries(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    // What goes away meanwhile is not left.
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if is_temp_name(&entry.file_name()) {
            found.push(path.display().to_string());
        } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(temporaries(&path));
        }
    }
    found
}
