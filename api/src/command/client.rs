//! A client of the API: one server, one identity.

use std::fmt;
use std::time::Duration;

use reqwest::header::{HeaderMap, LOCATION, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::Value;
use tesk_core::storage::StorageUrl;
use url::Url;

use super::{Remote, variable};

/// Longer than any command runs.
const FOR_EVER: Duration = Duration::from_hours(365 * 24);

/// Speaks to one server.
#[derive(Debug)]
pub(super) struct Client {
    base: Url,
    http: reqwest::Client,
    identity: Identity,
}

/// Why a request has no good answer.
#[derive(Debug)]
pub(super) struct Refused {
    text: String,
    /// That it may have one soon, such as from a server that is restarted now; and after how long,
    /// if somebody said so.
    pub(super) passes: Option<Duration>,
    /// That nobody was there to ask.
    pub(super) unreached: bool,
}

impl Refused {
    fn passing(text: String) -> Self {
        Self {
            passes: Some(Duration::ZERO),
            ..text.into()
        }
    }
}

impl From<String> for Refused {
    fn from(text: String) -> Self {
        Self {
            text,
            passes: None,
            unreached: false,
        }
    }
}

impl From<Refused> for String {
    fn from(refused: Refused) -> Self {
        refused.text
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[derive(Debug)]
enum Identity {
    Nobody,
    Token(String),
    Password(String, String),
}

impl Client {
    pub(super) fn new(remote: &Remote) -> Result<Self, String> {
        let (base, credentials) = base(&remote.server)?;
        super::engine::install_crypto();
        // reqwest's own choice fails where the system has no certificates.
        let tls = tesk_backends::tls::client_config(None, rustls::ALL_VERSIONS)
            .map_err(|error| error.to_string())?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(Duration::from_secs(10))
            .timeout(Duration::from_mins(1))
            // One that is followed makes a GET of a POST, and leaves the identity behind.
            .redirect(Policy::none())
            .user_agent(concat!("tesk/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| format!("cannot make an HTTP client: {error}"))?;
        let identity = if let Some(path) = &remote.token_file {
            let token = std::fs::read_to_string(path)
                .map_err(|error| format!("cannot read the token in {}: {error}", path.display()))?;
            Identity::Token(token.trim().to_owned())
        } else if let Some((user, password)) = credentials {
            Identity::Password(user, password)
        } else if let Some(token) = variable("TESK_TOKEN")? {
            Identity::Token(token.trim().to_owned())
        } else if let Some(user) = variable("TESK_USER")? {
            Identity::Password(user, variable("TESK_PASSWORD")?.unwrap_or_default())
        } else {
            Identity::Nobody
        };
        Ok(Self {
            base,
            http,
            identity,
        })
    }

    /// Creates a task, and answers its id. Asked again with the same key it makes no second one.
    pub(super) async fn create(&self, document: &[u8], key: &str) -> Result<String, Refused> {
        let request = self
            .request(Method::POST, "tasks")?
            .header("content-type", "application/json")
            .header("idempotency-key", key)
            .body(document.to_vec());
        let reply = self.send(request).await?;
        // It goes to the terminal, and to scripts. Other servers have ids of other forms.
        let id = reply["id"]
            .as_str()
            .filter(|id| !id.is_empty() && id.chars().all(|c| c.is_ascii_graphic()));
        id.map(str::to_owned).ok_or_else(|| {
            "the server answered without the id of a task"
                .to_owned()
                .into()
        })
    }

    /// A task as the server shows it.
    pub(super) async fn get(&self, id: &str, view: &str) -> Result<Value, Refused> {
        let request = self.request(Method::GET, &path(id))?;
        self.send(request.query(&[("view", view)])).await
    }

    /// What an executor prints, until it has ended; `None` from a server that cannot tell.
    pub(super) async fn output(
        &self,
        id: &str,
        executor: usize,
    ) -> Result<Option<reqwest::Response>, Refused> {
        let request = self.request(Method::GET, &format!("{}:output", path(id)))?;
        let request = request.query(&[("executor", executor)]).timeout(FOR_EVER);
        let response = request.send().await.map_err(|error| self.silence(&error))?;
        if passes(response.status()) {
            return self.read(response).await.map(|_| None);
        }
        Ok(response.status().is_success().then_some(response))
    }

    pub(super) async fn cancel(&self, id: &str) -> Result<(), Refused> {
        let request = self.request(Method::POST, &format!("{}:cancel", path(id)))?;
        self.send(request).await.map(drop)
    }

    /// A page of tasks.
    pub(super) async fn list(&self, query: &[(&str, String)]) -> Result<Value, Refused> {
        self.send(self.request(Method::GET, "tasks")?.query(query))
            .await
    }

    fn request(&self, method: Method, path: &str) -> Result<RequestBuilder, String> {
        let url = self.base.join(path).map_err(|error| error.to_string())?;
        let request = self.http.request(method, url);
        Ok(match &self.identity {
            Identity::Nobody => request,
            Identity::Token(token) => request.bearer_auth(token),
            Identity::Password(user, password) => request.basic_auth(user, Some(password)),
        })
    }

    fn silence(&self, error: &reqwest::Error) -> Refused {
        let (base, cause) = (&self.base, cause(error));
        if error.is_builder() {
            // It did not go out, and never will.
            return format!("cannot ask {base}: {cause}; does the token hold a line end?").into();
        }
        Refused {
            unreached: error.is_connect(),
            ..Refused::passing(format!("no answer from {base}: {cause}"))
        }
    }

    async fn send(&self, request: RequestBuilder) -> Result<Value, Refused> {
        let response = request.send().await.map_err(|error| self.silence(&error))?;
        self.read(response).await
    }

    async fn read(&self, response: reqwest::Response) -> Result<Value, Refused> {
        let status = response.status();
        let passes = passes(status).then(|| pause(response.headers()));
        if status.is_redirection()
            && let Some(to) = self.moved(&response)
        {
            let base = &self.base;
            return Err(format!("{base} has moved to {to}; give that to --server").into());
        }
        let text = response.text().await.map_err(|error| {
            let (base, cause) = (&self.base, cause(&error));
            Refused::passing(format!("the answer of {base} broke off: {cause}"))
        })?;
        let json: Result<Value, _> = serde_json::from_str(&text);
        if status.is_success() {
            return json.map_err(|_| format!("{} does not speak TES", self.base).into());
        }
        let msg = json
            .ok()
            .and_then(|json| json["msg"].as_str().map(str::to_owned));
        let text = match msg {
            Some(msg) => format!("{msg} (HTTP {})", status.as_u16()),
            None => format!("{} answered HTTP {status}", self.base),
        };
        Err(Refused {
            passes,
            ..text.into()
        })
    }

    /// Where the API is now, without what may be secret.
    fn moved(&self, response: &reqwest::Response) -> Option<Url> {
        let asked = response.url();
        let location = response.headers().get(LOCATION)?.to_str().ok()?;
        let mut to = asked.join(location).ok()?;
        to.set_username("").ok()?;
        to.set_password(None).ok()?;
        // What was asked for is below the API there too.
        let below = asked.path().strip_prefix(self.base.path())?;
        let path = to.path().strip_suffix(below).unwrap_or(to.path());
        let path = path.to_owned();
        to.set_path(&path);
        to.set_query(None);
        to.set_fragment(None);
        Some(to)
    }
}

/// Whether it is how a server says that it is away or busy for a while, or a proxy that there is
/// none.
fn passes(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

/// What `Retry-After` asks for. Its other form, a date, is of no use to clocks that differ.
fn pause(headers: &HeaderMap) -> Duration {
    let seconds = headers
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.trim().parse().ok());
    Duration::from_secs(seconds.unwrap_or(0))
}

/// The API below an address that people give, of the server or of the API itself; and the user
/// and password in it, which from here on are nowhere that is shown.
fn base(server: &str) -> Result<(Url, Option<(String, String)>), String> {
    let with_scheme = if server.contains("://") {
        server.to_owned()
    } else {
        format!("http://{server}")
    };
    let invalid = |error| {
        let shown = match server.rsplit_once('@') {
            Some((_, host)) => format!("***@{host}"),
            None => server.to_owned(),
        };
        format!("--server `{shown}` is not a url: {error}")
    };
    let mut url = Url::parse(&with_scheme).map_err(|error| invalid(error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(invalid("must be http or https".to_owned()));
    }
    // Unescapes them.
    let given: Option<StorageUrl> = url.as_str().parse().ok();
    let credentials = given.and_then(|given| {
        let password = given.password().unwrap_or_default().to_owned();
        Some((given.user()?.to_owned(), password))
    });
    let taken_out = url.set_username("").and_then(|()| url.set_password(None));
    taken_out.map_err(|()| invalid("has a user where none can be".to_owned()))?;
    let path = url.path().trim_end_matches('/');
    let path = if path.ends_with("/v1") {
        format!("{path}/")
    } else {
        format!("{path}/ga4gh/tes/v1/")
    };
    url.set_path(&path);
    url.set_query(None);
    url.set_fragment(None);
    Ok((url, credentials))
}

/// The path of a task. An id is one segment, whatever somebody typed.
fn path(id: &str) -> String {
    let escaped: String = url::form_urlencoded::byte_serialize(id.as_bytes()).collect();
    format!("tasks/{}", escaped.replace('+', "%20"))
}

/// The innermost cause, which is the one that helps: "connection refused".
fn cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_a_server_or_of_its_api_will_do() {
        for (server, expected) in [
            ("http://h:1", "http://h:1/ga4gh/tes/v1/"),
            ("h:1", "http://h:1/ga4gh/tes/v1/"),
            ("https://h/tesk/", "https://h/tesk/ga4gh/tes/v1/"),
            ("https://h/ga4gh/tes/v1", "https://h/ga4gh/tes/v1/"),
            ("https://h/v1/?x=1", "https://h/v1/"),
        ] {
            let (url, credentials) = base(server).unwrap();
            assert_eq!((url.as_str(), credentials), (expected, None));
        }
        assert!(base("ftp://h").is_err());
        assert!(base("http://").is_err());
    }

    #[test]
    fn a_user_and_a_password_are_taken_out_of_the_address() {
        for (server, user, password) in [
            ("http://ada:hunter2@h:1", "ada", "hunter2"),
            ("ada:hunter2@h:1/v1/../", "ada", "hunter2"),
            ("http://ada:p%40s%2Fs@h:1", "ada", "p@s/s"),
            ("http://ada:p@s@h:1", "ada", "p@s"),
            ("http://ada@h:1", "ada", ""),
            ("http://:hunter2@h:1", "", "hunter2"),
        ] {
            let (url, credentials) = base(server).unwrap();
            assert_eq!(url.as_str(), "http://h:1/ga4gh/tes/v1/");
            assert_eq!(credentials, Some((user.to_owned(), password.to_owned())));
        }
        for server in [
            "ftp://ada:hunter2@h",
            "http://ada:hunter2@h:port",
            "ada:hunter2/@:1",
        ] {
            let error = base(server).unwrap_err();
            assert!(error.contains("is not a url"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn an_id_is_one_segment_of_the_path() {
        assert_eq!(path("tabc"), "tasks/tabc");
        assert_eq!(path("../x y"), "tasks/..%2Fx%20y");
    }
}
