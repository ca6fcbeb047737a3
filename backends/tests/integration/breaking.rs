//! Large files over lines that keep breaking: what has arrived does not come again.

use tesk_conformance::proxy::Proxy;

use super::ftp_server::{FtpServer, front};
use super::server::Server;
use super::{Bench, LARGE, cuts};

const CONFIG: &str = "[[storage]]\ntype = 'ftp'\nprefix = 'ftp://'\n\
                      [[storage]]\ntype = 'http'\nprefix = 'http://'\n";

async fn fetch(what: &str, proxy: &Proxy, from: &str, content: &[u8]) {
    let config = if what.starts_with("webdav") {
        &format!("{CONFIG}webdav = true")
    } else {
        CONFIG
    };
    let bench = Bench::with_ranges(config, 32);
    cuts::breaks(proxy);
    assert!(bench.fetch(from).await.unwrap() == content);
    cuts::check(what, proxy, proxy.bytes_to_client());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_server_sends_little_twice_over_a_line_that_keeps_breaking() {
    let _alone = LARGE.lock().await;
    let (server, content) = (Server::start().await, cuts::content());
    server.put("/large", content.clone());
    let proxy = Proxy::start(server.address).await.unwrap();
    let from = format!("http://{}/large", proxy.address());
    fetch("http, fetched", &proxy, &from, &content).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webdav_server_sends_little_twice_over_a_line_that_keeps_breaking() {
    let _alone = LARGE.lock().await;
    let (server, content) = (Server::start_dav(None).await, cuts::content());
    let bench = Bench::new();
    bench.store(&content, &server.url("/large")).await.unwrap();
    let proxy = Proxy::start(server.address).await.unwrap();
    let from = format!("http://{}/large", proxy.address());
    fetch("webdav, fetched", &proxy, &from, &content).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ftp_server_sends_little_twice_over_a_line_that_keeps_breaking() {
    let _alone = LARGE.lock().await;
    let (server, content) = (FtpServer::start().await, cuts::content());
    server.put("large", &content);
    let proxy = Proxy::start(front::switchboard()).await.unwrap();
    let from = format!("ftp://me:right@{}/large", server.through(proxy.address()));
    fetch("ftp, fetched", &proxy, &from, &content).await;
}
