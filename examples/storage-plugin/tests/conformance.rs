//! The plugin keeps the promises of `Storage`, against a service made here.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing::get};
use serde_json::json;
use tesk_conformance::storage::{self, Subject};
use tesk_core::storage::{Capabilities, ConfigEntry, RegistryBuilder};
use tesk_drs::DrsFactory;

type Objects = Arc<Mutex<HashMap<String, Vec<u8>>>>;

#[derive(Clone)]
struct Service {
    objects: Objects,
    address: SocketAddr,
}

async fn object(State(service): State<Service>, Path(id): Path<String>) -> Response {
    let objects = service.objects.lock().expect("no test panics with it");
    let Some(bytes) = objects.get(&id) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let address = service.address;
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
            { "type": "http", "access_url": { "url": format!("http://{address}/bytes/{escaped}") } },
        ],
    }))
    .into_response()
}

async fn bytes(
    State(service): State<Service>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response {
    let objects = service.objects.lock().expect("no test panics with it");
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

fn main() -> ExitCode {
    storage::main(async || {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let service = Service {
            objects: Objects::default(),
            address,
        };
        let objects = service.objects.clone();
        let router = Router::new()
            .route("/ga4gh/drs/v1/objects/{*id}", get(object))
            .route("/bytes/{*id}", get(bytes))
            .with_state(service);
        tokio::spawn(async { axum::serve(listener, router).await });

        let entry: ConfigEntry = toml::from_str(
            "type = 'drs'\nprefix = 'drs://'\nplain_http = true\nallow_private = true",
        )?;
        let registry = RegistryBuilder::default()
            .with("drs", DrsFactory)
            .build(&[entry])?;
        let scratch = format!("drs://{address}/scratch").parse()?;
        let mut claims = Capabilities::read_only();
        claims.ranges = true;
        let subject = Subject::new("drs", registry.route(&scratch)?, scratch)
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
            });
        Ok(vec![subject])
    })
}
