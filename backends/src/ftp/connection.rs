//! A logged-in connection to a server: commands, and data connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::net::{Shutdown, shutdown};
use rustls::ClientConfig;
use suppaftp::tokio::{AsyncRustlsFtpStream, AsyncRustlsStream, TransferStream};
use suppaftp::{FtpError, Mode, Status};

use super::options::Passive;
use super::reply::{Failure, Reply};
use crate::network::Networks;

/// How long a server may take to confirm that a file is not read to its end. It has nothing to
/// do for it; one that is silent loses the connection.
const SETTLE: Duration = Duration::from_secs(5);

/// The data connection of one file.
pub(super) type Data = TransferStream<AsyncRustlsStream>;

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
    pub(super) features: tokio::sync::OnceCell<Features>,
    pub(super) no_extended_passive: AtomicBool,
    pub(super) no_machine_readable: AtomicBool,
    pub(super) no_size: AtomicBool,
    pub(super) no_list_options: AtomicBool,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Features {
    pub(super) machine_readable: bool,
    /// `MLST` does not tell sizes unless asked to.
    pub(super) wants_facts: bool,
    pub(super) utf8: bool,
}

/// A logged-in connection.
pub(super) struct Connection {
    pub(super) ftp: AsyncRustlsFtpStream,
    /// Whether everything that was asked has been answered, so that the next answer belongs to
    /// the next command. False from the start of an exchange to its end: a connection on which
    /// something was dropped midway stays like that.
    pub(super) in_step: bool,
    /// The server may still have an offset in mind that was for an earlier file.
    pub(super) restarted: bool,
    /// A needless answer may be under way.
    pub(super) suspect: bool,
    /// Whether the server has told where the data connection goes.
    pub(super) negotiated: Arc<AtomicBool>,
    pub(super) extended: bool,
    pub(super) settings: Arc<Settings>,
    pub(super) dialect: Arc<Dialect>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl Connection {
    /// Whether the next answer belongs to the next command.
    pub(super) fn is_in_step(&self) -> bool {
        self.in_step
    }

    /// How long to wait for an answer.
    pub(super) fn patience(&self) -> Duration {
        self.settings.command_timeout
    }

    pub(super) fn set_mode(&mut self) {
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
        if std::mem::replace(&mut self.restarted, restart > 0) {
            // Some forget it only when a transfer went well.
            self.command("REST 0".into()).await?;
        }
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
            Ok(()) => {
                self.restarted = false;
                true
            }
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

    /// Ends it, so that the server has room for another.
    pub(super) async fn end(&mut self) {
        self.in_step = false;
        let socket = self.ftp.get_ref().await;
        if let Err(error) = shutdown(&*socket, Shutdown::Both) {
            tracing::debug!(%error, "a connection was ended before");
        }
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
}

pub(super) async fn in_time<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, FtpError>>,
) -> Result<T, Failure> {
    // The library does not flush a command. Where the runtime makes a busy task pause, the rest of
    // an encrypted one would stay here, and both sides would wait for ever.
    let work = tokio::task::unconstrained(work);
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done.map_err(Failure::from),
        Err(_) => Err(Failure::Timeout),
    }
}

pub(super) async fn in_time_io<T>(
    limit: Duration,
    work: impl Future<Output = std::io::Result<T>>,
) -> Result<T, Failure> {
    in_time(limit, async {
        work.await.map_err(FtpError::ConnectionError)
    })
    .await
}
