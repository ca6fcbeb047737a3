//! Each view has exactly its fields, in Get and in List.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tesk_core::scheduler::Update;
use tesk_core::tes::{ExecutorLog, OutputFileLog, TaskLog};
use tesk_core::time::Timestamp;

use crate::support::{BASE, Service, minimal, task};

/// A task that has something in every field.
async fn full_task(service: &Service) -> String {
    let id = service
        .id_of(&json!({
            "name": "n", "description": "d", "tags": { "a": "b" }, "volumes": ["/v"],
            "resources": { "cpu_cores": 1 },
            "inputs": [{ "path": "/a", "content": "secret content" }],
            "outputs": [{ "path": "/o", "url": "s3://b/o" }],
            "executors": [{ "image": "i", "command": ["c"], "stdout": "/out", "stderr": "/err" }],
        }))
        .await;
    let now = Some(Timestamp::now());
    let log = TaskLog {
        logs: vec![ExecutorLog {
            start_time: now,
            end_time: now,
            stdout: Some("captured".into()),
            stderr: Some("captured too".into()),
            exit_code: 0,
        }],
        metadata: Some([("node".to_owned(), "n1".to_owned())].into()),
        start_time: now,
        end_time: now,
        outputs: vec![OutputFileLog {
            url: "s3://b/o".into(),
            path: "/o".into(),
            size_bytes: 5,
        }],
        system_logs: Some(vec!["a line".into()]),
    };
    let key = id.parse().unwrap();
    let head = service.store.head(&key).await.unwrap().unwrap();
    let update = Update {
        logs: Some(vec![log]),
        ..Update::default()
    };
    service
        .store
        .update(&key, head.version, update)
        .await
        .unwrap();
    id
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

async fn in_get_and_list(service: &Service, id: &str, view: &str) -> Value {
    let got = service.task(id, view).await;
    let listed = service
        .get(&format!("{BASE}/tasks?view={view}"))
        .await
        .json();
    assert_eq!(listed["tasks"][0], got);
    got
}

#[tokio::test]
async fn each_view_has_exactly_its_fields() {
    let service = Service::start().await;
    let id = full_task(&service).await;
    for view in ["MINIMAL", "minimal", ""] {
        let minimal = in_get_and_list(&service, &id, view).await;
        assert_eq!(keys(&minimal), BTreeSet::from(["id", "state"]));
    }
    let all = BTreeSet::from([
        "id",
        "state",
        "name",
        "description",
        "creation_time",
        "inputs",
        "outputs",
        "resources",
        "executors",
        "volumes",
        "tags",
        "logs",
    ]);
    let basic = in_get_and_list(&service, &id, "basic").await;
    assert_eq!(keys(&basic), all);
    assert_eq!(keys(&basic["inputs"][0]), BTreeSet::from(["path", "type"]));
    assert_eq!(basic["executors"][0]["stdout"], "/out");
    let log = &basic["logs"][0];
    assert_eq!(
        keys(log),
        BTreeSet::from(["logs", "metadata", "start_time", "end_time", "outputs"])
    );
    assert_eq!(
        keys(&log["logs"][0]),
        BTreeSet::from(["start_time", "end_time", "exit_code"])
    );
    assert_eq!(log["outputs"][0]["size_bytes"], "5");

    let full = in_get_and_list(&service, &id, "Full").await;
    assert_eq!(keys(&full), all);
    assert_eq!(full["inputs"][0]["content"], "secret content");
    assert_eq!(full["logs"][0]["logs"][0]["stdout"], "captured");
    assert_eq!(full["logs"][0]["system_logs"], json!(["a line"]));
}

#[tokio::test]
async fn a_new_task_has_one_log_with_both_lists() {
    let service = Service::start().await;
    let shown = service.task(&service.id_of(&minimal()).await, "FULL").await;
    assert_eq!(shown["logs"], json!([{ "logs": [], "outputs": [] }]));
    let created = shown["creation_time"].as_str().unwrap();
    assert!(created.ends_with('Z') && created.len() == 24, "{created}");
}

#[tokio::test]
async fn an_unknown_view_is_400() {
    let service = Service::start().await;
    let id = service.id_of(&task(&json!({}))).await;
    for path in [
        format!("{BASE}/tasks/{id}?view=x"),
        format!("{BASE}/tasks?view=x"),
    ] {
        assert!(service.get(&path).await.error(400).contains("view"));
    }
    // Unknown parameters are ignored, and the word may be encoded.
    let odd = format!("{BASE}/tasks/{id}?nonsense=1&view=%46ull");
    assert!(service.get(&odd).await.json().get("executors").is_some());
}
