//! Connecting, encrypting, logging in.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use suppaftp::tokio::{AsyncRustlsConnector, AsyncRustlsFtpStream};
use suppaftp::tokio_rustls::TlsConnector;
use suppaftp::types::FileType;
use suppaftp::{FtpError, Status};
use tokio::net::TcpStream;

use super::address::{self, Server};
use super::connection::{Connection, Dialect, Features, Settings, in_time, in_time_io};
use super::options::{Passive, Tls};
use super::reply::{Failure, Reply};
use crate::network::Refused;

/// Who logs in, where and how.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Account {
    pub(super) server: Server,
    pub(super) tls: Tls,
    pub(super) user: String,
    pub(super) password: String,
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Account({}:{})", self.server.host, self.server.port)
    }
}

/// Why there is no connection.
pub(super) struct NoConnection {
    pub(super) failure: Failure,
    pub(super) message: &'static str,
}

impl Connection {
    /// Connects and logs in.
    pub(super) async fn open(
        account: &Account,
        settings: &Arc<Settings>,
        dialect: &Arc<Dialect>,
    ) -> Result<Self, NoConnection> {
        let at = |message| move |failure| NoConnection { failure, message };
        let limit = settings.command_timeout;
        let (ftp, negotiated) = greet(account, settings).await?;
        let mut ftp = ftp;
        in_time(limit, ftp.login(&account.user, &account.password))
            .await
            .map_err(at("cannot log in"))?;
        let mut connection = Self {
            ftp,
            in_step: true,
            restarted: false,
            suspect: false,
            negotiated,
            extended: false,
            settings: settings.clone(),
            dialect: dialect.clone(),
        };
        connection.prepare().await.map_err(at("cannot be set up"))?;
        Ok(connection)
    }

    async fn prepare(&mut self) -> Result<(), Failure> {
        let dialect = self.dialect.clone();
        let features = dialect
            .features
            .get_or_try_init(|| async {
                let reply = self.command("FEAT".into()).await?;
                Ok::<_, Failure>(features(&reply))
            })
            .await?;
        if features.utf8 {
            // Some want it to be said; the answer does not matter.
            self.command("OPTS UTF8 ON".into()).await?;
        }
        if features.machine_readable && features.wants_facts {
            self.command("OPTS MLST type;size;modify;unique;".into())
                .await?;
        }
        self.in_step = false;
        let limit = self.settings.command_timeout;
        in_time(limit, self.ftp.transfer_type(FileType::Binary)).await?;
        self.in_step = true;
        self.extended = match self.settings.passive {
            Passive::Auto => !dialect.no_extended_passive.load(Ordering::Relaxed),
            Passive::Epsv => true,
            Passive::Pasv => false,
        };
        self.set_mode();
        Ok(())
    }
}

/// Connects, up to where a user can log in.
async fn greet(
    account: &Account,
    settings: &Arc<Settings>,
) -> Result<(AsyncRustlsFtpStream, Arc<AtomicBool>), NoConnection> {
    const NOT_REACHED: &str = "the server cannot be reached";
    const NO_TLS: &str = "no encrypted connection";
    let at = |message| move |failure| NoConnection { failure, message };
    let limit = settings.command_timeout;
    let host = account.server.host.as_str();
    let addresses = in_time_io(
        settings.connect_timeout,
        account.server.resolve(&settings.networks),
    )
    .await
    .map_err(at(NOT_REACHED))?;
    let mut failed = Failure::Timeout;
    let mut stream = None;
    for address in addresses {
        match in_time_io(settings.connect_timeout, TcpStream::connect(address)).await {
            Ok(connected) => {
                stream = Some(connected);
                break;
            }
            Err(failure) => failed = failure,
        }
    }
    let Some(stream) = stream else {
        return Err(at(NOT_REACHED)(failed));
    };
    address::tune(&stream);
    let peer = stream.peer_addr().map_err(|e| at(NOT_REACHED)(e.into()))?;
    let connector = settings.tls.as_ref().map(|config| {
        // Servers tell by the resumed session that a data connection belongs to this control
        // connection, so each has sessions of its own.
        let mut config = config.clone();
        config.resumption = rustls::client::Resumption::in_memory_sessions(16);
        AsyncRustlsConnector::from(TlsConnector::from(Arc::new(config)))
    });
    let ftp = match (account.tls, connector) {
        (Tls::None, _) => in_time(limit, AsyncRustlsFtpStream::connect_with_stream(stream))
            .await
            .map_err(at("the server does not let in"))?,
        (Tls::Explicit, Some(connector)) => {
            let ftp = in_time(limit, AsyncRustlsFtpStream::connect_with_stream(stream))
                .await
                .map_err(at("the server does not let in"))?;
            in_time(limit, ftp.into_secure(connector, host))
                .await
                .map_err(at(NO_TLS))?
        }
        (Tls::Implicit, Some(connector)) => {
            // The library connects by itself, to the address that has just answered.
            drop(stream);
            let connected = AsyncRustlsFtpStream::connect_secure_implicit(peer, connector, host);
            let mut ftp = in_time(limit, connected).await.map_err(at(NO_TLS))?;
            address::tune(&*ftp.get_ref().await);
            for line in ["PBSZ 0", "PROT P"] {
                let sent = ftp.custom_command(line, &[Status::CommandOk]);
                in_time(limit, sent).await.map_err(at(NO_TLS))?;
            }
            ftp
        }
        (_, None) => {
            let error = FtpError::SecureError("is not set up".into());
            return Err(at(NO_TLS)(error.into()));
        }
    };
    let negotiated = Arc::new(AtomicBool::new(false));
    let (networks, told) = (settings.networks.clone(), negotiated.clone());
    let mut ftp = ftp.passive_stream_builder(move |address| {
        told.store(true, Ordering::Relaxed);
        let checked: Result<(), Refused> = networks.check_named_by(peer.ip(), address.ip());
        Box::pin(async move {
            checked
                .map_err(|why| std::io::Error::new(std::io::ErrorKind::PermissionDenied, why))
                .map_err(FtpError::ConnectionError)?;
            TcpStream::connect(address)
                .await
                .map_err(FtpError::ConnectionError)
        })
    });
    ftp.set_passive_nat_workaround(!settings.trust_pasv_address);
    Ok((ftp, negotiated))
}

/// Reads the answer to `FEAT`.
fn features(reply: &Reply) -> Features {
    let mut features = Features::default();
    if reply.code != 211 {
        return features;
    }
    for line in reply.text.lines() {
        let line = line.trim().to_ascii_lowercase();
        if let Some(facts) = line.strip_prefix("mlst") {
            features.machine_readable = true;
            features.wants_facts = facts.contains("size;") || facts.contains("type;");
        }
        features.utf8 |= line == "utf8";
    }
    features
}
