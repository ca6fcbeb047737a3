//! The HTTP client that backends begin from.

use std::path::Path;
use std::time::Duration;

use tesk_core::storage::ConfigError;

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
