//! Neither a task nor a service leads the plugin where it should not go.

use std::sync::{Arc, Mutex};

use axum::Json;
use axum::extract::Request;
use axum::http::header::{AUTHORIZATION, CONTENT_RANGE, HOST};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use futures_util::TryStreamExt as _;
use serde_json::{Value, json};
use tesk_core::storage::{ByteRange, ConfigEntry, ErrorKind, RegistryBuilder, Result, StorageUrl};
use tesk_drs::DrsFactory;

/// What a service of this address answers to a path.
type Answer = fn(&str, &str) -> Response;
type Seen = Arc<Mutex<Vec<(String, HeaderMap)>>>;

/// Reads the object `id` of a service, and tells the requests that it got. Of this machine only
/// 127.0.0.1 is reached.
async fn read(id: &str, answer: Answer) -> (Result<Vec<u8>>, Vec<(String, HeaderMap)>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Seen::default();
    let requests = seen.clone();
    let router = axum::Router::new().fallback(move |request: Request| {
        let seen = requests.clone();
        async move {
            let path = request.uri().path().to_owned();
            let headers = request.headers().clone();
            let host = headers[HOST].to_str().unwrap().to_owned();
            seen.lock().unwrap().push((path.clone(), headers));
            answer(&path, &host)
        }
    });
    tokio::spawn(async { axum::serve(listener, router).await });

    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&token, "s3cr3t").unwrap();
    let entry: ConfigEntry = toml::from_str(&format!(
        "type = 'drs'\nprefix = 'drs://'\nplain_http = true\n\
         allow_networks = ['127.0.0.1']\nbearer_file = '{}'",
        token.path().display()
    ))
    .unwrap();
    let registry = RegistryBuilder::default().with("drs", DrsFactory);
    let url: StorageUrl = format!("drs://{address}/{id}").parse().unwrap();
    // Which looks at the address itself already.
    let plain = format!("drs://{address}/o").parse().unwrap();
    let storage = registry.build(&[entry]).unwrap().route(&plain);
    let read = async {
        let bytes = storage?.read(&url, ByteRange::from(1), None).await?.bytes;
        Ok(bytes.try_collect::<Vec<_>>().await?.concat())
    };
    let read = read.await;
    let seen = seen.lock().unwrap().clone();
    (read, seen)
}

/// An object of 4 bytes that is read like this.
fn object(access: Value) -> Response {
    let methods = json!([{ "type": "http", "access_id": "1", "access_url": access }]);
    Json(json!({ "size": 4, "access_methods": methods })).into_response()
}

#[tokio::test]
async fn no_name_of_an_object_leads_to_other_paths_of_the_host() {
    for id in [
        "../../../admin",
        "a/../../x",
        "%2e%2e/x",
        "a%2f..%2fx",
        "..\\x",
    ] {
        let (read, seen) = read(id, |_, _| StatusCode::NOT_FOUND.into_response()).await;
        assert_eq!(read.unwrap_err().kind(), ErrorKind::Invalid, "{id}");
        assert!(seen.is_empty(), "{id}: {seen:?}");
    }
}

/// An object whose bytes are asked for under this name.
fn named(access_id: &str) -> Response {
    let methods = json!([{ "type": "http", "access_id": access_id }]);
    Json(json!({ "size": 4, "access_methods": methods })).into_response()
}

#[tokio::test]
async fn no_name_of_an_access_leads_to_other_paths_of_the_host() {
    let answers: [Answer; 5] = [
        |_, _| named(".."),
        |_, _| named("."),
        |_, _| named("../../../../../../admin"),
        |_, _| named("a/../../x"),
        |_, _| named("..\\x"),
    ];
    for answer in answers {
        let (read, seen) = read("o", answer).await;
        assert_eq!(read.unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(seen.len(), 1, "{seen:?}");
    }
}

#[tokio::test]
async fn the_name_of_an_access_is_one_segment_of_the_path() {
    let (_, seen) = read("o", |_, _| named("%2e%2e/x?y#z é")).await;
    let (path, _) = seen.last().unwrap();
    let escaped = "%252e%252e%2Fx%3Fy%23z%20%C3%A9";
    assert_eq!(path, &format!("/ga4gh/drs/v1/objects/o/access/{escaped}"));
}

#[tokio::test]
async fn a_service_does_not_lead_into_private_networks_or_to_other_protocols() {
    let answers: [Answer; 5] = [
        |_, _| object(json!({ "url": "http://127.0.0.2:80/x" })),
        |_, _| object(json!({ "url": "http://169.254.169.254/latest/meta-data" })),
        |_, _| object(json!({ "url": "http://[::1]/x" })),
        |_, _| object(json!({ "url": "file:///etc/passwd" })),
        |_, _| Redirect::to("http://127.0.0.2/").into_response(),
    ];
    for answer in answers {
        let (read, seen) = read("o", answer).await;
        assert_eq!(read.unwrap_err().kind(), ErrorKind::Denied);
        assert_eq!(seen.len(), 1, "{seen:?}");
    }
}

/// A service whose objects are on its own host, behind a header.
fn with_bytes(path: &str, host: &str, part: &'static str) -> Response {
    match path {
        "/ga4gh/drs/v1/objects/o" => object(Value::Null),
        "/ga4gh/drs/v1/objects/o/access/1" => {
            let access = json!({ "url": format!("http://{host}/bytes"), "headers": ["X-Key: k"] });
            Json(access).into_response()
        }
        "/bytes" => {
            let range = [(CONTENT_RANGE, part)];
            (StatusCode::PARTIAL_CONTENT, range, "ere").into_response()
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

#[tokio::test]
async fn the_token_goes_to_the_service_and_its_headers_to_the_bytes() {
    let (read, seen) = read("o", |path, host| with_bytes(path, host, "bytes 1-3/4")).await;
    assert_eq!(read.unwrap(), b"ere");
    assert_eq!(seen.len(), 3);
    for (path, headers) in seen {
        let is_bytes = path == "/bytes";
        assert_eq!(headers.contains_key("x-key"), is_bytes, "{path}");
        assert_eq!(headers.contains_key(AUTHORIZATION), !is_bytes, "{path}");
    }
}

#[tokio::test]
async fn other_bytes_than_were_asked_for_are_corrupt() {
    let (read, _) = read("o", |path, host| with_bytes(path, host, "bytes 0-2/4")).await;
    assert_eq!(read.unwrap_err().kind(), ErrorKind::Corrupt);
}
