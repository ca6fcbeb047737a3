//! What a client may send, and what it is told when it may not.

use serde_json::json;

use crate::support::{BASE, Service, minimal, task};

#[tokio::test]
async fn all_faults_of_a_document_are_reported_together_with_their_fields() {
    let service = Service::start().await;
    let reply = service
        .create(&json!({
            "executors": [{ "image": " ", "command": ["true"] }],
            "outputs": [{ "path": "/a", "url": "s3://b/a" }, { "path": "/b" }],
        }))
        .await;
    let msg = reply.error(400);
    assert!(
        msg.contains("executors[0].image: ") && msg.contains("outputs[1].url: "),
        "{msg}"
    );
    let errors = reply.json()["errors"].clone();
    assert_eq!(errors.as_array().unwrap().len(), 2, "{errors}");
    for field in ["executors[0].image", "outputs[1].url"] {
        let named = |error: &serde_json::Value| error["field"] == field;
        assert!(
            errors.as_array().unwrap().iter().any(named),
            "{field}: {errors}"
        );
    }
}

#[tokio::test]
async fn broken_json_is_400_with_line_and_column() {
    let service = Service::start().await;
    let post = |body: &'static str| service.request("POST", &format!("{BASE}/tasks")).body(body);
    let msg = service
        .send(post("{\n  \"executors\": [,]\n}"))
        .await
        .error(400);
    assert!(msg.contains("line 2") && msg.contains("column"), "{msg}");
    let reply = service.send(post("")).await;
    assert!(reply.error(400).contains("no body"));
    assert!(
        reply.json().get("errors").is_none(),
        "only validation has errors"
    );
    service.send(post("[]")).await.error(400);
    service.send(post("{}")).await.error(400);
}

#[tokio::test]
async fn a_missing_content_type_is_fine_and_a_form_is_415() {
    let service = Service::start().await;
    let post = |kind: Option<&'static str>| {
        let request = service.request("POST", &format!("{BASE}/tasks"));
        let request = match kind {
            Some(kind) => request.header("content-type", kind),
            None => request,
        };
        request.body(minimal().to_string())
    };
    for kind in [
        None,
        Some("application/json; charset=utf-8"),
        Some("Application/JSON"),
    ] {
        assert_eq!(service.send(post(kind)).await.status, 200, "{kind:?}");
    }
    for kind in [
        "application/x-www-form-urlencoded",
        "text/plain",
        "multipart/form-data; boundary=x",
    ] {
        service.send(post(Some(kind))).await.error(415);
    }
}

#[tokio::test]
async fn a_document_over_the_limit_is_413_which_states_it() {
    let service = Service::start().await;
    let huge = format!("{{\"description\":\"{}\"}}", "x".repeat(20_000_000));
    let whole = service
        .request("POST", &format!("{BASE}/tasks"))
        .body(huge.clone());
    assert!(service.send(whole).await.error(413).contains("16MiB"));
    // Without an announced length.
    let chunks = futures_util::stream::iter([Ok::<_, std::io::Error>(huge)]);
    let streamed = service
        .request("POST", &format!("{BASE}/tasks"))
        .body(reqwest::Body::wrap_stream(chunks));
    service.send(streamed).await.error(413);
    // The service goes on, on the same connection.
    service.id_of(&minimal()).await;
}

#[tokio::test]
async fn a_body_that_does_not_arrive_is_408() {
    let service = Service::with(|c| c.server.request_timeout = "200ms".parse().unwrap()).await;
    let never = futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>();
    let request = service
        .request("POST", &format!("{BASE}/tasks"))
        .body(reqwest::Body::wrap_stream(never));
    service.send(request).await.error(408);
}

#[tokio::test]
async fn uploads_that_never_go_on_do_not_delay_a_create() {
    use tokio::io::AsyncWriteExt;
    let service = Service::start().await;
    let address = service.address.strip_prefix("http://").unwrap();
    let mut idle = Vec::new();
    for how in ["Transfer-Encoding: chunked", "Content-Length: 16000000"].repeat(24) {
        let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
        let head = format!("POST {BASE}/tasks HTTP/1.1\r\nHost: {address}\r\n{how}\r\n\r\n");
        socket.write_all(head.as_bytes()).await.unwrap();
        idle.push(socket);
    }
    // All of them have reached their handler.
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    let document = minimal();
    let create = service.id_of(&document);
    let created = tokio::time::timeout(std::time::Duration::from_secs(10), create).await;
    assert!(created.is_ok(), "the create waits for the others");
}

#[tokio::test]
async fn nulls_vanish_and_empty_tag_values_survive() {
    let service = Service::start().await;
    let sent = task(&json!({
        "name": null, "volumes": ["/v", null], "inputs": null,
        "tags": { "parent_workflow_id": null, "empty": "" },
    }));
    let shown = service.task(&service.id_of(&sent).await, "FULL").await;
    assert_eq!(shown["tags"], json!({ "empty": "" }));
    assert_eq!(shown["volumes"], json!(["/v"]));
    assert!(
        shown.get("name").is_none() && shown.get("inputs").is_none(),
        "{shown}"
    );
    assert!(!shown.to_string().contains("null"), "{shown}");
}

#[tokio::test]
async fn unknown_read_only_and_camel_case_fields_never_come_back() {
    let service = Service::start().await;
    let sent = task(&json!({
        "id": "mine", "state": "COMPLETE", "creation_time": "never", "surprise": 1,
        "logs": [{ "system_logs": ["forged"] }],
        "resources": { "cpuCores": 2, "ramGb": 8.0 },
    }));
    let id = service.id_of(&sent).await;
    let shown = service.task(&id, "FULL").await;
    assert_eq!(shown["id"], id);
    assert_eq!(shown["state"], "QUEUED");
    assert_eq!(shown["resources"], json!({ "cpu_cores": 2, "ram_gb": 8 }));
    for text in ["surprise", "forged", "cpuCores", "never", ":8.0"] {
        assert!(!shown.to_string().contains(text), "{text}: {shown}");
    }
}

#[tokio::test]
async fn a_misspelt_key_and_a_wildcard_that_is_none_are_told_in_the_system_log() {
    let service = Service::start().await;
    let sent = task(&json!({
        "tag": { "a": "b" },
        "outputs": [{ "url": "s3://b/o", "path": "/w/**/*.bam", "path_prefix": "/w" }],
    }));
    let shown = service.task(&service.id_of(&sent).await, "FULL").await;
    assert!(shown.get("tag").is_none(), "{shown}");
    let said = shown["logs"][0]["system_logs"].to_string();
    for text in [
        "tag is not a key of TES 1.1, and ignored; did you mean `tags`?",
        "outputs[0].path: ** is read as *",
    ] {
        assert!(said.contains(text), "{said}");
    }
}

#[tokio::test]
async fn cores_are_read_leniently_within_the_limits() {
    let service = Service::start().await;
    for cores in [json!("4"), json!(4.0), json!(4)] {
        let id = service
            .id_of(&task(&json!({ "resources": { "cpu_cores": cores } })))
            .await;
        let text = service.task(&id, "FULL").await.to_string();
        assert!(text.contains("\"cpu_cores\":4}"), "{text}");
    }
    for cores in [json!(4.5), json!(0), json!(-1), json!("x")] {
        service
            .create(&task(&json!({ "resources": { "cpu_cores": cores } })))
            .await
            .error(400);
    }
    let over = service
        .create(&task(&json!({ "resources": { "cpu_cores": 65 } })))
        .await;
    assert!(over.error(400).contains("64"));
}

#[tokio::test]
async fn several_inputs_of_131072_quotes_or_newlines_come_back_whole() {
    let service = Service::start().await;
    let content = |c: &str| c.repeat(131_072);
    let sent = task(&json!({ "inputs": [
        { "path": "/a", "content": content("\"") },
        { "path": "/b", "content": content("\n") },
        { "path": "/c", "content": content("é") },
    ]}));
    let shown = service.task(&service.id_of(&sent).await, "FULL").await;
    for (i, c) in ["\"", "\n", "é"].into_iter().enumerate() {
        assert_eq!(shown["inputs"][i]["content"], content(c));
        assert_eq!(shown["inputs"][i]["type"], "FILE");
    }
}

#[tokio::test]
async fn an_unknown_scheme_is_400_listing_the_known_ones() {
    let service = Service::start().await;
    let with = |url: &str| task(&json!({ "inputs": [{ "path": "/a", "url": url }] }));
    let msg = service.create(&with("gopher://x/y")).await.error(400);
    assert!(msg.contains("inputs[0].url") && msg.contains("s3"), "{msg}");
    assert_eq!(
        service.create(&with("s3://no-such-bucket/y")).await.status,
        200
    );
    for url in [
        "file:///data/../etc/passwd",
        "file:///data2/x",
        "/etc/passwd",
    ] {
        service.create(&with(url)).await.error(400);
    }
}

#[tokio::test]
async fn a_password_in_a_url_is_shown_to_nobody() {
    let service = Service::start().await;
    let sent = task(&json!({ "inputs": [{ "path": "/a", "url": "ftp://ada:hunter2@host/f" }] }));
    let id = service.id_of(&sent).await;
    let shown = service.task(&id, "FULL").await;
    assert_eq!(shown["inputs"][0]["url"], "ftp://ada:***@host/f");
    let refused = task(&json!({ "inputs": [{ "path": "a", "url": "ftp://ada:hunter2@host/f" }] }));
    assert!(!service.create(&refused).await.text.contains("hunter2"));
}

#[tokio::test]
async fn an_idempotency_key_makes_one_task_of_many_requests() {
    let service = Service::start().await;
    let post = |key: &str, body: String| {
        let request = service.request("POST", &format!("{BASE}/tasks"));
        service.send(request.header("idempotency-key", key).body(body))
    };
    // A refused request does not use the key up.
    post("k1", "{}".into()).await.error(400);
    let same = minimal().to_string();
    let twins = futures_util::future::join_all((0..20).map(|_| post("k1", same.clone()))).await;
    let first = &twins[0].text;
    assert!(
        twins
            .iter()
            .all(|reply| reply.status == 200 && reply.text == *first)
    );
    // Another spelling of the same task.
    let spelled = format!(" {{\"name\":null,{}", &same[1..]);
    assert_eq!(post("k1", spelled).await.text, *first);
    let other = task(&json!({ "name": "other" })).to_string();
    assert!(
        post("k1", other.clone())
            .await
            .error(409)
            .contains("Idempotency-Key")
    );
    assert_ne!(post("k2", other).await.text, *first);
    for key in ["a b", &"x".repeat(256), ""] {
        post(key, same.clone()).await.error(400);
    }
    assert_eq!(service.list("").await.0.len(), 2);
}

#[tokio::test]
async fn the_key_of_a_task_with_another_password_is_another_body() {
    let service = Service::start().await;
    let post = |password: &str| {
        let url = format!("ftp://ada:{password}@host/f");
        let body = task(&json!({ "inputs": [{ "path": "/a", "url": url }] }));
        let request = service.request("POST", &format!("{BASE}/tasks"));
        service.send(request.header("idempotency-key", "k").json(&body))
    };
    assert_eq!(post("one").await.status, 200);
    post("two").await.error(409);
}
