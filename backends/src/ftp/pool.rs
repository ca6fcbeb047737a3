//! Logged-in connections, used again and again.
//!
//! Listings, reads and writes have budgets of their own: a copy on one server writes while it
//! reads, and would wait for itself for ever. Nobody holds a connection for listings while it
//! waits for anything else.

use std::collections::{HashMap, HashSet};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tesk_core::storage::{Error, ErrorKind, Result, StorageUrl, wait_for_turn};
use tokio::runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::connection::{Connection, Dialect, Settings};
use super::login::Account;
use super::reply::Failure;

/// A connection that was not used for this long is asked whether it is still there.
const CHECK_AFTER: Duration = Duration::from_secs(5);
/// What a client should wait that a server has no room for.
const CROWDED_WAIT: Duration = Duration::from_secs(10);
/// From this many servers and users on, those without connections are forgotten.
const MANY_SITES: usize = 256;
/// Directories remembered per site.
const MANY_DIRECTORIES: usize = 10_000;

/// What a connection is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Listings, and commands without data.
    Commands,
    Reading,
    Writing,
}

/// How many connections, and for how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budgets {
    pub(super) commands: usize,
    pub(super) reading: usize,
    pub(super) writing: usize,
    /// How long a connection is kept unused.
    pub(super) idle: Duration,
}

/// The connections of one entry.
#[derive(Debug)]
pub(super) struct Pool {
    settings: Arc<Settings>,
    budgets: Budgets,
    sites: Mutex<HashMap<Account, Arc<Site>>>,
}

/// The connections to one server as one user.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) account: Account,
    settings: Arc<Settings>,
    dialect: Arc<Dialect>,
    budgets: [Budget; 3],
    idle_for: Duration,
    idle: Mutex<Vec<Idle>>,
    /// Whether somebody looks after connections that nobody uses.
    tended: AtomicBool,
    /// Directories that are there.
    directories: Mutex<HashSet<String>>,
    /// Held by the one that makes directories: those who want the same ones find them made.
    pub(super) making: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Budget {
    permits: Arc<Semaphore>,
    limit: AtomicUsize,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
    /// A socket is of use in its own runtime only.
    runtime: runtime::Id,
}

/// A connection in use. When dropped it goes back, unless something on it is unanswered.
#[derive(Debug)]
pub(super) struct Lease {
    connection: Option<Connection>,
    pub(super) site: Arc<Site>,
    _permit: OwnedSemaphorePermit,
}

impl Pool {
    pub(super) fn new(settings: Settings, budgets: Budgets) -> Self {
        Self {
            settings: Arc::new(settings),
            budgets,
            sites: Mutex::default(),
        }
    }

    /// The connections to one server as one user.
    pub(super) fn site(&self, account: Account) -> Arc<Site> {
        let mut sites = locked(&self.sites);
        if sites.len() >= MANY_SITES && !sites.contains_key(&account) {
            sites.retain(|_, site| Arc::strong_count(site) > 1 || !locked(&site.idle).is_empty());
        }
        let site = sites.entry(account).or_insert_with_key(|account| {
            Arc::new(Site {
                account: account.clone(),
                settings: self.settings.clone(),
                dialect: Arc::default(),
                budgets: [
                    Budget::new(self.budgets.commands),
                    Budget::new(self.budgets.reading),
                    Budget::new(self.budgets.writing),
                ],
                idle_for: self.budgets.idle,
                idle: Mutex::default(),
                tended: AtomicBool::new(false),
                directories: Mutex::default(),
                making: tokio::sync::Mutex::default(),
            })
        });
        site.clone()
    }
}

impl Budget {
    fn new(limit: usize) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(limit)),
            limit: AtomicUsize::new(limit),
        }
    }

    /// Gives a permit up for good, unless it is the last. Whether others still hold some.
    fn shrink(&self, permit: OwnedSemaphorePermit) -> bool {
        let shrunk = self
            .limit
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |limit| {
                (limit > 1).then_some(limit - 1)
            });
        match shrunk {
            Ok(before) => {
                permit.forget();
                self.permits.available_permits() < before - 1
            }
            Err(_) => false,
        }
    }
}

impl Site {
    /// A connection, when there is room for another: one that is there, or a new one.
    ///
    /// Where the server has no room for another, fewer are used from now on, and this one waits
    /// until others are done.
    pub(super) async fn lease(self: &Arc<Self>, wanted: Use, url: &StorageUrl) -> Result<Lease> {
        let budget = &self.budgets[wanted as usize];
        loop {
            let permit = wait_for_turn(budget.permits.clone().acquire_owned()).await;
            let permit = permit.map_err(|e| {
                Error::new(ErrorKind::Other, url, "no connection is to be had").with_source(e)
            })?;
            if let Some(connection) = self.idle().await {
                return Ok(self.leased(connection, permit));
            }
            let opened = Connection::open(&self.account, &self.settings, &self.dialect).await;
            let refused = match opened {
                Ok(connection) => return Ok(self.leased(connection, permit)),
                Err(refused) => refused,
            };
            let crowded = matches!(&refused.failure, Failure::Reply(reply) if reply.is_crowded());
            if crowded && budget.shrink(permit) {
                tracing::debug!(site = ?self.account, "the server has no room for more connections");
                continue;
            }
            // What the server cannot do here is no operation of a storage.
            if let Failure::Reply(reply) = &refused.failure
                && reply.is_unknown_command()
            {
                let message = format!("{}: {reply}", refused.message);
                let error = Error::new(ErrorKind::Unavailable, url, message);
                return Err(error.with_retryable(false));
            }
            let error = self.error(refused.failure, url, refused.message);
            return Err(if crowded {
                error.with_retry_after(Some(CROWDED_WAIT))
            } else {
                error
            });
        }
    }

    /// `failure` as an error that does not show this account's password.
    pub(super) fn error(&self, failure: Failure, url: &StorageUrl, message: &str) -> Error {
        failure.error(url, message, &self.account.password)
    }

    fn leased(self: &Arc<Self>, connection: Connection, permit: OwnedSemaphorePermit) -> Lease {
        Lease {
            connection: Some(connection),
            site: self.clone(),
            _permit: permit,
        }
    }

    /// The connection that was used last, if it is still good.
    async fn idle(&self) -> Option<Connection> {
        let here = runtime::Handle::current().id();
        loop {
            let mut idle = {
                let mut all = locked(&self.idle);
                let at = all.iter().rposition(|idle| idle.runtime == here)?;
                all.remove(at)
            };
            let age = idle.since.elapsed();
            if age >= self.idle_for {
                continue;
            }
            let is_good = age < CHECK_AFTER && !idle.connection.suspect;
            if is_good || idle.connection.check().await {
                return Some(idle.connection);
            }
        }
    }

    fn put_back(self: &Arc<Self>, connection: Connection) {
        let Ok(handle) = runtime::Handle::try_current() else {
            return;
        };
        locked(&self.idle).push(Idle {
            connection,
            since: Instant::now(),
            runtime: handle.id(),
        });
        if !self.tended.swap(true, Ordering::AcqRel) {
            let (site, idle_for) = (Arc::downgrade(self), self.idle_for);
            handle.spawn(async move {
                loop {
                    tokio::time::sleep(idle_for).await;
                    let Some(site) = site.upgrade() else { return };
                    let mut idle = locked(&site.idle);
                    idle.retain(|idle| idle.since.elapsed() < idle_for);
                    if idle.is_empty() {
                        site.tended.store(false, Ordering::Release);
                        return;
                    }
                }
            });
        }
    }

    /// Whether the directory `path` is known to be there.
    pub(super) fn knows_directory(&self, path: &str) -> bool {
        path == "/" || locked(&self.directories).contains(path)
    }

    /// Remembers that it is.
    pub(super) fn learn_directory(&self, path: &str) {
        let mut directories = locked(&self.directories);
        if directories.len() >= MANY_DIRECTORIES {
            directories.clear();
        }
        directories.insert(path.to_owned());
    }

    /// Forgets the directory `path`, which is about to be removed, and those in it.
    pub(super) fn forget_directory(&self, path: &str) {
        let is_below = |known: &str| {
            let rest = known.strip_prefix(path);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        locked(&self.directories).retain(|known| !is_below(known));
    }

    /// Forgets what was known: something is not as it was.
    pub(super) fn forget_directories(&self) {
        locked(&self.directories).clear();
    }
}

impl Lease {
    /// `failure` as an error at `url`.
    pub(super) fn error(&self, failure: Failure, url: &StorageUrl, message: &str) -> Error {
        self.site.error(failure, url, message)
    }
}

impl Deref for Lease {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection.as_ref().expect("taken only when dropped")
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("taken only when dropped")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take().filter(Connection::is_in_step) {
            self.site.put_back(connection);
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
