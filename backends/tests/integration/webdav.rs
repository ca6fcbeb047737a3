use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Response, header};
use futures_util::{StreamExt as _, TryStreamExt as _};
use tesk_core::storage::{
    ByteRange, Capabilities, Entry, EntryKind, Error, ErrorKind, Opened, Source, Storage,
    StorageUrl, Version,
};
use tesk_core::transfer::{Engine, Settings};

use super::server::Server;
use super::{Bench, content, url};

const ENTRY: &str = "[[storage]]\ntype = 'http'\nprefix = ['http://', 'https://']\nwebdav = true";

fn bench() -> Bench {
    Bench::with(ENTRY)
}

fn storage(bench: &Bench, at: &StorageUrl) -> Arc<dyn Storage> {
    bench.engine.registry().route(at).unwrap()
}

async fn write(storage: &Arc<dyn Storage>, at: &StorageUrl, content: &str) -> Result<(), Error> {
    let source = Source::bytes(content.to_owned());
    storage.write(at, &source).await.map(drop)
}

async fn list(storage: &Arc<dyn Storage>, at: &StorageUrl) -> Result<Vec<Entry>, Error> {
    storage.list(at).await?.try_collect().await
}

fn status(code: u16) -> axum::response::Response {
    let reply = Response::builder().status(code);
    reply.body(Body::from("a stranger's words")).unwrap()
}

fn multistatus(body: impl Into<Body>) -> axum::response::Response {
    Response::builder().status(207).body(body.into()).unwrap()
}

/// A listing of `/d/` with whatever else is in it.
fn listing(more: &str) -> String {
    format!(
        "<multistatus xmlns='DAV:'>{}{more}</multistatus>",
        resource("/d/", "<resourcetype><collection/></resourcetype>")
    )
}

fn resource(href: &str, properties: &str) -> String {
    format!(
        "<response><href>{href}</href><propstat><prop>{properties}</prop>\
         <status>HTTP/1.1 200 OK</status></propstat></response>"
    )
}

#[tokio::test]
async fn a_move_that_was_done_but_not_answered_is_done() {
    let reply = |status: &str, body: &str| {
        let length = body.len();
        format!(
            "HTTP/1.1 {status} x\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
    };
    for (unanswered, fine) in [(true, true), (false, false)] {
        // The directory, the PUT, a look at what came, the MOVE.
        let mut replies = vec![reply("207", &listing("")), reply("201", "")];
        replies.push("HTTP/1.1 200 x\r\nContent-Length: 1\r\nConnection: close\r\n\r\n".into());
        replies.extend(unanswered.then(String::new));
        replies.push(reply("404", ""));
        let at = url(&super::http::raw(replies).await.replace("/file", "/d/file"));
        let written = write(&storage(&bench(), &at), &at, "x").await;
        assert_eq!(written.is_ok(), fine, "{written:?}");
    }
}

#[tokio::test]
async fn a_move_that_was_done_but_not_answered_finds_its_target_taken() {
    let reply = |status: &str, body: &str| {
        let length = body.len();
        format!(
            "HTTP/1.1 {status} x\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
    };
    let file = listing("").replace("<collection/>", "");
    // The source is gone, so it was this MOVE that took the place; or it is there.
    for after in [
        vec![reply("404", "")],
        vec![reply("207", &file), reply("207", &file), reply("204", "")],
    ] {
        let mut replies = vec![reply("207", &listing("")), reply("201", "")];
        replies.push("HTTP/1.1 200 x\r\nContent-Length: 1\r\nConnection: close\r\n\r\n".into());
        replies.extend([String::new(), reply("412", "")]);
        replies.extend(after);
        let at = url(&super::http::raw(replies).await.replace("/file", "/d/file"));
        let written = write(&storage(&bench(), &at), &at, "x").await;
        assert!(written.is_ok(), "{written:?}");
    }
}

#[tokio::test]
async fn a_server_that_does_not_answer_keeps_nobody_from_writing_to_another() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (server, bench) = (Server::start_dav(None).await, bench());
    let stuck = url(&format!("http://{}/d/x", silent.local_addr().unwrap()));
    let at = url(&server.url("/d/x"));
    let storage = storage(&bench, &at);
    let waiting = tokio::spawn({
        let storage = storage.clone();
        async move { write(&storage, &stuck, "x").await }
    });
    let (_asked, _) = silent.accept().await.unwrap();
    let written = tokio::time::timeout(Duration::from_secs(5), write(&storage, &at, "x")).await;
    written.expect("it waits for the other").unwrap();
    waiting.abort();
}

/// A server that answers every `PROPFIND` so.
async fn listing_server(document: String) -> Server {
    let server = Server::start_dav(None).await;
    server.script(move |method, _, _| {
        (method.as_str() == "PROPFIND").then(|| multistatus(document.clone()))
    });
    server
}

fn count(server: &Server, name: &str) -> usize {
    let requests = server.requests().into_iter();
    requests
        .filter(|(method, ..)| method.as_str() == name)
        .count()
}

#[tokio::test]
async fn directories_go_both_ways_and_are_made_once() {
    let (server, bench) = (Server::start_dav(Some("right")).await, bench());
    let to = server.url("/a/b").replace("://", "://me:right@");
    for i in 0..60 {
        let at = url(&format!("{to}/d{}/f%20{i}", i % 2));
        bench
            .store(format!("{i}").as_bytes(), &at.to_secret_string())
            .await
            .unwrap();
    }
    bench
        .engine
        .make_directory(&url(&format!("{to}/empty")))
        .await
        .unwrap();
    assert_eq!(count(&server, "MKCOL"), 5);
    assert!(
        count(&server, "PROPFIND") < 15,
        "each file looks for its directory"
    );
    let target = bench.local("tree");
    let moved = bench.engine.fetch_directory(&url(&to), &target).await;
    assert_eq!(moved.unwrap().files, 60);
    let tree = bench.directory.path().join("tree");
    assert!(tree.join("empty").is_dir());
    for i in 0..60 {
        let read = std::fs::read(tree.join(format!("d{}/f {i}", i % 2))).unwrap();
        assert_eq!(read, format!("{i}").as_bytes());
    }
}

#[tokio::test]
async fn what_is_not_finished_has_another_name_and_is_removed() {
    for (name, code, kind, retryable) in [
        ("PUT", 507, ErrorKind::Full, false),
        ("PUT", 423, ErrorKind::Unavailable, true),
        ("PUT", 403, ErrorKind::Denied, false),
        ("MOVE", 423, ErrorKind::Unavailable, true),
        ("MOVE", 403, ErrorKind::Denied, false),
        ("MOVE", 507, ErrorKind::Full, false),
    ] {
        let (server, bench) = (Server::start_dav(None).await, bench());
        let at = url(&server.url("/d/x"));
        let storage = storage(&bench, &at);
        write(&storage, &at, "old").await.unwrap();
        server.script(move |method, _, _| (method.as_str() == name).then(|| status(code)));
        let error = write(&storage, &at, "new").await.unwrap_err();
        assert_eq!(
            (error.kind(), error.is_retryable()),
            (kind, retryable),
            "{name} {code}: {error}"
        );
        let requests = server.requests();
        let (last, path, _) = requests.last().unwrap();
        assert_eq!(last.as_str(), "DELETE");
        assert!(path.starts_with("/d/.tesk-"), "{path}");
        for (method, path, _) in &requests {
            assert!(method != "PUT" || path.starts_with("/d/.tesk-"), "{path}");
        }
        server.script(|_, _, _| None);
        let mut read = storage
            .read(&at, ByteRange::FULL, None)
            .await
            .unwrap()
            .bytes;
        assert_eq!(read.next().await.unwrap().unwrap(), "old");
    }
}

#[tokio::test]
async fn what_arrives_short_never_takes_its_place() {
    let (server, bench) = (Server::start_dav(None).await, bench());
    let at = url(&server.url("/x"));
    server.script(|method, _, _| {
        let reply = Response::builder().header(header::CONTENT_LENGTH, 2);
        (method == "HEAD").then(|| reply.body(Body::empty()).unwrap())
    });
    let error = write(&storage(&bench, &at), &at, "new").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(
        error.to_string().contains("2 bytes arrived of 3"),
        "{error}"
    );
    assert_eq!(count(&server, "MOVE"), 0);
    assert_eq!(count(&server, "DELETE"), 1);
}

/// A file of which only the beginning ever comes.
#[derive(Debug)]
struct Endless;

#[async_trait::async_trait]
impl Storage for Endless {
    fn capabilities(&self) -> Capabilities {
        Capabilities::read_only()
    }
    async fn stat(&self, _: &StorageUrl) -> Result<Option<Entry>, Error> {
        Ok(None)
    }
    async fn read(
        &self,
        _: &StorageUrl,
        _: ByteRange,
        _: Option<&Version>,
    ) -> Result<Opened, Error> {
        let first = futures_util::stream::iter([Ok(Bytes::from(content(100_000)))]);
        Ok(first.chain(futures_util::stream::pending()).boxed().into())
    }
}

#[tokio::test]
async fn a_writing_that_is_dropped_removes_what_it_began() {
    let (server, bench) = (Server::start_dav(None).await, bench());
    let at = url(&server.url("/x"));
    let storage = storage(&bench, &at);
    let writing = tokio::spawn({
        let (storage, at) = (storage.clone(), at.clone());
        async move {
            let source = Source::storage(Arc::new(Endless), at.clone(), 200_000, None);
            storage.write(&at, &source).await
        }
    });
    let put = async || {
        loop {
            let requests = server.requests().into_iter();
            let mut puts = requests.filter(|(method, ..)| *method == "PUT");
            if let Some((_, path, _)) = puts.next() {
                break url(&server.url(&path));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let temporary = put().await;
    while storage.stat(&temporary).await.unwrap().is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(storage.stat(&at).await.unwrap().is_none());
    let root = url(&server.url("/"));
    assert!(list(&storage, &root).await.unwrap().is_empty());
    writing.abort();
    let gone = async {
        while storage.stat(&temporary).await.unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let gone = tokio::time::timeout(Duration::from_secs(10), gone).await;
    gone.expect("it is left behind");
    assert_eq!(count(&server, "MOVE"), 0);
}

#[tokio::test]
async fn a_directory_that_is_gone_is_made_again() {
    let (server, bench) = (Server::start_dav(None).await, bench());
    let at = url(&server.url("/d/e/x"));
    let (storage, other) = (storage(&bench, &at), self::bench());
    write(&storage, &at, "one").await.unwrap();
    let behind = self::storage(&other, &at);
    for gone in ["/d/e/x", "/d/e", "/d"] {
        behind.remove(&url(&server.url(gone))).await.unwrap();
    }
    write(&storage, &at, "two").await.unwrap();
    for gone in ["/d/e/x", "/d/e"] {
        behind.remove(&url(&server.url(gone))).await.unwrap();
    }
    let directory = url(&server.url("/d/e"));
    storage.make_directory(&directory).await.unwrap();
    let found = storage.stat(&directory).await.unwrap().unwrap();
    assert_eq!(found.kind, EntryKind::Directory);
}

#[tokio::test]
async fn a_directory_is_removed_only_when_nothing_is_seen_in_it() {
    let deleted = async |document: String| {
        let server = listing_server(document).await;
        let (bench, at) = (bench(), url(&server.url("/d")));
        let removed = storage(&bench, &at).remove(&at).await;
        (removed.is_ok(), count(&server, "DELETE"))
    };
    assert_eq!(deleted(listing("")).await, (true, 1));
    let gone = "<response><href>/d/x</href><status>HTTP/1.1 404 no</status></response>";
    assert_eq!(deleted(listing(gone)).await, (true, 1));
    let unfinished = format!("/d/{}", tesk_core::rooted::temp_name());
    for href in ["/d/x", "/d/x/", "http://elsewhere/d/x", "/e", &unfinished] {
        let found = listing(&resource(href, ""));
        assert_eq!(deleted(found).await, (false, 0), "{href}");
    }
    // Nor when it is not said what it is, or not all of it.
    let nothing = "<multistatus xmlns='DAV:'></multistatus>".to_owned();
    assert_eq!(deleted(nothing).await, (false, 0));
    let cut = listing("").replace("</multistatus>", "");
    assert_eq!(deleted(cut).await, (false, 0));
}

#[tokio::test]
async fn a_directory_is_never_overwritten_by_a_file() {
    let (server, bench) = (Server::start_dav(None).await, bench());
    let (file, directory) = (url(&server.url("/d/x")), url(&server.url("/d")));
    let storage = storage(&bench, &file);
    write(&storage, &file, "x").await.unwrap();
    for at in [&directory, &url(&server.url("/d/"))] {
        let error = write(&storage, at, "y").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        let from = url(&server.url("/from"));
        write(&storage, &from, "y").await.unwrap();
        let error = storage.rename(&from, at).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
    for (_, _, headers) in server.requests() {
        let to = headers.get("destination").map(|to| to.to_str().unwrap());
        let to_directory = to.is_some_and(|to| to.ends_with("/d"));
        assert!(!to_directory || headers["overwrite"] == "F");
    }
    assert!(storage.stat(&file).await.unwrap().is_some());
}

#[tokio::test]
async fn a_server_that_mistakes_its_own_address_is_asked_without_it() {
    for code in [400, 502] {
        let (server, bench) = (Server::start_dav(None).await, bench());
        let at = url(&server.url("/a%20b/x?token=s3cret"));
        let storage = storage(&bench, &at);
        server.script(move |method, _, headers| {
            let absolute = headers.get("destination").is_some_and(|d| d != "/a%20b/x");
            (method.as_str() == "MOVE" && absolute).then(|| status(code))
        });
        write(&storage, &at, "new").await.unwrap();
        for (_, path, headers) in server.requests() {
            assert!(path.ends_with("?token=s3cret"), "{path}");
            let destination = headers.get("destination").map(|d| d.to_str().unwrap());
            assert!(!destination.unwrap_or_default().contains("s3cret"));
        }
    }
}

#[tokio::test]
async fn a_listing_never_leads_out_of_its_directory() {
    let elsewhere = Server::start().await;
    let hostile = [
        elsewhere.url("/d/x").replace("127.0.0.1", "localhost"),
        "http://169.254.169.254/d/x".into(),
        "//evil/d/x".into(),
        "file:///etc/passwd".into(),
        "/etc/passwd".into(),
        "../x".into(),
        "/d/../../x".into(),
        "/d/%2e%2e/x".into(),
        "/d/..%2f..%2fx".into(),
        "/d/a%2fb".into(),
        "/d/a/b".into(),
        "/d/%00".into(),
        "/d/%ff".into(),
        "/dd".into(),
        String::new(),
    ];
    for href in hostile {
        for slash in ["", "/"] {
            let collection = "<resourcetype><collection/></resourcetype>";
            let document = listing(&resource(&format!("{href}{slash}"), collection));
            if slash == "/" && href.is_empty() {
                continue;
            }
            let (server, bench) = (listing_server(document).await, bench());
            let to = bench.local("to");
            let from = url(&server.url("/d"));
            let fetched = bench.engine.fetch_directory(&from, &to).await;
            let error = fetched.expect_err(&href);
            assert_eq!(error.kind(), ErrorKind::Invalid, "{href}: {error}");
            assert!(!error.is_retryable(), "{href}: {error}");
            let asked = server.requests();
            assert!(asked.iter().all(|(_, path, _)| path == "/d/"), "{href}");
            let read = std::fs::read_dir(bench.directory.path().join("to")).unwrap();
            assert_eq!(read.count(), 0, "{href}");
        }
    }
    assert!(elsewhere.requests().is_empty());
}

#[tokio::test]
async fn names_are_what_their_escapes_stand_for() {
    let (server, bench) = (Server::start_dav(None).await, bench());
    server.script(|method, path, _| {
        let here = |href: &str| resource(href, "<getcontentlength>4</getcontentlength>");
        let found = listing(&format!(
            "{}{}{}{}{}",
            here("/d/a%20b%25%23%3f"),
            here("a&amp;b"),
            here("https://127.0.0.1/d/%C3%A4?x"),
            here("/d/back%5Cslash"),
            here("/%64/one"),
        ));
        let known = [
            "/d/a%20b%25%23%3F",
            "/d/a&b",
            "/d/%C3%A4",
            "/d/back%5Cslash",
            "/d/one",
        ];
        match method.as_str() {
            "PROPFIND" if path == "/d/" => Some(multistatus(found)),
            "GET" if known.contains(&path) => Some(Response::new(Body::from("here"))),
            _ => None,
        }
    });
    let to = bench.local("to");
    let from = url(&server.url("/d/"));
    let moved = bench.engine.fetch_directory(&from, &to).await.unwrap();
    assert_eq!(moved.files, 5);
    for name in ["a b%#?", "a&b", "back\\slash", "one", "ä"] {
        assert!(
            bench.directory.path().join("to").join(name).is_file(),
            "{name}"
        );
    }
}

#[tokio::test]
async fn every_file_of_a_directory_is_compared_with_the_checksum_of_its_reply() {
    // Of `here`, and of nothing.
    for (md5, fine) in [
        ("bJIoX6bT6CexmNEg6jrGdA==", true),
        ("1B2M2Y8AsgTpgAmY7PhCfg==", false),
    ] {
        let file = resource("/d/f", "<getcontentlength>4</getcontentlength>");
        let (server, bench) = (Server::start_dav(None).await, bench());
        server.script(move |method, _, headers| match method.as_str() {
            "PROPFIND" => Some(multistatus(listing(&file))),
            "GET" => {
                let mut reply = Response::builder().header("etag", "\"1\"");
                if headers.contains_key("want-repr-digest") {
                    reply = reply.header("content-md5", md5);
                }
                Some(reply.body(Body::from("here")).unwrap())
            }
            _ => None,
        });
        let (from, to) = (url(&server.url("/d/")), bench.local("to"));
        let once = Settings {
            retries: 0,
            ..Settings::default()
        };
        let engine = Engine::new(bench.engine.registry().clone(), &once);
        let fetched = engine.fetch_directory(&from, &to).await;
        assert_eq!(fetched.is_ok(), fine, "{fetched:?}");
        assert_eq!(count(&server, "HEAD"), 0, "a listing tells enough");
        if let Err(error) = fetched {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        }
    }
}

#[tokio::test]
async fn properties_that_are_missing_are_not_needed() {
    let (server, bench) = (Server::start_dav(None).await, bench());
    server.script(|method, path, _| match (method.as_str(), path) {
        ("PROPFIND", "/d/") => Some(multistatus(listing(
            "<response><href>/d/x</href></response>\
             <response><href>/d/y</href><propstat><prop><getcontentlength/><getetag/>\
             <getlastmodified>yesterday</getlastmodified></prop>\
             <status>HTTP/1.1 404 Not Found</status></propstat></response>\
             <response><href>/d/z</href><propstat><prop>\
             <getcontentlength>many</getcontentlength></prop></propstat></response>",
        ))),
        ("GET", _) => Some(Response::new(Body::from(path.to_owned()))),
        _ => None,
    });
    let to = bench.local("to");
    let from = url(&server.url("/d"));
    bench.engine.fetch_directory(&from, &to).await.unwrap();
    for name in ["x", "y", "z"] {
        let read = std::fs::read_to_string(bench.directory.path().join("to").join(name));
        assert_eq!(read.unwrap(), format!("/d/{name}"));
    }
}

#[tokio::test]
async fn what_a_server_says_of_a_part_counts() {
    let of = |status: &str| {
        listing(&format!(
            "<response><href>/d/x</href><status>HTTP/1.1 {status}</status></response>"
        ))
    };
    for (said, kind) in [
        ("403 Forbidden", Some(ErrorKind::Denied)),
        ("507 Full", Some(ErrorKind::Full)),
        ("404 gone meanwhile", None),
    ] {
        let (server, bench) = (listing_server(of(said)).await, bench());
        let at = url(&server.url("/d"));
        let listed = list(&storage(&bench, &at), &at).await;
        assert_eq!(listed.as_ref().err().map(Error::kind), kind, "{said}");
        assert!(listed.is_err() || listed.unwrap().is_empty());
    }
}

#[tokio::test]
async fn documents_meant_to_exhaust_are_given_up() {
    let bomb = "<!DOCTYPE m [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;&a;&a;&a;&a;&a;'>]>\
                <multistatus xmlns='DAV:'><response><href>/d/&b;</href></response></multistatus>";
    let nested = format!("<multistatus xmlns='DAV:'>{}", "<a>".repeat(50_000));
    for document in [bomb.to_owned(), nested] {
        let (server, bench) = (listing_server(document).await, bench());
        let at = url(&server.url("/d"));
        let error = list(&storage(&bench, &at), &at).await.unwrap_err();
        assert!(!error.is_retryable(), "{error}");
        assert!(error.to_string().contains("makes no sense"), "{error}");
    }
    // Ones without end.
    let long = "x".repeat(60_000);
    let one = &*format!("<response><href>/d/x</href><!--{long}--></response>");
    let within = "more is said of one resource";
    for (endless, why) in [
        ("x", within),
        (" ", within),
        ("<!-- -->", within),
        ("<a/>", within),
        ("<response/>", "is no address"),
        (one, "it is too long"),
    ] {
        let (server, bench) = (Server::start_dav(None).await, bench());
        let block = Bytes::from(endless.repeat(1 + 4096 / endless.len()));
        server.script(move |method, _, _| {
            let block = block.clone();
            let first = Bytes::from("<multistatus xmlns='DAV:'>");
            let blocks =
                futures_util::stream::repeat_with(move || Ok::<_, std::io::Error>(block.clone()));
            let all = futures_util::stream::iter([Ok(first)]).chain(blocks);
            (method.as_str() == "PROPFIND").then(|| multistatus(Body::from_stream(all)))
        });
        let at = url(&server.url("/d"));
        let storage = storage(&bench, &at);
        let listing = tokio::time::timeout(Duration::from_mins(1), list(&storage, &at));
        let error = listing.await.expect("it goes on").unwrap_err();
        assert!(!error.is_retryable(), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[tokio::test]
async fn a_listing_that_is_cut_is_no_directory() {
    let whole = listing(&resource("/d/x", "<getcontentlength>1</getcontentlength>"));
    let (server, bench) = (Server::start_dav(None).await, bench());
    let at = url(&server.url("/d"));
    let document = whole.clone();
    server.script(move |method, _, _| {
        let cut = document.replace("</multistatus>", "");
        (method.as_str() == "PROPFIND").then(|| multistatus(cut))
    });
    let storage = storage(&bench, &at);
    let error = list(&storage, &at).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.is_retryable(), "{error}");
    server.script(move |method, _, _| {
        (method.as_str() == "PROPFIND").then(|| multistatus(whole.clone()))
    });
    assert_eq!(list(&storage, &at).await.unwrap().len(), 1);
}

#[tokio::test]
async fn directories_that_go_round_in_circles_come_to_an_end() {
    let server = Server::start_dav(None).await;
    server.script(|method, path, _| {
        let collection = "<resourcetype><collection/></resourcetype>";
        let below = resource(&format!("{path}again/"), collection);
        let found = format!(
            "<multistatus xmlns='DAV:'>{}{below}</multistatus>",
            resource(path, collection)
        );
        (method.as_str() == "PROPFIND").then(|| multistatus(found))
    });
    let (bench, at) = (bench(), url(&server.url("/d")));
    let error = list(&storage(&bench, &at), &at).await.unwrap_err();
    assert!(error.to_string().contains("round in circles"), "{error}");
    assert!(count(&server, "PROPFIND") <= 101);
}

#[tokio::test]
async fn redirects_are_followed_to_look_but_not_to_change() {
    let (home, away) = (
        Server::start_dav(Some("s3cret")).await,
        Server::start_dav(None).await,
    );
    let bench = bench();
    let at = |server: &Server, path: &str| {
        url(&server.url(path).replace("127.0.0.1", "me:s3cret@127.0.0.1"))
    };
    let storage = storage(&bench, &at(&home, "/"));
    write(&storage, &at(&away, "/d/x"), "here").await.unwrap();
    let before = away.requests().len();
    let to = away.url("");
    home.script(move |_, path, _| {
        let reply = Response::builder().status(301);
        let to = format!("{to}{path}");
        Some(
            reply
                .header(header::LOCATION, to)
                .body(Body::empty())
                .unwrap(),
        )
    });
    let listed = list(&storage, &at(&home, "/d")).await.unwrap();
    assert_eq!(listed.len(), 1);
    let asked = away.requests().split_off(before);
    assert!(!asked.is_empty());
    for (_, _, headers) in asked {
        assert!(!headers.contains_key(header::AUTHORIZATION));
    }
    for code in [301, 302, 303, 307, 308] {
        let to = away.url("/y");
        home.script(move |method, _, _: &HeaderMap| {
            let changes = matches!(method.as_str(), "MOVE" | "DELETE" | "MKCOL");
            let reply = Response::builder().status(code);
            let reply = reply.header(header::LOCATION, &to).body(Body::empty());
            (changes && (code < 304 || method.as_str() == "MOVE")).then(|| reply.unwrap())
        });
        let file = at(&home, &format!("/file{code}"));
        let error = write(&storage, &file, "x").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{code}: {error}");
        if code < 304 {
            let directory = at(&home, "/new/directory");
            let made = storage.make_directory(&directory).await;
            assert_eq!(made.unwrap_err().kind(), ErrorKind::Invalid, "{code}");
        }
    }
    let all = away.requests();
    assert!(all.iter().all(|(_, path, _)| path != "/y"), "{all:?}");
}

#[tokio::test]
async fn no_method_reaches_a_refused_address() {
    let server = Server::start_dav(None).await;
    server.script(|_, _, _| {
        let reply = Response::builder().status(307);
        let to = "http://169.254.169.254/latest";
        Some(
            reply
                .header(header::LOCATION, to)
                .body(Body::empty())
                .unwrap(),
        )
    });
    let bench = bench();
    for at in [
        url("http://169.254.169.254/d/x"),
        url("http://[::ffff:a9fe:a9fe]/d/x"),
        url(&server.url("/d/x")),
    ] {
        let storage = storage(&bench, &at);
        for error in [
            storage.stat(&at).await.unwrap_err(),
            list(&storage, &at).await.unwrap_err(),
            write(&storage, &at, "x").await.unwrap_err(),
            storage.make_directory(&at).await.unwrap_err(),
            storage.rename(&at, &at.sibling("y")).await.unwrap_err(),
            storage.remove(&at).await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        }
    }
}

#[tokio::test]
async fn a_server_without_webdav_is_told_apart() {
    for code in [200, 405, 501] {
        let (server, bench) = (Server::start_dav(None).await, bench());
        server.script(move |method, _, _| (method.as_str() == "PROPFIND").then(|| status(code)));
        let at = url(&server.url("/d"));
        let error = list(&storage(&bench, &at), &at).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains("speaks no WebDAV"), "{error}");
    }
}

#[tokio::test]
async fn without_the_option_no_server_is_asked_for_more_than_files() {
    let server = Server::start_dav(None).await;
    let bench = Bench::new();
    bench.store(b"x", &server.url("/x")).await.unwrap();
    assert_eq!(bench.fetch(&server.url("/x")).await.unwrap(), b"x");
    let at = url(&server.url("/d"));
    let storage = storage(&bench, &at);
    for error in [
        list(&storage, &at).await.unwrap_err(),
        storage.make_directory(&at).await.unwrap_err(),
        storage.rename(&at, &at).await.unwrap_err(),
        storage.remove(&at).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    }
    for (method, ..) in server.requests() {
        assert!(
            matches!(method.as_str(), "HEAD" | "GET" | "PUT"),
            "{method}"
        );
    }
}

#[tokio::test]
async fn read_only_changes_nothing() {
    let server = Server::start_dav(None).await;
    let at = url(&server.url("/x"));
    write(&storage(&bench(), &at), &at, "x").await.unwrap();
    let before = server.requests().len();
    let bench = Bench::with(&format!("{ENTRY}\nread_only = true"));
    let storage = storage(&bench, &at);
    for error in [
        write(&storage, &at, "y").await.unwrap_err(),
        storage.make_directory(&at).await.unwrap_err(),
        storage.rename(&at, &at).await.unwrap_err(),
        storage.remove(&at).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    }
    assert_eq!(server.requests().len(), before);
    let root = url(&server.url("/"));
    assert_eq!(list(&storage, &root).await.unwrap().len(), 1);
}

#[tokio::test]
async fn paths_that_go_up_are_refused() {
    let (server, bench) = (Server::start_dav(None).await, bench());
    for path in ["/a/../b", "/a/%2e%2e/b", "/..", "/a/.%2E", "/./a"] {
        let at = url(&server.url(path));
        let storage = storage(&bench, &at);
        for error in [
            storage.stat(&at).await.unwrap_err(),
            list(&storage, &at).await.unwrap_err(),
            write(&storage, &at, "x").await.unwrap_err(),
            storage.make_directory(&at).await.unwrap_err(),
            storage.rename(&at, &at).await.unwrap_err(),
            storage.remove(&at).await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Invalid, "{path}: {error}");
        }
    }
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn versions_in_listings_count_where_reads_know_them() {
    let (server, bench) = (Server::start_dav(None).await, bench());
    let at = url(&server.url("/d/big"));
    write(&storage(&bench, &at), &at, "").await.unwrap();
    std::fs::write(bench.directory.path().join("out"), content(5 << 20)).unwrap();
    bench
        .engine
        .store_file(&bench.local("out"), &at)
        .await
        .unwrap();
    let head = storage(&bench, &at).stat(&at).await.unwrap().unwrap();
    let EntryKind::File(info) = head.kind else {
        panic!("{head:?}");
    };
    let tag = info.version.unwrap().0;
    // Some servers forget the quotes.
    let bare = tag.trim_matches('"').to_owned();
    let tags = [(tag, true), (bare, true), ("\"other\"".to_owned(), false)];
    // Else it would be looked at for its checksum.
    let settings = Settings {
        range_mib: 1,
        verify: false,
        ..Settings::default()
    };
    let engine = Engine::new(bench.engine.registry().clone(), &settings);
    for (i, (tag, honest)) in tags.into_iter().enumerate() {
        server.script(move |method, path, _| {
            let listed =
                format!("<getcontentlength>5242880</getcontentlength><getetag>{tag}</getetag>");
            let found = listing(&resource("/d/big", &listed));
            (method.as_str() == "PROPFIND" && path == "/d/").then(|| multistatus(found))
        });
        let before = server.requests().len();
        let to = bench.local(&format!("to{i}"));
        let from = url(&server.url("/d"));
        engine.fetch_directory(&from, &to).await.unwrap();
        let asked = server.requests().split_off(before);
        let reads = asked.iter().filter(|(method, ..)| *method == "GET");
        let (parts, whole): (Vec<_>, Vec<_>) =
            reads.partition(|(_, _, headers)| headers.contains_key(header::IF_MATCH));
        assert_eq!(parts.len() > 1, honest, "{parts:?}");
        assert_eq!(whole.len() == 1, !honest, "{whole:?}");
    }
}

#[tokio::test]
async fn a_server_that_shows_no_half_file_is_spared_the_move() {
    let server = Server::start_dav(None).await;
    let bench = Bench::with(&format!("{ENTRY}\natomic_put = true"));
    let at = url(&server.url("/a/b/file"));
    let storage = storage(&bench, &at);
    write(&storage, &at, "first").await.unwrap();
    write(&storage, &at, "second").await.unwrap();
    assert_eq!(
        bench.fetch(&server.url("/a/b/file")).await.unwrap(),
        b"second"
    );
    assert_eq!((count(&server, "PUT"), count(&server, "MOVE")), (2, 0));

    // What it has stored is looked at all the same.
    server.script(|method, _, _| {
        let short = Response::builder().header(header::CONTENT_LENGTH, 3);
        (method.as_str() == "HEAD").then(|| short.body(Body::empty()).unwrap())
    });
    let error = write(&storage, &at, "third").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");

    let entry = "[[storage]]\ntype = 'http'\nprefix = 'http://'\natomic_put = true";
    let error = super::registry(entry).unwrap_err();
    assert!(error.to_string().contains("webdav"), "{error}");
}
