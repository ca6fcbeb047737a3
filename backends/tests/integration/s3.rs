//! The S3 backend behind the transfer engine, against a server in this process.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use s3s::S3ErrorCode;
use tesk_conformance::proxy::{Fault, Proxy};
use tesk_core::rooted::{RelPath, Root, Symlinks};
use tesk_core::storage::{
    ByteRange, Checksum, Entry, EntryKind, ErrorKind, LocalPath, Result, Source, Storage, cleanup,
};
use tesk_core::transfer::{Engine, Settings};

use super::s3_server::{Faith, ID, S3Server, SECRET};
use super::{LARGE, content, cuts, registry, url};

/// A server, a storage entry for it, and a directory of this machine.
struct Bench {
    server: S3Server,
    config: String,
    directory: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Self {
        Self::with("").await
    }

    async fn with(options: &str) -> Self {
        let server = S3Server::start().await;
        let directory = tempfile::tempdir().unwrap();
        let endpoint = format!("http://{}", server.address);
        let config = entry(&directory, "s3://", &endpoint, SECRET) + options;
        Self {
            server,
            config,
            directory,
        }
    }

    /// The same by way of another address.
    fn through(&self, address: std::net::SocketAddr) -> String {
        let server = self.server.address.to_string();
        self.config.replace(&server, &address.to_string())
    }

    fn storage(&self) -> Arc<dyn Storage> {
        storage(&self.config)
    }

    fn local(&self, name: &str) -> LocalPath {
        LocalPath {
            root: Arc::new(Root::open(self.directory.path(), Symlinks::InRoot).unwrap()),
            path: RelPath::new(name).unwrap(),
        }
    }

    fn file(&self, name: &str, content: &[u8]) -> LocalPath {
        std::fs::write(self.directory.path().join(name), content).unwrap();
        self.local(name)
    }

    /// What is left of uploads, when those that are thrown away behind the scenes are.
    async fn uploads_left(&self) -> usize {
        for _ in 0..100 {
            if self.server.uploads() == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.server.uploads()
    }
}

fn entry(directory: &tempfile::TempDir, prefix: &str, endpoint: &str, secret: &str) -> String {
    let path = |name: &str| directory.path().join(name);
    let file = format!("secret-{}", secret.len());
    std::fs::write(path("id"), format!("{ID}\n")).unwrap();
    std::fs::write(path(&file), secret).unwrap();
    format!(
        "[[storage]]\ntype = 's3'\nprefix = '{prefix}'\nendpoint = '{endpoint}'\n\
         access_key_id_file = '{}'\nsecret_access_key_file = '{}'\n",
        path("id").display(),
        path(&file).display()
    )
}

fn storage(config: &str) -> Arc<dyn Storage> {
    registry(config)
        .unwrap()
        .route(&url("s3://bucket"))
        .unwrap()
}

fn engine(config: &str) -> Engine {
    let settings = Settings {
        retry_base_ms: 5,
        retry_max_ms: 20,
        progress_timeout_secs: 60,
        ..Settings::default()
    };
    Engine::new(Arc::new(registry(config).unwrap()), &settings)
}

async fn read(storage: &Arc<dyn Storage>, from: &str, range: ByteRange) -> Result<Vec<u8>> {
    let stream = storage.read(&url(from), range, None).await?.bytes;
    let chunks: Vec<_> = stream.try_collect().await?;
    Ok(chunks.concat())
}

#[tokio::test]
async fn a_large_object_goes_in_parts_and_comes_back_in_ranges() {
    let bench = Bench::new().await;
    let content = content(45 << 20);
    let engine = engine(&bench.config);
    let file = bench.file("out", &content);
    engine
        .store_file(&file, &url("s3://bucket/large"))
        .await
        .unwrap();
    assert!(bench.server.content("large").unwrap() == content);
    assert_eq!(bench.server.uploads(), 0);
    assert_eq!(bench.server.part_bytes(), content.len());
    let info = bench.storage().stat(&url("s3://bucket/large")).await;
    let Some(EntryKind::File(info)) = info.unwrap().map(|e| e.kind) else {
        panic!("no file");
    };
    assert_eq!(info.checksum, None, "nine parts have no MD5");
    assert!(info.version.unwrap().0.ends_with("-9\""));
    engine
        .fetch_file(&url("s3://bucket/large"), &bench.local("back"), false)
        .await
        .unwrap();
    assert!(std::fs::read(bench.directory.path().join("back")).unwrap() == content);
}

#[tokio::test]
async fn a_cut_in_the_middle_costs_a_part_and_not_the_object() {
    let bench = Bench::new().await;
    let proxy = Proxy::start(bench.server.address).await.unwrap();
    let content = content(45 << 20);
    let engine = engine(&bench.through(proxy.address()));
    let file = bench.file("out", &content);
    // The first connection carries the beginning of the upload and its first part.
    proxy.faults([
        Fault::CutUploadAfter(5 << 20),
        Fault::CutUploadAfter(3 << 20),
    ]);
    engine
        .store_file(&file, &url("s3://bucket/large"))
        .await
        .unwrap();
    assert!(bench.server.content("large").unwrap() == content);
    assert_eq!(
        bench.server.part_bytes(),
        content.len(),
        "no part that had arrived was sent again"
    );
    assert!(proxy.connections() > 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn little_goes_twice_over_a_line_that_keeps_breaking() {
    let _alone = LARGE.lock().await;
    let bench = Bench::new().await;
    let content = cuts::content();
    let file = bench.file("out", &content);
    let large = url("s3://bucket/large");

    let proxy = Proxy::start(bench.server.address).await.unwrap();
    let breaking = engine(&bench.through(proxy.address()));
    cuts::breaks_uploads(&proxy);
    breaking.store_file(&file, &large).await.unwrap();
    assert!(bench.server.content("large").unwrap() == content);
    cuts::check("s3, delivered", &proxy, proxy.bytes_to_server());

    let proxy = Proxy::start(bench.server.address).await.unwrap();
    let breaking = engine(&bench.through(proxy.address()));
    cuts::breaks(&proxy);
    let back = bench.local("back");
    breaking.fetch_file(&large, &back, false).await.unwrap();
    assert!(std::fs::read(bench.directory.path().join("back")).unwrap() == content);
    cuts::check("s3, fetched", &proxy, proxy.bytes_to_client());
}

#[tokio::test]
async fn a_part_that_did_not_arrive_as_it_was_sent_is_sent_again() {
    let (content, part) = (content(20 << 20), 5 << 20);
    let to = url("s3://bucket/large");
    for (damaged, kms, fine) in [(1, false, true), (0, true, true), (1000, false, false)] {
        let bench = Bench::new().await;
        let kms = Faith {
            kms,
            ..Faith::default()
        };
        bench.server.is(kms);
        bench.server.damages(damaged);
        let file = bench.file("out", &content);
        let stored = engine(&bench.config).store_file(&file, &to).await;
        if fine {
            stored.unwrap();
            assert!(bench.server.content("large").unwrap() == content);
            let sent = bench.server.part_bytes();
            assert_eq!(sent, content.len() + damaged * part);
        } else {
            assert_eq!(stored.unwrap_err().kind(), ErrorKind::Corrupt);
            assert_eq!(bench.server.content("large"), None);
        }
    }
}

#[tokio::test]
async fn a_server_that_keeps_what_came_never_gets_half_an_object() {
    let bench = Bench::new().await;
    bench.server.is(Faith {
        keeps_what_came: true,
        ..Faith::default()
    });
    let proxy = Proxy::start(bench.server.address).await.unwrap();
    let storage = storage(&bench.through(proxy.address()));
    for size in [3 << 20, 20 << 20] {
        proxy.faults([Fault::CutUploadAfter(1 << 20); 8]);
        let source = Source::bytes(content(size));
        let written = storage.write(&url("s3://bucket/file"), &source).await;
        let error = written.unwrap_err();
        assert!(error.is_retryable(), "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(bench.server.content("file"), None);
    }
}

#[tokio::test]
async fn an_upload_that_fails_or_is_dropped_leaves_nothing() {
    let bench = Bench::new().await;
    let file = bench.file("out", &content(20 << 20));
    bench.server.fails([("part", S3ErrorCode::AccessDenied)]);
    let engine = engine(&bench.config);
    let to = url("s3://bucket/large");
    let error = engine.store_file(&file, &to).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert_eq!(bench.uploads_left().await, 0);

    let storage = bench.storage();
    let upload = storage.begin_upload(&to, 20 << 20).await.unwrap();
    let source = Source::local(&file).unwrap();
    upload.part(1, &source).await.unwrap();
    assert_eq!(bench.server.uploads(), 1);
    let error = upload.complete().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    drop(upload);
    assert_eq!(bench.uploads_left().await, 0);

    // Begun by the server, but nobody waited for it.
    for millis in 0..20 {
        let begin = storage.begin_upload(&to, 20 << 20);
        let _ = tokio::time::timeout(Duration::from_millis(millis), begin).await;
        cleanup::finish().await;
        assert_eq!(bench.server.uploads(), 0, "after {millis} ms");
    }
    assert!(bench.server.keys().is_empty());
}

#[tokio::test]
async fn an_end_whose_answer_was_lost_is_an_end() {
    let bench = Bench::new().await;
    let file = bench.file("out", &content(20 << 20));
    bench.server.fails([("lost", S3ErrorCode::InternalError)]);
    let moved = engine(&bench.config)
        .store_file(&file, &url("s3://bucket/large"))
        .await
        .unwrap();
    assert_eq!(moved.size, 20 << 20);
    // Another's object of that name is not taken for it.
    bench
        .server
        .fails([("complete", S3ErrorCode::NoSuchUpload)]);
    bench.server.put("large", "another");
    let error = engine(&bench.config)
        .store_file(&file, &url("s3://bucket/large"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Other, "{error}");
}

#[tokio::test]
async fn trouble_of_the_server_is_waited_out() {
    let bench = Bench::new().await;
    let file = bench.file("out", &content(20 << 20));
    bench.server.fails([
        ("create", S3ErrorCode::SlowDown),
        ("part", S3ErrorCode::InternalError),
        ("part", S3ErrorCode::RequestTimeout),
        ("complete", S3ErrorCode::ServiceUnavailable),
        ("head", S3ErrorCode::InternalError),
        ("get", S3ErrorCode::SlowDown),
        ("list", S3ErrorCode::SlowDown),
    ]);
    let engine = engine(&bench.config);
    let to = url("s3://bucket/d/large");
    engine.store_file(&file, &to).await.unwrap();
    engine
        .fetch_file(&to, &bench.local("back"), false)
        .await
        .unwrap();
    let moved = engine
        .fetch_directory(&url("s3://bucket/d"), &bench.local("all"))
        .await
        .unwrap();
    assert_eq!(moved.files, 1);
}

#[tokio::test]
async fn every_object_of_a_directory_is_compared_with_its_checksum() {
    // In one piece in memory, in one stream, in ranges.
    for size in [10, 100_000, 3 << 20] {
        let bench = Bench::new().await;
        bench.server.put("d/a", content(size));
        let settings = Settings {
            range_mib: 1,
            retries: 0,
            ..Settings::default()
        };
        let registry = Arc::new(registry(&bench.config).unwrap());
        let (from, engine) = (url("s3://bucket/d"), Engine::new(registry, &settings));
        let good = engine.fetch_directory(&from, &bench.local("good")).await;
        assert_eq!(good.unwrap().files, 1);
        bench.server.spoil("d/a");
        let bad = engine.fetch_directory(&from, &bench.local("bad")).await;
        assert_eq!(bad.unwrap_err().kind(), ErrorKind::Corrupt, "{size}");
        assert!(!bench.directory.path().join("bad/a").exists(), "{size}");
    }
}

#[tokio::test]
async fn odd_keys_are_themselves_or_refused() {
    let bench = Bench::new().await;
    let engine = engine(&bench.config);
    let file = bench.file("out", b"x");
    let keys = [
        "a b",
        "a%20b",
        "a+b",
        "a?b=c&d",
        "a#b",
        "a;b",
        "\u{e4}\u{6f22}",
        "...",
        ".a",
        "a..",
        "!'()*~$@:,=",
        "a\\b",
        "<a>",
        "{a}",
        "%",
        "d/ a",
        "\"",
    ];
    for key in keys {
        let to = url(&format!("s3://bucket/{key}"));
        engine.store_file(&file, &to).await.unwrap();
        assert!(bench.server.content(key).is_some(), "{key}");
        engine
            .fetch_file(&to, &bench.local("back"), false)
            .await
            .unwrap();
    }
    let before = bench.server.keys();
    for key in [
        "/a", "a//b", " a", "a ", "../a", "a/../b", "a/./b", "d/", "",
    ] {
        let to = url(&format!("s3://bucket/{key}"));
        let error = engine.store_file(&file, &to).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{key:?}: {error}");
    }
    assert_eq!(bench.server.keys(), before);
}

#[tokio::test]
async fn a_bucket_is_no_way_to_another_host() {
    let bench = Bench::new().await;
    // OpenDAL would cut the name from `http://127.0.0.1` and speak to `http://0.0.1`.
    bench.server.put_in("127", "key", "here");
    let storage = bench.storage();
    assert_eq!(
        read(&storage, "s3://127/key", ByteRange::FULL)
            .await
            .unwrap(),
        b"here"
    );
    for bucket in ["evil.example.org#", "127.0.0.1:1", "a/../b", "..", "b%2fc"] {
        let error = storage.stat(&url(&format!("s3://{bucket}/key"))).await;
        let error = match error {
            Ok(found) => panic!("{bucket}: {found:?}"),
            Err(error) => error,
        };
        assert!(
            matches!(error.kind(), ErrorKind::Invalid),
            "{bucket}: {error}"
        );
    }
    let error = storage.stat(&url("s3://missing/key")).await.unwrap_err();
    assert!(error.to_string().contains("no such bucket"), "{error}");
}

#[tokio::test]
async fn only_networks_and_hosts_that_are_allowed_are_reached() {
    let bench = Bench::new().await;
    bench.server.put("file", "here");
    let by_name = bench.config.replace("127.0.0.1", "localhost");
    let file = url("s3://bucket/file");
    for (config, options) in [
        (&by_name, ""),
        (&by_name, "allow_hosts = ['LOCALHOST']"),
        (
            &by_name,
            "allow_private = false\nallow_networks = ['127.0.0.0/8', '::1']",
        ),
        // The operator has chosen it.
        (&bench.config, "allow_private = false"),
    ] {
        let storage = storage(&format!("{config}{options}"));
        assert!(storage.stat(&file).await.unwrap().is_some(), "{options}");
    }
    for options in [
        "allow_private = false",
        "deny_networks = ['127.0.0.0/8', '::1']",
        "deny_hosts = ['localhost']",
        "allow_hosts = ['example.org']",
        "path_style = false\ndeny_hosts = ['bucket.localhost']",
        "path_style = false\nallow_hosts = ['localhost']",
    ] {
        let storage = storage(&format!("{by_name}{options}"));
        for error in [
            storage.stat(&file).await.unwrap_err(),
            storage.list(&url("s3://bucket")).await.err().unwrap(),
            read(&storage, "s3://bucket/file", ByteRange::FULL)
                .await
                .unwrap_err(),
            storage.write(&file, &Source::bytes("x")).await.unwrap_err(),
            storage.begin_upload(&file, 9 << 20).await.err().unwrap(),
            storage.remove(&file).await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Denied, "{options}: {error}");
            let text = error.to_string();
            assert!(text.contains("is not reached from here"), "{text}");
        }
    }
    assert_eq!(bench.server.content("file").unwrap(), "here");
}

#[tokio::test]
async fn markers_are_directories_and_a_directory_is_what_has_keys() {
    let bench = Bench::new().await;
    for key in ["d/", "d/e/", "d/e/f", "d/empty/", "dd", "both", "both/x"] {
        bench.server.put(key, "");
    }
    let storage = bench.storage();
    let kind = async |key: &str| {
        let found = storage.stat(&url(&format!("s3://bucket/{key}"))).await;
        found
            .unwrap()
            .map(|entry| entry.kind == EntryKind::Directory)
    };
    assert_eq!(kind("d").await, Some(true));
    assert_eq!(kind("d/").await, Some(true));
    assert_eq!(kind("d/empty").await, Some(true));
    assert_eq!(kind("both").await, Some(false));
    assert_eq!(kind("both/").await, Some(true));
    assert_eq!(kind("dd/").await, None);
    assert_eq!(kind("").await, Some(true));
    let list = async |key: &str| {
        let entries = storage.list(&url(&format!("s3://bucket/{key}"))).await?;
        let entries: Vec<Entry> = entries.try_collect().await?;
        let shown = |entry: Entry| (entry.path, entry.kind == EntryKind::Directory);
        Ok(entries.into_iter().map(shown).collect::<Vec<_>>())
    };
    let expected = [("e", true), ("e/f", false), ("empty", true)];
    let expected = expected.map(|(path, directory)| (path.to_owned(), directory));
    assert_eq!(list("d").await.unwrap(), expected);
    assert_eq!(list("d/empty").await.unwrap(), []);
    assert_eq!(list("").await.unwrap().len(), 7);
    let error: tesk_core::storage::Error = list("dd").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    let error = list("nothing").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");

    let remove = async |key: &str| storage.remove(&url(&format!("s3://bucket/{key}"))).await;
    assert!(remove("d").await.is_err());
    assert!(remove("").await.is_err());
    remove("d/empty").await.unwrap();
    remove("both").await.unwrap();
    let left = [
        "bucket/both/x",
        "bucket/d/",
        "bucket/d/e/",
        "bucket/d/e/f",
        "bucket/dd",
    ];
    assert_eq!(bench.server.keys(), left);
}

#[tokio::test]
async fn ranges_are_exact_or_an_error() {
    let bench = Bench::new().await;
    let content = content(300_000);
    bench.server.put("file", content.clone());
    bench.server.put("empty", "");
    let storage = bench.storage();
    for range in [
        0..1,
        0..300_000,
        299_999..300_000,
        70_000..200_001,
        5..5,
        300_000..300_000,
    ] {
        let expected = &content[range.start as usize..range.end as usize];
        let got = read(&storage, "s3://bucket/file", range.clone().into()).await;
        assert!(got.unwrap() == expected, "{range:?}");
    }
    let from = |start| ByteRange::from(start);
    let got = read(&storage, "s3://bucket/file", from(299_998)).await;
    assert_eq!(got.unwrap(), content[299_998..]);
    assert!(
        read(&storage, "s3://bucket/file", from(300_000))
            .await
            .unwrap()
            .is_empty()
    );
    assert!(
        read(&storage, "s3://bucket/empty", ByteRange::FULL)
            .await
            .unwrap()
            .is_empty()
    );
    for range in [
        (0..300_001).into(),
        from(300_001),
        (400_000..400_000).into(),
    ] {
        let error = read(&storage, "s3://bucket/file", range).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{range:?}: {error}");
    }
    bench.server.is(Faith {
        ignores_ranges: true,
        ..Faith::default()
    });
    let error = read(&storage, "s3://bucket/file", from(5))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
}

#[tokio::test]
async fn another_version_is_never_read_for_the_one_that_was_asked_for() {
    for ignores_if_match in [false, true] {
        let bench = Bench::new().await;
        bench.server.is(Faith {
            ignores_if_match,
            ..Faith::default()
        });
        bench.server.put("file", "old");
        let storage = bench.storage();
        let file = url("s3://bucket/file");
        let found = storage.stat(&file).await.unwrap().unwrap();
        let EntryKind::File(info) = found.kind else {
            panic!("no file");
        };
        bench.server.put("file", "new");
        for range in [ByteRange::FULL, (1..2).into(), (2..2).into()] {
            let read = storage.read(&file, range, info.version.as_ref()).await;
            let Err(error) = read else {
                panic!("{range:?} was read");
            };
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        }
    }
}

#[tokio::test]
async fn an_entity_tag_is_a_checksum_unless_the_object_is_encrypted() {
    let bench = Bench::new().await;
    let storage = bench.storage();
    let file = url("s3://bucket/file");
    for kms in [false, true] {
        bench.server.is(Faith {
            kms,
            denies_checksums: true,
            ..Faith::default()
        });
        let written = storage.write(&file, &Source::bytes("x")).await.unwrap();
        let found = storage.stat(&file).await.unwrap().unwrap();
        let EntryKind::File(info) = found.kind else {
            panic!("no file");
        };
        assert_eq!(written.checksum, info.checksum);
        assert_eq!(matches!(info.checksum, Some(Checksum::Md5(_))), !kms);
    }
}

#[tokio::test]
async fn the_checksum_that_a_server_keeps_is_asked_for() {
    use sha2::Digest as _;
    let bench = Bench::new().await;
    bench.server.put("file", "x");
    let found = bench.storage().stat(&url("s3://bucket/file")).await;
    let Some(EntryKind::File(info)) = found.unwrap().map(|found| found.kind) else {
        panic!("no file");
    };
    let sum = sha2::Sha256::digest("x").into();
    assert_eq!(info.checksum, Some(Checksum::Sha256(sum)));
    assert_eq!(info.size, Some(1));
    assert!(info.version.is_some());
}

#[tokio::test]
async fn checksums_and_settings_go_with_what_is_written() {
    for (options, header) in [
        ("checksum = 'md5'", "content-md5"),
        ("checksum = 'sha256'", "x-amz-checksum-sha256"),
    ] {
        let bench = Bench::with(options).await;
        let storage = bench.storage();
        for size in [0, 3, 20 << 20] {
            let source = Source::bytes(content(size));
            storage
                .write(&url("s3://bucket/file"), &source)
                .await
                .unwrap();
            assert!(bench.server.header(header).is_some(), "{options} {size}");
            assert_eq!(bench.server.content("file").unwrap().len(), size);
        }
    }
    let bench = Bench::with(
        "encryption = 'aws:kms'\nkms_key_id = 'k'\nstorage_class = 'STANDARD_IA'\n\
         request_payer = true",
    )
    .await;
    let source = Source::bytes("x");
    bench
        .storage()
        .write(&url("s3://bucket/file"), &source)
        .await
        .unwrap();
    for (name, value) in [
        ("x-amz-server-side-encryption", "aws:kms"),
        ("x-amz-server-side-encryption-aws-kms-key-id", "k"),
        ("x-amz-storage-class", "STANDARD_IA"),
        ("x-amz-request-payer", "requester"),
    ] {
        assert_eq!(bench.server.header(name).as_deref(), Some(value), "{name}");
    }
}

#[tokio::test]
async fn the_checksum_of_a_part_is_sent_whether_it_is_read_twice_or_kept() {
    use base64::Engine as _;
    use md5::Digest as _;
    let bench = Bench::with("checksum = 'md5'").await;
    let part = content(5 << 20);
    let sum = md5::Md5::digest(&part);
    let sum = base64::engine::general_purpose::STANDARD.encode(sum);
    // Two equal parts: whichever is the last that is sent has this checksum.
    let content = part.repeat(2);
    let file = bench.file("out", &content);
    let (engine, to) = (engine(&bench.config), url("s3://bucket/file"));
    engine.store_file(&file, &to).await.unwrap();
    assert_eq!(bench.server.header("content-md5").as_ref(), Some(&sum));
    assert!(bench.server.content("file").unwrap() == content);
    let counters = engine.counters();
    let moved = counters.bytes_done.load(Ordering::Relaxed);
    assert_eq!(moved, content.len() as u64, "counted once, if read twice");

    // From another storage: nothing is read twice.
    bench.server.put("from", content.clone());
    let (from, to) = (url("s3://bucket/from"), url("s3://bucket/copy"));
    engine.copy(&from, &to).await.unwrap();
    assert_eq!(bench.server.header("content-md5").as_ref(), Some(&sum));
    assert!(bench.server.content("copy").unwrap() == content);

    let storage = bench.storage();
    let upload = storage.begin_upload(&to, 10 << 20).await.unwrap();
    let local = Source::local(&file).unwrap();
    assert_eq!(upload.part_memory(&local), 0);
    assert_eq!(upload.part_memory(&Source::bytes(content)), 5 << 20);
}

#[tokio::test]
async fn no_error_holds_a_key_or_a_signature() {
    let bench = Bench::new().await;
    bench.server.put("file", "x");
    let endpoint = format!("http://{}", bench.server.address);
    let wrong = "wrong-s3cr3t";
    let config = entry(&bench.directory, "s3://", &endpoint, wrong);
    let storage = storage(&config);
    let file = url("s3://bucket/file");
    let mut errors = vec![
        storage.stat(&file).await.unwrap_err(),
        storage
            .read(&file, ByteRange::FULL, None)
            .await
            .err()
            .unwrap(),
        storage.list(&url("s3://bucket")).await.err().unwrap(),
        storage.write(&file, &Source::bytes("x")).await.unwrap_err(),
        storage.begin_upload(&file, 9 << 20).await.err().unwrap(),
    ];
    for error in &errors {
        let kind = error.kind();
        assert!(
            matches!(kind, ErrorKind::Denied | ErrorKind::Unauthenticated),
            "{error}"
        );
        assert!(!error.is_retryable(), "{error}");
    }
    errors.push(
        storage
            .stat(&url("s3://me:s3cr3t@bucket/a"))
            .await
            .unwrap_err(),
    );
    for error in errors {
        for text in [error.to_string(), format!("{error:?}")] {
            for secret in [ID, wrong, "s3cr3t", "ignature=", "AWS4"] {
                assert!(!text.contains(secret), "{text}");
            }
        }
    }
    assert!(!format!("{storage:?}").contains("s3cr3t"));
}

#[tokio::test]
async fn a_public_bucket_is_read_without_credentials() {
    let bench = Bench::new().await;
    bench.server.put_in("public", "file", "for all");
    bench.server.put("file", "for some");
    let config = format!(
        "[[storage]]\ntype = 's3'\nprefix = 's3://'\nendpoint = 'http://{}'\nanonymous = true",
        bench.server.address
    );
    let storage = storage(&config);
    let got = read(&storage, "s3://public/file", ByteRange::FULL).await;
    assert_eq!(got.unwrap(), b"for all");
    let error = storage.stat(&url("s3://bucket/file")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
}

#[tokio::test]
async fn two_servers_live_side_by_side() {
    let (one, two) = (Bench::new().await, Bench::new().await);
    let second = two.config.replace("'s3://'", "'s3://public/'");
    let engine = engine(&format!("{}{second}", one.config));
    let file = one.file("out", b"x");
    engine
        .store_file(&file, &url("s3://bucket/a"))
        .await
        .unwrap();
    engine
        .store_file(&file, &url("s3://public/b"))
        .await
        .unwrap();
    assert_eq!(one.server.keys(), ["bucket/a"]);
    assert_eq!(two.server.keys(), ["public/b"]);
    engine
        .copy(&url("s3://bucket/a"), &url("s3://public/c"))
        .await
        .unwrap();
    assert_eq!(two.server.keys(), ["public/b", "public/c"]);
}

#[tokio::test]
async fn the_aws_files_say_who_and_where() {
    let bench = Bench::new().await;
    bench.server.put("file", "x");
    let path = |name: &str| bench.directory.path().join(name);
    std::fs::write(
        path("config"),
        format!(
            "[default]\nregion = eu-west-1\n[profile lab]\nregion = us-east-1\nendpoint_url = http://{}\n",
            bench.server.address
        ),
    )
    .unwrap();
    std::fs::write(
        path("credentials"),
        format!("[lab]\naws_access_key_id = {ID}\naws_secret_access_key = {SECRET}\n"),
    )
    .unwrap();
    let config = format!(
        "[[storage]]\ntype = 's3'\nprefix = 's3://'\nprofile = 'lab'\nconfig_file = '{}'\n\
         credentials_file = '{}'",
        path("config").display(),
        path("credentials").display()
    );
    let got = read(&storage(&config), "s3://bucket/file", ByteRange::FULL).await;
    assert_eq!(got.unwrap(), b"x");
    let nobody = config.replace("'lab'", "'none'") + "\nendpoint = 'http://127.0.0.1:9'";
    let error = storage(&nobody)
        .stat(&url("s3://bucket/file"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
}
