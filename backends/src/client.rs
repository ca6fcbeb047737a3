//! The HTTP client that backends begin from.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tesk_core::storage::ConfigError;
#[cfg(any(feature = "opendal", feature = "s3"))]
use tesk_core::storage::{Error, ErrorKind, StorageUrl};

use crate::network::{Networks, Refused};
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

/// Resolves names to addresses that are reached: what is connected to is what was checked. Hosts
/// that are written as addresses do not come here.
pub(crate) struct CheckedResolver {
    pub(crate) networks: Arc<Networks>,
    /// Hosts that no task can choose, and that may lie anywhere, such as the operator's proxy.
    pub(crate) anywhere: Vec<String>,
}

impl fmt::Debug for CheckedResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CheckedResolver")
    }
}

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let networks = self.networks.clone();
        let is_free = self.anywhere.iter().any(|host| host == name.as_str());
        Box::pin(async move {
            if !is_free {
                networks.check_host(name.as_str())?;
            }
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let mut refused = None;
            let mut reached = Vec::new();
            for address in found {
                match networks.check(address.ip()) {
                    Err(why) if !is_free => refused = Some(why),
                    _ => reached.push(address),
                }
            }
            match refused {
                Some(why) if reached.is_empty() => Err(why.into()),
                _ => Ok(Box::new(reached.into_iter()) as Addrs),
            }
        })
    }
}

/// A request that failed before there was a reply, or in the middle of it.
#[cfg(any(feature = "opendal", feature = "s3"))]
pub(crate) fn disconnected(url: &StorageUrl, error: &reqwest::Error) -> Error {
    let message = if error.is_connect() {
        "no connection to the server"
    } else {
        "the connection failed"
    };
    let mut why = String::new();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(refused) = inner.downcast_ref::<Refused>() {
            return Error::new(ErrorKind::Denied, url, refused.to_string());
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Limits;

    #[tokio::test]
    async fn a_name_leads_to_what_is_reached_unless_it_may_lie_anywhere() {
        let resolved = async |limits: Limits<'_>, anywhere: &[&str]| {
            let resolver = CheckedResolver {
                networks: Arc::new(Networks::new(limits).unwrap()),
                anywhere: anywhere.iter().map(|&host| host.to_owned()).collect(),
            };
            let found = resolver.resolve("localhost".parse().unwrap()).await;
            found.map(Iterator::count).map_err(|e| e.to_string())
        };
        let no_private = Limits {
            allow_private: Some(false),
            ..Limits::default()
        };
        let hosts = ["localhost".to_owned()];
        let no_host = Limits {
            deny_hosts: &hosts,
            ..Limits::default()
        };
        assert!(resolved(Limits::default(), &[]).await.unwrap() > 0);
        for limits in [no_private, no_host] {
            let refused = resolved(limits, &[]).await.unwrap_err();
            assert!(refused.contains("is not reached from here"), "{refused}");
            assert!(resolved(limits, &["localhost"]).await.unwrap() > 0);
        }
    }
}
