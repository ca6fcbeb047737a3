//! The S3 backend keeps the promises of `Storage`: of a server in this process, or of the one
//! at the address `TESK_S3_ENDPOINT` (`127.0.0.1:9000`), with the bucket `TESK_S3_BUCKET` and the keys of the
//! environment (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`); `TESK_S3_SERVER` is its name. Buckets
//! are looked for below the domain `TESK_S3_DOMAIN` too, if there is one: no name server knows it,
//! so the server is the proxy on the way to it.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use tesk_conformance::storage::{self, Subject};
use tesk_core::storage::{Capabilities, ConfigEntry, Source, Storage, StorageUrl};

#[path = "support/s3_server.rs"]
#[allow(dead_code)]
mod s3_server;

use s3_server::{BUCKET, DOMAIN, ID, S3Server, SECRET};

#[derive(serde::Deserialize)]
struct Config {
    storage: Vec<ConfigEntry>,
}

/// How buckets are reached by way of an address: in the path, or as hosts of a domain.
fn way(domain: Option<&str>, address: SocketAddr) -> String {
    match domain {
        None => format!("endpoint = 'http://{address}'"),
        Some(domain) => {
            format!("endpoint = 'http://{domain}'\npath_style = false\nproxy = 'http://{address}'")
        }
    }
}

fn configured(way: &str, keys: &str, url: &StorageUrl) -> anyhow::Result<Arc<dyn Storage>> {
    let config: Config = toml::from_str(&format!(
        "[[storage]]\ntype = 's3'\nprefix = 's3://'\n{way}\n{keys}"
    ))?;
    Ok(tesk_backends::builtin()
        .build(&config.storage)?
        .route(url)?)
}

/// Keys by files, as a configuration names them.
fn keys(
    directory: &tempfile::TempDir,
    who: &str,
    id: &str,
    secret: &str,
) -> anyhow::Result<String> {
    let path = |name: &str| directory.path().join(format!("{who}-{name}"));
    std::fs::write(path("id"), id)?;
    std::fs::write(path("secret"), secret)?;
    Ok(format!(
        "access_key_id_file = '{}'\nsecret_access_key_file = '{}'",
        path("id").display(),
        path("secret").display()
    ))
}

fn main() -> ExitCode {
    let Ok(directory) = tempfile::tempdir() else {
        eprintln!("error: no temporary directory");
        return ExitCode::FAILURE;
    };
    storage::main(async || {
        let variable = |name| std::env::var(name).ok();
        let key = |name| variable(name).unwrap_or_default();
        // What is left at other servers is not looked at.
        let mut own = None;
        let (address, bucket, id, secret, domain) =
            if let Some(endpoint) = variable("TESK_S3_ENDPOINT") {
                let bucket = variable("TESK_S3_BUCKET").unwrap_or_else(|| BUCKET.into());
                let (id, secret) = (key("AWS_ACCESS_KEY_ID"), key("AWS_SECRET_ACCESS_KEY"));
                let domain = variable("TESK_S3_DOMAIN");
                (endpoint.parse::<SocketAddr>()?, bucket, id, secret, domain)
            } else {
                let server = S3Server::start().await;
                let address = server.address;
                own = Some(server);
                let domain = Some(DOMAIN.to_owned());
                (address, BUCKET.into(), ID.into(), SECRET.into(), domain)
            };
        let server = variable("TESK_S3_SERVER").unwrap_or_else(|| "s3s, in the test".into());
        let right = keys(&directory, "right", &id, &secret)?;
        let wrong = keys(&directory, "wrong", &id, "wrong")?;
        let scratch: StorageUrl = format!("s3://{bucket}/scratch").parse()?;
        let locked = scratch.join("locked");
        let mut claims = Capabilities::read_only();
        claims.list = true;
        claims.ranges = true;
        let reading = claims;
        claims.write = true;
        claims.atomic_write = true;
        claims.parts = true;
        claims.remove = true;

        let mut subjects = Vec::new();
        let hosts = domain.map(|domain| ("s3-virtual-host", Some(domain)));
        for (name, domain) in [("s3", None)].into_iter().chain(hosts) {
            let straight = way(domain.as_deref(), address);
            let storage = configured(&straight, &right, &scratch)?;
            storage.write(&locked, &Source::bytes("x")).await?;
            let (far, there) = (right.clone(), scratch.clone());
            let mut subject = Subject::new(name, storage, scratch.clone())
                .on(&server)
                .at_least(claims)
                .secrets([&secret])
                .reached_through(address, move |proxy| {
                    let storage = configured(&way(domain.as_deref(), proxy), &far, &there)?;
                    Ok((storage, there.clone()))
                });
            if let Some(server) = own.clone() {
                subject = subject.leftovers(move || std::future::ready(server.upload_ids()));
            }
            // Some servers for tests take any key.
            if variable("TESK_S3_OPEN").is_none() {
                let wrong = configured(&straight, &wrong, &scratch)?;
                subject = subject.locked_out(wrong, locked.clone());
            }
            subjects.push(subject);
        }

        let straight = way(None, address);
        let storage = configured(&straight, &right, &scratch)?;
        let read_only = configured(&straight, &format!("{right}\nread_only = true"), &scratch)?;
        let read_only = Subject::new("s3-read-only", read_only, scratch)
            .on(server)
            .at_least(reading)
            .seeded(move |url, bytes| {
                let storage = storage.clone();
                async move {
                    storage.write(&url, &Source::bytes(bytes)).await?;
                    Ok(())
                }
            });
        subjects.push(read_only);
        Ok(subjects)
    })
}
