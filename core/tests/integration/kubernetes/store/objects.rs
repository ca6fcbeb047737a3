//! What the store makes of a task in the cluster, and how little it asks of the API server.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use libtest_mimic::Trial;
use serde_json::json;
use tesk_conformance::fake_api::FakeApi;
use tesk_core::kubernetes::store::StoreSettings;
use tesk_core::kubernetes::{Cluster, ConfigMapStore, secret_name};
use tesk_core::scheduler::{Owner, Query, StoreError, TaskStore, Update};
use tesk_core::tes::{Filter, State, UrlSecrets};
use tesk_core::time::Timestamp;

use super::{
    all, keyed, logs, names, noise, open, open_to_sweep, set, set_logs, soon, stored, task,
};
use crate::trials;

pub(super) fn trials() -> Vec<Trial> {
    trials![
        "config-maps":
        a_small_task_is_one_object_and_one_request,
        a_document_of_two_mebibytes_that_does_not_compress_fits,
        a_document_over_the_limit_is_refused_with_the_limit,
        large_logs_come_back_and_replace_the_ones_before,
        a_name_and_tags_over_the_limit_are_refused,
        user_text_is_in_no_label,
        passwords_are_in_a_secret_and_nowhere_else,
        a_swept_task_leaves_nothing,
        a_head_that_was_spoilt_harms_no_other_task,
        a_text_that_was_edited_is_told,
        a_page_of_large_documents_ends_early,
        a_missing_part_is_told_and_harms_no_other_task,
        engines_in_one_namespace_do_not_see_each_other,
        lists_of_many_tasks_cause_no_requests,
        documents_that_were_used_lately_cause_no_requests,
    ]
}

async fn a_small_task_is_one_object_and_one_request() -> Result<()> {
    let server = FakeApi::new();
    let store = open(&server).await?;
    let before = server.request_count();
    let id = stored(&store, task()).await?;
    ensure!(server.request_count() == before + 1);
    ensure!(names(&server) == [format!("tesk-{id}")]);
    let object = server.object("configmaps", &format!("tesk-{id}"));
    let owner = store.owner_reference(&id).context("an owner")?;
    ensure!(object.context("an object")?["metadata"]["uid"] == owner.uid);
    set(&store, &id, State::Initializing).await?;
    set_logs(&store, &id, "small").await?;
    ensure!(server.request_count() == before + 3);
    ensure!(names(&server).len() == 1);
    Ok(())
}

async fn a_document_of_two_mebibytes_that_does_not_compress_fits() -> Result<()> {
    let server = FakeApi::new();
    let store = open(&server).await?;
    for bytes in [8 << 10, (8 << 10) + 1, 900 << 10, 2 << 20, 15 << 20] {
        let mut task = task();
        task.document = noise(bytes);
        let document = Arc::clone(&task.document);
        let id = stored(&store, task).await?;
        // Another replica has nothing in its cache.
        let record = open(&server).await?.get_raw(&id).await?.context("a task")?;
        ensure!(record.document == document, "{bytes} bytes");
    }
    Ok(())
}

async fn a_document_over_the_limit_is_refused_with_the_limit() -> Result<()> {
    let server = FakeApi::new();
    let store = open(&server).await?;
    let mut task = keyed(task(), "k");
    task.document = "x".repeat((16 << 20) + 1).into();
    match store.create(task).await {
        Err(error @ StoreError::TooLarge { .. }) => {
            ensure!(error.to_string().contains("16777216"), "{error}");
        }
        other => anyhow::bail!("{other:?}"),
    }
    ensure!(names(&server).is_empty());
    Ok(())
}

async fn large_logs_come_back_and_replace_the_ones_before() -> Result<()> {
    let server = FakeApi::new();
    let store = open(&server).await?;
    let id = stored(&store, task()).await?;
    let mut counts = Vec::new();
    for bytes in [100, 4 << 20, 2 << 20, 100] {
        let text = noise(bytes);
        set_logs(&store, &id, &text).await?;
        let record = open(&server).await?.get(&id).await?.context("a task")?;
        ensure!(record.logs == logs(&text), "{bytes} bytes");
        counts.push(names(&server).len());
    }
    ensure!(counts[0] == 1 && counts[3] == 1, "{counts:?}");
    ensure!(counts[1] > counts[2] && counts[2] > 1, "{counts:?}");
    Ok(())
}

async fn a_name_and_tags_over_the_limit_are_refused() -> Result<()> {
    let server = FakeApi::new();
    let store = open(&server).await?;
    let mut large = task();
    large.tags = vec![("k".to_owned(), "v".repeat(16 << 10))];
    let refused = store.create(large).await;
    ensure!(matches!(refused, Err(StoreError::TooLarge { .. })));
    ensure!(names(&server).is_empty());
    let mut fits = task();
    // Every character costs two in JSON.
    fits.tags = vec![("k".to_owned(), "\"".repeat(16_000))];
    let tags = vec![("k".to_owned(), Some("\"".repeat(16_000)))];
    let id = stored(&store, fits).await?;
    let query = Query {
        filter: Filter {
            tags,
            ..Filter::default()
        },
        user: None,
        after: None,
        limit: 10,
        documents: false,
    };
    ensure!(open(&server).await?.list(&query).await?.tasks[0].head.id == id);
    Ok(())
}

async fn user_text_is_in_no_label() -> Result<()> {
    let server = FakeApi::new();
    let store = open(&server).await?;
    let mut task = task();
    task.owner = Owner {
        user: "Ännchen von Tharau <a@b>".to_owned(),
        group: Some("a group/with ünusual text".to_owned()),
    };
    task.name = Some("x".repeat(200));
    let owner = task.owner.clone();
    let id = stored(&store, task).await?;
    let object = server.object("configmaps", &format!("tesk-{id}"));
    let labels = object.context("an object")?["metadata"]["labels"].to_string();
    ensure!(labels.is_ascii() && !labels.contains("Tharau"), "{labels}");
    ensure!(
        open(&server)
            .await?
            .head(&id)
            .await?
            .context("a head")?
            .owner
            == owner
    );
    Ok(())
}

async fn passwords_are_in_a_secret_and_nowhere_else() -> Result<()> {
    let server = FakeApi::new();
    let store = open_to_sweep(&server).await?;
    let mut task = task();
    task.secrets = UrlSecrets(BTreeMap::from([(
        "inputs[0].url".to_owned(),
        "hunter2".to_owned(),
    )]));
    let secrets = task.secrets.clone();
    let id = stored(&store, task).await?;
    let secret = server.object("secrets", &secret_name(&id));
    let secret: k8s_openapi::api::core::v1::Secret =
        serde_json::from_value(secret.context("a secret")?)?;
    let data = &secret.data.context("data")?["secrets.json"].0;
    ensure!(serde_json::from_slice::<UrlSecrets>(data)? == secrets);
    let maps = format!("{:?}", server.objects("configmaps"));
    ensure!(!maps.contains("hunter2"));
    store.sweep(Timestamp::from_millis(1), 10).await?;
    ensure!(server.objects("secrets").len() == 1);
    set(&store, &id, State::Canceling).await?;
    ensure!(server.objects("secrets").len() == 1);
    set(&store, &id, State::Canceled).await?;
    ensure!(names(&server) == [format!("tesk-{id}")]);
    ensure!(
        !server
            .requests()
            .keys()
            .any(|r| r == "get secrets" || r == "list secrets")
    );
    Ok(())
}

async fn a_swept_task_leaves_nothing() -> Result<()> {
    let server = FakeApi::new();
    let store = open(&server).await?;
    let mut task = keyed(task(), "k");
    task.document = noise(1 << 20);
    task.secrets = UrlSecrets(BTreeMap::from([("x".to_owned(), "y".to_owned())]));
    let again = keyed(super::task(), "k");
    let id = stored(&store, task).await?;
    set_logs(&store, &id, &noise(1 << 20)).await?;
    set(&store, &id, State::Complete).await?;
    let later = Timestamp::now().after(std::time::Duration::from_secs(1));
    ensure!(store.sweep(later, 10).await? == [id]);
    ensure!(names(&server).is_empty(), "{:?}", names(&server));
    // Nor is its key in use.
    stored(&store, again).await?;
    Ok(())
}

async fn a_head_that_was_spoilt_harms_no_other_task() -> Result<()> {
    let server = FakeApi::new();
    let store = open(&server).await?;
    let spoilt = [
        json!({}),
        json!({ "tesk.elixir-cloud.org/head": "{" }),
        json!({ "tesk.elixir-cloud.org/head": "[".repeat(200_000) }),
        json!({ "tesk.elixir-cloud.org/head": r#"{"format":2}"# }),
    ];
    for annotations in spoilt {
        let (bad, good) = (stored(&store, task()).await?, stored(&store, task()).await?);
        server.edit("configmaps", &format!("tesk-{bad}"), |object| {
            object["metadata"]["annotations"] = annotations;
        });
        soon("the head cannot be read", || async {
            Ok(matches!(
                store.head(&bad).await,
                Err(StoreError::Corrupt(_))
            ))
        })
        .await?;
        ensure!(matches!(store.get(&bad).await, Err(StoreError::Corrupt(_))));
        let refused = store.update(&bad, 1, Update::default()).await;
        ensure!(matches!(refused, Err(StoreError::Corrupt(_))));
        set(&store, &good, State::Complete).await?;
        ensure!(!all(&store).await?.contains(&bad) && all(&store).await?.contains(&good));
        // It is the same for one that begins with it.
        let other = open(&server).await?;
        ensure!(matches!(other.get(&bad).await, Err(StoreError::Corrupt(_))));
        ensure!(all(&other).await?.contains(&good));
    }
    ensure!(store.stale().is_none());
    Ok(())
}

async fn a_text_that_was_edited_is_told() -> Result<()> {
    let server = FakeApi::new();
    let store = open(&server).await?;
    for text in ["document", "logs"] {
        let id = stored(&store, task()).await?;
        server.edit("configmaps", &format!("tesk-{id}"), |object| {
            object["data"][text] = json!("[]");
        });
        let other = open(&server).await?;
        ensure!(
            matches!(other.get(&id).await, Err(StoreError::Corrupt(_))),
            "{text}"
        );
        // Whoever asks for the task sees the rest of it.
        let shown = other.get_raw(&id).await?.context("a task")?;
        let lost = format!("the {text} of this task cannot be read: a text is not what");
        let (spoilt, whole) = match text {
            "document" => (shown.document, shown.logs),
            _ => (shown.logs, shown.document),
        };
        ensure!(
            spoilt.contains(&lost) && !whole.contains("cannot be read"),
            "{spoilt}"
        );
    }
    Ok(())
}

async fn a_page_of_large_documents_ends_early() -> Result<()> {
    let server = FakeApi::new();
    let store = open(&server).await?;
    for _ in 0..4 {
        let mut task = task();
        task.document = format!("\"{}\"", "x".repeat(12 << 20)).into();
        stored(&store, task).await?;
    }
    let mut query = Query {
        filter: Filter::default(),
        user: None,
        after: None,
        limit: 10,
        documents: true,
    };
    let first = store.list(&query).await?;
    ensure!(first.tasks.len() == 3 && first.next.is_some());
    query.after = first.next;
    let second = store.list(&query).await?;
    ensure!(second.tasks.len() == 1 && second.next.is_none());
    Ok(())
}

async fn a_missing_part_is_told_and_harms_no_other_task() -> Result<()> {
    let server = FakeApi::new();
    let store = open(&server).await?;
    let mut large = task();
    large.document = noise(1 << 20);
    let (bad, good) = (stored(&store, large).await?, stored(&store, task()).await?);
    let part = names(&server)
        .into_iter()
        .find(|name| name.contains(".document-"));
    ensure!(server.remove("configmaps", &part.context("a part")?));
    let other = open(&server).await?;
    ensure!(matches!(other.get(&bad).await, Err(StoreError::Corrupt(_))));
    let query = Query {
        filter: Filter::default(),
        user: None,
        after: None,
        limit: 10,
        documents: true,
    };
    let page = other.list(&query).await?;
    ensure!(page.tasks.len() == 2);
    for task in page.tasks {
        let is_lost = task.document.contains("cannot be read");
        ensure!(is_lost == (task.head.id == bad) && (is_lost || task.head.id == good));
    }
    ensure!(other.head(&bad).await?.is_some());
    Ok(())
}

async fn engines_in_one_namespace_do_not_see_each_other() -> Result<()> {
    let server = FakeApi::new();
    let store = open(&server).await?;
    let client = kube::Client::new(server.clone(), "test");
    let neighbour = Cluster::new(client, "test".to_owned(), "other".to_owned());
    let neighbour = ConfigMapStore::open(neighbour, StoreSettings::default()).await?;
    let id = stored(&store, keyed(task(), "k")).await?;
    let theirs = stored(&neighbour, keyed(task(), "k")).await?;
    ensure!(neighbour.head(&id).await?.is_none() && store.head(&theirs).await?.is_none());
    ensure!(all(&neighbour).await? == [theirs] && all(&store).await? == [id]);
    Ok(())
}

async fn lists_of_many_tasks_cause_no_requests() -> Result<()> {
    const TASKS: usize = 20_000;
    let server = FakeApi::new();
    let store = open(&server).await?;
    stream::iter(0..TASKS)
        .map(|n| {
            let mut task = task();
            let user = if n % 1000 == 0 { "ann" } else { "bob" };
            user.clone_into(&mut task.owner.user);
            task.name = Some(format!("name {n}"));
            stored(&store, task)
        })
        .buffer_unordered(64)
        .try_collect::<Vec<_>>()
        .await?;
    // Read from the server, in pages.
    let store = open(&server).await?;
    let before = server.request_count();
    let queued = store
        .counts()
        .await?
        .into_iter()
        .find(|c| c.0 == State::Queued);
    ensure!(queued.context("a count")?.1 == TASKS as u64);
    let query = |user: Option<&str>, prefix: Option<&str>| Query {
        filter: Filter {
            name_prefix: prefix.map(str::to_owned),
            ..Filter::default()
        },
        user: user.map(str::to_owned),
        after: None,
        limit: 2047,
        documents: false,
    };
    let mut whole = query(None, None);
    let mut seen = 0;
    loop {
        let page = store.list(&whole).await?;
        seen += page.tasks.len();
        whole.after = page.next;
        if whole.after.is_none() {
            break;
        }
    }
    ensure!(seen == TASKS);
    ensure!(store.list(&query(Some("ann"), None)).await?.tasks.len() == TASKS / 1000);
    ensure!(
        store
            .list(&query(None, Some("name 1999")))
            .await?
            .tasks
            .len()
            == 11
    );
    ensure!(
        server.request_count() == before,
        "a list asked the API server"
    );
    Ok(())
}

async fn documents_that_were_used_lately_cause_no_requests() -> Result<()> {
    let server = FakeApi::new();
    let store = open(&server).await?;
    let mut large = task();
    large.document = noise(100_000);
    let (large, small) = (stored(&store, large).await?, stored(&store, task()).await?);
    let before = server.request_count();
    for id in [&large, &small] {
        store.get(id).await?.context("a task")?;
    }
    ensure!(server.request_count() == before);
    // A change of state is no reason to read a document anew, here or elsewhere.
    let other = open(&server).await?;
    for id in [&large, &small] {
        other.get(id).await?.context("a task")?;
        set(&store, id, State::Running).await?;
    }
    let changed = |id| {
        let other = &other;
        async move { Ok(other.head(id).await?.context("a head")?.state == State::Running) }
    };
    for id in [&large, &small] {
        soon("the change is known", || changed(id)).await?;
        let before = server.request_count();
        ensure!(other.get(id).await?.context("a task")?.head.state == State::Running);
        ensure!(server.request_count() == before);
    }
    Ok(())
}
