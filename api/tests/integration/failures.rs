//! A store in trouble, and a server about to end.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use tesk_core::scheduler::store::RawRecord;
use tesk_core::scheduler::{
    Created, Head, NewTask, Page, Query, Record, StoreError, TaskId, TaskStore, Update,
};
use tesk_core::tes::State;
use tesk_core::time::Timestamp;

use crate::support::{BASE, Service, minimal};

/// Fails in another way in each method.
#[derive(Debug)]
struct Broken;

#[async_trait]
impl TaskStore for Broken {
    async fn create(&self, _: NewTask) -> Result<Created, StoreError> {
        Err(StoreError::Unavailable("secret detail".into()))
    }

    async fn head(&self, _: &TaskId) -> Result<Option<Head>, StoreError> {
        panic!("secret detail")
    }

    async fn get_raw(&self, _: &TaskId) -> Result<Option<RawRecord>, StoreError> {
        Err(StoreError::Corrupt("secret detail".into()))
    }

    async fn list(&self, _: &Query) -> Result<Page, StoreError> {
        std::future::pending().await
    }

    async fn check(&self) -> Result<(), StoreError> {
        Err(StoreError::Unavailable("secret detail".into()))
    }

    async fn counts(&self) -> Result<Vec<(State, u64)>, StoreError> {
        Ok(Vec::new())
    }

    async fn get(&self, _: &TaskId) -> Result<Option<Record>, StoreError> {
        unreachable!()
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
    Service::over_store(Arc::new(Broken), short).await
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
    // The service goes on.
    assert_eq!(service.get("/healthz").await.status, 200);
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
