//! Against a whole server.

use std::time::Duration;

use futures_util::StreamExt as _;
use tesk_core::storage::{ByteRange, Entry, EntryKind, ErrorKind, Source};
use tesk_core::transfer::{Engine, Settings};

use super::ftp_server::FtpServer;
use super::{Bench, LARGE, content, registry, url};

const ENTRY: &str = "[[storage]]\ntype = 'ftp'\nprefix = ['ftp://', 'ftps://']";

async fn listed(config: &str, at: &str) -> tesk_core::storage::Result<Vec<Entry>> {
    use futures_util::TryStreamExt as _;
    let storage = registry(config).unwrap().route(&url(at)).unwrap();
    let mut entries: Vec<Entry> = storage.list(&url(at)).await?.try_collect().await?;
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(entries)
}

#[tokio::test]
async fn files_of_any_size_and_name_go_there_and_back() {
    let server = FtpServer::start().await;
    let bench = Bench::with(ENTRY);
    for (path, decoded, size) in [
        ("/empty", "empty", 0),
        ("/new/deep/dir/small", "new/deep/dir/small", 5),
        ("/new/deep/dir/again", "new/deep/dir/again", 5),
        ("/a%20b/%C3%A9%20%23%3F%25", "a b/é #?%", 100_000),
        ("/large", "large", 5_000_000),
    ] {
        let content = content(size);
        bench.store(&content, &server.url(path)).await.unwrap();
        assert!(server.get(decoded) == content, "{path}");
        assert!(
            bench.fetch(&server.url(path)).await.unwrap() == content,
            "{path}"
        );
    }
}

#[tokio::test]
async fn thousands_of_files_take_a_few_logins() {
    let server = FtpServer::start().await;
    for i in 0..1500 {
        server.put(&format!("d/{}/{}/f{i}", i % 7, i % 13), format!("{i}"));
    }
    let bench = Bench::with(&format!("{ENTRY}\nlisting_connections = 1"));
    let to = bench.local("tree");
    let moved = bench
        .engine
        .fetch_directory(&url(&server.url("/d")), &to)
        .await
        .unwrap();
    assert_eq!(moved.files, 1500);
    let read = std::fs::read(bench.directory.path().join("tree/3/5/f31")).unwrap();
    assert_eq!(read, b"31");
    // Of 16 files at once and a listing, with room for some that break.
    assert!(
        server.connections() <= 40,
        "{} logins",
        server.connections()
    );
}

#[tokio::test]
async fn a_reading_that_is_dropped_midway_spoils_nothing() {
    use futures_util::StreamExt as _;
    let server = FtpServer::start().await;
    let content = content(8_000_000);
    server.put("f", &content);
    let at = url(&server.url("/f"));
    let storage = registry(ENTRY).unwrap().route(&at).unwrap();
    for _ in 0..5 {
        let mut stream = storage
            .read(&at, (0..8_000_000).into(), None)
            .await
            .unwrap()
            .bytes;
        stream.next().await.unwrap().unwrap();
        drop(stream);
        let reading = storage.read(&at, (5..8).into(), None);
        let waiting = tokio::time::timeout(Duration::from_millis(1), reading).await;
        drop(waiting);
        let mut part = Vec::new();
        let mut stream = storage
            .read(&at, (3..1_000_003).into(), None)
            .await
            .unwrap()
            .bytes;
        while let Some(chunk) = stream.next().await {
            part.extend_from_slice(&chunk.unwrap());
        }
        assert!(part == content[3..1_000_003]);
    }
}

#[tokio::test]
async fn a_writing_that_is_dropped_midway_leaves_nothing_behind() {
    let _alone = LARGE.lock().await;
    let server = FtpServer::start().await;
    server.put("d/f", "old");
    let at = url(&server.url("/d/f"));
    let storage = registry(ENTRY).unwrap().route(&at).unwrap();
    let source = Source::bytes(content(200_000_000));
    let writing = storage.write(&at, &source);
    assert!(
        tokio::time::timeout(Duration::from_millis(80), writing)
            .await
            .is_err()
    );
    assert_eq!(server.get("d/f"), b"old");
    let begun = std::time::Instant::now();
    let mut names = Vec::new();
    while begun.elapsed() < Duration::from_secs(10) {
        let entries = std::fs::read_dir(server.files().join("d")).unwrap();
        names = entries.map(|entry| entry.unwrap().file_name()).collect();
        if names == ["f"] {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{names:?}");
}

#[tokio::test]
async fn encryption_is_explicit_and_nobody_unknown_is_trusted() {
    let server = FtpServer::start_encrypted(false).await;
    let ca_file = server.ca_file();
    let ca_file = ca_file.display();
    let trusting = Bench::with(&format!("{ENTRY}\ntls = 'explicit'\nca_file = '{ca_file}'"));
    let content = content(300_000);
    for path in ["/a", "/b", "/c/d"] {
        trusting.store(&content, &server.url(path)).await.unwrap();
        assert!(trusting.fetch(&server.url(path)).await.unwrap() == content);
    }
    trusting.store(b"", &server.url("/empty")).await.unwrap();
    assert_eq!(server.get("empty"), b"");

    let distrusting = Bench::with(&format!("{ENTRY}\ntls = 'explicit'"));
    let error = distrusting.fetch(&server.url("/a")).await.unwrap_err();
    assert!(error.to_string().contains("not trusted"), "{error}");
    assert!(!error.is_retryable(), "{error}");

    let plain = Bench::with(ENTRY);
    assert!(plain.fetch(&server.url("/a")).await.is_err());
}

#[tokio::test]
async fn every_data_connection_resumes_the_session_of_its_control_connection() {
    for (implicit, scheme, tls) in [(false, "ftp", "explicit"), (true, "ftps", "implicit")] {
        let server = FtpServer::start_encrypted(implicit).await;
        for i in 0..20 {
            server.put(&format!("d/{i}"), content(1000 * i));
        }
        let ca_file = server.ca_file();
        let options = format!("tls = '{tls}'\nca_file = '{}'", ca_file.display());
        let bench = Bench::with(&format!("{ENTRY}\n{options}"));
        let at = |path: &str| server.url(path).replace("ftp://", &format!("{scheme}://"));
        let to = bench.local("tree");
        let fetched = bench.engine.fetch_directory(&url(&at("/d")), &to).await;
        assert_eq!(fetched.unwrap().files, 20);
        bench.store(&content(300_000), &at("/new")).await.unwrap();
        let (resumed, not_resumed) = server.resumed_sessions();
        // A listing, 19 files that have bytes, one that is written.
        assert!(resumed >= 21, "{tls}: {resumed}");
        assert_eq!(not_resumed, 0, "{tls}");
    }
}

#[tokio::test]
async fn a_server_without_encryption_gets_no_password() {
    let server = FtpServer::start().await;
    server.put("f", "x");
    let bench = Bench::with(&format!("{ENTRY}\ntls = 'explicit'"));
    let error = bench.fetch(&server.url("/f")).await.unwrap_err();
    assert!(
        error.to_string().contains("no encrypted connection"),
        "{error}"
    );
    assert!(!error.is_retryable(), "{error}");
}

#[tokio::test]
async fn each_entry_logs_in_as_its_own_user() {
    let server = FtpServer::start().await;
    server.put("f", "x");
    let anyone = FtpServer::start_anonymous().await;
    anyone.put("f", "y");
    let directory = tempfile::tempdir().unwrap();
    let password = directory.path().join("password");
    std::fs::write(&password, "right\n").unwrap();
    let netrc = directory.path().join("netrc");
    let machines = "machine elsewhere login me password wrong\n\
                    machine 127.0.0.1 login me password right\n";
    std::fs::write(&netrc, machines).unwrap();
    let (at, password, netrc) = (server.address, password.display(), netrc.display());
    let with = |options: &str| {
        Bench::with(&format!(
            "[[storage]]\ntype = 'ftp'\nprefix = 'ftp://{at}'\n{options}"
        ))
    };
    let here = format!("ftp://{at}/f");
    for options in [
        format!("username = 'me'\npassword_file = '{password}'"),
        format!("netrc = '{netrc}'"),
    ] {
        assert_eq!(with(&options).fetch(&here).await.unwrap(), b"x");
    }
    // What the URL says wins, and a user alone gets the password of that user only.
    let options = format!("username = 'me'\npassword_file = '{password}'");
    let named = here.replace("://", "://me@");
    assert_eq!(with(&options).fetch(&named).await.unwrap(), b"x");
    for url in [
        here.clone(),
        server.url("/f").replace("right", "wr0ng"),
        here.replace("://", "://you@"),
    ] {
        let options = if url == here { "" } else { &options };
        let error = with(options).fetch(&url).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
        assert!(
            !error.is_retryable() && !error.to_string().contains("wr0ng"),
            "{error}"
        );
    }
    let anonymous = format!("ftp://{}/f", anyone.address);
    assert_eq!(Bench::with(ENTRY).fetch(&anonymous).await.unwrap(), b"y");
}

#[tokio::test]
async fn what_is_where_a_name_leads_is_told_apart() {
    let server = FtpServer::start().await;
    server.put("d/f", "x");
    std::fs::create_dir(server.files().join("d/empty")).unwrap();
    let at = |path: &str| url(&server.url(path));
    let storage = registry(ENTRY).unwrap().route(&at("/")).unwrap();
    let kind = async |path: &str| {
        storage
            .stat(&at(path))
            .await
            .unwrap()
            .map(|entry| entry.kind)
    };
    assert_eq!(kind("/").await, Some(EntryKind::Directory));
    assert_eq!(kind("/d/").await, Some(EntryKind::Directory));
    assert_eq!(kind("/nothing/f").await, None);
    let Some(EntryKind::File(info)) = kind("/d/f").await else {
        panic!("no file");
    };
    assert_eq!(info.size, Some(1));
    assert!(info.version.is_some());
    let entries = listed(ENTRY, &server.url("/d")).await.unwrap();
    assert_eq!(entries.len(), 2);
    assert_eq!(entries[1].path, "f");
    assert_eq!(entries[1].kind, EntryKind::File(info));
    for (path, expected) in [
        ("/nothing", ErrorKind::NotFound),
        ("/d/f", ErrorKind::Invalid),
    ] {
        let error = listed(ENTRY, &server.url(path)).await.unwrap_err();
        assert_eq!(error.kind(), expected, "{path}: {error}");
    }
    for (path, expected) in [
        ("/nothing", ErrorKind::NotFound),
        ("/d", ErrorKind::Invalid),
    ] {
        let error = Bench::with(ENTRY)
            .fetch(&server.url(path))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), expected, "{path}: {error}");
    }
}

#[tokio::test]
async fn an_entry_that_makes_no_sense_is_refused_when_it_is_read() {
    for (options, expected) in [
        ("tls = 'none'", "contradicts"),
        ("tls = 'maybe'", "maybe"),
        ("pasive = 'epsv'", "passive"),
        ("password_env = 'HOME'", "no `username`"),
        ("deny_networks = ['x']", "is no network"),
    ] {
        let error = registry(&format!("{ENTRY}\n{options}"))
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{options}: {error}");
    }
}

#[tokio::test]
async fn who_waits_for_a_connection_is_not_given_up() {
    let server = FtpServer::start().await;
    server.put("a", content(10 << 20));
    server.put("b", "b");
    let bench = Bench::with(&format!("{ENTRY}\nconnections = 1"));
    let settings = Settings {
        progress_timeout_secs: 5,
        retries: 0,
        ..Settings::default()
    };
    let engine = Engine::new(bench.engine.registry().clone(), &settings);
    let (a, b) = (url(&server.url("/a")), url(&server.url("/b")));
    let storage = engine.registry().route(&a).unwrap();
    let mut before = storage.read(&a, ByteRange::FULL, None).await.unwrap().bytes;
    let to = bench.local("b");
    let behind = engine.fetch_file(&b, &to, false);
    let before = async {
        for _ in 0..24 {
            before.next().await.unwrap().unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        drop(before);
    };
    let (fetched, ()) = tokio::join!(behind, before);
    fetched.unwrap();
}
