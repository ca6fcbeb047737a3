//! Who may do what.

use std::io::Write;

use serde_json::json;
use tempfile::NamedTempFile;
use tesk_api::auth::{basic, users};

use crate::support::{BASE, Reply, Service, minimal};

fn users_file() -> NamedTempFile {
    let hex = |token: &str| hex::encode(users::token_digest(token));
    let mut file = NamedTempFile::new().unwrap();
    write!(
        file,
        "[[user]]\nname = \"ada\"\ngroup = \"engines\"\ntokens = [\"{}\"]\npassword = \"{}\"\n\
         [[user]]\nname = \"bob\"\ntokens = [\"{}\"]\n\
         [[user]]\nname = \"root\"\nadmin = true\ntokens = [\"{}\"]\n",
        hex("ada-token"),
        basic::hash("ada's: password").unwrap(),
        hex("bob-token"),
        hex("root-token"),
    )
    .unwrap();
    file
}

async fn ask(service: &Service, method: &str, path: &str, token: &str) -> Reply {
    let mut request = service
        .request(method, &format!("{BASE}/{path}"))
        .bearer_auth(token);
    if method == "POST" && path == "tasks" {
        request = request.json(&minimal());
    }
    service.send(request).await
}

#[tokio::test]
async fn in_open_mode_any_authorization_works() {
    let service = Service::start().await;
    for value in ["Basic Tm9uZTpOb25l", "Bearer x", "nonsense", ""] {
        let request = service.request("GET", &format!("{BASE}/tasks"));
        let reply = service.send(request.header("authorization", value)).await;
        assert_eq!(reply.status, 200, "{value}");
    }
}

#[tokio::test]
async fn without_credentials_tasks_are_401_and_the_description_is_open() {
    let file = users_file();
    let service = Service::with(|c| c.auth.users = Some(file.path().into())).await;
    for (method, path) in [
        ("GET", "tasks"),
        ("POST", "tasks"),
        ("GET", "tasks/x"),
        ("POST", "tasks/x:cancel"),
        ("GET", "tasks/x:output"),
    ] {
        let reply = service
            .send(service.request(method, &format!("{BASE}/{path}")))
            .await;
        reply.error(401);
        let asked: Vec<_> = reply.headers.get_all("www-authenticate").iter().collect();
        assert_eq!(asked.len(), 2, "{asked:?}");
    }
    for path in [
        "/healthz",
        "/readyz",
        "/metrics",
        "/v1/service-info",
        "/v1/tasks/service-info",
        "/v1/openapi.json",
    ] {
        assert_eq!(service.get(path).await.status, 200, "{path}");
    }
    for token in ["", "ada", "ada-token2"] {
        ask(&service, "GET", "tasks", token).await.error(401);
    }
}

#[tokio::test]
async fn tasks_of_others_do_not_exist() {
    let file = users_file();
    let service = Service::with(|c| c.auth.users = Some(file.path().into())).await;
    let id = ask(&service, "POST", "tasks", "ada-token").await.json()["id"].clone();
    let one = format!("tasks/{}", id.as_str().unwrap());
    ask(&service, "GET", &one, "bob-token").await.error(404);
    ask(&service, "POST", &format!("{one}:cancel"), "bob-token")
        .await
        .error(404);
    assert_eq!(
        ask(&service, "GET", "tasks", "bob-token").await.json(),
        json!({ "tasks": [] })
    );
    for token in ["ada-token", "root-token"] {
        assert_eq!(
            ask(&service, "GET", &one, token).await.json()["state"],
            "QUEUED"
        );
        let list = ask(&service, "GET", "tasks", token).await.json();
        assert_eq!(list["tasks"].as_array().unwrap().len(), 1);
    }
    let reply = ask(&service, "POST", &format!("{one}:cancel"), "root-token").await;
    assert_eq!(reply.text, "{}");
}

#[tokio::test]
async fn an_idempotency_key_belongs_to_its_user() {
    let file = users_file();
    let service = Service::with(|c| c.auth.users = Some(file.path().into())).await;
    let post = |token: &'static str| {
        let request = service
            .request("POST", &format!("{BASE}/tasks"))
            .bearer_auth(token);
        service.send(request.header("idempotency-key", "k").json(&minimal()))
    };
    assert_ne!(
        post("ada-token").await.json()["id"],
        post("bob-token").await.json()["id"]
    );
}

#[tokio::test]
async fn a_password_works_with_colons_in_it_and_a_wrong_one_does_not() {
    let file = users_file();
    let service = Service::with(|c| c.auth.users = Some(file.path().into())).await;
    let ask = |name: &'static str, password: &'static str| {
        let request = service.request("GET", &format!("{BASE}/tasks"));
        service.send(request.basic_auth(name, Some(password)))
    };
    assert_eq!(ask("ada", "ada's: password").await.status, 200);
    ask("ada", "wrong").await.error(401);
    ask("bob", "").await.error(401);
    ask("nobody", "ada's: password").await.error(401);
}

#[tokio::test]
async fn passwords_cannot_be_guessed_faster_than_a_few_at_once() {
    let file = users_file();
    let service = Service::with(|c| c.auth.users = Some(file.path().into())).await;
    let guesses = (0..150).map(|i| {
        let request = service.request("GET", &format!("{BASE}/tasks"));
        service.send(request.basic_auth("ada", Some(format!("guess {i}"))))
    });
    let replies = futures_util::future::join_all(guesses).await;
    let turned_away = replies.iter().filter(|r| r.status == 429).count();
    assert!(turned_away > 0, "all of 150 guesses at once were tried");
    assert!(replies.iter().all(|r| r.status == 429 || r.status == 401));
}
