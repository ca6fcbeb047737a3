//! Requests: credentials for the right origin, redirects one by one, addresses checked.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::header::{ACCEPT_ENCODING, HeaderMap, HeaderName, HeaderValue, LOCATION};
use reqwest::{Method, Response, StatusCode, Url};
use tesk_core::storage::{ByteRange, ConfigError, Error, ErrorKind, Result, Source, StorageUrl};

use super::options::Options;
use crate::netrc::Netrc;
use crate::network::{Networks, Refused, limits};
use crate::{client, secret};

/// How many redirects one request follows.
const MAX_REDIRECTS: usize = 10;
/// How soon a request fails whose connection the server had closed already.
const CLOSED_IN: Duration = Duration::from_secs(1);

/// Of a reply: that the request may have been done once before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Repeated;

/// Sends requests as the options of one entry say.
pub(super) struct Client {
    http: reqwest::Client,
    /// Makes a new connection for each request.
    fresh: reqwest::Client,
    networks: Arc<Networks>,
    credentials: Credentials,
    headers: HeaderMap,
    netrc: Netrc,
}

enum Credentials {
    None,
    Basic(String, Option<String>),
    Bearer(String),
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither credentials nor headers: they may be secret.
        f.debug_struct("Client")
            .field("networks", &self.networks)
            .finish_non_exhaustive()
    }
}

impl Client {
    pub(super) fn new(options: &Options) -> Result<Self, ConfigError> {
        let networks = Arc::new(Networks::new(limits!(options))?);
        let setup = client::Setup {
            ca_file: options.ca_file.as_deref(),
            connect_timeout_secs: options.connect_timeout_secs,
            proxy: options.proxy.as_deref(),
            networks: Some(&networks),
            ..client::Setup::default()
        };
        Ok(Self {
            http: setup.build()?,
            fresh: client::Setup {
                idle: Some(0),
                ..setup
            }
            .build()?,
            networks,
            credentials: credentials(options)?,
            headers: headers(options)?,
            netrc: Netrc::load(options.netrc.as_ref())?,
        })
    }

    /// Sends a request and follows where it is redirected to. `body` is sent anew each time.
    /// Any status but that of a redirect is returned.
    pub(super) async fn send(
        &self,
        url: &StorageUrl,
        method: &Method,
        headers: &HeaderMap,
        body: Option<&Source>,
    ) -> Result<Response> {
        let start = request_url(url)?;
        let mut at = start.clone();
        for _ in 0..=MAX_REDIRECTS {
            let reply = self.send_to(url, &start, &at, method, headers, body);
            let reply = reply.await?;
            let Some(next) = redirection(url, method, &at, &reply)? else {
                return Ok(reply);
            };
            if at.scheme() == "https"
                && next.scheme() == "http"
                && self.has_credentials(url, &start)
            {
                let message = "the server redirects from https to http, which is not followed \
                               with credentials";
                return Err(Error::new(ErrorKind::Denied, url, message));
            }
            at = next;
        }
        let message = format!("more than {MAX_REDIRECTS} redirects");
        Err(Error::new(ErrorKind::Invalid, url, message))
    }

    /// Sends one request; if the server hung up before it answered, a second time on a connection
    /// of its own, which the reply's [`Repeated`] tells. Servers close connections that wait for the next request, and do so while that
    /// is on its way (RFC 9112, 9.3.1): Apache when it has much to do, nginx after some refusals.
    async fn send_to(
        &self,
        url: &StorageUrl,
        start: &Url,
        at: &Url,
        method: &Method,
        headers: &HeaderMap,
        body: Option<&Source>,
    ) -> Result<Response> {
        let checked = self.networks.check_host(at.host_str().unwrap_or_default());
        checked.map_err(|why| refused(url, why.to_string()))?;
        let began = Instant::now();
        let mut http = &self.http;
        loop {
            let mut request = http
                .request(method.clone(), at.clone())
                .header(ACCEPT_ENCODING, "identity")
                .headers(headers.clone());
            if at.origin() == start.origin() {
                request = request.headers(self.headers.clone());
                request = match self.credentials_for(url, start) {
                    Credentials::None => request,
                    Credentials::Basic(user, password) => request.basic_auth(user, password),
                    Credentials::Bearer(token) => request.bearer_auth(token),
                };
            }
            let failed = Arc::new(Mutex::new(None));
            if let Some(source) = body {
                let stream = source.read(ByteRange::FULL).await?;
                request = request.body(super::body_of(stream, failed.clone()));
            }
            let repeated = std::ptr::eq(http, &raw const self.fresh);
            let error = match request.send().await {
                Ok(mut reply) => {
                    if repeated {
                        reply.extensions_mut().insert(Repeated);
                    }
                    return Ok(reply);
                }
                Err(error) => error,
            };
            // A source that failed is the cause of the request's failure, not the reverse.
            let source = failed.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(source) = source {
                return Err(source);
            }
            let hung_up = error.is_request() && !error.is_connect() && !error.is_timeout();
            if repeated || !hung_up || began.elapsed() >= CLOSED_IN {
                return Err(failure(url, error));
            }
            http = &self.fresh;
        }
    }

    fn credentials_for(&self, url: &StorageUrl, start: &Url) -> Credentials {
        if url.user().is_some() || url.password().is_some() {
            let user = url.user().unwrap_or_default().to_owned();
            return Credentials::Basic(user, url.password().map(str::to_owned));
        }
        match &self.credentials {
            Credentials::Basic(user, password) => {
                Credentials::Basic(user.clone(), password.clone())
            }
            Credentials::Bearer(token) => Credentials::Bearer(token.clone()),
            Credentials::None => {
                let host = start.host_str().unwrap_or_default();
                match self.netrc.credentials(host) {
                    Some((user, password)) => {
                        Credentials::Basic(user.to_owned(), Some(password.to_owned()))
                    }
                    None => Credentials::None,
                }
            }
        }
    }

    fn has_credentials(&self, url: &StorageUrl, start: &Url) -> bool {
        !self.headers.is_empty() || !matches!(self.credentials_for(url, start), Credentials::None)
    }
}

/// The address as it goes over the wire: without credentials and fragment.
pub(super) fn request_url(url: &StorageUrl) -> Result<Url> {
    let invalid = |message: &str| Error::new(ErrorKind::Invalid, url, message);
    if url.host().is_empty() {
        return Err(invalid("has no host"));
    }
    let query = url.query().map(|q| format!("?{q}")).unwrap_or_default();
    let below = format!("{}{query}", url.path());
    // Those at the end would be cut off.
    let below = below.replace(' ', "%20");
    let text = format!("{}://{}{below}", url.scheme(), url.host());
    let parsed = Url::parse(&text).map_err(|e| invalid("is no http url").with_source(e))?;
    // A host with an odd character could be read in two ways.
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err(invalid("is no http url"));
    }
    Ok(parsed)
}

/// Where a reply sends to, if it does.
fn redirection(
    url: &StorageUrl,
    method: &Method,
    at: &Url,
    reply: &Response,
) -> Result<Option<Url>> {
    let status = reply.status();
    let same_method = matches!(
        status,
        StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT
    );
    let any_method = matches!(
        status,
        StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND | StatusCode::SEE_OTHER
    );
    if !same_method && !any_method {
        return Ok(None);
    }
    let invalid = |message: String| Error::new(ErrorKind::Invalid, url, message);
    if any_method && method == Method::PUT {
        let message = format!("the server answered a PUT with {status}, which loses the content");
        return Err(invalid(message));
    }
    // To look at a directory can do no harm elsewhere (`303` is not where it is). What changes
    // something is done where it was asked for, if at all.
    let looks = matches!(method.as_str(), "GET" | "HEAD")
        || method.as_str() == "PROPFIND" && status != StatusCode::SEE_OTHER;
    let moves = method.as_str() == "MOVE";
    if method != Method::PUT && !looks && (any_method || moves) {
        let message =
            format!("the server answered a {method} with {status}, which is not followed");
        return Err(invalid(message));
    }
    let location = reply.headers().get(LOCATION).and_then(|v| v.to_str().ok());
    let mut next = location
        .and_then(|location| at.join(location).ok())
        .filter(|next| matches!(next.scheme(), "http" | "https"))
        .ok_or_else(|| {
            invalid(format!(
                "the server answered {status} without a usable place"
            ))
        })?;
    // Credentials come from whoever asks, not from whoever redirects.
    let _ = next.set_username("");
    let _ = next.set_password(None);
    Ok(Some(next))
}

/// A request or a reply's body that failed.
pub(super) fn failure(url: &StorageUrl, error: reqwest::Error) -> Error {
    let error = error.without_url();
    let (kind, message) = if error.is_connect() {
        (ErrorKind::Unavailable, "no connection to the server")
    } else if error.is_builder() {
        (ErrorKind::Invalid, "no request can be made of it")
    } else {
        (ErrorKind::Unavailable, "the connection failed")
    };
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        if let Some(why) = inner.downcast_ref::<Refused>() {
            return refused(url, why.to_string());
        }
        if let Some(tls @ rustls::Error::InvalidCertificate(_)) = inner.downcast_ref() {
            let message = format!("the server's certificate is not trusted: {tls}");
            return Error::new(ErrorKind::Unavailable, url, message).with_retryable(false);
        }
        // What is in an I/O error is not its source but the error itself.
        let io = inner
            .downcast_ref::<std::io::Error>()
            .and_then(|io| io.get_ref());
        cause = io
            .map(|inner| inner as &dyn std::error::Error)
            .or_else(|| inner.source());
    }
    Error::new(kind, url, message).with_source(error)
}

fn refused(url: &StorageUrl, why: String) -> Error {
    Error::new(ErrorKind::Denied, url, why)
}

fn credentials(options: &Options) -> Result<Credentials, ConfigError> {
    let password = secret::read(
        "password",
        options.password_file.as_deref(),
        options.password_env.as_deref(),
    )?;
    let bearer = secret::read(
        "bearer",
        options.bearer_file.as_deref(),
        options.bearer_env.as_deref(),
    )?;
    let refused = |message: &str| Err(ConfigError(message.into()));
    match (&options.username, password, bearer) {
        (None, None, None) => Ok(Credentials::None),
        (Some(user), password, None) => Ok(Credentials::Basic(user.clone(), password)),
        (None, None, Some(token)) => Ok(Credentials::Bearer(token)),
        (None, Some(_), _) => refused("a password is given, but no `username`"),
        (Some(_), _, Some(_)) => refused("`username` and a bearer token exclude each other"),
    }
}

fn headers(options: &Options) -> Result<HeaderMap, ConfigError> {
    let mut headers = HeaderMap::new();
    for (name, value) in &options.headers {
        let key = format!("headers.{name}");
        let value = value.read(&key)?;
        let unusable = || ConfigError(format!("{key}: is no valid header"));
        let name = HeaderName::try_from(name.as_str()).map_err(|_| unusable())?;
        let mut value = HeaderValue::try_from(value).map_err(|_| unusable())?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}
