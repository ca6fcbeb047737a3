//! Cancel answers the same to everybody, always.

use tesk_core::tes::State;

use crate::support::{BASE, Reply, Service, minimal};

async fn cancel(service: &Service, id: &str, body: &'static str) -> Reply {
    let request = service.request("POST", &format!("{BASE}/tasks/{id}"));
    service
        .send(
            request
                .header("content-type", "application/json")
                .body(body),
        )
        .await
}

#[tokio::test]
async fn cancel_never_looks_at_the_body() {
    let service = Service::start().await;
    for body in ["", "{}", "null", "not json {"] {
        for suffix in [":cancel", "%3Acancel", "%3acancel"] {
            let id = service.id_of(&minimal()).await;
            let reply = cancel(&service, &format!("{id}{suffix}"), body).await;
            assert_eq!(
                (reply.status.as_u16(), reply.text.as_str()),
                (200, "{}"),
                "{body}"
            );
            assert_eq!(service.task(&id, "").await["state"], "CANCELED");
        }
    }
}

#[tokio::test]
async fn a_task_that_has_ended_stays_as_it_is() {
    let service = Service::start().await;
    let id = service.id_of(&minimal()).await;
    service.end(&id, State::SystemError).await;
    for _ in 0..2 {
        let reply = cancel(&service, &format!("{id}:cancel"), "").await;
        assert_eq!((reply.status.as_u16(), reply.text.as_str()), (200, "{}"));
        assert_eq!(service.task(&id, "").await["state"], "SYSTEM_ERROR");
    }
}

#[tokio::test]
async fn a_canceled_task_says_so_in_its_system_log() {
    let service = Service::start().await;
    let id = service.id_of(&minimal()).await;
    cancel(&service, &format!("{id}:cancel"), "").await;
    let logs = service.task(&id, "FULL").await["logs"][0]["system_logs"].to_string();
    assert!(logs.contains("cancel"), "{logs}");
}
