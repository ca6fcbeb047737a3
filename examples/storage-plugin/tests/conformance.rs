//! The plugin keeps the promises of `Storage`, against a service made here.

use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing::get};
use serde_json::json;
use tesk_conformance::storage::{self, Subject};
use tesk_core::storage::{Capabilities, ConfigEntry, Registry, RegistryBuilder, StorageUrl};
use tesk_drs::DrsFactory;

/// Who has it is told of objects.
const TOKEN: &str = "the-right-token";

type Objects = Arc<Mutex<HashMap<String, Vec<u8>>>>;

async fn object(
    State(objects): State<Objects>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response {
    let sent = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let token = sent(header::AUTHORIZATION).and_then(|sent| sent.strip_prefix("Bearer "));
    if token != Some(TOKEN) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let objects = objects.lock().expect("no test panics with it");
    let Some(bytes) = objects.get(&id) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    // Who asks by way of a proxy is to read the bytes by way of it too.
    let host = sent(header::HOST).expect("HTTP/1.1 has it");
    let escaped = id
        .replace('%', "%25")
        .replace('?', "%3F")
        .replace('#', "%23");
    let checksum = bytes
        .iter()
        .fold(0_u64, |sum, b| sum.wrapping_mul(31) + u64::from(*b));
    Json(json!({
        "id": id,
        "size": bytes.len(),
        "checksums": [{ "type": "test", "checksum": checksum.to_string() }],
        "access_methods": [
            { "type": "s3", "access_url": { "url": "s3://elsewhere/x" } },
            { "type": "http", "access_url": { "url": format!("http://{host}/bytes/{escaped}") } },
        ],
    }))
    .into_response()
}

async fn bytes(
    State(objects): State<Objects>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response {
    let objects = objects.lock().expect("no test panics with it");
    let Some(bytes) = objects.get(&id) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let range = headers
        .get(header::RANGE)
        .and_then(|r| r.to_str().ok()?.strip_prefix("bytes="));
    let (start, end) = range
        .and_then(|r| r.split_once('-'))
        .expect("the plugin asks for ranges");
    let (start, end): (usize, usize) = (
        start.parse().expect("a number"),
        end.parse().expect("a number"),
    );
    let part = format!("bytes {start}-{end}/{}", bytes.len());
    let part = [(header::CONTENT_RANGE, part)];
    (
        StatusCode::PARTIAL_CONTENT,
        part,
        bytes[start..=end].to_vec(),
    )
        .into_response()
}

/// The plugin, configured with this token.
fn plugin(token: &str) -> Registry {
    // It is read when the storage is made, and not needed any more.
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(&file, token).expect("a temporary file");
    let entry: ConfigEntry = toml::from_str(&format!(
        "type = 'drs'\nprefix = 'drs://'\nplain_http = true\nallow_private = true\n\
         bearer_file = '{}'",
        file.path().display()
    ))
    .expect("an entry");
    let plugins = RegistryBuilder::default().with("drs", DrsFactory);
    plugins.build(&[entry]).expect("keys of the plugin")
}

fn main() -> ExitCode {
    storage::main(async || {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let objects = Objects::default();
        let router = Router::new()
            .route("/ga4gh/drs/v1/objects/{*id}", get(object))
            .route("/bytes/{*id}", get(bytes))
            .with_state(objects.clone());
        tokio::spawn(async { axum::serve(listener, router).await });

        let scratch: StorageUrl = format!("drs://{address}/scratch").parse()?;
        // It need not be there: without the token the service does not say.
        let locked = scratch.join("locked");
        let mut claims = Capabilities::read_only();
        claims.ranges = true;
        let subject = Subject::new("drs", plugin(TOKEN).route(&scratch)?, scratch)
            .at_least(claims)
            .seeded(move |url, bytes| {
                let id = String::from_utf8_lossy(&url.decoded_path())
                    .trim_start_matches('/')
                    .to_owned();
                objects
                    .lock()
                    .expect("no test panics with it")
                    .insert(id, bytes.to_vec());
                async { Ok(()) }
            })
            .reached_through(address, |proxy| {
                let scratch: StorageUrl = format!("drs://{proxy}/scratch").parse()?;
                Ok((plugin(TOKEN).route(&scratch)?, scratch))
            })
            .locked_out(plugin("another-token").route(&locked)?, locked)
            .secrets([TOKEN]);
        Ok(vec![subject])
    })
}
