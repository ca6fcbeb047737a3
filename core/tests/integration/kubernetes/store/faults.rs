//! Crashes, lost answers, watches that break, and other replicas.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::StreamExt as _;
use libtest_mimic::Trial;
use tesk_conformance::fake_api::{FakeApi, Fault};
use tesk_core::scheduler::{Created, NewTask, StoreError, TaskStore, Update};
use tesk_core::tes::{State, UrlSecrets};
use tesk_core::time::Timestamp;

use super::{
    all, keyed, logs, names, noise, open, open_to_sweep, set, set_logs, soon, stored, task,
};
use crate::trials;

pub(super) fn trials() -> Vec<Trial> {
    trials![
        "config-maps":
        a_create_that_is_cut_off_anywhere_is_whole_or_swept,
        an_update_that_is_cut_off_anywhere_is_whole_and_swept,
        a_sweep_that_is_cut_off_anywhere_is_finished_by_the_next,
        an_answer_that_was_lost_is_looked_for,
        an_overloaded_server_is_not_asked_again,
        a_used_up_quota_is_no_room,
        another_replica_reads_what_was_written_at_once,
        two_replicas_never_overwrite_each_other,
        twins_on_two_replicas_make_one_task,
        what_happened_while_a_watch_was_broken_is_not_lost,
        a_watch_that_is_too_old_to_begin_is_preceded_by_a_list,
        a_store_out_of_touch_says_so_and_goes_on_reading,
        a_store_does_not_open_without_the_cluster,
    ]
}

/// Loses every request after the first `carried_out`; the answer of the last one of these too,
/// if `lose_answer`. That is what a process that dies there looks like to the server.
fn crash_after(server: &FakeApi, carried_out: usize, lose_answer: bool) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    server.intercept(move |call| {
        if call.verb == "watch" {
            return None;
        }
        let number = counted.fetch_add(1, Ordering::Relaxed) + 1;
        if number > carried_out {
            Some(Fault::Lose)
        } else if lose_answer && number == carried_out {
            Some(Fault::LoseAnswer)
        } else {
            None
        }
    });
    count
}

fn large_task() -> NewTask {
    let mut task = keyed(task(), "k");
    task.document = noise(5 << 18);
    task.secrets = UrlSecrets(BTreeMap::from([("x".to_owned(), "y".to_owned())]));
    task
}

async fn a_create_that_is_cut_off_anywhere_is_whole_or_swept() -> Result<()> {
    let mut made = 0;
    for crash in 0.. {
        let server = FakeApi::new();
        let store = open(&server).await?;
        let (task, lose) = (large_task(), crash % 2 == 1);
        let carried_out = usize::div_ceil(crash, 2);
        let requests = crash_after(&server, carried_out, lose);
        let created = store.create(task.clone()).await;
        drop(store);
        let over = requests.load(Ordering::Relaxed) < carried_out;
        server.heal();

        let store = open_to_sweep(&server).await?;
        let there = store.get(&task.id).await?;
        if created.is_ok() {
            ensure!(there.is_some(), "lost at {crash}");
        }
        store.sweep(Timestamp::from_millis(1), 10).await?;
        if let Some(record) = &there {
            made += 1;
            let kept = store.get(&task.id).await?.context("swept")?;
            ensure!(kept == *record && record.document == task.document);
            let fresh = open(&server).await?;
            ensure!(fresh.get(&task.id).await?.as_ref() == Some(record));
            // Head, two parts or more, note, secret and key.
            ensure!(server.objects("secrets").len() == 1 && names(&server).len() >= 6);
        } else {
            ensure!(
                names(&server).is_empty(),
                "left at {crash}: {:?}",
                names(&server)
            );
        }
        let mut again = task.clone();
        again.id = super::TaskId::random();
        let expected = match there {
            Some(_) => Created::Existing(task.id),
            None => Created::New(again.id.clone()),
        };
        ensure!(store.create(again).await? == expected, "at {crash}");
        ensure!(all(&store).await?.len() == 1);
        if over {
            ensure!(crash > 10 && made > 1, "only {crash} places to crash at");
            return Ok(());
        }
    }
    bail!("it never ends")
}

async fn an_update_that_is_cut_off_anywhere_is_whole_and_swept() -> Result<()> {
    for crash in 0.. {
        let server = FakeApi::new();
        let store = open(&server).await?;
        let task = large_task();
        let id = stored(&store, task.clone()).await?;
        let (before, after) = (noise(600 << 10), noise(600 << 10));
        let head = set_logs(&store, &id, &before).await?;
        let carried_out = usize::div_ceil(crash, 2);
        let requests = crash_after(&server, carried_out, crash % 2 == 1);
        let update = Update {
            state: Some(State::Complete),
            logs: Some(logs(&after)),
            ..Update::default()
        };
        let updated = store.update(&id, head.version, update).await;
        drop(store);
        let over = requests.load(Ordering::Relaxed) < carried_out;
        server.heal();

        let store = open_to_sweep(&server).await?;
        let record = store.get(&id).await?.context("lost")?;
        let done = record.head.state == State::Complete;
        ensure!(done || updated.is_err(), "at {crash}");
        ensure!(record.logs == logs(if done { &after } else { &before }));
        ensure!(record.document == task.document);
        store.sweep(Timestamp::from_millis(1), 10).await?;
        let fresh = open(&server).await?;
        ensure!(fresh.get(&id).await? == Some(record));
        let left = names(&server);
        let results = left.iter().filter(|name| name.contains(".result-"));
        ensure!(results.count() == 1, "at {crash}: {left:?}");
        ensure!(server.objects("secrets").len() == usize::from(!done));
        ensure!(left.contains(&format!("tesk-{id}.secret")) != done);
        if over {
            ensure!(crash > 6);
            return Ok(());
        }
    }
    bail!("it never ends")
}

async fn a_sweep_that_is_cut_off_anywhere_is_finished_by_the_next() -> Result<()> {
    for crash in 0.. {
        let server = FakeApi::new();
        let store = open(&server).await?;
        let id = stored(&store, large_task()).await?;
        set(&store, &id, State::Complete).await?;
        let carried_out = usize::div_ceil(crash, 2);
        let requests = crash_after(&server, carried_out, crash % 2 == 1);
        let later = Timestamp::now().after(Duration::from_secs(1));
        let _ = store.sweep(later, 10).await;
        drop(store);
        let over = requests.load(Ordering::Relaxed) < carried_out;
        server.heal();
        let store = open_to_sweep(&server).await?;
        if let Some(head) = store.head(&id).await? {
            ensure!(head.state == State::Complete);
            store.get(&id).await?.context("half swept")?;
        }
        store.sweep(later, 10).await?;
        ensure!(
            names(&server).is_empty(),
            "at {crash}: {:?}",
            names(&server)
        );
        if over {
            return Ok(());
        }
    }
    bail!("it never ends")
}

async fn an_answer_that_was_lost_is_looked_for() -> Result<()> {
    let server = FakeApi::new();
    let store = open(&server).await?;
    server.intercept(|call| match call.verb {
        "create" | "patch" => Some(Fault::LoseAnswer),
        _ => None,
    });
    let id = stored(&store, task()).await?;
    let head = set(&store, &id, State::Initializing).await?;
    ensure!(head.state == State::Initializing);
    ensure!(store.head(&id).await? == Some(head.clone()));
    // One that was not carried out is not taken for one that was.
    server.intercept(|call| (call.verb != "watch" && call.verb != "get").then_some(Fault::Lose));
    ensure!(matches!(
        store.create(task()).await,
        Err(StoreError::Unavailable(_))
    ));
    let update = Update {
        state: Some(State::Complete),
        ..Update::default()
    };
    let lost = store.update(&id, head.version, update).await;
    ensure!(matches!(lost, Err(StoreError::Unavailable(_))));
    ensure!(all(&store).await? == [id]);
    Ok(())
}

async fn an_overloaded_server_is_not_asked_again() -> Result<()> {
    let server = FakeApi::new();
    let store = open(&server).await?;
    let id = stored(&store, task()).await?;
    let before = server.requests();
    server.intercept(|call| (call.verb != "watch").then_some(Fault::Refuse(429)));
    let refused = store.create(task()).await;
    ensure!(matches!(refused, Err(StoreError::Unavailable(_))));
    ensure!(set(&store, &id, State::Complete).await.is_err());
    let unknown = store.get(&super::TaskId::random()).await;
    ensure!(matches!(unknown, Err(StoreError::Unavailable(_))));
    let after = server.requests();
    for write in ["create configmaps", "patch configmaps"] {
        let count = |requests: &BTreeMap<String, u64>| requests.get(write).copied().unwrap_or(0);
        ensure!(count(&after) == count(&before) + 1, "{write}: {after:?}");
    }
    // What is known is still answered.
    ensure!(all(&store).await? == [id]);
    Ok(())
}

async fn a_used_up_quota_is_no_room() -> Result<()> {
    let server = FakeApi::new();
    let store = open(&server).await?;
    server.intercept(|call| {
        let message = "exceeded quota: q, requested: count/configmaps=1".to_owned();
        (call.verb == "create").then_some(Fault::RefuseWith(403, message))
    });
    let refused = store.create(keyed(task(), "k")).await;
    ensure!(matches!(refused, Err(StoreError::Full(_))), "{refused:?}");
    server.heal();
    stored(&store, keyed(task(), "k")).await?;
    Ok(())
}

async fn another_replica_reads_what_was_written_at_once() -> Result<()> {
    let server = FakeApi::new();
    let (one, two) = (open(&server).await?, open(&server).await?);
    server.intercept(|call| (call.verb == "watch").then_some(Fault::Lose));
    server.cut_watches();
    let mut large = task();
    large.document = noise(1 << 20);
    for task in [task(), large] {
        let id = stored(&one, task.clone()).await?;
        let read = two.get_raw(&id).await?.context("not read at once")?;
        ensure!(read.document == task.document);
        ensure!(all(&two).await?.contains(&id), "read and not listed");
        let head = two.head(&id).await?.context("a head")?;
        let update = Update {
            state: Some(State::Initializing),
            ..Update::default()
        };
        let changed = two.update(&id, head.version, update).await?;
        // The first has not heard of that; who has can still go on there.
        let update = Update {
            state: Some(State::Running),
            ..Update::default()
        };
        one.update(&id, changed.version, update).await?;
    }
    let third = stored(&one, task()).await?;
    ensure!(!all(&two).await?.contains(&third));
    server.heal();
    soon("the lists are the same", || async {
        Ok(all(&two).await? == all(&one).await?)
    })
    .await
}

async fn two_replicas_never_overwrite_each_other() -> Result<()> {
    let server = FakeApi::new();
    let (one, two) = (open(&server).await?, open(&server).await?);
    server.intercept(|call| (call.verb == "watch").then_some(Fault::Lose));
    server.cut_watches();
    let id = stored(&one, task()).await?;
    let old = two.head(&id).await?.context("a head")?;
    set(&one, &id, State::Canceled).await?;
    let update = Update {
        state: Some(State::Running),
        logs: Some(logs(&noise(1 << 20))),
        ..Update::default()
    };
    let refused = two.update(&id, old.version, update.clone()).await;
    ensure!(matches!(refused, Err(StoreError::Conflict)));
    ensure!(names(&server).len() == 1, "the refused logs are left");
    // Now it knows, and does not try in vain again.
    let head = two.head(&id).await?.context("a head")?;
    ensure!(head.state == State::Canceled);
    let before = server.request_count();
    let refused = two.update(&id, head.version, update).await;
    ensure!(matches!(refused, Err(StoreError::Conflict)));
    ensure!(server.request_count() == before);
    Ok(())
}

async fn twins_on_two_replicas_make_one_task() -> Result<()> {
    for _ in 0..20 {
        let server = FakeApi::new();
        let replicas = [open(&server).await?, open(&server).await?];
        let creates = (0..10).map(|n| replicas[n % 2].create(keyed(task(), "k")));
        let answers = futures_util::future::join_all(creates).await;
        let mut new = Vec::new();
        let mut existing = Vec::new();
        for answer in answers {
            match answer? {
                Created::New(id) => new.push(id),
                Created::Existing(id) => existing.push(id),
                Created::KeyReused => bail!("the body is the same"),
            }
        }
        ensure!(new.len() == 1 && existing.iter().all(|id| *id == new[0]));
        ensure!(names(&server).len() == 2);
    }
    Ok(())
}

async fn what_happened_while_a_watch_was_broken_is_not_lost() -> Result<()> {
    for compacted in [false, true] {
        let server = FakeApi::new();
        let (one, two) = (open(&server).await?, open(&server).await?);
        let (ends, goes) = (stored(&one, task()).await?, stored(&one, task()).await?);
        let stays = stored(&one, task()).await?;
        soon("the tasks are known", || async {
            Ok(all(&two).await?.len() == 3)
        })
        .await?;
        let mut watch = two.watch().await?;
        for _ in 0..3 {
            watch.next().await.context("a head")?;
        }
        server.intercept(|call| (call.verb == "watch").then_some(Fault::Lose));
        server.cut_watches();
        set(&one, &ends, State::Complete).await?;
        set(&one, &goes, State::Complete).await?;
        server.remove("configmaps", &format!("tesk-{goes}"));
        let comes = stored(&one, task()).await?;
        if compacted {
            server.compact();
        }
        server.heal();
        soon("the lists are right", || async {
            let mut listed = all(&two).await?;
            let mut wanted = [ends.clone(), stays.clone(), comes.clone()];
            listed.sort();
            wanted.sort();
            Ok(listed == wanted)
        })
        .await?;
        let mut news = BTreeMap::new();
        while !(news.contains_key(&comes) && news.contains_key(&ends)) {
            let next = tokio::time::timeout(Duration::from_secs(10), watch.next()).await?;
            let head = next.context("the watch ended")?;
            news.insert(head.id, head.state);
        }
        ensure!(news[&ends] == State::Complete && news[&comes] == State::Queued);
        ensure!(two.head(&goes).await?.is_none());
        ensure!(two.stale().is_none());
    }
    Ok(())
}

async fn a_watch_that_is_too_old_to_begin_is_preceded_by_a_list() -> Result<()> {
    let server = FakeApi::new();
    let (one, two) = (open(&server).await?, open(&server).await?);
    let mut listed = 0;
    server.intercept(move |call| {
        listed += usize::from(call.verb == "list");
        // Both stores list.
        (call.verb == "watch" && listed < 2).then_some(Fault::Refuse(410))
    });
    server.cut_watches();
    let id = stored(&one, task()).await?;
    soon("the task is listed", || async {
        Ok(all(&two).await?.contains(&id))
    })
    .await
}

async fn a_store_out_of_touch_says_so_and_goes_on_reading() -> Result<()> {
    let server = FakeApi::new();
    let store = open(&server).await?;
    let id = stored(&store, task()).await?;
    ensure!(store.stale().is_none());
    server.intercept(|_| Some(Fault::Lose));
    server.cut_watches();
    soon("it says so", || async { Ok(store.stale().is_some()) }).await?;
    store.check().await?;
    ensure!(all(&store).await? == [id.clone()] && store.get(&id).await?.is_some());
    server.heal();
    soon("it recovers", || async { Ok(store.stale().is_none()) }).await
}

async fn a_store_does_not_open_without_the_cluster() -> Result<()> {
    let server = FakeApi::new();
    for fault in [Fault::Lose, Fault::Refuse(403), Fault::Refuse(500)] {
        let this = fault.clone();
        server.intercept(move |_| Some(this.clone()));
        ensure!(open(&server).await.is_err(), "{fault:?}");
    }
    Ok(())
}
