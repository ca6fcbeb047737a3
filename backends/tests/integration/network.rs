use axum::body::Body;
use axum::http::{HeaderMap, Response, header};
use tesk_core::storage::ErrorKind;

use super::server::Server;
use super::{Bench, registry, url};

fn redirect(to: String) -> Response<Body> {
    let reply = Response::builder().status(302).header(header::LOCATION, to);
    reply.body(Body::empty()).unwrap()
}

fn authorization(headers: &HeaderMap) -> Option<&str> {
    headers
        .get(header::AUTHORIZATION)
        .map(|v| v.to_str().unwrap())
}

#[tokio::test]
async fn metadata_services_are_refused_by_address_and_by_redirect() {
    let server = Server::start().await;
    server.script(|_, _, _| Some(redirect("http://169.254.169.254/latest/meta-data".into())));
    for from in [
        "http://169.254.169.254/latest/meta-data".to_owned(),
        "http://2852039166/".into(),
        "http://0xa9.0xfe.0xa9.0xfe/".into(),
        "http://[::ffff:169.254.169.254]/".into(),
        "http://[fd00:ec2::254]/".into(),
        "http://0/".into(),
        server.url("/innocent"),
    ] {
        let error = Bench::new().fetch(&from).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{from}: {error}");
        assert!(
            error.to_string().contains("is not reached from here"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_name_that_resolves_to_a_refused_address_is_refused() {
    let server = Server::start().await;
    server.put("/x", "here");
    let by_name = format!("http://localhost:{}/x", server.address.port());
    assert!(Bench::new().fetch(&by_name).await.is_ok());
    let entry = "[[storage]]\ntype = 'http'\nprefix = 'http://'\nallow_private = false";
    let error = Bench::with(entry).fetch(&by_name).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    let allowed = format!("{entry}\nallow_networks = ['127.0.0.0/8']");
    assert!(Bench::with(&allowed).fetch(&by_name).await.is_ok());
    assert_eq!(server.requests().len(), 4, "a refused one asks for nothing");
}

#[tokio::test]
async fn hosts_that_are_not_allowed_are_refused_after_a_redirect_too() {
    let server = Server::start().await;
    let port = server.address.port();
    server.script(move |_, path, _| {
        (path == "/away").then(|| redirect(format!("http://localhost:{port}/x")))
    });
    server.put("/x", "here");
    let entry = "[[storage]]\ntype = 'http'\nprefix = 'http://'\n";
    for limit in ["allow_hosts = ['127.0.0.1']", "deny_hosts = ['LOCALHOST']"] {
        let bench = Bench::with(&format!("{entry}{limit}"));
        assert!(bench.fetch(&server.url("/x")).await.is_ok());
        let error = bench.fetch(&server.url("/away")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{limit}: {error}");
    }
    let ftp = "[[storage]]\ntype = 'ftp'\nprefix = 'ftp://'\ndeny_hosts = ['localhost']";
    let error = Bench::with(ftp)
        .fetch("ftp://localhost:1/x")
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
}

#[tokio::test]
async fn credentials_stay_with_their_origin() {
    let (home, away) = (Server::start().await, Server::start().await);
    away.put("/x", "here");
    let to = away.url("/x").replace("://", "://evil:evil@");
    home.script(move |_, path, _| {
        Some(redirect(if path == "/a" {
            "/b".into()
        } else {
            to.clone()
        }))
    });
    let from = home.url("/a").replace("://", "://me:s3cret@");
    assert_eq!(Bench::new().fetch(&from).await.unwrap(), b"here");
    for (_, path, headers) in home.requests() {
        assert_eq!(
            authorization(&headers),
            Some("Basic bWU6czNjcmV0"),
            "{path}"
        );
    }
    assert!(!away.requests().is_empty());
    for (_, _, headers) in away.requests() {
        assert_eq!(authorization(&headers), None);
    }
}

#[tokio::test]
async fn redirects_come_to_an_end() {
    let server = Server::start().await;
    server.script(|_, path, _| Some(redirect(format!("{path}x"))));
    let error = Bench::new().fetch(&server.url("/")).await.unwrap_err();
    assert!(
        error.to_string().contains("more than 10 redirects"),
        "{error}"
    );
    assert_eq!(server.requests().len(), 11);
    server.script(|_, _, _| Some(redirect("file:///etc/passwd".into())));
    let error = Bench::new().fetch(&server.url("/")).await.unwrap_err();
    assert!(
        error.to_string().contains("without a usable place"),
        "{error}"
    );
}

#[tokio::test]
async fn each_entry_sends_its_own_credentials() {
    let server = Server::start().await;
    for path in ["/basic/x", "/bearer/x", "/netrc/x", "/none/x", "/basic/y"] {
        server.put(path, "here");
    }
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let (host, port) = (server.address.ip(), server.address.port());
    let bench = Bench::with(&format!(
        r#"
        [[storage]]
        type = "http"
        prefix = "http://{host}:{port}/basic"
        username = "me"
        password_file = "{}"
        headers = {{ x-plain = "a", x-secret = {{ file = "{}" }} }}
        [[storage]]
        type = "http"
        prefix = "http://{host}:{port}/bearer"
        bearer_file = "{}"
        [[storage]]
        type = "http"
        prefix = "http://{host}:{port}/netrc"
        netrc = "{}"
        [[storage]]
        type = "http"
        prefix = "http://"
        "#,
        file("password", "pw\n"),
        file("header", "b\n"),
        file("token", "t0ken\n"),
        file("netrc", &format!("machine {host} login you password pw2")),
    ));
    let sent = async |path: &str| {
        bench.fetch(&server.url(path)).await.unwrap();
        server.requests().pop().unwrap().2
    };
    let basic = sent("/basic/x").await;
    assert_eq!(authorization(&basic), Some("Basic bWU6cHc="));
    assert_eq!(
        (&basic["x-plain"], &basic["x-secret"]),
        (&"a".parse().unwrap(), &"b".parse().unwrap())
    );
    assert_eq!(
        authorization(&sent("/bearer/x").await),
        Some("Bearer t0ken")
    );
    assert_eq!(
        authorization(&sent("/netrc/x").await),
        Some("Basic eW91OnB3Mg==")
    );
    assert_eq!(authorization(&sent("/none/x").await), None);
    // Those of the address win.
    let own = server.url("/basic/y").replace("://", "://a:b@");
    bench.fetch(&own).await.unwrap();
    let (_, _, headers) = server.requests().pop().unwrap();
    assert_eq!(authorization(&headers), Some("Basic YTpi"));
}

#[tokio::test]
async fn no_error_tells_a_secret() {
    let server = Server::start().await;
    server.script(|_, _, _| Some(Response::builder().status(403).body(Body::empty()).unwrap()));
    let dead = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    for host in [
        server.address.to_string(),
        dead.to_string(),
        "no.such.host.invalid".into(),
    ] {
        let from = format!("http://me:s3cret@{host}/x?X-Amz-Signature=s3cretsig");
        let error = Bench::new().fetch(&from).await.unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("s3cret"), "{shown}");
        assert!(shown.contains(&format!("http://{host}/x")), "{shown}");
    }
}

#[test]
fn an_entry_that_cannot_be_used_says_why() {
    for (options, expected) in [
        ("usrname = 'x'", "did you mean `username`?"),
        (
            "username = 'x'\npassword_file = 'a'\npassword_env = 'b'",
            "exclude each other",
        ),
        (
            "password_env = 'TESK_TEST_UNSET'",
            "`TESK_TEST_UNSET` is not set",
        ),
        (
            "bearer_file = '/no/such/file'",
            "bearer: cannot read `/no/such/file`",
        ),
        (
            "ca_file = '/no/such/file'",
            "ca_file: cannot use `/no/such/file`",
        ),
        (
            "deny_networks = ['10.0.0.0/33']",
            "deny_networks: `10.0.0.0/33`",
        ),
        (
            "headers = { 'a b' = 'x' }",
            "headers.a b: is no valid header",
        ),
        ("proxy = 'no url'", "proxy: is no url"),
        ("netrc = '/no/such/file'", "netrc: cannot read"),
    ] {
        let config = format!("[[storage]]\ntype = 'http'\nprefix = 'http://'\n{options}");
        let error = registry(&config).unwrap_err().to_string();
        assert!(error.contains(expected), "{options}: {error}");
    }
}

#[test]
fn without_configuration_the_web_is_served() {
    let registry = tesk_backends::builtin()
        .build(&tesk_backends::default_entries())
        .unwrap();
    let claims = registry
        .route(&url("https://example.org/x"))
        .unwrap()
        .capabilities();
    assert!(claims.write && !claims.list);
    assert_eq!(
        registry.route(&url("/etc/passwd")).unwrap_err().kind(),
        ErrorKind::Invalid
    );
}
