//! A logged-in connection to a server, and what can be said on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustls::ClientConfig;
use suppaftp::tokio::{
    AsyncRustlsConnector, AsyncRustlsFtpStream, AsyncRustlsStream, TransferStream,
};
use suppaftp::tokio_rustls::TlsConnector;
use suppaftp::types::FileType;
use suppaftp::{FtpError, Mode, Status};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::address::{self, Server};
use super::listing::{self, Found, Line};
use super::options::{Passive, Tls};
use super::reply::{Failure, Reply};
use crate::network::{Networks, Refused};

/// The most that one directory's listing may take.
const LONGEST_LISTING: usize = 256 << 20;
/// The longest line of a listing.
const LONGEST_LINE: usize = 64 << 10;
/// How long a server may take to confirm that a file is not read to its end. It has nothing to
/// do for it; one that is silent loses the connection.
const SETTLE: Duration = Duration::from_secs(5);

/// The data connection of one file.
pub(super) type Data = TransferStream<AsyncRustlsStream>;

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

/// What all connections of an entry share.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) networks: Arc<Networks>,
    pub(super) tls: Option<ClientConfig>,
    pub(super) passive: Passive,
    pub(super) trust_pasv_address: bool,
    pub(super) connect_timeout: Duration,
    pub(super) command_timeout: Duration,
}

/// What was found out about a server, for all connections to it.
#[derive(Debug, Default)]
pub(super) struct Dialect {
    features: tokio::sync::OnceCell<Features>,
    no_extended_passive: AtomicBool,
    no_machine_readable: AtomicBool,
    no_size: AtomicBool,
    no_list_options: AtomicBool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Features {
    machine_readable: bool,
    /// `MLST` does not tell sizes unless asked to.
    wants_facts: bool,
    utf8: bool,
}

/// A logged-in connection.
pub(super) struct Connection {
    ftp: AsyncRustlsFtpStream,
    /// Whether everything that was asked has been answered, so that the next answer belongs to
    /// the next command. False from the start of an exchange to its end: a connection on which
    /// something was dropped midway stays like that.
    in_step: bool,
    /// A needless answer may be under way.
    pub(super) suspect: bool,
    /// Whether the server has told where the data connection goes.
    negotiated: Arc<AtomicBool>,
    extended: bool,
    settings: Arc<Settings>,
    dialect: Arc<Dialect>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
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
            suspect: false,
            negotiated,
            extended: false,
            settings: settings.clone(),
            dialect: dialect.clone(),
        };
        connection.prepare().await.map_err(at("cannot be set up"))?;
        Ok(connection)
    }

    /// Whether the next answer belongs to the next command.
    pub(super) fn is_in_step(&self) -> bool {
        self.in_step
    }

    /// How long to wait for an answer.
    pub(super) fn patience(&self) -> Duration {
        self.settings.command_timeout
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

    fn set_mode(&mut self) {
        self.ftp.set_mode(if self.extended {
            Mode::ExtendedPassive
        } else {
            Mode::Passive
        });
    }

    /// Sends `line` and returns the answer, whatever it is.
    pub(super) async fn command(&mut self, line: String) -> Result<Reply, Failure> {
        self.in_step = false;
        // No answer is expected, so that any one comes back whole.
        let answer = self.ftp.custom_command(line, &[]);
        let reply = match in_time(self.settings.command_timeout, answer).await {
            Ok(response) => response.into(),
            Err(Failure::Reply(reply)) => reply,
            Err(failure) => return Err(failure),
        };
        // The server hangs up, whatever it was asked.
        if reply.code == 421 {
            return Err(Failure::Reply(reply));
        }
        self.in_step = true;
        Ok(reply)
    }

    /// Sends `line`, which the server is to carry out.
    pub(super) async fn must(&mut self, line: String) -> Result<Reply, Failure> {
        let reply = self.command(line).await?;
        if reply.is_done() {
            Ok(reply)
        } else {
            Err(Failure::Reply(reply))
        }
    }

    /// Whether the connection still answers, and nothing else than what it is asked.
    pub(super) async fn check(&mut self) -> bool {
        let alive = matches!(self.command("NOOP".into()).await, Ok(reply) if reply.code == 200);
        self.suspect = false;
        alive
    }

    /// Opens a data connection for the command `line`, from byte `restart` of the file on.
    pub(super) async fn open_data(&mut self, line: &str, restart: u64) -> Result<Data, Failure> {
        loop {
            self.in_step = false;
            self.negotiated.store(false, Ordering::Relaxed);
            let limit = self.settings.command_timeout;
            let restart = usize::try_from(restart).unwrap_or(usize::MAX);
            in_time(limit, self.ftp.resume_transfer(restart)).await?;
            let opened = self
                .ftp
                .custom_data_command(line, &[Status::AboutToSend, Status::AlreadyOpen]);
            let reply = match in_time(limit, opened).await {
                Ok((_, data)) => return Ok(data),
                Err(Failure::Reply(reply)) => reply,
                Err(failure) => return Err(failure),
            };
            self.in_step = reply.code != 421;
            let refuses_passive = !self.negotiated.load(Ordering::Relaxed)
                && (reply.code >= 500 || reply.code == 229);
            if self.extended && refuses_passive && self.settings.passive == Passive::Auto {
                self.dialect
                    .no_extended_passive
                    .store(true, Ordering::Relaxed);
                self.extended = false;
                self.set_mode();
                continue;
            }
            return Err(Failure::Reply(reply));
        }
    }

    /// Ends a transfer at its end: the server says whether it was complete.
    pub(super) async fn finish(
        &mut self,
        data: Data,
        limit: Option<Duration>,
    ) -> Result<(), Failure> {
        let done = match limit {
            Some(limit) => in_time(limit, data.finish()).await,
            None => data.finish().await.map_err(Failure::from),
        };
        self.in_step = match &done {
            Ok(()) => true,
            Err(Failure::Reply(reply)) => reply.code != 421,
            Err(_) => false,
        };
        done
    }

    /// Ends a reading before its end. The answer says only that it was interrupted.
    pub(super) async fn interrupt(&mut self, data: Data) {
        // Not with `ABOR`: how many answers follow it depends on the server.
        let _ = self.finish(data, Some(SETTLE)).await;
        self.suspect = true;
    }

    /// Why the server takes no more bytes. Ends the connection.
    pub(super) async fn why_broken(&mut self, data: Data, error: std::io::Error) -> Failure {
        self.in_step = false;
        match in_time(SETTLE, self.ftp.abort(data)).await {
            Err(Failure::Reply(reply)) if reply.code >= 400 => Failure::Reply(reply),
            _ => error.into(),
        }
    }

    /// Whether `path` is a directory.
    pub(super) async fn is_directory(&mut self, path: &str) -> Result<bool, Failure> {
        Ok(self.command(format!("CWD {path}")).await?.is_done())
    }

    /// What is in the directory `path`. Not a directory is a [`Failure::Reply`].
    pub(super) async fn list(&mut self, path: &str) -> Result<Listing, Failure> {
        // Listing without a path has two reasons: a server may take one for options or a
        // pattern, and may show a missing directory as an empty one.
        self.must(format!("CWD {path}")).await?;
        if self.is_machine_readable() {
            match self.lines("MLSD", listing::machine_readable).await {
                Err(Failure::Reply(reply)) if reply.is_unknown_command() => {
                    self.dialect
                        .no_machine_readable
                        .store(true, Ordering::Relaxed);
                }
                other => return other,
            }
        }
        // Without the option some leave out names with a dot at the start.
        if !self.dialect.no_list_options.load(Ordering::Relaxed) {
            match self.lines("LIST -a", listing::human_readable).await {
                Ok(listing) if listing.lines > 0 => return Ok(listing),
                // Taken for the name of a file.
                Ok(_) => {}
                Err(Failure::Reply(reply)) if reply.code >= 450 => {}
                Err(failure) => return Err(failure),
            }
        }
        let listing = self.lines("LIST", listing::human_readable).await?;
        if listing.lines > 0 {
            self.dialect.no_list_options.store(true, Ordering::Relaxed);
        }
        Ok(listing)
    }

    fn is_machine_readable(&self) -> bool {
        let features = self.dialect.features.get().copied().unwrap_or_default();
        features.machine_readable && !self.dialect.no_machine_readable.load(Ordering::Relaxed)
    }

    async fn lines(&mut self, command: &str, read: fn(&str) -> Line) -> Result<Listing, Failure> {
        let mut data = match self.open_data(command, 0).await {
            Ok(data) => data,
            // The directory is there: `CWD` found it.
            Err(Failure::Reply(reply)) if matches!(reply.code, 450 | 550) && reply.says_empty() => {
                return Ok(Listing::default());
            }
            Err(failure) => return Err(failure),
        };
        let mut listing = Listing::default();
        let mut pending = Vec::new();
        let mut all = 0;
        let limit = self.settings.command_timeout;
        loop {
            let searched = pending.len();
            let count = in_time_io(limit, data.read_buf(&mut pending)).await?;
            all += count;
            let mut start = 0;
            while let Some(end) = pending[start.max(searched)..]
                .iter()
                .position(|b| *b == b'\n')
            {
                let end = start.max(searched) + end;
                listing.add(&pending[start..end], read)?;
                start = end + 1;
            }
            pending.drain(..start);
            if count == 0 {
                break;
            }
            if pending.len() > LONGEST_LINE || all > LONGEST_LISTING {
                let message = "the listing is too long";
                return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, message).into());
            }
        }
        listing.add(&pending, read)?;
        self.finish(data, Some(limit)).await?;
        match listing.garbage.take() {
            Some(line) if listing.found.is_empty() => Err(Failure::Listing(line)),
            _ => Ok(listing),
        }
    }

    /// What is at `path`.
    pub(super) async fn stat(&mut self, path: &str) -> Result<Option<listing::Kind>, Failure> {
        if path == "/" {
            self.must("CWD /".into()).await?;
            return Ok(Some(listing::Kind::Directory));
        }
        if self.is_machine_readable() {
            let reply = self.command(format!("MLST {path}")).await?;
            if reply.is_done() {
                match reply
                    .text
                    .lines()
                    .nth(1)
                    .map(str::trim_start)
                    .map(listing::machine_readable)
                {
                    Some(Line::Itself(_)) => return Ok(Some(listing::Kind::Directory)),
                    Some(Line::Found(found)) if !matches!(found.kind, listing::Kind::Link(_)) => {
                        return Ok(Some(found.kind));
                    }
                    // What a link leads to is asked below.
                    _ => {}
                }
            } else if !reply.is_unknown_command() {
                return nothing_or(reply);
            }
        }
        self.stat_target(path).await
    }

    /// The same where `path` may be a link: what it leads to.
    pub(super) async fn stat_target(
        &mut self,
        path: &str,
    ) -> Result<Option<listing::Kind>, Failure> {
        if self.dialect.no_size.load(Ordering::Relaxed) {
            return self.stat_by_listing(path).await;
        }
        let reply = self.command(format!("SIZE {path}")).await?;
        if reply.is_done() {
            let size = reply.text.trim().parse().ok();
            let reply = self.command(format!("MDTM {path}")).await?;
            let time = (reply.code == 213).then(|| reply.text.trim());
            return Ok(Some(listing::Kind::File(tesk_core::storage::FileInfo {
                size,
                version: listing::version(time, size),
                ..Default::default()
            })));
        }
        if reply.is_unknown_command() && reply.code != 501 {
            self.dialect.no_size.store(true, Ordering::Relaxed);
            return self.stat_by_listing(path).await;
        }
        if self.is_directory(path).await? {
            return Ok(Some(listing::Kind::Directory));
        }
        nothing_or(reply)
    }

    /// For servers that know neither `MLST` nor `SIZE`.
    async fn stat_by_listing(&mut self, path: &str) -> Result<Option<listing::Kind>, Failure> {
        if self.is_directory(path).await? {
            return Ok(Some(listing::Kind::Directory));
        }
        let Some((parent, name)) = path.rsplit_once('/') else {
            return Ok(None);
        };
        let parent = if parent.is_empty() { "/" } else { parent };
        let listed = match self.list(parent).await {
            Ok(listed) => listed,
            Err(Failure::Reply(reply)) if reply.code >= 450 => return nothing_or(reply),
            Err(failure) => return Err(failure),
        };
        let found = listed.found.into_iter().find(|found| found.name == name);
        Ok(found.map(|found| match found.kind {
            listing::Kind::Link(_) => listing::Kind::File(tesk_core::storage::FileInfo::default()),
            kind => kind,
        }))
    }
}

/// What an answer to a question about a path means: nothing is there, or no answer.
fn nothing_or(reply: Reply) -> Result<Option<listing::Kind>, Failure> {
    let nothing = match reply.code {
        550 | 553 => !reply.says_denied(),
        450 => reply.says_missing(),
        _ => false,
    };
    if nothing {
        Ok(None)
    } else {
        Err(Failure::Reply(reply))
    }
}

/// What a directory holds.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) found: Vec<Found>,
    /// The server's mark of the directory.
    pub(super) unique: Option<String>,
    /// Lines in all.
    lines: usize,
    garbage: Option<String>,
}

impl Listing {
    fn add(&mut self, line: &[u8], read: fn(&str) -> Line) -> Result<(), Failure> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            return Ok(());
        }
        self.lines += 1;
        let text = String::from_utf8_lossy(line);
        match read(&text) {
            Line::Found(found) if matches!(text, std::borrow::Cow::Owned(_)) => {
                // It could not be asked for: the bytes of its name are lost.
                return Err(Failure::Name(found.name.escape_debug().to_string()));
            }
            Line::Found(found) => self.found.push(found),
            Line::Itself(unique) => self.unique = unique,
            Line::Nothing => {}
            Line::Garbage => {
                let line: String = text
                    .chars()
                    .take(100)
                    .flat_map(char::escape_debug)
                    .collect();
                tracing::warn!(line, "a line of a listing is not understood");
                self.garbage.get_or_insert(line);
            }
        }
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

async fn in_time<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, FtpError>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done.map_err(Failure::from),
        Err(_) => Err(Failure::Timeout),
    }
}

async fn in_time_io<T>(
    limit: Duration,
    work: impl Future<Output = std::io::Result<T>>,
) -> Result<T, Failure> {
    in_time(limit, async {
        work.await.map_err(FtpError::ConnectionError)
    })
    .await
}
