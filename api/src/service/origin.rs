//! What a web page in somebody's browser may make this server do: nothing, unless its origin
//! is listed.
//!
//! A server on loopback without authentication is reachable from every page that a user of
//! this machine opens. Three checks keep such pages out: the `Host` must be a name of this
//! server (else a DNS name that was rebound to 127.0.0.1 is "same origin"), a foreign `Origin`
//! changes nothing, and neither does a cross-site `Sec-Fetch-Site`.

use std::net::{IpAddr, SocketAddr};

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::error::ApiError;

/// The checks of one server.
#[derive(Debug)]
pub(crate) struct OriginGuard {
    allowed: Vec<String>,
    /// The names this server has, if it must check them.
    own_hosts: Option<Vec<String>>,
}

/// What the guard found of a request that may go on.
#[derive(Debug)]
pub(crate) struct Cors(Option<HeaderValue>);

impl OriginGuard {
    /// `allowed` origins, for a server that listens on `listen`; `open` is without
    /// authentication.
    pub(crate) fn new(allowed: &[String], listen: SocketAddr, open: bool) -> Self {
        let own_hosts = (open && listen.ip().is_loopback()).then(|| {
            let origins = allowed.iter().filter_map(|origin| origin.split_once("://"));
            origins
                .map(|(_, authority)| host_of(authority).to_owned())
                .collect()
        });
        Self {
            allowed: allowed.to_vec(),
            own_hosts,
        }
    }

    /// Lets a request through, or answers for it: a refusal, or a preflight's reply.
    pub(crate) fn check(&self, request: &Request<Body>) -> Result<Cors, Box<Response>> {
        let headers = request.headers();
        let host = host(request);
        if let Some(own) = &self.own_hosts
            && !is_local_name(host_of(host))
            && !own
                .iter()
                .any(|name| name.eq_ignore_ascii_case(host_of(host)))
        {
            return Err(Box::new(forbidden(
                "this server does not have the name in the Host header; list its origin in server.allowed_origins",
            )));
        }
        let origin = headers.get(header::ORIGIN);
        let listed = origin.filter(|origin| self.is_listed(origin));
        let cors = Cors(listed.cloned());
        match *request.method() {
            Method::GET | Method::HEAD => Ok(cors),
            Method::OPTIONS => match (listed, headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)) {
                (Some(_), Some(_)) => Err(Box::new(cors.apply(preflight()))),
                _ => Ok(cors),
            },
            _ if listed.is_some() => Ok(cors),
            _ => {
                let foreign = origin.is_some_and(|origin| !is_same(origin, host));
                if foreign || is_cross_site(headers) {
                    Err(Box::new(forbidden(
                        "a web page of another origin may not do this; an operator can list it in server.allowed_origins",
                    )))
                } else {
                    Ok(cors)
                }
            }
        }
    }

    fn is_listed(&self, origin: &HeaderValue) -> bool {
        self.allowed
            .iter()
            .any(|allowed| allowed.as_bytes() == origin.as_bytes())
    }
}

impl Cors {
    /// Lets the page of a listed origin read the reply.
    pub(crate) fn apply(self, mut response: Response) -> Response {
        if let Some(origin) = self.0 {
            let headers = response.headers_mut();
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.append(header::VARY, HeaderValue::from_static("Origin"));
            headers.insert(
                header::ACCESS_CONTROL_EXPOSE_HEADERS,
                HeaderValue::from_static("x-request-id, retry-after"),
            );
        }
        response
    }
}

fn preflight() -> Response {
    (
        StatusCode::NO_CONTENT,
        [
            (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD, POST"),
            (
                header::ACCESS_CONTROL_ALLOW_HEADERS,
                "authorization, content-type, idempotency-key, x-request-id",
            ),
            (header::ACCESS_CONTROL_MAX_AGE, "600"),
        ],
    )
        .into_response()
}

fn forbidden(msg: &str) -> Response {
    ApiError::new(StatusCode::FORBIDDEN, msg).into_response()
}

/// The authority the client meant: of an absolute request target, else of `Host`.
fn host(request: &Request<Body>) -> &str {
    request.uri().authority().map_or_else(
        || {
            let host = request.headers().get(header::HOST);
            host.and_then(|host| host.to_str().ok()).unwrap_or_default()
        },
        |authority| authority.as_str(),
    )
}

/// Without the port.
fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    }
}

/// Names that no DNS server can give away.
fn is_local_name(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn is_same(origin: &HeaderValue, host: &str) -> bool {
    let origin = origin
        .to_str()
        .ok()
        .and_then(|origin| origin.split_once("://"));
    origin.is_some_and(|(_, authority)| authority.eq_ignore_ascii_case(host))
}

fn is_cross_site(headers: &HeaderMap) -> bool {
    headers
        .get("sec-fetch-site")
        .is_some_and(|site| site.as_bytes() == b"cross-site")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard() -> OriginGuard {
        let listen = "127.0.0.1:8080".parse().unwrap();
        OriginGuard::new(&["https://ui.example.org".to_owned()], listen, true)
    }

    fn status(method: &str, headers: &[(&str, &str)]) -> u16 {
        let mut request = Request::builder().method(method).uri("/v1/tasks");
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", "127.0.0.1:8080");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).unwrap();
        match guard().check(&request) {
            Ok(_) => 200,
            Err(response) => response.status().as_u16(),
        }
    }

    #[test]
    fn a_name_that_was_rebound_to_loopback_is_refused_even_to_read() {
        for host in [
            "localhost:8080",
            "127.0.0.1",
            "[::1]:8080",
            "127.9.9.9:1",
            "ui.example.org",
        ] {
            assert_eq!(status("GET", &[("host", host)]), 200, "{host}");
        }
        for host in [
            "evil.example.com:8080",
            "localhost.evil.com",
            "10.0.0.1:8080",
            "",
        ] {
            assert_eq!(status("GET", &[("host", host)]), 403, "{host}");
        }
    }

    #[test]
    fn a_foreign_page_can_change_nothing() {
        assert_eq!(
            status("POST", &[("origin", "http://evil.example.com")]),
            403
        );
        assert_eq!(status("POST", &[("origin", "null")]), 403);
        assert_eq!(status("POST", &[("origin", "http://127.0.0.1:3000")]), 403);
        assert_eq!(status("POST", &[("sec-fetch-site", "cross-site")]), 403);
        assert_eq!(
            status("DELETE", &[("origin", "http://evil.example.com")]),
            403
        );
        assert_eq!(status("GET", &[("origin", "http://evil.example.com")]), 200);
    }

    #[test]
    fn our_own_page_a_listed_one_and_no_page_at_all_may() {
        assert_eq!(status("POST", &[]), 200);
        assert_eq!(status("POST", &[("origin", "http://127.0.0.1:8080")]), 200);
        let listed = [
            ("origin", "https://ui.example.org"),
            ("sec-fetch-site", "cross-site"),
        ];
        assert_eq!(status("POST", &listed), 200);
    }

    #[test]
    fn a_preflight_is_answered_for_listed_origins_only() {
        let ask = ("access-control-request-method", "POST");
        assert_eq!(
            status("OPTIONS", &[("origin", "https://ui.example.org"), ask]),
            204
        );
        // Goes on to the router, which knows no OPTIONS: 405 without CORS headers.
        assert_eq!(
            status("OPTIONS", &[("origin", "http://evil.example.com"), ask]),
            200
        );
    }
}
