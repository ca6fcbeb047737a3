//! The S3 backend keeps the promises of `Storage`: of a server in this process, or of the one
//! at the address `TESK_S3_ENDPOINT` (`127.0.0.1:9000`), with the bucket `TESK_S3_BUCKET` and the keys of the
//! environment (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`); `TESK_S3_SERVER` is its name.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use tesk_conformance::storage::{self, Subject};
use tesk_core::storage::{Capabilities, ConfigEntry, Source, Storage, StorageUrl};

#[path = "support/s3_server.rs"]
#[allow(dead_code)]
mod s3_server;

use s3_server::{BUCKET, ID, S3Server, SECRET};

#[derive(serde::Deserialize)]
struct Config {
    storage: Vec<ConfigEntry>,
}

fn configured(endpoint: &str, keys: &str, url: &StorageUrl) -> anyhow::Result<Arc<dyn Storage>> {
    let config: Config = toml::from_str(&format!(
        "[[storage]]\ntype = 's3'\nprefix = 's3://'\nendpoint = '{endpoint}'\n{keys}"
    ))?;
    Ok(tesk_backends::builtin()
        .build(&config.storage)?
        .route(url)?)
}

/// Keys by files, as a configuration names them.
fn keys(directory: &tempfile::TempDir, id: &str, secret: &str) -> anyhow::Result<String> {
    let path = |name: &str| directory.path().join(format!("{name}-{id}"));
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
        let (address, bucket, id, secret) = if let Some(endpoint) = variable("TESK_S3_ENDPOINT") {
            let key = |name| variable(name).unwrap_or_default();
            let bucket = variable("TESK_S3_BUCKET").unwrap_or_else(|| BUCKET.into());
            let (id, secret) = (key("AWS_ACCESS_KEY_ID"), key("AWS_SECRET_ACCESS_KEY"));
            (endpoint.parse::<SocketAddr>()?, bucket, id, secret)
        } else {
            let server = S3Server::start().await;
            (server.address, BUCKET.into(), ID.into(), SECRET.into())
        };
        let endpoint = format!("http://{address}");
        let right = keys(&directory, &id, &secret)?;
        let scratch: StorageUrl = format!("s3://{bucket}/scratch").parse()?;
        let storage = configured(&endpoint, &right, &scratch)?;
        let mut claims = Capabilities::read_only();
        claims.list = true;
        claims.ranges = true;
        let reading = claims;
        claims.write = true;
        claims.atomic_write = true;
        claims.parts = true;
        claims.remove = true;
        let locked = scratch.join("locked");
        storage.write(&locked, &Source::bytes("x")).await?;

        let (far, there) = (right.clone(), scratch.clone());
        let server = variable("TESK_S3_SERVER").unwrap_or_else(|| "s3s, in the test".into());
        let mut s3 = Subject::new("s3", storage.clone(), scratch.clone())
            .on(&server)
            .at_least(claims)
            .reached_through(address, move |proxy| {
                let storage = configured(&format!("http://{proxy}"), &far, &there)?;
                Ok((storage, there.clone()))
            });
        // Some servers for tests take any key.
        if variable("TESK_S3_OPEN").is_none() {
            let wrong = keys(&directory, &id, "wrong")?;
            let wrong = configured(&endpoint, &wrong, &scratch)?;
            s3 = s3.locked_out(wrong, locked);
        }
        let right = keys(&directory, &id, &secret)?;
        let read_only = configured(&endpoint, &format!("{right}\nread_only = true"), &scratch)?;
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
        Ok(vec![s3, read_only])
    })
}
