//! Where things are, which methods they answer, and what errors look like.

use crate::support::{BASE, Service, minimal};

#[tokio::test]
async fn the_api_is_at_both_bases_and_below_the_context_path() {
    let service = Service::with(|config| config.server.context_path = "/tesk".into()).await;
    for context in ["", "/tesk"] {
        for base in ["/ga4gh/tes/v1", "/v1"] {
            for path in ["service-info", "tasks", "openapi.json"] {
                let reply = service.get(&format!("{context}{base}/{path}")).await;
                assert_eq!(reply.status, 200, "{context}{base}/{path}");
                assert_eq!(reply.headers["content-type"], "application/json");
            }
        }
    }
}

#[tokio::test]
async fn every_other_path_is_404_with_the_json_body() {
    let service = Service::start().await;
    for path in [
        "/tasks",
        "/tasks/service-info",
        "/ga4gh/tes/v1",
        "/ga4gh/tes/v2/tasks",
        "/v1/tasks/",
        "/v1/tasks/a/b",
        "/nowhere",
    ] {
        for method in ["GET", "POST"] {
            let reply = service.send(service.request(method, path)).await;
            assert!(
                reply.error(404).starts_with("there is n"),
                "{method} {path}"
            );
        }
    }
}

#[tokio::test]
async fn files_that_the_page_of_the_api_does_not_have_are_404() {
    let service = Service::start().await;
    for name in ["nothing", "%ff", "..%2fx"] {
        service.get(&format!("/docs/{name}")).await.error(404);
    }
}

#[tokio::test]
async fn an_unknown_path_is_404_before_anybody_asks_for_credentials() {
    let users = tempfile::NamedTempFile::new().unwrap();
    let service = Service::with(|c| c.auth.users = Some(users.path().into())).await;
    service.get("/tasks").await.error(404);
    service.get("/v1/tasks").await.error(401);
    let wrong = service.send(service.request("DELETE", "/v1/tasks")).await;
    wrong.error(405);
}

#[tokio::test]
async fn a_wrong_method_is_405_with_the_ones_that_are_right() {
    let service = Service::start().await;
    let id = service.id_of(&minimal()).await;
    for (path, allow) in [
        (format!("{BASE}/tasks"), "GET,HEAD,POST"),
        (format!("{BASE}/service-info"), "GET,HEAD"),
        (format!("{BASE}/tasks/service-info"), "GET,HEAD"),
        (format!("{BASE}/tasks/{id}"), "GET,HEAD"),
        (format!("{BASE}/tasks/{id}:cancel"), "POST"),
        ("/healthz".into(), "GET,HEAD"),
    ] {
        for method in ["PUT", "DELETE", "TRACE", "PATCH", "OPTIONS", "INVENTED"] {
            let reply = service.send(service.request(method, &path)).await;
            reply.error(405);
            let allowed = reply.headers["allow"].to_str().unwrap().replace(' ', "");
            assert_eq!(allowed, allow, "{method} {path}");
        }
    }
    let reply = service.get(&format!("{BASE}/tasks/{id}:cancel")).await;
    reply.error(405);
    let reply = service
        .send(service.request("POST", &format!("{BASE}/tasks/{id}")))
        .await;
    reply.error(405);
}

#[tokio::test]
async fn head_is_get_without_a_body() {
    let service = Service::start().await;
    let id = service.id_of(&minimal()).await;
    for path in [
        format!("{BASE}/tasks/{id}"),
        format!("{BASE}/tasks"),
        format!("{BASE}/service-info"),
    ] {
        let reply = service.send(service.request("HEAD", &path)).await;
        assert_eq!(reply.status, 200);
        assert_eq!(reply.text, "");
        assert!(
            reply.headers["content-length"]
                .to_str()
                .unwrap()
                .parse::<u64>()
                .unwrap()
                > 10
        );
    }
}

#[tokio::test]
async fn unknown_and_malformed_ids_are_404_on_get_and_cancel() {
    let service = Service::start().await;
    let long = "t".repeat(41);
    for id in [
        "t0000000000000000000",
        "Upper",
        "0digit",
        "a%00b",
        "%FF",
        "a%2Fb",
        "..",
        &long,
        "%3A",
    ] {
        if id != ".." {
            service.get(&format!("{BASE}/tasks/{id}")).await.error(404);
        }
        let cancel = service.request("POST", &format!("{BASE}/tasks/{id}:cancel"));
        service.send(cancel).await.error(404);
    }
}

#[tokio::test]
async fn the_service_describes_itself_with_its_storages() {
    let service =
        Service::with(|config| config.service_info.description = Some("for tests".into())).await;
    let info = service.get(&format!("{BASE}/service-info")).await.json();
    assert_eq!(info["type"]["artifact"], "tes");
    assert_eq!(info["type"]["version"], "1.1.0");
    assert_eq!(info["storage"][0], "file:///data");
    assert_eq!(
        info["tesResources_backend_parameters"],
        serde_json::json!([])
    );

    let legacy = service.get("/v1/tasks/service-info").await.json();
    let keys: Vec<_> = legacy.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["doc", "name", "storage"]);
    assert_eq!(legacy["doc"], "for tests");
}

#[tokio::test]
async fn a_request_id_is_passed_on_if_it_is_harmless() {
    let service = Service::start().await;
    let ask = |id: &'static str| {
        service
            .request("GET", "/healthz")
            .header("x-request-id", id)
    };
    let reply = service.send(ask("engine-7.a_b")).await;
    assert_eq!(reply.headers["x-request-id"], "engine-7.a_b");
    for hostile in ["a b", "<script>", ""] {
        let reply = service.send(ask(hostile)).await;
        assert_eq!(reply.headers["x-request-id"].len(), 16, "{hostile}");
    }
}

#[tokio::test]
async fn operators_see_health_readiness_and_numbers() {
    let service = Service::start().await;
    service.id_of(&minimal()).await;
    assert_eq!(service.get("/healthz").await.text, "ok\n");
    assert_eq!(service.get("/readyz").await.text, "ok\n");
    let numbers = service.get("/metrics").await.text;
    for line in [
        "tesk_tasks{state=\"QUEUED\"} 1",
        "tesk_http_requests_total{operation=\"create_task\",method=\"POST\",status=\"200\"} 1",
        "tesk_build_info{version=",
        "tesk_http_request_duration_seconds_bucket",
    ] {
        assert!(numbers.contains(line), "{line} is not in\n{numbers}");
    }
}

#[tokio::test]
async fn a_client_that_never_ends_its_headers_is_cut_off() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let short =
        |c: &mut tesk_api::config::Config| c.server.header_timeout = "200ms".parse().unwrap();
    let service = Service::with(short).await;
    let address = service.address.strip_prefix("http://").unwrap();
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    socket
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
        .await
        .unwrap();
    let mut rest = Vec::new();
    let end = socket.read_to_end(&mut rest);
    let end = tokio::time::timeout(std::time::Duration::from_secs(10), end).await;
    assert!(end.is_ok(), "the connection is still open");
}
