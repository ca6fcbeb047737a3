//! A store in trouble, and a server about to end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use tesk_core::scheduler::store::RawRecord;
use tesk_core::scheduler::{
    Created, Head, NewTask, Owner, Page, Query, Record, StoreError, TaskId, TaskStore, Update,
};
use tesk_core::tes::State;
use tesk_core::time::Timestamp;

use crate::support::{BASE, Service, minimal};

/// Fails in another way in each method.
#[derive(Debug, Default)]
struct Broken {
    /// How often it was asked for a list.
    lists: AtomicUsize,
}

#[async_trait]
impl TaskStore for Broken {
    async fn create(&self, _: NewTask) -> Result<Created, StoreError> {
        Err(StoreError::Unavailable("secret detail".into()))
    }

    async fn head(&self, id: &TaskId) -> Result<Option<Head>, StoreError> {
        assert!(id.as_str() == "tended", "secret detail");
        let mut head = Head::queued(id.clone(), Owner::default(), Timestamp::now());
        head.state = State::Complete;
        Ok(Some(head))
    }

    async fn get_raw(&self, _: &TaskId) -> Result<Option<RawRecord>, StoreError> {
        Err(StoreError::Corrupt("secret detail".into()))
    }

    async fn list(&self, _: &Query) -> Result<Page, StoreError> {
        self.lists.fetch_add(1, Ordering::SeqCst);
        std::future::pending().await
    }

    async fn check(&self) -> Result<(), StoreError> {
        Err(StoreError::Unavailable("secret detail".into()))
    }

    async fn counts(&self) -> Result<Vec<(State, u64)>, StoreError> {
        Ok(Vec::new())
    }

    async fn get(&self, _: &TaskId) -> Result<Option<Record>, StoreError> {
        Err(StoreError::Corrupt("secret detail".into()))
    }

    async fn get_with_secrets(&self, _: &TaskId) -> Result<Option<Record>, StoreError> {
        unreachable!()
    }

    async fn update(&self, _: &TaskId, _: u64, _: Update) -> Result<Head, StoreError> {
        unreachable!()
    }

    async fn sweep(&self, _: Timestamp, _: usize) -> Result<Vec<TaskId>, StoreError> {
        unreachable!()
    }

    async fn watch(&self) -> Result<BoxStream<'static, Head>, StoreError> {
        unreachable!()
    }
}

async fn broken() -> Service {
    let short = |config: &mut tesk_api::config::Config| {
        config.server.request_timeout = "200ms".parse().unwrap();
    };
    Service::over_store(Arc::new(Broken::default()), short).await
}

#[tokio::test]
async fn a_panic_and_unreadable_data_are_500_with_a_reference_only() {
    let service = broken().await;
    for view in ["MINIMAL", "FULL"] {
        let path = format!("{BASE}/tasks/tabc?view={view}");
        let reply = service
            .send(service.request("GET", &path).header("x-request-id", "mine"))
            .await;
        let msg = reply.error(500);
        assert!(msg.contains("mine") && !msg.contains("secret"), "{msg}");
        assert_eq!(reply.headers["x-request-id"], "mine");
    }
    // A page that may ask may read that too.
    let origin = "https://portal.example.org";
    let listed = |config: &mut tesk_api::config::Config| {
        config.server.allowed_origins = vec![origin.to_owned()];
    };
    let service = Service::over_store(Arc::new(Broken::default()), listed).await;
    let request = service.request("GET", &format!("{BASE}/tasks/tabc"));
    let reply = service.send(request.header("origin", origin)).await;
    reply.error(500);
    assert_eq!(reply.headers["access-control-allow-origin"], origin);
    // The service goes on.
    assert_eq!(service.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn a_client_that_is_refused_before_its_body_is_read_has_the_reply() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let users = tempfile::NamedTempFile::new().unwrap();
    let service = Service::with(|config| config.auth.users = Some(users.path().into())).await;
    let address = service.address.strip_prefix("http://").unwrap();
    // More than the buffers of two sockets hold; longer than the limit, too.
    let body = vec![b' '; 24 << 20];
    for (headers, status) in [
        ("", "401"),
        ("Origin: https://elsewhere.example.org\r\n", "403"),
    ] {
        let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
        let head = format!(
            "POST {BASE}/tasks HTTP/1.1\r\nHost: h\r\n{headers}Connection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        socket.write_all(head.as_bytes()).await.unwrap();
        socket.write_all(&body).await.unwrap();
        let mut reply = String::new();
        socket.read_to_string(&mut reply).await.unwrap();
        assert!(reply.starts_with(&format!("HTTP/1.1 {status} ")), "{reply}");
    }
    // Who asks first is not asked for it.
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST {BASE}/tasks HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut reply = String::new();
    socket.read_to_string(&mut reply).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 401 "), "{reply}");
}

#[tokio::test]
async fn a_document_that_is_too_large_and_comes_slowly_is_413() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let quick = |config: &mut tesk_api::config::Config| {
        config.server.max_body = tesk_core::config::ByteSize(1 << 10);
        config.server.request_timeout = "100ms".parse().unwrap();
    };
    let service = Service::with(quick).await;
    let address = service.address.strip_prefix("http://").unwrap();
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST {BASE}/tasks HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: 2000\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        socket.write_all(&[b' '; 100]).await.unwrap();
    }
    let mut reply = String::new();
    socket.read_to_string(&mut reply).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 413 "), "{reply}");
}

#[tokio::test]
async fn a_server_with_too_many_connections_says_so_and_that_it_lives() {
    let service = Service::with(|config| config.server.max_connections = 1).await;
    let address = service.address.strip_prefix("http://").unwrap();
    // Has the only place, and asks nothing.
    let idle = tokio::net::TcpStream::connect(address).await.unwrap();
    let tasks = format!("{BASE}/tasks");
    for (path, status) in [("/healthz", 200), ("/readyz", 200), (&*tasks, 503)] {
        let reply = service.get(path).await;
        assert_eq!(reply.status.as_u16(), status, "{path}: {}", reply.text);
    }
    drop(idle);
    let begun = std::time::Instant::now();
    while service.get(&tasks).await.status != 200 {
        assert!(begun.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_task_that_has_ended_can_be_canceled_whatever_its_record_holds() {
    let service = broken().await;
    let cancel = service.request("POST", &format!("{BASE}/tasks/tended:cancel"));
    let reply = service.send(cancel).await;
    assert_eq!((reply.status.as_u16(), reply.text.as_str()), (200, "{}"));
}

#[tokio::test]
async fn a_store_that_is_down_or_slow_is_503_with_retry_after() {
    let service = broken().await;
    let replies = [
        service.create(&minimal()).await,
        service.get("/readyz").await,
        service.get(&format!("{BASE}/tasks")).await,
    ];
    for reply in replies {
        let msg = reply.error(503);
        assert!(!msg.contains("secret"), "{msg}");
        assert!(
            reply.headers["retry-after"]
                .to_str()
                .unwrap()
                .parse::<u32>()
                .unwrap()
                > 0
        );
    }
}

#[tokio::test]
async fn a_server_that_is_about_to_end_takes_no_task_but_still_shows_them() {
    let service = Service::start().await;
    let id = service.id_of(&minimal()).await;
    service.app.stop();
    let reply = service.create(&minimal()).await;
    reply.error(503);
    assert!(reply.headers.contains_key("retry-after"));
    service.get("/readyz").await.error(503);
    assert_eq!(service.task(&id, "").await["state"], "QUEUED");
}

#[tokio::test]
async fn lists_with_documents_wait_for_their_turn_before_the_store_is_asked() {
    let store = Arc::new(Broken::default());
    let service = Service::over_store(store.clone(), |_| {}).await;
    let ask = |view: &str| {
        let request = service.request("GET", &format!("{BASE}/tasks?view={view}"));
        tokio::spawn(request.send())
    };
    let asked = async |wanted: usize| {
        while store.lists.load(Ordering::SeqCst) < wanted {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(store.lists.load(Ordering::SeqCst), wanted);
    };
    for _ in 0..4 {
        ask("FULL");
        ask("BASIC");
    }
    asked(2).await;
    // The others need none.
    ask("MINIMAL");
    asked(3).await;
}
