//! What an executor prints, while it does.

use std::time::Duration;

use tesk_core::scheduler::Update;
use tesk_core::tes::{ExecutorLog, State, TaskLog};

use crate::support::{BASE, Service, minimal};

async fn change(service: &Service, id: &str, update: Update) {
    let id = id.parse().unwrap();
    let head = service.store.head(&id).await.unwrap().unwrap();
    service
        .store
        .update(&id, head.version, update)
        .await
        .unwrap();
}

/// A task whose first attempt has begun.
async fn running(service: &Service) -> String {
    let executor = &minimal()["executors"][0];
    let task = serde_json::json!({ "executors": [executor, executor, executor] });
    let id = service.id_of(&task).await;
    let update = Update {
        state: Some(State::Running),
        attempt: Some(1),
        ..Update::default()
    };
    change(service, &id, update).await;
    id
}

async fn ask(service: &Service, id: &str, query: &str) -> reqwest::Response {
    let path = format!("{BASE}/tasks/{id}:output{query}");
    service.request("GET", &path).send().await.unwrap()
}

#[tokio::test]
async fn output_comes_while_the_executor_runs() {
    let service = Service::start().await;
    let id = running(&service).await;
    let mut reply = ask(&service, &id, "?executor=2").await;
    assert_eq!(reply.status(), 200);
    assert_eq!(reply.headers()["content-type"], "text/plain; charset=utf-8");
    let line = reply.chunk().await.unwrap().unwrap();
    assert_eq!(line, format!("executor 2 of {id}-1\n"));
    let more = tokio::time::timeout(Duration::from_millis(300), reply.chunk()).await;
    assert!(more.is_err(), "it has not ended");
}

#[tokio::test]
async fn it_is_waited_for_and_a_task_that_has_ended_shows_its_log() {
    let service = Service::start().await;
    let id = service.id_of(&minimal()).await;
    let waits = ask(&service, &id, "");
    let ends = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let executor = ExecutorLog {
            stdout: Some("out\n".into()),
            stderr: Some("err\n".into()),
            ..ExecutorLog::default()
        };
        let update = Update {
            state: Some(State::Complete),
            logs: Some(vec![TaskLog {
                logs: vec![executor],
                ..TaskLog::default()
            }]),
            ..Update::default()
        };
        change(&service, &id, update).await;
    };
    let (reply, ()) = tokio::join!(waits, ends);
    assert_eq!(reply.text().await.unwrap(), "out\nerr\n");
    let beyond = format!("{BASE}/tasks/{id}:output?executor=1");
    let none = service.get(&beyond).await.error(400);
    assert_eq!(none, "executor: this task has 1, counted from 0");
}

#[tokio::test]
async fn a_server_that_stops_breaks_it_off() {
    let service = Service::start().await;
    let id = running(&service).await;
    let mut reply = ask(&service, &id, "").await;
    reply.chunk().await.unwrap().unwrap();
    service.app.stop();
    reply
        .chunk()
        .await
        .expect_err("an end would say that the executor has ended");
}

#[tokio::test]
async fn what_cannot_be_followed_is_refused() {
    let service = Service::start().await;
    let id = running(&service).await;
    assert_eq!(ask(&service, "tnothing", "").await.status(), 404);
    for odd in ["-1", "x", ""] {
        let reply = ask(&service, &id, &format!("?executor={odd}")).await;
        assert_eq!(reply.status(), 400, "{odd}");
    }
    let path = format!("{BASE}/tasks/{id}:output");
    let reply = service.send(service.request("POST", &path)).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.headers["allow"]),
        (405, &"GET, HEAD".parse().unwrap())
    );
    let reply = service.send(service.request("HEAD", &path)).await;
    assert_eq!((reply.status.as_u16(), &*reply.text), (200, ""));
    let mut readers = Vec::new();
    for _ in 0..256 {
        readers.push(ask(&service, &id, "").await);
    }
    assert_eq!(ask(&service, &id, "").await.status(), 503);
    readers.pop();
    let again = async {
        while ask(&service, &id, "").await.status() != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), again)
        .await
        .expect("one that is gone leaves room");
}
