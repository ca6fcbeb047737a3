//! Replies of the living service against its own description.

use serde_json::{Value, json};
use tesk_core::tes::State;

use crate::support::{BASE, Service, minimal, task};

/// The schema `name` of the document, allowing no member that it does not name.
fn schema(document: &Value, name: &str) -> jsonschema::Validator {
    fn close(schema: &mut Value) {
        match schema {
            Value::Object(object) => {
                if object.contains_key("properties") {
                    object.insert("unevaluatedProperties".into(), json!(false));
                }
                object.values_mut().for_each(close);
            }
            Value::Array(items) => items.iter_mut().for_each(close),
            _ => {}
        }
    }
    let mut root = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$ref": format!("#/components/schemas/{name}"),
        "components": document["components"],
    });
    close(&mut root["components"]["schemas"]);
    jsonschema::validator_for(&root).unwrap()
}

fn assert_valid(document: &Value, name: &str, reply: &Value) {
    let schema = schema(document, name);
    let errors: Vec<_> = schema
        .iter_errors(reply)
        .map(|e| format!("{e} at {}", e.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{name}: {errors:?}\n{reply}");
}

#[tokio::test]
async fn every_reply_is_as_described() {
    let service = Service::start().await;
    let document = service.get(&format!("{BASE}/openapi.json")).await.json();
    let sent = json!({
        "name": "n", "description": "d", "tags": { "a": "b" }, "volumes": ["/v"],
        "resources": { "cpu_cores": 1, "ram_gb": 0.5, "disk_gb": 1, "preemptible": true, "zones": ["z"] },
        "inputs": [{ "path": "/a", "content": "x", "name": "i", "description": "j", "streamable": false }],
        "outputs": [{ "path": "/o/*", "url": "s3://b/o", "path_prefix": "/o", "type": "FILE" }],
        "executors": [{
            "image": "i", "command": ["c"], "stdout": "/out", "stderr": "/err", "stdin": "/a",
            "workdir": "/w", "env": { "A": "b" }, "ignore_error": true,
        }],
    });
    assert_valid(&document, "Task", &sent);
    let created = service.create(&sent).await.json();
    assert_valid(&document, "CreateReply", &created);
    let id = created["id"].as_str().unwrap();
    service.end(id, State::Complete).await;
    for view in ["MINIMAL", "BASIC", "FULL"] {
        assert_valid(&document, "TaskReply", &service.task(id, view).await);
        let list = service
            .get(&format!("{BASE}/tasks?view={view}"))
            .await
            .json();
        assert_valid(&document, "ListReply", &list);
    }
    let info = service.get(&format!("{BASE}/service-info")).await.json();
    assert_valid(&document, "ServiceInfo", &info);
    let legacy = service
        .get(&format!("{BASE}/tasks/service-info"))
        .await
        .json();
    assert_valid(&document, "LegacyServiceInfo", &legacy);
    let refused = service.create(&json!({ "executors": [] })).await.json();
    assert_valid(&document, "Error", &refused);
    assert_valid(&document, "Error", &service.get("/nowhere").await.json());
}

#[tokio::test]
async fn the_description_would_notice_a_foreign_member() {
    let service = Service::start().await;
    let document = service.get(&format!("{BASE}/openapi.json")).await.json();
    let mut shown = service.task(&service.id_of(&minimal()).await, "FULL").await;
    shown["surprise"] = json!(1);
    assert!(!schema(&document, "TaskReply").is_valid(&shown));
    let null = task(&json!({ "name": null }));
    assert!(!schema(&document, "Task").is_valid(&null));
}

#[tokio::test]
async fn every_reference_in_the_document_leads_somewhere() {
    let service = Service::start().await;
    let document = service.get(&format!("{BASE}/openapi.json")).await.json();
    assert_eq!(document["openapi"], "3.1.0");
    let text = document.to_string();
    let references: Vec<_> = text.split("\"$ref\":\"#").skip(1).collect();
    assert!(references.len() > 20);
    for reference in references {
        let pointer = reference.split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer}");
    }
    let operations: Vec<_> = document["paths"]
        .as_object()
        .unwrap()
        .values()
        .flat_map(|path| path.as_object().unwrap().values())
        .map(|operation| operation["operationId"].as_str().unwrap())
        .collect();
    for name in [
        "GetServiceInfo",
        "ListTasks",
        "CreateTask",
        "GetTask",
        "CancelTask",
    ] {
        assert!(operations.contains(&name), "{name}");
    }
}

#[tokio::test]
async fn the_page_comes_from_this_server_alone() {
    let service = Service::start().await;
    let page = service.get("/").await;
    assert_eq!(page.status, 200, "followed to /docs/");
    assert!(
        page.headers["content-security-policy"]
            .to_str()
            .unwrap()
            .starts_with("default-src 'none'")
    );
    assert!(!page.text.contains("://"), "no address of another server");
    for file in ["swagger-ui.css", "swagger-ui-bundle.js", "start.js"] {
        assert!(page.text.contains(file));
        let reply = service.get(&format!("/docs/{file}")).await;
        assert_eq!(reply.status, 200);
        assert!(reply.text.len() > 100);
    }
}
