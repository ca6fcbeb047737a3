//! Every backend keeps the promises of `Storage`.

use std::net::SocketAddr;
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
use ftp::front::Front;
use server::Server;

/// How a client says `me` and `right` in a header.
const BASIC: &str = "bWU6cmlnaHQ=";

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
            .at_least(claims)
            .leftovers({
                let path = directory.path().to_owned();
                move || std::future::ready(ftp::temporaries(&path))
            });

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
        let wrong = server.url("/locked").replace("://", "://me:s3cr3t@");
        let http = Subject::new("http", storage.clone(), url)
            .on("axum, in the test")
            .at_least(claims)
            .reached_through(server.address, move |proxy| {
                configured(entry, &address(proxy))
            })
            .secrets([BASIC])
            .locked_out(storage, wrong.parse()?);
        let mut subjects = vec![pvc, read_only, http];
        subjects.extend(webdav_subjects().await?);
        subjects.extend(ftp_subjects().await?);
        Ok(subjects)
    })
}

/// With WebDAV, and the servers of other makes: `conformance/servers/http` starts them and sets
/// the variable.
async fn webdav_subjects() -> anyhow::Result<Vec<Subject>> {
    let mut plain = Capabilities::read_only();
    plain.ranges = true;
    plain.write = true;
    let mut claims = plain;
    claims.list = true;
    claims.atomic_write = true;
    claims.directories = true;
    claims.rename = true;
    claims.remove = true;

    let server = Server::start_dav(Some("right")).await;
    let entry = "type = 'http'\nprefix = 'http://'\nwebdav = true";
    let address = |host| format!("http://me:right@{host}/scratch");
    let (storage, url) = configured(entry, &address(server.address))?;
    let locked = url.join("locked");
    let source = tesk_core::storage::Source::bytes("x");
    storage.write(&locked, &source).await?;
    let wrong = locked.with_credentials(Some("me".into()), Some("s3cr3t".into()));
    let webdav = Subject::new("webdav", storage.clone(), url)
        .on("dav-server, in the test")
        .at_least(claims)
        .secrets([BASIC])
        .locked_out(storage, wrong)
        .reached_through(server.address, move |proxy| {
            configured(entry, &address(proxy))
        })
        .leftovers(move || {
            let server = server.clone();
            async move { server.temporaries().await }
        });

    let mut subjects = vec![webdav];
    let urls = std::env::var("TESK_TEST_HTTP").unwrap_or_default();
    let targets = urls.split_whitespace().flat_map(|target| {
        let atomic = target.contains("webdav").then_some((target, true));
        [(target, false)].into_iter().chain(atomic)
    });
    for (target, atomic) in targets {
        let (name, url) = target.split_once('=').context("name=url is expected")?;
        let webdav = name.contains("webdav");
        let entry =
            format!("type = 'http'\nprefix = 'http://'\nwebdav = {webdav}\natomic_put = {atomic}");
        let name = format!("{name}{}", if atomic { "-put" } else { "" });
        let (storage, url) = configured(&entry, url)?;
        let wrong = url.join("locked");
        let wrong = wrong.with_credentials(Some("me".into()), Some("s3cr3t".into()));
        let (host, text) = (url.host().to_owned(), url.to_secret_string());
        let mut subject = Subject::new(name.clone(), storage.clone(), url)
            .at_least(if webdav { claims } else { plain })
            .locked_out(storage, wrong)
            .reached_through(host.parse()?, move |proxy| {
                configured(&entry, &text.replace(&host, &proxy.to_string()))
            });
        if name.contains("nginx-webdav") {
            let reason = "nginx lists no names that begin with a dot";
            for case in [
                "a_listing_has_every_file_with_its_size",
                "a_listed_path_leads_to_its_file",
            ] {
                subject = subject.excused(case, reason);
            }
        }
        subjects.push(subject);
    }
    Ok(subjects)
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

    let mut subjects = Vec::new();
    for (name, server) in [
        ("ftp", FtpServer::start().await),
        ("ftp-tls", FtpServer::start_encrypted(false).await),
        ("ftps", FtpServer::start_encrypted(true).await),
    ] {
        // It ends with the subject.
        let server = Arc::new(server);
        server.put("locked", "x");
        let (scheme, tls) = match name {
            "ftp" => ("ftp", "none"),
            "ftp-tls" => ("ftp", "explicit"),
            _ => ("ftps", "implicit"),
        };
        let mut entry = format!("type = 'ftp'\nprefix = '{scheme}://'\ntls = '{tls}'");
        entry.push_str("\ncommand_timeout_secs = 5");
        if tls != "none" {
            entry = format!("{entry}\nca_file = '{}'", server.ca_file().display());
        }
        let address = move |host| format!("{scheme}://me:right@{host}/scratch");
        let files = server.clone();
        let (storage, url) = configured(&entry, &address(server.address))?;
        let wrong = format!("{scheme}://me:s3cr3t@{}/locked", server.address);
        let subject = Subject::new(name, storage.clone(), url)
            .on("libunftp, in the test")
            .at_least(claims)
            .locked_out(storage, wrong.parse()?)
            .reached_through(ftp::front::switchboard(), move |proxy| {
                configured(&entry, &address(server.through(proxy)))
            })
            .leftovers(move || std::future::ready(files.temporaries()));
        subjects.push(subject);
    }
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
            let wrong = url.join("locked");
            let wrong = wrong.with_credentials(Some("me".into()), Some("s3cr3t".into()));
            let mut subject = Subject::new(name, storage.clone(), url.clone())
                .at_least(claims)
                .locked_out(storage, wrong);
            let server: SocketAddr = url.host().parse()?;
            // With encryption nobody in between learns where data connections go.
            if !name.contains("tls") && server.ip().is_loopback() {
                let front = Front {
                    port: server.port(),
                    encryption: None,
                };
                let text = url.to_secret_string();
                entry.push_str("command_timeout_secs = 5\n");
                subject = subject.reached_through(ftp::front::switchboard(), move |proxy| {
                    let near = front.listen(Some(proxy)).to_string();
                    configured(&entry, &text.replace(&server.to_string(), &near))
                });
            }
            subjects.push(subject);
        }
    }
    Ok(subjects)
}
