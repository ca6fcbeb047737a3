use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Method, Response, header};
use tesk_core::storage::ErrorKind;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::server::Server;
use super::{Bench, content};

fn status(code: u16) -> axum::response::Response {
    let reply = Response::builder().status(code);
    reply.body(Body::from("a stranger's words")).unwrap()
}

/// A server that gives each connection the next of these bytes, as they are, and hangs up.
pub(super) async fn raw(replies: Vec<String>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for reply in replies {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let _ = client.read(&mut request).await;
            client.write_all(reply.as_bytes()).await.unwrap();
        }
    });
    format!("http://{address}/file")
}

#[tokio::test]
async fn statuses_are_told_apart() {
    for (code, kind, retryable) in [
        (400, ErrorKind::Invalid, false),
        (401, ErrorKind::Unauthenticated, false),
        (402, ErrorKind::Invalid, false),
        (403, ErrorKind::Denied, false),
        (404, ErrorKind::NotFound, false),
        (405, ErrorKind::Unsupported, false),
        (408, ErrorKind::Unavailable, true),
        (410, ErrorKind::NotFound, false),
        (418, ErrorKind::Invalid, false),
        (429, ErrorKind::Unavailable, true),
        (451, ErrorKind::Denied, false),
        (500, ErrorKind::Unavailable, true),
        (501, ErrorKind::Unsupported, false),
        (503, ErrorKind::Unavailable, true),
        (507, ErrorKind::Full, false),
    ] {
        let server = Server::start().await;
        server.script(move |_, _, _| Some(status(code)));
        let error = Bench::new().fetch(&server.url("/x")).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.is_retryable()),
            (kind, retryable),
            "{code}: {error}"
        );
        assert!(!error.to_string().contains("stranger"), "{error}");
    }
}

#[tokio::test]
async fn a_server_in_trouble_is_asked_again_when_it_says() {
    let server = Server::start().await;
    server.put("/x", "here");
    let asked = AtomicUsize::new(0);
    server.script(move |_, _, _| {
        let busy = Response::builder()
            .status(429)
            .header(header::RETRY_AFTER, "1");
        match asked.fetch_add(1, Ordering::Relaxed) {
            0 => Some(busy.body(Body::empty()).unwrap()),
            1 => Some(status(503)),
            2 => Some(status(500)),
            _ => None,
        }
    });
    let begun = Instant::now();
    assert_eq!(
        Bench::new().fetch(&server.url("/x")).await.unwrap(),
        b"here"
    );
    assert!(
        begun.elapsed() > Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn a_body_that_is_cut_is_fetched_whole() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n".to_owned();
    let url = raw(vec![
        head.clone(),
        format!("{head}12345"),
        head.clone(),
        format!("{head}1234567890"),
    ])
    .await;
    assert_eq!(Bench::new().fetch(&url).await.unwrap(), b"1234567890");
}

#[tokio::test]
async fn a_length_that_contradicts_itself_is_no_file() {
    let head = |n| format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {n}\r\n\r\n");
    for (said, sent) in [(10, "12345"), (3, "12345")] {
        let mut replies = Vec::new();
        for _ in 0..10 {
            replies.extend([head(said), format!("{}{sent}", head(sent.len()))]);
        }
        let bench = Bench::new();
        let error = bench.fetch(&raw(replies).await).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(
            bench
                .local("")
                .root
                .read_dir(&tesk_core::rooted::RelPath::default())
                .unwrap()
                .is_empty()
        );
    }
}

#[tokio::test]
async fn without_any_length_the_end_is_the_end() {
    let url = raw(vec![
        "HTTP/1.1 200 OK\r\n\r\n".into(),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".into(),
    ])
    .await;
    assert_eq!(Bench::new().fetch(&url).await.unwrap(), b"abc");
}

#[tokio::test]
async fn chunks_without_their_end_are_no_file() {
    let cut = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
    let replies = (0..20).map(|_| cut.to_owned()).collect();
    let error = Bench::new().fetch(&raw(replies).await).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
}

#[tokio::test]
async fn what_a_server_compressed_stays_so() {
    let server = Server::start().await;
    let bytes = b"\x1f\x8b\x08\x00 as it is";
    server.script(|_, _, headers| {
        assert_eq!(headers[header::ACCEPT_ENCODING], "identity");
        let reply = Response::builder()
            .header(header::CONTENT_ENCODING, "gzip")
            .header(header::CONTENT_LENGTH, bytes.len());
        Some(reply.body(Body::from(&bytes[..])).unwrap())
    });
    assert_eq!(
        Bench::new().fetch(&server.url("/x.gz")).await.unwrap(),
        bytes
    );
}

#[tokio::test]
async fn a_file_that_changes_between_ranges_is_fetched_anew() {
    let server = Server::start().await;
    let (old, new) = (content(5 << 20), vec![7; 5 << 20]);
    server.put("/x", old);
    let (reads, other, fresh) = (AtomicUsize::new(0), server.clone(), new.clone());
    server.script(move |method, _, _| {
        if method == Method::GET && reads.fetch_add(1, Ordering::Relaxed) == 3 {
            other.put("/x", fresh.clone());
        }
        None
    });
    assert!(Bench::new().fetch(&server.url("/x")).await.unwrap() == new);
    let gets = server
        .requests()
        .into_iter()
        .filter(|(method, ..)| *method == Method::GET);
    assert!(gets.count() > 5, "it was not read in ranges");
}

#[tokio::test]
async fn a_server_that_ignores_ranges_gives_the_right_bytes() {
    use tesk_core::storage::ByteRange;
    let server = Server::start().await;
    server.script(|_, _, _| Some(Response::new(Body::from("0123456789"))));
    let url = super::url(&server.url("/x"));
    let storage = Bench::new().engine.registry().route(&url).unwrap();
    for (range, expected) in [
        (ByteRange::from(4), "456789"),
        ((2..5).into(), "234"),
        (ByteRange::FULL, "0123456789"),
    ] {
        let mut stream = storage.read(&url, range, None).await.unwrap().bytes;
        let mut read = Vec::new();
        while let Some(chunk) = futures_util::StreamExt::next(&mut stream).await {
            read.extend_from_slice(&chunk.unwrap());
        }
        assert_eq!(read, expected.as_bytes());
    }
}

#[tokio::test]
async fn a_part_from_another_place_is_refused() {
    let server = Server::start().await;
    server.script(|_, _, _| {
        let reply = Response::builder()
            .status(206)
            .header(header::CONTENT_RANGE, "bytes 0-2/10");
        Some(reply.body(Body::from("012")).unwrap())
    });
    let url = super::url(&server.url("/x"));
    let storage = Bench::new().engine.registry().route(&url).unwrap();
    let error = storage.read(&url, (4..7).into(), None).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(
        error.to_string().contains("bytes 0..3 came instead"),
        "{error}"
    );
}

#[tokio::test]
async fn a_server_that_hangs_up_on_a_connection_does_not_fail_the_next_request() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let _ = client.read(&mut request).await;
            let reply = "HTTP/1.1 412 no\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nno";
            client.write_all(reply.as_bytes()).await.unwrap();
            // The next request gets no answer.
            tokio::spawn(async move { client.read(&mut request).await });
        }
    });
    let url = super::url(&format!("http://{address}/x"));
    let storage = Bench::new().engine.registry().route(&url).unwrap();
    for _ in 0..20 {
        let version = tesk_core::storage::Version("\"v\"".into());
        let range = tesk_core::storage::ByteRange::FULL;
        let error = storage.read(&url, range, Some(&version)).await;
        let error = error.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
}

#[tokio::test]
async fn where_head_is_refused_a_get_tells_the_size() {
    let server = Server::start().await;
    server.put("/x", content(100));
    server.put("/empty", "");
    for code in [400, 403, 405, 501] {
        server.script(move |method, _, _| (method == Method::HEAD).then(|| status(code)));
        let bench = Bench::new();
        assert_eq!(bench.fetch(&server.url("/x")).await.unwrap(), content(100));
        assert_eq!(bench.fetch(&server.url("/empty")).await.unwrap(), b"");
        let error = bench.fetch(&server.url("/missing")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
}

#[tokio::test]
async fn a_checksum_that_a_server_tells_is_compared() {
    let server = Server::start().await;
    use sha2::Digest as _;
    let expected = sha2::Sha256::digest(b"right");
    let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, expected);
    server.script(move |_, path, _| {
        let reply = Response::builder()
            .header("repr-digest", format!("sha-256=:{encoded}:"))
            .header(header::CONTENT_LENGTH, 5);
        let body = if path == "/right" { "right" } else { "wrong" };
        Some(reply.body(Body::from(body)).unwrap())
    });
    assert_eq!(
        Bench::new().fetch(&server.url("/right")).await.unwrap(),
        b"right"
    );
    let error = Bench::new().fetch(&server.url("/wrong")).await.unwrap_err();
    assert!(error.to_string().contains("checksum"), "{error}");
}

#[tokio::test]
async fn what_was_put_is_compared_with_the_checksum_that_a_server_tells() {
    use sha2::Digest as _;
    for (entry, what) in [("", "PUT"), ("\nwebdav = true", "MOVE")] {
        let entry = format!("[[storage]]\ntype = 'http'\nprefix = 'http://'{entry}");
        let server = Server::start_dav(None).await;
        for (stored, fine) in [("right", true), ("wrong", false)] {
            let sum = sha2::Sha256::digest(stored);
            let sum = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, sum);
            server.script(move |method, _, _| {
                let reply = Response::builder()
                    .header("repr-digest", format!("sha-256=:{sum}:"))
                    .header(header::CONTENT_LENGTH, 5);
                (method == Method::HEAD).then(|| reply.body(Body::empty()).unwrap())
            });
            let stored = Bench::with(&entry).store(b"right", &server.url("/x")).await;
            assert_eq!(stored.is_ok(), fine, "{what}: {stored:?}");
            if let Err(error) = stored {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
                assert!(error.to_string().contains("checksum"), "{error}");
            }
        }
    }
}

#[tokio::test]
async fn files_are_put_whatever_their_size() {
    let server = Server::start().await;
    for size in [0, 1, 5_000_000] {
        let moved = Bench::new()
            .store(&content(size), &server.url("/out/x"))
            .await
            .unwrap();
        assert_eq!(moved.size, size as u64);
        assert!(server.get("/out/x").unwrap() == content(size));
    }
}

#[tokio::test]
async fn a_put_follows_only_redirects_that_keep_it() {
    let server = Server::start().await;
    server.script(|method, path, _| {
        let code = path.strip_prefix("/from/")?.parse::<u16>().ok()?;
        let reply = Response::builder()
            .status(code)
            .header(header::LOCATION, "/to");
        (method == Method::PUT).then(|| reply.body(Body::empty()).unwrap())
    });
    for code in [307, 308] {
        let from = server.url(&format!("/from/{code}"));
        // What is asked for afterwards is at the first address.
        server.put(&format!("/from/{code}"), "content");
        Bench::new().store(b"content", &from).await.unwrap();
        assert_eq!(server.get("/to").unwrap(), "content");
    }
    for code in [301, 302, 303] {
        let from = server.url(&format!("/from/{code}"));
        let error = Bench::new().store(b"content", &from).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
}

#[tokio::test]
async fn an_address_goes_over_the_wire_as_it_was_written() {
    let server = Server::start().await;
    server.put("/a%20b%2Fc/x;y", "here");
    Bench::new()
        .fetch(&server.url("/a%20b%2Fc/x;y?sig=a%2Bb&c=d+e#fragment"))
        .await
        .unwrap();
    let (_, path, _) = &server.requests()[0];
    assert_eq!(path, "/a%20b%2Fc/x;y?sig=a%2Bb&c=d+e");
}

#[tokio::test]
async fn a_directory_is_not_fetched_from_a_web_server() {
    let bench = Bench::new();
    let to = bench.local("to");
    let from = super::url("http://127.0.0.1:9/d");
    let error = bench.engine.fetch_directory(&from, &to).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
}

#[tokio::test]
async fn a_server_is_asked_for_the_digest_of_the_whole_and_believed_in_a_part_too() {
    let digest = |of: &[u8]| {
        use base64::Engine as _;
        use sha2::Digest as _;
        let sum = base64::engine::general_purpose::STANDARD.encode(sha2::Sha256::digest(of));
        format!("sha-256=:{sum}:")
    };
    for (head, honest) in [(true, true), (true, false), (false, true), (false, false)] {
        let server = Server::start().await;
        server.put("/x", "here");
        let told = digest(if honest { b"here" } else { b"there" });
        server.script(move |method, _, headers| {
            // The whole is asked for without a range.
            let reply = match method.as_str() {
                "HEAD" if !head => return Some(status(403)),
                "HEAD" if headers.get("want-repr-digest")? == "sha-256=1" => {
                    Response::builder().header(header::CONTENT_LENGTH, 4)
                }
                "GET" if headers.contains_key(header::RANGE) => Response::builder()
                    .status(206)
                    .header(header::CONTENT_RANGE, "bytes 0-0/4"),
                _ => return None,
            };
            let body = if method == Method::GET { "h" } else { "" };
            let reply = reply.header("repr-digest", &told);
            Some(reply.body(Body::from(body)).unwrap())
        });
        let fetched = Bench::new().fetch(&server.url("/x")).await;
        if honest {
            assert_eq!(fetched.unwrap(), b"here");
        } else {
            let error = fetched.unwrap_err();
            assert!(error.to_string().contains("checksum"), "{head}: {error}");
        }
    }
}
