//! The HTTP client that backends begin from.

use std::path::Path;
use std::time::Duration;

use tesk_core::storage::{ConfigError, Error, ErrorKind, StorageUrl};

use crate::tls;

/// A client that follows no redirect and retries nothing: both are decided per request. Parallel
/// parts and ranges have connections of their own.
pub(crate) fn builder(
    ca_file: Option<&Path>,
    connect_timeout_secs: Option<u64>,
) -> Result<reqwest::ClientBuilder, ConfigError> {
    let timeout = Duration::from_secs(connect_timeout_secs.unwrap_or(10).max(1));
    Ok(reqwest::Client::builder()
        .user_agent(concat!("tesk/", env!("CARGO_PKG_VERSION")))
        .tls_backend_preconfigured(tls::client_config(ca_file, rustls::ALL_VERSIONS)?)
        .http1_only()
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .retry(reqwest::retry::never())
        .connect_timeout(timeout)
        .pool_idle_timeout(Duration::from_secs(30))
        .tcp_keepalive(Duration::from_secs(30)))
}

/// A request that failed before there was a reply, or in the middle of it.
pub(crate) fn disconnected(url: &StorageUrl, error: &reqwest::Error) -> Error {
    let message = if error.is_connect() {
        "no connection to the server"
    } else {
        "the connection failed"
    };
    let mut why = String::new();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let tls = inner
            .downcast_ref::<std::io::Error>()
            .and_then(|e| e.get_ref());
        if let Some(tls @ rustls::Error::InvalidCertificate(_)) = tls
            .and_then(|e| e.downcast_ref())
            .or_else(|| inner.downcast_ref())
        {
            let message = format!("the server's certificate is not trusted: {tls}");
            return Error::new(ErrorKind::Unavailable, url, message).with_retryable(false);
        }
        why = format!(": {inner}");
        cause = inner.source();
    }
    // The innermost cause says it all, and knows no address.
    Error::new(ErrorKind::Unavailable, url, format!("{message}{why}"))
}
