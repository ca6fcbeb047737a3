//! FTP servers: `ftp:` and `ftps:` URLs.
//!
//! ```toml
//! [[storage]]
//! type = "ftp"
//! prefix = "ftp://data.example.org/"
//! tls = "explicit"
//! username = "me"
//! password_file = "/run/secrets/data"
//! ```
//!
//! All keys are those of [`Options`]. Who logs in: the user and password of a task's URL, else
//! those of the entry, else those of `.netrc`, else `anonymous`.
//!
//! # Paths
//!
//! The path of a URL begins at the root that the server shows to the user. Percent-escapes are
//! decoded; `?` and `#` must be escaped. Names are UTF-8: a listing with others fails, and so
//! does one of which no line is understood, or with a link that leads back to where it is. Links
//! are followed; one that leads nowhere is left out, with a warning.
//!
//! # Connections
//!
//! Logged-in connections are used again, for any number of files and directories. One on which
//! a transfer was dropped midway is closed. A server that has no room for another gets fewer
//! from then on. Long transfers keep their silent control connection alive.
//!
//! The address that is connected to is the one that was checked, for data connections too. Never
//! reached are link-local addresses, the metadata services of clouds, unspecified and multicast
//! addresses, unless `allow_networks` lets them through.
//!
//! # What is relied on
//!
//! A file counts as read or written only when the server has said so at its end. Files are
//! written under another name in the same directory, checked for their size, and renamed. On
//! the few servers that do not rename over a file, the old one steps aside for a moment, and comes
//! back if the new one does not take its place.
//! Versions are times and sizes, so reads resume where a server tells both (`MLST`, or `MDTM`
//! and `SIZE`), and what was read is of that version: before its last bytes are given the file is
//! looked at again. `LIST`, which is used where there is no `MLSD`, tells no versions. Times have
//! seconds: a look at a file that was changed just now waits until that second is over, and a
//! listing tells no version of it. Clocks that differ by more than that defeat this.

mod address;
mod connection;
mod listing;
mod login;
mod look;
mod options;
mod path;
mod pool;
mod read;
mod reply;
mod walk;
mod write;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tesk_core::storage::{
    ByteRange, Capabilities, ConfigEntry, ConfigError, Entry, EntryKind, EntryStream, Error,
    ErrorKind, Factory, Opened, Result, Source, Storage, StorageUrl, Version, Written,
};

use self::address::Server;
use self::connection::Settings;
use self::listing::Kind;
use self::login::Account;
pub use self::options::{Options, Passive, Tls};
use self::pool::{Budgets, Lease, Pool, Use};
use crate::netrc::Netrc;
use crate::network::{Networks, limits};
use crate::{secret, tls};

/// Builds [`Ftp`]s: `type = "ftp"`.
#[derive(Clone, Copy, Debug)]
pub struct FtpFactory;

impl Factory for FtpFactory {
    fn schemes(&self) -> &[&str] {
        &["ftp", "ftps"]
    }

    fn create(&self, entry: &ConfigEntry) -> Result<Arc<dyn Storage>, ConfigError> {
        let options: Options = entry.options()?;
        let serves = |scheme: &str| {
            let mut prefixes = entry.prefixes().iter();
            prefixes.any(|prefix| prefix.to_ascii_lowercase().starts_with(scheme))
        };
        if options.tls == Some(Tls::None) && serves("ftps:") {
            return Err(ConfigError("tls: `none` contradicts `ftps://`".into()));
        }
        let encrypted = serves("ftps:") || !matches!(options.tls, None | Some(Tls::None));
        Ok(Arc::new(Ftp::new(&options, encrypted)?))
    }
}

/// One or many FTP servers that share their settings.
pub struct Ftp {
    pool: Pool,
    login: Option<(String, String)>,
    netrc: Netrc,
    tls: Option<Tls>,
    read_only: bool,
}

impl fmt::Debug for Ftp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the login.
        f.debug_struct("Ftp")
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

impl Ftp {
    fn new(options: &Options, encrypted: bool) -> Result<Self, ConfigError> {
        let password = secret::read(
            "password",
            options.password_file.as_deref(),
            options.password_env.as_deref(),
        )?;
        let login = match (&options.username, password) {
            (None, None) => None,
            (Some(user), password) => Some((user.clone(), password.unwrap_or_default())),
            (None, Some(_)) => {
                let message = "a password is given, but no `username`";
                return Err(ConfigError(message.into()));
            }
        };
        let tls = if encrypted {
            let versions: &[_] = if options.tls13 {
                rustls::ALL_VERSIONS
            } else {
                &[&rustls::version::TLS12]
            };
            Some(tls::client_config(options.ca_file.as_deref(), versions)?)
        } else {
            None
        };
        let seconds =
            |given: Option<u64>, default| Duration::from_secs(given.unwrap_or(default).max(1));
        let settings = Settings {
            networks: Arc::new(Networks::new(limits!(options))?),
            tls,
            passive: options.passive,
            trust_pasv_address: options.trust_pasv_address,
            connect_timeout: seconds(options.connect_timeout_secs, 10),
            command_timeout: seconds(options.command_timeout_secs, 30),
        };
        let connections = options.connections.unwrap_or(16).max(1);
        let budgets = Budgets {
            commands: options.listing_connections.unwrap_or(4).max(1),
            reading: connections,
            writing: connections,
            idle: seconds(options.idle_secs, 30),
        };
        Ok(Self {
            pool: Pool::new(settings, budgets),
            login,
            netrc: Netrc::load(options.netrc.as_ref())?,
            tls: options.tls,
            read_only: options.read_only,
        })
    }

    fn account(&self, url: &StorageUrl) -> Result<Account> {
        let tls = match (self.tls, url.scheme()) {
            (Some(tls), _) => tls,
            (None, "ftps") => Tls::Implicit,
            (None, _) => Tls::None,
        };
        let server = Server::of(url, tls)?;
        let (user, password) = match (url.user(), url.password(), &self.login) {
            (Some(user), Some(password), _) => (user, password),
            // A user whose password is known is named, another has none.
            (Some(user), None, Some((own, password))) if user == own => (user, password.as_str()),
            (Some(user), None, _) => (user, ""),
            (None, Some(password), _) => ("", password),
            (None, None, Some((user, password))) => (user.as_str(), password.as_str()),
            (None, None, None) => self
                .netrc
                .credentials(&server.host)
                .unwrap_or(("anonymous", "anonymous@")),
        };
        if [user, password]
            .iter()
            .any(|text| text.contains(['\r', '\n', '\0']))
        {
            let message = "its user or password has a line break or a NUL";
            return Err(Error::new(ErrorKind::Invalid, url, message));
        }
        Ok(Account {
            server,
            tls,
            user: user.to_owned(),
            password: password.to_owned(),
        })
    }

    async fn lease(&self, wanted: Use, url: &StorageUrl) -> Result<Lease> {
        self.pool.site(self.account(url)?).lease(wanted, url).await
    }

    async fn look(&self, url: &StorageUrl, path: &str) -> Result<Option<Kind>> {
        let mut lease = self.lease(Use::Commands, url).await?;
        let found = lease.stat(path).await;
        found.map_err(|failure| lease.error(failure, url, "cannot be looked at"))
    }

    fn refuse_writing(&self, url: &StorageUrl, operation: &str) -> Result<()> {
        if self.read_only {
            return Err(Error::unsupported(url, operation));
        }
        Ok(())
    }
}

#[async_trait]
impl Storage for Ftp {
    fn capabilities(&self) -> Capabilities {
        let write = !self.read_only;
        let mut claims = Capabilities::read_only();
        claims.list = true;
        claims.ranges = true;
        claims.write = write;
        claims.atomic_write = write;
        claims.directories = write;
        claims.rename = write;
        claims.remove = write;
        claims
    }

    async fn stat(&self, url: &StorageUrl) -> Result<Option<Entry>> {
        let path = path::of(url)?;
        let mut found = self.look(url, &path).await?;
        if let Some(Kind::File(info)) = &found
            && let Some(wait) = listing::settles_in(info, Timestamp::now())
        {
            tokio::time::sleep(wait).await;
            found = self.look(url, &path).await?;
        }
        let path = String::new();
        Ok(found.map(|kind| Entry {
            path,
            kind: match kind {
                Kind::File(info) => EntryKind::File(info),
                Kind::Directory | Kind::Link(_) => EntryKind::Directory,
            },
        }))
    }

    async fn list(&self, url: &StorageUrl) -> Result<EntryStream> {
        let path = path::of(url)?;
        let site = self.pool.site(self.account(url)?);
        walk::walk(site, url, path).await
    }

    async fn read(
        &self,
        url: &StorageUrl,
        range: ByteRange,
        version: Option<&Version>,
    ) -> Result<Opened> {
        let path = path::of(url)?;
        let lease = self.lease(Use::Reading, url).await?;
        Ok(read::read(lease, url, path, range, version).await?.into())
    }

    async fn write(&self, url: &StorageUrl, source: &Source) -> Result<Written> {
        self.refuse_writing(url, "writing")?;
        let path = path::of(url)?;
        let lease = self.lease(Use::Writing, url).await?;
        write::write(lease, url, &path, source).await
    }

    async fn make_directory(&self, url: &StorageUrl) -> Result<()> {
        self.refuse_writing(url, "making directories")?;
        let path = path::of(url)?;
        let mut lease = self.lease(Use::Commands, url).await?;
        write::make_directory(&mut lease, url, &path).await
    }

    async fn rename(&self, from: &StorageUrl, to: &StorageUrl) -> Result<()> {
        self.refuse_writing(from, "renaming")?;
        let (path, target) = (path::of(from)?, path::of(to)?);
        let account = self.account(from)?;
        if account.server != self.account(to)?.server {
            let message = "cannot be renamed to another server";
            return Err(Error::new(ErrorKind::Invalid, from, message));
        }
        let mut lease = self.pool.site(account).lease(Use::Commands, from).await?;
        if let Some(parent) = path::parent(&target) {
            write::make_directory(&mut lease, to, parent).await?;
        }
        write::rename(&mut lease, from, &path, &target).await
    }

    async fn remove(&self, url: &StorageUrl) -> Result<()> {
        self.refuse_writing(url, "removing")?;
        let path = path::of(url)?;
        let mut lease = self.lease(Use::Commands, url).await?;
        write::remove(&mut lease, url, &path).await
    }
}
