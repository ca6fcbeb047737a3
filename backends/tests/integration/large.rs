use std::process::Command;

use axum::body::{Body, Bytes};
use axum::http::{Method, Response, header};
use futures_util::stream;

use super::server::Server;
use super::{Bench, LARGE, url};

/// Set in the process that does the work: the memory of one that runs other tests too tells
/// nothing.
const CHILD: &str = "TESK_TEST_LARGE";
const SIZE: u64 = 256 << 20;
const CHUNK: usize = 1 << 20;

#[test]
fn memory_stays_bounded_whatever_the_size() {
    if std::env::var_os(CHILD).is_some() {
        return;
    }
    let _alone = LARGE.blocking_lock();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "large::work", "--include-ignored", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&child.stdout);
    assert!(
        child.status.success(),
        "{told}{}",
        String::from_utf8_lossy(&child.stderr)
    );
    assert!(told.contains("peak"), "the work was not done: {told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by the other test, in a process of its own"]
async fn work() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let server = Server::start().await;
    server.script(|method, _, _| {
        let chunk = Bytes::from(vec![7; CHUNK]);
        let chunks = (0..SIZE / CHUNK as u64).map(move |_| Ok::<_, std::io::Error>(chunk.clone()));
        let body = if method == Method::HEAD {
            Body::empty()
        } else {
            Body::from_stream(stream::iter(chunks))
        };
        let reply = Response::builder().header(header::CONTENT_LENGTH, SIZE);
        Some(reply.body(body).unwrap())
    });
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display();
    let bench = Bench::with(&format!(
        "[[storage]]\ntype = 'pvc'\nprefix = 'file:///data'\npath = '{path}'\n\
         [[storage]]\ntype = 'http'\nprefix = 'http://'"
    ));
    let before = peak_mib();
    let from = url(&server.url("/large"));
    bench
        .engine
        .copy(&from, &url("/data/by-copy"))
        .await
        .unwrap();
    let to = bench.local("by-fetch");
    bench.engine.fetch_file(&from, &to, false).await.unwrap();
    bench
        .engine
        .copy(&url("/data/by-copy"), &url("/data/in-kernel"))
        .await
        .unwrap();
    let grown = peak_mib() - before;
    println!("peak grew by {grown} MiB");
    assert!(grown < 48, "the peak grew by {grown} MiB");
    let copied = std::fs::metadata(directory.path().join("in-kernel")).unwrap();
    assert_eq!(copied.len(), SIZE);
}

fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}
