//! Paging and filters.

use std::collections::BTreeSet;
use std::slice::from_ref;

use serde_json::json;
use tesk_core::tes::State;

use crate::support::{BASE, Service, minimal, task};

#[tokio::test]
async fn an_empty_list_is_a_list() {
    let service = Service::start().await;
    let reply = service.get(&format!("{BASE}/tasks")).await;
    assert_eq!(reply.text, r#"{"tasks":[]}"#);
}

#[tokio::test]
async fn page_sizes_from_1_to_2047_are_served_and_others_are_400() {
    let service = Service::start().await;
    for _ in 0..3 {
        service.id_of(&minimal()).await;
    }
    for (size, count) in [("1", 1), ("2", 2), ("2047", 3), ("", 3)] {
        assert_eq!(
            service.list(&format!("page_size={size}")).await.0.len(),
            count
        );
    }
    for size in ["0", "-1", "2048", "abc", "1.5", "99999999999999999999"] {
        let reply = service.get(&format!("{BASE}/tasks?page_size={size}")).await;
        assert!(reply.error(400).contains("page_size"), "{size}");
    }
}

#[tokio::test]
async fn all_tasks_are_paged_through_once_while_others_are_made() {
    let service = Service::start().await;
    let mut made = BTreeSet::new();
    for chunk in 0..12 {
        let posts = (0..50).map(|i| {
            let service = &service;
            async move {
                service
                    .id_of(&task(&json!({ "name": format!("{chunk}-{i}") })))
                    .await
            }
        });
        made.extend(futures_util::future::join_all(posts).await);
    }
    let (default_page, token) = service.list("").await;
    assert_eq!(default_page.len(), 256);
    assert!(token.is_some());
    let mut seen = Vec::new();
    let mut token = String::new();
    loop {
        let (ids, next) = service
            .list(&format!("page_size=97&page_token={token}"))
            .await;
        assert!(ids.len() == 97 || next.is_none());
        seen.extend(ids);
        service.id_of(&minimal()).await;
        match next {
            Some(next) => token = next,
            None => break,
        }
    }
    assert_eq!(
        seen.len(),
        600,
        "the tasks made meanwhile are newer than the first page"
    );
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), made);
}

#[tokio::test]
async fn the_last_page_has_no_token_even_when_it_is_full() {
    let service = Service::start().await;
    for _ in 0..4 {
        service.id_of(&minimal()).await;
    }
    let (_, token) = service.list("page_size=2").await;
    let (ids, last) = service
        .list(&format!("page_size=2&page_token={}", token.unwrap()))
        .await;
    assert_eq!(ids.len(), 2);
    assert_eq!(last, None);
}

#[tokio::test]
async fn a_token_outlives_the_server_and_garbage_is_400() {
    let service = Service::start().await;
    for _ in 0..3 {
        service.id_of(&minimal()).await;
    }
    let (_, token) = service.list("page_size=2").await;
    let token = token.unwrap();
    let service = service.restart().await;
    assert_eq!(
        service.list(&format!("page_token={token}")).await.0.len(),
        1
    );
    for garbage in ["x", "%00", "..", "e30=", &"9".repeat(500)] {
        let reply = service
            .get(&format!("{BASE}/tasks?page_token={garbage}"))
            .await;
        assert!(reply.error(400).contains("page_token"), "{garbage}");
    }
}

#[tokio::test]
async fn states_filter_in_any_case_and_unknown_ones_are_400() {
    let service = Service::start().await;
    let a = service.id_of(&minimal()).await;
    let b = service.id_of(&minimal()).await;
    service.end(&a, State::Canceled).await;
    assert_eq!(service.list("state=canceled").await.0, from_ref(&a));
    assert_eq!(service.list("state=QUEUED").await.0, from_ref(&b));
    assert_eq!(service.list("state=").await.0, [b, a]);
    assert_eq!(service.list("state=PAUSED").await.0, Vec::<String>::new());
    service
        .get(&format!("{BASE}/tasks?state=x"))
        .await
        .error(400);
}

#[tokio::test]
async fn name_prefixes_are_case_sensitive_and_literal() {
    let service = Service::start().await;
    let named = |name: &str| task(&json!({ "name": name }));
    let a = service.id_of(&named("align-%_1")).await;
    let b = service.id_of(&named("align-2")).await;
    service.id_of(&named("Align-3")).await;
    service.id_of(&minimal()).await;
    assert_eq!(service.list("name_prefix=align-").await.0, [b, a.clone()]);
    assert_eq!(service.list("name_prefix=align-%25_").await.0, [a]);
    assert_eq!(service.list("name_prefix=").await.0.len(), 4);
}

#[tokio::test]
async fn tags_are_paired_by_position_however_they_are_interleaved() {
    let service = Service::start().await;
    let tagged = |tags: serde_json::Value| task(&json!({ "tags": tags }));
    let one = service.id_of(&tagged(json!({ "a": "1", "b": "2" }))).await;
    let two = service
        .id_of(&tagged(json!({ "a": "1", "b": "x", "c": "" })))
        .await;
    let grouped = "tag_key=a&tag_key=b&tag_value=1&tag_value=2";
    let interleaved = "tag_key=a&tag_value=1&tag_key=b&tag_value=2";
    for query in [grouped, interleaved] {
        assert_eq!(service.list(query).await.0, from_ref(&one), "{query}");
    }
    assert_eq!(
        service.list("tag_key=a").await.0,
        [two.clone(), one.clone()]
    );
    assert_eq!(service.list("tag_key=c&tag_value=").await.0, from_ref(&two));
    assert_eq!(
        service.list("tag_key=b&tag_key=a&tag_value=x").await.0,
        [two]
    );
    assert_eq!(
        service
            .list("tag_key=a&tag_value=1&tag_key=a&tag_value=2")
            .await
            .0
            .len(),
        0
    );
    for wrong in [
        "tag_value=1",
        "tag_key=a&tag_value=1&tag_value=2",
        "tag_key=",
    ] {
        service
            .get(&format!("{BASE}/tasks?{wrong}"))
            .await
            .error(400);
    }
}
