//! The HTTP client that backends begin from.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
#[cfg(any(feature = "http", feature = "s3"))]
use std::time::SystemTime;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
#[cfg(any(feature = "http", feature = "s3"))]
use reqwest::header::{HeaderMap, RETRY_AFTER};
use tesk_core::storage::ConfigError;
#[cfg(any(feature = "opendal", feature = "s3"))]
use tesk_core::storage::{Error, ErrorKind, StorageUrl};

use crate::network::{Networks, Refused};
use crate::tls;

/// What a client is made of.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Setup<'a> {
    pub(crate) ca_file: Option<&'a Path>,
    pub(crate) connect_timeout_secs: Option<u64>,
    /// A URL, or `environment`; `None` is no proxy, whatever the environment says.
    pub(crate) proxy: Option<&'a str>,
    /// Hosts that no configured proxy reaches, with commas between.
    pub(crate) not_by_proxy: &'a str,
    /// `None` is every network.
    pub(crate) networks: Option<&'a Arc<Networks>>,
    /// Hosts that no task can choose, and that may lie anywhere, beside the proxy.
    pub(crate) anywhere: &'a [&'a str],
    /// How many idle connections to a host are kept; `None` is all.
    pub(crate) idle: Option<usize>,
}

impl Setup<'_> {
    /// A client that follows no redirect and retries nothing: both are decided per request.
    /// Parallel parts and ranges have connections of their own.
    pub(crate) fn build(self) -> Result<reqwest::Client, ConfigError> {
        let timeout = Duration::from_secs(self.connect_timeout_secs.unwrap_or(10).max(1));
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("tesk/", env!("CARGO_PKG_VERSION")))
            .tls_backend_preconfigured(tls::client_config(self.ca_file, rustls::ALL_VERSIONS)?)
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .retry(reqwest::retry::never())
            .connect_timeout(timeout)
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(self.idle.unwrap_or(usize::MAX))
            .tcp_keepalive(Duration::from_secs(30));
        let mut anywhere: Vec<_> = self.anywhere.iter().map(|&host| host.to_owned()).collect();
        builder = match self.proxy {
            None => builder.no_proxy(),
            Some("environment") => {
                anywhere.extend(proxies(|name| std::env::var(name).ok()));
                builder
            }
            Some(proxy) => {
                let unusable = || ConfigError("proxy: is no url such as http://host:3128".into());
                let url = Url::parse(proxy).map_err(|_| unusable())?;
                anywhere.extend(url.host_str().map(str::to_owned));
                let proxy = reqwest::Proxy::all(url).map_err(|_| unusable())?;
                builder.proxy(proxy.no_proxy(reqwest::NoProxy::from_string(self.not_by_proxy)))
            }
        };
        if let Some(networks) = self.networks.cloned() {
            builder = builder.dns_resolver(CheckedResolver { networks, anywhere });
        }
        builder
            .build()
            .map_err(|e| ConfigError(format!("the http client cannot be set up: {e}")))
    }
}

/// The hosts of the proxies that an environment names.
fn proxies(variable: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let names = ["http_proxy", "https_proxy", "all_proxy"];
    let names = names
        .iter()
        .flat_map(|name| [(*name).to_owned(), name.to_uppercase()]);
    let host = |proxy: String| {
        let url = Url::parse(&proxy).ok().filter(Url::has_host);
        let url = url.or_else(|| Url::parse(&format!("http://{proxy}")).ok())?;
        Some(url.host_str()?.to_owned())
    };
    names.filter_map(|name| host(variable(&name)?)).collect()
}

/// The wait that a server asks for: seconds, or until a date (RFC 9110 section 10.2.3).
#[cfg(any(feature = "http", feature = "s3"))]
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match value.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(value)
            .ok()
            .map(|date| date.duration_since(SystemTime::now()).unwrap_or_default()),
    }
}

/// Resolves names to addresses that are reached: what is connected to is what was checked. Hosts
/// that are written as addresses do not come here.
struct CheckedResolver {
    networks: Arc<Networks>,
    anywhere: Vec<String>,
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
    #[test]
    fn the_proxies_of_the_environment_may_lie_anywhere() {
        let hosts = |proxies_of: &[(&str, &str)]| {
            proxies(|name| {
                let found = proxies_of.iter().find(|(own, _)| *own == name);
                found.map(|(_, proxy)| (*proxy).to_owned())
            })
        };
        assert_eq!(hosts(&[]), Vec::<String>::new());
        let all = [
            ("HTTPS_PROXY", "http://user:secret@Proxy.internal:3128"),
            ("http_proxy", "other.internal:3128"),
            ("ALL_PROXY", "://"),
        ];
        assert_eq!(hosts(&all), ["other.internal", "proxy.internal"]);
    }

    #[test]
    #[cfg(any(feature = "http", feature = "s3"))]
    fn a_wait_is_of_seconds_or_until_a_date() {
        let wait = |value: &str| {
            let headers = [(RETRY_AFTER, value.parse().unwrap())];
            retry_after(&HeaderMap::from_iter(headers))
        };
        assert_eq!(wait("7"), Some(Duration::from_secs(7)));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_mins(1));
        assert!(wait(&soon).unwrap() > Duration::from_secs(50));
        assert_eq!(wait("soon"), None);
    }
}
