//! Every backend keeps the promises of `Storage`.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use tesk_conformance::storage::{self, Subject};
use tesk_core::storage::{Capabilities, ConfigEntry, Storage, StorageUrl};

#[path = "support/ftp.rs"]
mod ftp;
#[path = "support/server.rs"]
mod server;

use ftp::FtpServer;
use server::Server;

#[derive(serde::Deserialize)]
struct Config {
    storage: Vec<ConfigEntry>,
}

/// The storage of a configuration's only entry.
fn configured(entry: &str, url: &str) -> anyhow::Result<(Arc<dyn Storage>, StorageUrl)> {
    let config: Config = toml::from_str(&format!("[[storage]]\n{entry}"))?;
    let registry = tesk_backends::builtin().build(&config.storage)?;
    let url = url.parse::<StorageUrl>()?;
    Ok((registry.route(&url)?, url))
}

fn main() -> ExitCode {
    let directory = match tempfile::tempdir() {
        Ok(directory) => directory,
        Err(error) => {
            eprintln!("error: no temporary directory: {error}");
            return ExitCode::FAILURE;
        }
    };
    storage::main(async || {
        let path = directory
            .path()
            .to_str()
            .context("a path that is no text")?;
        let entry = format!("type = 'pvc'\nprefix = 'file:///data'\npath = '{path}'");
        let (storage, url) = configured(&entry, "file:///data/scratch")?;
        let mut claims = Capabilities::read_only();
        claims.list = true;
        claims.ranges = true;
        let reading = claims;
        claims.write = true;
        claims.atomic_write = true;
        claims.directories = true;
        claims.rename = true;
        claims.remove = true;
        claims.modes = true;
        let pvc = Subject::new("pvc", storage.clone(), url)
            .on("a directory of this machine")
            .at_least(claims);

        let (read_only, url) = configured(
            &format!("{entry}\nread_only = true"),
            "file:///data/read-only",
        )?;
        let read_only = Subject::new("pvc-read-only", read_only, url)
            .on("a directory of this machine")
            .at_least(reading)
            .seeded(move |url, bytes| {
                let storage = storage.clone();
                async move {
                    let source = tesk_core::storage::Source::bytes(bytes);
                    storage.write(&url, &source).await?;
                    Ok(())
                }
            });

        let server = Server::start_with_password(Some("right")).await;
        server.put("/locked", "x");
        let entry = "type = 'http'\nprefix = 'http://'";
        let address = |host| format!("http://me:right@{host}/scratch");
        let (storage, url) = configured(entry, &address(server.address))?;
        let mut claims = Capabilities::read_only();
        claims.ranges = true;
        claims.write = true;
        let wrong = server.url("/locked").replace("://", "://me:wrong@");
        let http = Subject::new("http", storage.clone(), url)
            .on("axum, in the test")
            .at_least(claims)
            .reached_through(server.address, move |proxy| {
                configured(entry, &address(proxy))
            })
            .locked_out(storage, wrong.parse()?);
        let mut subjects = vec![pvc, read_only, http];
        subjects.extend(ftp_subjects().await?);
        Ok(subjects)
    })
}

async fn ftp_subjects() -> anyhow::Result<Vec<Subject>> {
    let mut claims = Capabilities::read_only();
    claims.list = true;
    claims.ranges = true;
    claims.write = true;
    claims.atomic_write = true;
    claims.directories = true;
    claims.rename = true;
    claims.remove = true;

    let server = Box::leak(Box::new(FtpServer::start().await));
    server.put("locked", "x");
    let entry = "type = 'ftp'\nprefix = 'ftp://'\ncommand_timeout_secs = 5";
    let (storage, url) = configured(entry, &server.url("/scratch"))?;
    let wrong = server.url("/locked").replace("right", "wrong");
    let plain = Subject::new("ftp", storage.clone(), url)
        .on("libunftp, in the test")
        .at_least(claims)
        .locked_out(storage, wrong.parse()?)
        .reached_through(ftp::switchboard().await, |proxy| {
            let gateway = ftp::gateway(server.address, proxy);
            configured(entry, &format!("ftp://me:right@{gateway}/scratch"))
        });

    // TLS is judged against real servers: the one in this process may read past AUTH TLS when the
    // machine is busy, and then answers the handshake in the clear.
    let mut subjects = vec![plain];
    // Servers of other makes: `conformance/servers/ftp` starts them and sets this.
    if let Ok(urls) = std::env::var("TESK_TEST_FTP") {
        let ca_file = std::env::var("TESK_TEST_FTP_CA").unwrap_or_default();
        for target in urls.split_whitespace() {
            let (name, url) = target.split_once('=').context("name=url is expected")?;
            let scheme = url.split(':').next().unwrap_or_default();
            let mut entry = format!("type = 'ftp'\nprefix = '{scheme}://'\n");
            if name.contains("tls") {
                let tls = if scheme == "ftps" {
                    "implicit"
                } else {
                    "explicit"
                };
                entry = format!("{entry}tls = '{tls}'\nca_file = '{ca_file}'\n");
            }
            let (storage, url) = configured(&entry, url)?;
            subjects.push(Subject::new(name, storage, url).at_least(claims));
        }
    }
    Ok(subjects)
}
