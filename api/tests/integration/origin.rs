//! What a web page may make the server do.

use crate::support::{BASE, Service, minimal};

#[tokio::test]
async fn a_cross_site_post_is_403_and_makes_no_task() {
    let service = Service::start().await;
    for (name, value) in [
        ("origin", "https://evil.example.com"),
        ("origin", "null"),
        ("sec-fetch-site", "cross-site"),
        ("host", "evil.example.com"),
    ] {
        let request = service.request("POST", &format!("{BASE}/tasks"));
        let reply = service
            .send(request.header(name, value).json(&minimal()))
            .await;
        reply.error(403);
        assert!(reply.headers.get("access-control-allow-origin").is_none());
    }
    assert_eq!(service.list("").await.0.len(), 0);
}

#[tokio::test]
async fn a_listed_origin_may_use_the_service_from_a_browser() {
    let origin = "https://ui.example.org";
    let service = Service::with(|c| c.server.allowed_origins = vec![origin.into()]).await;
    let path = format!("{BASE}/tasks");
    let preflight = service
        .request("OPTIONS", &path)
        .header("origin", origin)
        .header("access-control-request-method", "POST");
    let reply = service.send(preflight).await;
    assert_eq!(reply.status, 204);
    assert_eq!(reply.headers["access-control-allow-origin"], origin);
    assert!(
        reply.headers["access-control-allow-headers"]
            .to_str()
            .unwrap()
            .contains("authorization")
    );
    let post = service
        .request("POST", &path)
        .header("origin", origin)
        .json(&minimal());
    let reply = service.send(post).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.headers["access-control-allow-origin"], origin);
    assert_eq!(reply.headers["vary"], "Origin");
}
