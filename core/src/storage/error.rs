//! What can go wrong in a storage operation.

use std::fmt;
use std::io;
use std::time::Duration;

use super::url::StorageUrl;

/// The result of a storage operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure it was, as far as a caller may act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// There is nothing at this address.
    NotFound,
    /// These credentials do not allow the operation.
    Denied,
    /// The credentials are missing or wrong.
    Unauthenticated,
    /// The request makes no sense: a directory where a file is needed, a name the storage
    /// cannot hold.
    Invalid,
    /// The plugin does not claim the operation.
    Unsupported,
    /// The other side cannot be reached or has trouble of its own.
    Unavailable,
    /// What arrived is not what was promised: too short, changed midway, a wrong checksum.
    Corrupt,
    /// The disk or the account is full.
    Full,
    /// Anything else.
    Other,
}

/// A failed storage operation: kind, whether a retry may help, the address without
/// credentials, and the cause.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    retryable: bool,
    retry_after: Option<Duration>,
    /// Core has tried often enough: the error keeps its meaning, but is not tried again.
    exhausted: bool,
    url: String,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// A failure at `url`. [`ErrorKind::Unavailable`] and [`ErrorKind::Corrupt`] are
    /// retryable, the others not; see [`Error::retryable`].
    ///
    /// `message` is a lower-case phrase that a person can act on and must hold no secret.
    pub fn new(kind: ErrorKind, url: &StorageUrl, message: impl Into<String>) -> Self {
        Self {
            kind,
            retryable: matches!(kind, ErrorKind::Unavailable | ErrorKind::Corrupt),
            retry_after: None,
            exhausted: false,
            url: url.to_string(),
            message: message.into(),
            source: None,
        }
    }

    /// The refusal of an operation that the plugin does not claim.
    pub fn unsupported(url: &StorageUrl, operation: &str) -> Self {
        Self::new(
            ErrorKind::Unsupported,
            url,
            format!("this storage does not support {operation}"),
        )
    }

    /// A failure of this machine's file system, classified. A full disk and an exceeded quota
    /// are [`ErrorKind::Full`], which no retry cures; an I/O error and a stale network handle
    /// are [`ErrorKind::Unavailable`].
    pub fn io(url: &StorageUrl, message: impl Into<String>, error: io::Error) -> Self {
        use io::ErrorKind as Io;
        let kind = match error.kind() {
            Io::NotFound => ErrorKind::NotFound,
            Io::PermissionDenied | Io::ReadOnlyFilesystem => ErrorKind::Denied,
            Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => ErrorKind::Full,
            Io::UnexpectedEof => ErrorKind::Corrupt,
            Io::IsADirectory
            | Io::NotADirectory
            | Io::InvalidInput
            | Io::InvalidFilename
            | Io::DirectoryNotEmpty => ErrorKind::Invalid,
            Io::TimedOut | Io::StaleNetworkFileHandle | Io::HostUnreachable => {
                ErrorKind::Unavailable
            }
            _ if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                ErrorKind::Unavailable
            }
            _ => ErrorKind::Other,
        };
        Self::new(kind, url, message).with_source(error)
    }

    /// The same error without what is secret in `url`: plugins, their libraries and servers may
    /// quote an address back. Core does this to every error of a plugin.
    #[must_use]
    pub fn scrubbed(self, url: &StorageUrl) -> Self {
        let mut shown = self.message.clone();
        let mut source = std::error::Error::source(&self);
        while let Some(cause) = source {
            shown.push_str(": ");
            shown.push_str(&cause.to_string());
            source = cause.source();
        }
        let (mut message, mut address) = (shown.clone(), self.url.clone());
        for secret in url.secrets() {
            message = message.replace(&secret, "***");
            address = address.replace(&secret, "***");
        }
        if message == shown && address == self.url {
            return self;
        }
        Self {
            message,
            url: address,
            source: None,
            ..self
        }
    }

    /// Overrides whether a retry may help.
    #[must_use]
    pub fn with_retryable(mut self, retryable: bool) -> Self {
        self.retryable = retryable;
        self
    }

    /// The wait that the other side asked for.
    #[must_use]
    pub fn with_retry_after(mut self, wait: Option<Duration>) -> Self {
        self.retry_after = wait;
        self
    }

    /// Attaches the cause. Its text is shown after the message, so it must hold no secret.
    #[must_use]
    pub fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.source = Some(source.into());
        self
    }

    pub(crate) fn exhausted_after(mut self, attempts: u32) -> Self {
        self.exhausted = true;
        if attempts > 1 {
            self.message = format!("gave up after {attempts} attempts: {}", self.message);
        }
        self
    }

    pub(crate) fn is_exhausted(&self) -> bool {
        self.exhausted
    }

    /// What kind of failure it was.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the same operation may succeed when tried again.
    pub fn is_retryable(&self) -> bool {
        self.retryable
    }

    /// The wait that the other side asked for before a retry.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The address, without credentials.
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.url, self.message)?;
        // The whole chain in one line: these texts end in a task's system log.
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source
            .as_ref()
            .map(|e| &**e as &(dyn std::error::Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_secret_in_an_address_is_cut_from_an_error_and_its_causes() {
        let url: StorageUrl = "ftp://me:p%40ss@host/a?X-Sig=abc".parse().unwrap();
        let cause = io::Error::other("530 bad login me:p@ss for /a?X-Sig=abc (p%40ss)");
        let error = Error::new(ErrorKind::Unauthenticated, &url, "login refused")
            .with_retry_after(Some(Duration::from_secs(1)))
            .with_source(cause)
            .scrubbed(&url);
        let text = error.to_string();
        for secret in ["p@ss", "p%40ss", "abc", "me:"] {
            assert!(!text.contains(secret), "{text}");
        }
        assert!(text.contains("530 bad login"), "{text}");
        assert!(!format!("{error:?}").contains("p@ss"));
        assert_eq!(error.retry_after(), Some(Duration::from_secs(1)));
    }

    #[test]
    fn a_full_disk_is_not_worth_a_retry() {
        let url = "/data/x".parse().unwrap();
        let error = Error::io(&url, "cannot write", io::ErrorKind::StorageFull.into());
        assert_eq!(
            (error.kind(), error.is_retryable()),
            (ErrorKind::Full, false)
        );
    }
}
