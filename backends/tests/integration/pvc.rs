use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::atomic::Ordering;

use tesk_core::storage::{EntryKind, ErrorKind};
use tesk_core::transfer::End;

use super::server::Server;
use super::{Bench, content, registry, url};

/// `file:///data` is a directory beside which a secret lies.
fn bench(options: &str) -> (Bench, tempfile::TempDir) {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), "s3cret").unwrap();
    std::fs::create_dir_all(outside.path().join("mnt/d")).unwrap();
    std::fs::write(outside.path().join("mnt/d/file"), "here").unwrap();
    let path = outside.path().join("mnt").display().to_string();
    let config = format!(
        "[[storage]]\ntype = 'pvc'\nprefix = 'file:///data'\npath = '{path}'\n{options}\n\
         [[storage]]\ntype = 'http'\nprefix = 'http://'"
    );
    (Bench::with(&config), outside)
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().mode() & 0o7777
}

#[tokio::test]
async fn nothing_outside_is_read_or_written() {
    let (bench, outside) = bench("");
    let mnt = outside.path().join("mnt");
    symlink("../secret", mnt.join("relative")).unwrap();
    symlink(outside.path().join("secret"), mnt.join("absolute")).unwrap();
    symlink("..", mnt.join("up")).unwrap();
    for path in [
        "/data/../secret",
        "file:///data/%2e%2e/secret",
        "/data/d/../../secret",
        "/data/relative",
        "/data/absolute",
        "/data/up/secret",
    ] {
        let error = bench.fetch(path).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{path}: {error}");
    }
    for path in ["/data/up/new", "/data/../new"] {
        let error = bench.store(b"x", path).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{path}: {error}");
    }
    // A symlink at the target itself is replaced, not followed.
    bench.store(b"x", "/data/relative").await.unwrap();
    assert_eq!(
        std::fs::read(outside.path().join("secret")).unwrap(),
        b"s3cret"
    );
    assert!(!outside.path().join("new").exists());
    let error = bench.fetch("/data2/file").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
}

#[tokio::test]
async fn a_symlink_within_is_its_target() {
    let (bench, outside) = bench("");
    symlink("d/file", outside.path().join("mnt/link")).unwrap();
    assert_eq!(bench.fetch("/data/link").await.unwrap(), b"here");
    let to = bench.local("to");
    let moved = bench
        .engine
        .fetch_directory(&url("/data/"), &to)
        .await
        .unwrap();
    assert_eq!(moved.files, 2);
    for path in ["to/d/file", "to/link"] {
        assert!(bench.directory.path().join(path).is_file(), "{path}");
    }
}

#[tokio::test]
async fn a_directory_with_a_bad_symlink_is_not_delivered_in_part_and_silence() {
    for target in ["nowhere", "../secret", "."] {
        let (bench, outside) = bench("");
        symlink(target, outside.path().join("mnt/bad")).unwrap();
        let to = bench.local("to");
        let fetched = bench.engine.fetch_directory(&url("/data"), &to).await;
        let error = fetched.unwrap_err().to_string();
        assert!(error.contains("`bad` cannot be listed"), "{error}");
    }
}

#[tokio::test]
async fn pipes_are_refused_without_waiting_for_them() {
    let (bench, outside) = bench("");
    let pipe = outside.path().join("mnt/d/pipe");
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let to = bench.local("to");
    let listed = bench.engine.fetch_directory(&url("/data/d"), &to).await;
    assert_eq!(listed.unwrap_err().kind(), ErrorKind::Invalid);
    let error = bench.fetch("/data/d/pipe").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
}

#[tokio::test]
async fn a_file_is_no_directory_and_the_reverse() {
    let (bench, _outside) = bench("");
    let error = bench.fetch("/data/d").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(error.to_string().starts_with("file:///data/d: "), "{error}");
    let to = bench.local("to");
    let fetched = bench
        .engine
        .fetch_directory(&url("/data/d/file"), &to)
        .await;
    assert_eq!(fetched.unwrap_err().kind(), ErrorKind::Invalid);
    let missing = bench.fetch("/data/none").await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn what_is_fetched_is_a_copy_for_any_user() {
    let (bench, outside) = bench("");
    let source = outside.path().join("mnt/d/file");
    std::fs::set_permissions(&source, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::create_dir(outside.path().join("mnt/d/empty")).unwrap();
    let to = bench.local("to/deep");
    bench
        .engine
        .fetch_directory(&url("/data/d"), &to)
        .await
        .unwrap();
    let to = bench.directory.path().join("to/deep");
    for path in ["file", "empty", ".."] {
        assert_eq!(mode(&to.join(path)), 0o777, "{path}");
    }
    std::fs::write(to.join("file"), "changed").unwrap();
    assert_eq!(std::fs::read(source).unwrap(), b"here");
}

#[tokio::test]
async fn what_is_stored_keeps_its_mode_but_runs_as_nobody_else() {
    let (bench, outside) = bench("");
    std::fs::write(bench.directory.path().join("tool"), "#!").unwrap();
    let permissions = std::fs::Permissions::from_mode(0o6755);
    std::fs::set_permissions(bench.directory.path().join("tool"), permissions).unwrap();
    let from = bench.local("tool");
    bench
        .engine
        .store_file(&from, &url("/data/new/tool"))
        .await
        .unwrap();
    assert_eq!(mode(&outside.path().join("mnt/new/tool")), 0o755);
    bench
        .engine
        .make_directory(&url("/data/a/b"))
        .await
        .unwrap();
    assert!(outside.path().join("mnt/a/b").is_dir());
}

#[tokio::test]
async fn a_read_only_directory_is_only_read() {
    let (bench, outside) = bench("read_only = true");
    assert_eq!(bench.fetch("/data/d/file").await.unwrap(), b"here");
    let error = bench.store(b"x", "/data/new").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let made = bench.engine.make_directory(&url("/data/new")).await;
    assert_eq!(made.unwrap_err().kind(), ErrorKind::Unsupported);
    assert!(!outside.path().join("mnt/new").exists());
}

#[tokio::test]
async fn files_are_copied_between_the_web_and_a_directory() {
    let (bench, outside) = bench("durable = true");
    let server = Server::start().await;
    server.put("/from", content(3_000_000));
    let (web, file) = (url(&server.url("/from")), url("/data/copy"));
    let moved = bench.engine.copy(&web, &file).await.unwrap();
    assert_eq!(moved.size, 3_000_000);
    assert!(std::fs::read(outside.path().join("mnt/copy")).unwrap() == content(3_000_000));
    bench
        .engine
        .copy(&file, &url(&server.url("/back")))
        .await
        .unwrap();
    assert!(server.get("/back").unwrap() == content(3_000_000));
    bench.engine.copy(&file, &url("/data/again")).await.unwrap();
    assert!(std::fs::read(outside.path().join("mnt/again")).unwrap() == content(3_000_000));
    let error = bench.engine.copy(&url("/data/d"), &file).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
}

#[tokio::test]
async fn a_file_that_is_not_finished_is_not_listed() {
    let (bench, outside) = bench("");
    let name = format!(".tesk-{:032x}.part", 7);
    std::fs::write(outside.path().join("mnt/d").join(name), "half").unwrap();
    let to = bench.local("to");
    let moved = bench
        .engine
        .fetch_directory(&url("/data/d"), &to)
        .await
        .unwrap();
    assert_eq!(moved.files, 1);
    let storage = bench.engine.registry().route(&url("/data/d")).unwrap();
    let found = storage.stat(&url("/data/d")).await.unwrap().unwrap();
    assert_eq!(found.kind, EntryKind::Directory);
}

#[test]
fn an_entry_that_cannot_be_used_says_why() {
    for (options, expected) in [
        ("path = 'mnt'", "path: `mnt` must be absolute"),
        ("readonly = true", "did you mean `read_only`?"),
    ] {
        let config = format!("[[storage]]\ntype = 'pvc'\nprefix = 'file:///data'\n{options}");
        let error = registry(&config).unwrap_err().to_string();
        assert!(error.contains(expected), "{options}: {error}");
    }
    let two = "[[storage]]\ntype = 'pvc'\nprefix = ['/a', '/b']";
    assert!(
        registry(two)
            .unwrap_err()
            .to_string()
            .contains("one `path` serves one prefix")
    );
}

#[tokio::test]
async fn a_volume_that_is_not_there_is_told_when_it_is_needed() {
    let outside = tempfile::tempdir().unwrap();
    let path = outside.path().join("later");
    let bench = Bench::with(&format!(
        "[[storage]]\ntype = 'pvc'\nprefix = 'file:///data'\npath = '{}'",
        path.display()
    ));
    let error = bench.fetch("/data/file").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(
        error.to_string().contains("its volume is not there"),
        "{error}"
    );
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("file"), "here").unwrap();
    assert_eq!(bench.fetch("/data/file").await.unwrap(), b"here");
}

#[tokio::test]
async fn files_of_any_size_go_both_ways() {
    let (bench, outside) = bench("");
    let names = ["empty", "small", "edge", "beyond", "large"];
    let sizes = [0, 5, 64 << 10, (64 << 10) + 1, 3 << 20];
    let from = bench.local("from");
    std::fs::create_dir_all(bench.directory.path().join("from/d")).unwrap();
    for (name, size) in names.iter().zip(sizes) {
        let path = bench.directory.path().join("from/d").join(name);
        std::fs::write(path, content(size)).unwrap();
    }
    let data = End::Url(url("/data/copy"));
    let local = |path| End::Local(path);
    let engine = &bench.engine;
    let copied = engine.copy_directory(&local(from), &data).await.unwrap();
    let bytes = sizes.iter().sum::<usize>() as u64;
    assert_eq!((copied.files, copied.bytes), (5, bytes));
    let to = bench.local("to");
    let copied = engine.copy_directory(&data, &local(to)).await.unwrap();
    assert_eq!((copied.files, copied.bytes), (5, bytes));
    let counters = engine.counters();
    assert_eq!(counters.files_done.load(Ordering::Relaxed), 10);
    assert_eq!(counters.bytes_done.load(Ordering::Relaxed), 2 * bytes);
    for directory in [
        outside.path().join("mnt/copy"),
        bench.directory.path().join("to"),
    ] {
        for (name, size) in names.iter().zip(sizes) {
            let found = std::fs::read(directory.join("d").join(name)).unwrap();
            assert!(found == content(size), "{name}");
        }
        assert_eq!(std::fs::read_dir(directory.join("d")).unwrap().count(), 5);
    }
}
