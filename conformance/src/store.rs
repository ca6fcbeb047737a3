//! The promises of [`TaskStore`], as cases that any store can be held against.
//!
//! A store's own tests make a [`Fixture`] and run every one of [`CASES`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::future::{BoxFuture, join_all};
use futures_util::{FutureExt as _, StreamExt as _};
use tesk_core::scheduler::store::{IdempotencyKey, Position};
use tesk_core::scheduler::{
    Created, Head, NewTask, Owner, Page, Query, StoreError, TaskId, TaskStore, Update,
};
use tesk_core::tes::{ExecutorLog, Filter, State, TaskLog, UrlSecrets};
use tesk_core::time::Timestamp;

/// Makes the stores that a case works with.
pub trait Fixture: Send + Sync + 'static {
    /// Opens the one store of this fixture; empty the first time. Called again, it opens it
    /// anew, as after a restart: every clone of the one before has been dropped.
    fn open(&self) -> BoxFuture<'_, Result<Arc<dyn TaskStore>>>;

    /// Whether the store gives secrets back, or leaves them to its compute side.
    fn reads_secrets(&self) -> bool {
        true
    }
}

/// A fixture of its own for each case.
pub type Stores = Arc<dyn Fixture>;

/// One promise.
#[derive(Clone, Copy)]
pub struct Case {
    /// What is promised, as a sentence.
    pub name: &'static str,
    /// Checks it.
    pub run: fn(Stores) -> BoxFuture<'static, Result<()>>,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        /// Every promise.
        pub const CASES: &[Case] = &[
            $(Case { name: stringify!($name), run: |stores| Box::pin($name(stores)) }),*
        ];
    };
}

cases![
    a_new_task_is_queued_with_one_empty_log,
    the_warnings_of_validation_begin_the_first_log,
    an_unknown_task_is_nothing,
    a_task_is_read_back_as_it_was_stored,
    an_id_is_used_once,
    secrets_are_read_only_when_asked_for_and_go_when_the_task_ends,
    an_update_changes_what_it_names_and_no_more,
    an_update_of_another_version_is_refused,
    of_many_updates_of_one_version_one_wins,
    a_terminal_state_never_changes,
    everything_survives_a_restart,
    a_list_is_newest_first_and_each_task_is_on_one_page,
    tasks_of_one_millisecond_are_in_the_order_in_which_they_were_made,
    pages_stay_in_place_while_tasks_are_made,
    the_last_page_names_no_next,
    a_position_outlives_its_task_and_a_restart,
    a_list_without_documents_has_none,
    a_list_is_filtered_by_state_name_and_user,
    a_list_is_filtered_by_tags_which_must_all_match,
    an_idempotency_key_makes_one_task,
    concurrent_twins_make_one_task,
    an_idempotency_key_belongs_to_one_user_and_expires,
    a_refused_task_does_not_use_its_key_up,
    a_sweep_takes_old_ended_tasks_and_no_others,
    a_watch_begins_with_what_is_active,
    a_watch_tells_of_every_task_and_ends_at_its_last_state,
    counts_follow_the_tasks,
];

fn new_task() -> NewTask {
    let id = TaskId::random();
    NewTask {
        document: format!(r#"{{"name":"{id}","executors":[{{"image":"i","command":["c"]}}]}}"#)
            .into(),
        id,
        owner: Owner::default(),
        name: None,
        tags: Vec::new(),
        secrets: UrlSecrets::default(),
        warnings: Vec::new(),
        idempotency: None,
    }
}

fn query() -> Query {
    Query {
        filter: Filter::default(),
        user: None,
        after: None,
        limit: 100,
        documents: false,
    }
}

async fn stored(store: &dyn TaskStore, task: NewTask) -> Result<TaskId> {
    let id = task.id.clone();
    ensure!(store.create(task).await? == Created::New(id.clone()));
    Ok(id)
}

async fn head(store: &dyn TaskStore, id: &TaskId) -> Result<Head> {
    store.head(id).await?.context("the task is not there")
}

async fn set(store: &dyn TaskStore, id: &TaskId, state: State) -> Result<Head> {
    let version = head(store, id).await?.version;
    let update = Update {
        state: Some(state),
        ..Update::default()
    };
    Ok(store.update(id, version, update).await?)
}

fn ids(page: &Page) -> Vec<TaskId> {
    page.tasks.iter().map(|task| task.head.id.clone()).collect()
}

async fn all_pages(store: &dyn TaskStore, mut query: Query) -> Result<Vec<TaskId>> {
    let mut all = Vec::new();
    loop {
        let page = store.list(&query).await?;
        ensure!(page.tasks.len() <= query.limit, "a page over its limit");
        all.extend(ids(&page));
        match page.next {
            Some(next) => query.after = Some(next),
            None => return Ok(all),
        }
    }
}

async fn a_new_task_is_queued_with_one_empty_log(stores: Stores) -> Result<()> {
    let store = stores.open().await?;
    let before = Timestamp::now();
    let id = stored(&*store, new_task()).await?;
    let record = store.get(&id).await?.context("get")?;
    ensure!(record.head.state == State::Queued);
    ensure!(record.head.attempt == 0);
    ensure!(record.head.not_before.is_none());
    ensure!(record.head.created >= before && record.head.created <= Timestamp::now());
    ensure!(record.logs == [TaskLog::default()]);
    Ok(())
}

async fn the_warnings_of_validation_begin_the_first_log(stores: Stores) -> Result<()> {
    let store = stores.open().await?;
    let mut task = new_task();
    task.warnings = vec!["dropped a key".to_owned()];
    let id = stored(&*store, task).await?;
    let record = store.get(&id).await?.context("get")?;
    ensure!(record.logs[0].system_logs.as_deref() == Some(&["dropped a key".to_owned()][..]));
    Ok(())
}

async fn an_unknown_task_is_nothing(stores: Stores) -> Result<()> {
    let store = stores.open().await?;
    let id = TaskId::random();
    ensure!(store.head(&id).await?.is_none());
    ensure!(store.get(&id).await?.is_none());
    ensure!(store.get_raw(&id).await?.is_none());
    ensure!(store.get_with_secrets(&id).await?.is_none());
    let refused = store.update(&id, 1, Update::default()).await;
    ensure!(matches!(refused, Err(StoreError::NotFound)));
    Ok(())
}

async fn a_task_is_read_back_as_it_was_stored(stores: Stores) -> Result<()> {
    let store = stores.open().await?;
    let mut task = new_task();
    task.document = r#"{"name":"ünï\u0000 \"q\"","executors":[]}"#.into();
    task.owner = Owner {
        user: "ann".to_owned(),
        group: Some("lab".to_owned()),
    };
    let (document, owner) = (Arc::clone(&task.document), task.owner.clone());
    let id = stored(&*store, task).await?;
    let raw = store.get_raw(&id).await?.context("get_raw")?;
    ensure!(raw.document == document && raw.head.owner == owner);
    let logs: Vec<TaskLog> = serde_json::from_str(&raw.logs)?;
    ensure!(logs == [TaskLog::default()]);
    let record = store.get(&id).await?.context("get")?;
    ensure!(record.document == document && record.head == raw.head);
    ensure!(store.head(&id).await? == Some(raw.head));
    Ok(())
}

async fn an_id_is_used_once(stores: Stores) -> Result<()> {
    let store = stores.open().await?;
    let task = new_task();
    let id = stored(&*store, task.clone()).await?;
    let mut other = new_task();
    other.id = id.clone();
    ensure!(store.create(other).await.is_err());
    let raw = store.get_raw(&id).await?.context("get_raw")?;
    ensure!(raw.document == task.document);
    ensure!(store.list(&query()).await?.tasks.len() == 1);
    Ok(())
}

async fn secrets_are_read_only_when_asked_for_and_go_when_the_task_ends(
    stores: Stores,
) -> Result<()> {
    let store = stores.open().await?;
    let mut task = new_task();
    task.secrets = UrlSecrets(BTreeMap::from([(
        "inputs[0].url".to_owned(),
        "hunter2".to_owned(),
    )]));
    let secrets = if stores.reads_secrets() {
        task.secrets.clone()
    } else {
        UrlSecrets::default()
    };
    let id = stored(&*store, task).await?;
    ensure!(store.get(&id).await?.context("get")?.secrets == UrlSecrets::default());
    let record = store.get_with_secrets(&id).await?.context("get")?;
    ensure!(record.secrets == secrets);
    set(&*store, &id, State::SystemError).await?;
    let record = store.get_with_secrets(&id).await?.context("get")?;
    ensure!(record.secrets == UrlSecrets::default());
    Ok(())
}

async fn an_update_changes_what_it_names_and_no_more(stores: Stores) -> Result<()> {
    let store = stores.open().await?;
    let id = stored(&*store, new_task()).await?;
    let first = head(&*store, &id).await?;
    let not_before = Timestamp::from_millis(1_800_000_000_000);
    let second = store
        .update(
            &id,
            first.version,
            Update {
                attempt: Some(1),
                not_before: Some(Some(not_before)),
                ..Update::default()
            },
        )
        .await?;
    ensure!(second.attempt == 1 && second.not_before == Some(not_before));
    ensure!(second.state == State::Queued && second.changed == first.changed);
    ensure!(second.version != first.version);

    let logs = vec![TaskLog {
        logs: vec![ExecutorLog {
            exit_code: 3,
            stdout: Some("out".to_owned()),
            ..ExecutorLog::default()
        }],
        ..TaskLog::default()
    }];
    let third = store
        .update(
            &id,
            second.version,
            Update {
                state: Some(State::Initializing),
                not_before: Some(None),
                logs: Some(logs.clone()),
                ..Update::default()
            },
        )
        .await?;
    ensure!(third.attempt == 1 && third.not_before.is_none());
    ensure!(third.state == State::Initializing && third.changed >= second.changed);
    let record = store.get(&id).await?.context("get")?;
    ensure!(record.head == third && record.logs == logs);
    Ok(())
}

async fn an_update_of_another_version_is_refused(stores: Stores) -> Result<()> {
    let store = stores.open().await?;
    let id = stored(&*store, new_task()).await?;
    let old = head(&*store, &id).await?;
    set(&*store, &id, State::Initializing).await?;
    let update = Update {
        state: Some(State::Canceled),
        ..Update::default()
    };
    let refused = store.update(&id, old.version, update).await;
    ensure!(matches!(refused, Err(StoreError::Conflict)));
    ensure!(head(&*store, &id).await?.state == State::Initializing);
    Ok(())
}

async fn of_many_updates_of_one_version_one_wins(stores: Stores) -> Result<()> {
    let store = stores.open().await?;
    let id = stored(&*store, new_task()).await?;
    let version = head(&*store, &id).await?.version;
    let tries = (1..=20).map(|attempt| {
        store.update(
            &id,
            version,
            Update {
                attempt: Some(attempt),
                ..Update::default()
            },
        )
    });
    let won: Vec<_> = join_all(tries).await.into_iter().flatten().collect();
    ensure!(won.len() == 1, "{} updates won", won.len());
    ensure!(head(&*store, &id).await? == won[0]);
    Ok(())
}

async fn a_terminal_state_never_changes(stores: Stores) -> Result<()> {
    let store = stores.open().await?;
    for end in State::ALL.into_iter().filter(|s| s.is_terminal()) {
        let id = stored(&*store, new_task()).await?;
        let ended = set(&*store, &id, end).await?;
        for state in State::ALL {
            let update = Update {
                state: Some(state),
                logs: Some(Vec::new()),
                ..Update::default()
            };
            let refused = store.update(&id, ended.version, update).await;
            ensure!(
                matches!(refused, Err(StoreError::Conflict)),
                "{end} to {state}"
            );
        }
        ensure!(head(&*store, &id).await? == ended);
        ensure!(store.get(&id).await?.context("get")?.logs.len() == 1);
    }
    Ok(())
}

async fn everything_survives_a_restart(stores: Stores) -> Result<()> {
    let store = stores.open().await?;
    let mut task = new_task();
    task.tags = vec![("k".to_owned(), "v".to_owned())];
    task.secrets = UrlSecrets(BTreeMap::from([("x".to_owned(), "y".to_owned())]));
    let id = stored(&*store, task).await?;
    set(&*store, &id, State::Initializing).await?;
    let before = store.get_with_secrets(&id).await?.context("get")?;
    let counts = store.counts().await?;
    drop(store);
    let store = stores.open().await?;
    ensure!(store.get_with_secrets(&id).await?.context("get")? == before);
    ensure!(store.counts().await? == counts);
    let mut tagged = query();
    tagged.filter.tags = vec![("k".to_owned(), Some("v".to_owned()))];
    ensure!(ids(&store.list(&tagged).await?) == [id]);
    Ok(())
}

async fn a_list_is_newest_first_and_each_task_is_on_one_page(stores: Stores) -> Result<()> {
    let store = stores.open().await?;
    for _ in 0..5 {
        let made = join_all((0..11).map(|_| stored(&*store, new_task()))).await;
        made.into_iter().collect::<Result<Vec<_>>>()?;
    }
    let whole = store.list(&query()).await?;
    let places: Vec<_> = whole
        .tasks
        .iter()
        .map(|task| (task.head.created, task.head.id.clone()))
        .collect();
    ensure!(places.len() == 55);
    ensure!(places.windows(2).all(|pair| pair[0] > pair[1]));
    for limit in [1, 7, 54, 55, 56] {
        let paged = all_pages(&*store, Query { limit, ..query() }).await?;
        ensure!(paged == ids(&whole), "pages of {limit}");
    }
    Ok(())
}

async fn tasks_of_one_millisecond_are_in_the_order_in_which_they_were_made(
    stores: Stores,
) -> Result<()> {
    let store = stores.open().await?;
    let mut made = Vec::new();
    for _ in 0..100 {
        made.push(stored(&*store, new_task()).await?);
    }
    made.reverse();
    ensure!(ids(&store.list(&query()).await?) == made);
    Ok(())
}

async fn pages_stay_in_place_while_tasks_are_made(stores: Stores) -> Result<()> {
    let store = stores.open().await?;
    let mut there = BTreeSet::new();
    for _ in 0..20 {
        there.insert(stored(&*store, new_task()).await?);
    }
    let mut seen = Vec::new();
    let mut query = Query {
        limit: 3,
        ..query()
    };
    loop {
        let page = store.list(&query).await?;
        seen.extend(ids(&page));
        stored(&*store, new_task()).await?;
        match page.next {
            Some(next) => query.after = Some(next),
            None => break,
        }
    }
    let once: BTreeSet<_> = seen.iter().cloned().collect();
    ensure!(once.len() == seen.len(), "a task was on two pages");
    ensure!(there.is_subset(&once), "a task was missed");
    Ok(())
}

async fn the_last_page_names_no_next(stores: Stores) -> Result<()> {
    let store = stores.open().await?;
    ensure!(store.list(&query()).await?.next.is_none());
    for _ in 0..4 {
        stored(&*store, new_task()).await?;
    }
    let mut query = Query {
        limit: 2,
        ..query()
    };
    let first = store.list(&query).await?;
    let last = first.tasks.last().context("a task")?;
    let position = Position {
        created: last.head.created,
        id: last.head.id.clone(),
    };
    ensure!(first.next == Some(position.clone()));
    query.after = Some(position);
    let second = store.list(&query).await?;
    ensure!(second.tasks.len() == 2 && second.next.is_none());
    Ok(())
}

async fn a_position_outlives_its_task_and_a_restart(stores: Stores) -> Result<()> {
    let store = stores.open().await?;
    for _ in 0..3 {
        stored(&*store, new_task()).await?;
    }
    let all = ids(&store.list(&query()).await?);
    let first = store
        .list(&Query {
            limit: 2,
            ..query()
        })
        .await?;
    set(&*store, &all[1], State::Canceled).await?;
    let later = Timestamp::now().after(Duration::from_secs(1));
    ensure!(store.sweep(later, 10).await? == [all[1].clone()]);
    drop(store);
    let store = stores.open().await?;
    let rest = Query {
        after: first.next,
        ..query()
    };
    ensure!(ids(&store.list(&rest).await?) == [all[2].clone()]);
    Ok(())
}

async fn a_list_without_documents_has_none(stores: Stores) -> Result<()> {
    let store = stores.open().await?;
    let task = new_task();
    let document = Arc::clone(&task.document);
    stored(&*store, task).await?;
    let without = store.list(&query()).await?;
    ensure!(without.tasks[0].document.is_empty() && without.tasks[0].logs.is_empty());
    let with = store
        .list(&Query {
            documents: true,
            ..query()
        })
        .await?;
    ensure!(with.tasks[0].document == document);
    ensure!(serde_json::from_str::<Vec<TaskLog>>(&with.tasks[0].logs)?.len() == 1);
    ensure!(with.tasks[0].head == without.tasks[0].head);
    Ok(())
}

async fn a_list_is_filtered_by_state_name_and_user(stores: Stores) -> Result<()> {
    let store = stores.open().await?;
    let mut made = HashMap::new();
    for (name, user) in [
        ("Alpha", "ann"),
        ("alpha", "ann"),
        ("al%", "bob"),
        ("ålesund", "bob"),
    ] {
        let mut task = new_task();
        task.name = Some(name.to_owned());
        task.owner.user = user.to_owned();
        made.insert(name, stored(&*store, task).await?);
    }
    stored(&*store, new_task()).await?;
    set(&*store, &made["alpha"], State::Complete).await?;

    type Wanted<'a> = (
        Option<&'a str>,
        Option<State>,
        Option<&'a str>,
        &'a [&'a str],
    );
    let cases: &[Wanted<'_>] = &[
        (Some("al"), None, None, &["al%", "alpha"]),
        (Some("Al"), None, None, &["Alpha"]),
        (Some("al%"), None, None, &["al%"]),
        (Some("å"), None, None, &["ålesund"]),
        (Some("alphabet"), None, None, &[]),
        (None, Some(State::Complete), None, &["alpha"]),
        (None, Some(State::Running), None, &[]),
        (None, Some(State::Paused), None, &[]),
        (None, None, Some("ann"), &["alpha", "Alpha"]),
        (None, Some(State::Queued), Some("ann"), &["Alpha"]),
        (None, Some(State::Complete), Some("bob"), &[]),
        (Some("al"), Some(State::Complete), Some("ann"), &["alpha"]),
    ];
    for (prefix, state, user, wanted) in cases {
        let mut query = query();
        query.filter.name_prefix = prefix.map(str::to_owned);
        query.filter.state = *state;
        query.user = user.map(str::to_owned);
        query.limit = 1;
        let found: BTreeSet<_> = all_pages(&*store, query).await?.into_iter().collect();
        let wanted: BTreeSet<_> = wanted.iter().map(|name| made[name].clone()).collect();
        ensure!(
            found == wanted,
            "prefix {prefix:?} state {state:?} user {user:?}"
        );
    }
    let mut query = query();
    query.filter.name_prefix = Some(String::new());
    ensure!(store.list(&query).await?.tasks.len() == 5);
    Ok(())
}

async fn a_list_is_filtered_by_tags_which_must_all_match(stores: Stores) -> Result<()> {
    let store = stores.open().await?;
    let mut made = Vec::new();
    for tags in [
        &[("a", "1"), ("b", "2")][..],
        &[("a", "1")],
        &[("a", "")],
        &[("b", "2"), ("c", "x")],
        &[],
    ] {
        let mut task = new_task();
        task.tags = tags
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        made.push(stored(&*store, task).await?);
    }
    set(&*store, &made[1], State::Complete).await?;
    let tag = |key: &str, value: Option<&str>| (key.to_owned(), value.map(str::to_owned));
    let cases = [
        (vec![tag("a", None)], None, vec![0, 1, 2]),
        (vec![tag("a", Some("1"))], None, vec![0, 1]),
        (vec![tag("a", Some("1")), tag("b", None)], None, vec![0]),
        (vec![tag("b", None), tag("a", None)], None, vec![0]),
        (vec![tag("a", Some("1")), tag("a", Some("2"))], None, vec![]),
        (vec![tag("A", None)], None, vec![]),
        (vec![tag("a", None)], Some(State::Queued), vec![0, 2]),
        (vec![tag("a", None)], Some(State::Complete), vec![1]),
    ];
    for (tags, state, wanted) in cases {
        let mut query = query();
        query.filter.tags.clone_from(&tags);
        query.filter.state = state;
        query.limit = 2;
        let found: BTreeSet<_> = all_pages(&*store, query).await?.into_iter().collect();
        let wanted: BTreeSet<_> = wanted.into_iter().map(|i: usize| made[i].clone()).collect();
        ensure!(found == wanted, "{tags:?} {state:?}");
    }
    Ok(())
}

fn keyed(key: &str, body: u8) -> NewTask {
    NewTask {
        idempotency: Some(IdempotencyKey {
            key: key.to_owned(),
            digest: [body; 32],
            ttl: Duration::from_hours(1),
        }),
        ..new_task()
    }
}

async fn an_idempotency_key_makes_one_task(stores: Stores) -> Result<()> {
    let store = stores.open().await?;
    let first = stored(&*store, keyed("k", 1)).await?;
    ensure!(store.create(keyed("k", 1)).await? == Created::Existing(first.clone()));
    ensure!(store.create(keyed("k", 2)).await? == Created::KeyReused);
    drop(store);
    let store = stores.open().await?;
    ensure!(store.create(keyed("k", 1)).await? == Created::Existing(first));
    stored(&*store, keyed("other", 1)).await?;
    ensure!(store.list(&query()).await?.tasks.len() == 2);
    Ok(())
}

async fn concurrent_twins_make_one_task(stores: Stores) -> Result<()> {
    let store = stores.open().await?;
    let answers = join_all((0..16).map(|_| store.create(keyed("twin", 1)))).await;
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
    ensure!(store.list(&query()).await?.tasks.len() == 1);
    Ok(())
}

async fn an_idempotency_key_belongs_to_one_user_and_expires(stores: Stores) -> Result<()> {
    let store = stores.open().await?;
    stored(&*store, keyed("k", 1)).await?;
    let mut task = keyed("k", 1);
    "bob".clone_into(&mut task.owner.user);
    stored(&*store, task).await?;

    let brief = || {
        let mut task = keyed("brief", 1);
        if let Some(key) = &mut task.idempotency {
            key.ttl = Duration::from_millis(1);
        }
        task
    };
    stored(&*store, brief()).await?;
    let deadline = Timestamp::now().after(Duration::from_secs(10));
    while !matches!(store.create(brief()).await?, Created::New(_)) {
        ensure!(Timestamp::now() < deadline, "the key does not expire");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

async fn a_refused_task_does_not_use_its_key_up(stores: Stores) -> Result<()> {
    let store = stores.open().await?;
    let id = stored(&*store, new_task()).await?;
    let mut refused = keyed("k", 1);
    refused.id = id;
    ensure!(store.create(refused).await.is_err());
    stored(&*store, keyed("k", 2)).await?;
    Ok(())
}

async fn a_sweep_takes_old_ended_tasks_and_no_others(stores: Stores) -> Result<()> {
    let store = stores.open().await?;
    let mut ended = Vec::new();
    for _ in 0..3 {
        let mut task = new_task();
        task.tags = vec![("k".to_owned(), "v".to_owned())];
        let id = stored(&*store, task).await?;
        set(&*store, &id, State::Complete).await?;
        ended.push(id);
    }
    let alive = stored(&*store, new_task()).await?;
    let past = Timestamp::from_millis(1);
    ensure!(store.sweep(past, 10).await?.is_empty());
    let later = Timestamp::now().after(Duration::from_secs(1));
    let mut swept = store.sweep(later, 2).await?;
    ensure!(swept.len() == 2);
    swept.extend(store.sweep(later, 2).await?);
    swept.sort();
    ended.sort();
    ensure!(swept == ended);
    ensure!(store.head(&ended[0]).await?.is_none());
    ensure!(ids(&store.list(&query()).await?) == [alive]);
    let mut tagged = query();
    tagged.filter.tags = vec![("k".to_owned(), None)];
    ensure!(store.list(&tagged).await?.tasks.is_empty());
    Ok(())
}

async fn a_watch_begins_with_what_is_active(stores: Stores) -> Result<()> {
    let store = stores.open().await?;
    let mut active = BTreeSet::new();
    for state in State::ALL {
        let id = stored(&*store, new_task()).await?;
        if state != State::Queued {
            set(&*store, &id, state).await?;
        }
        if !state.is_terminal() {
            active.insert(id);
        }
    }
    let mut watch = store.watch().await?;
    let mut seen = BTreeSet::new();
    while seen.len() < active.len() {
        let next = watch.next().now_or_never();
        let head = next.context("a task that is there is waited for")?;
        let head = head.context("the watch ended")?;
        ensure!(active.contains(&head.id) && seen.insert(head.id));
    }
    Ok(())
}

async fn a_watch_tells_of_every_task_and_ends_at_its_last_state(stores: Stores) -> Result<()> {
    let store = stores.open().await?;
    // Two that read: one at once, one only when all is over.
    let mut quick = store.watch().await?;
    let mut slow = store.watch().await?;
    let made = join_all((0..50).map(|_| async {
        let id = stored(&*store, new_task()).await?;
        for state in [State::Initializing, State::Running] {
            set(&*store, &id, state).await?;
        }
        let last = set(&*store, &id, State::Complete).await?;
        anyhow::Ok((id, last))
    }));
    let (made, seen) = futures_util::join!(made, last_heads(&mut quick, 50));
    let made = made.into_iter().collect::<Result<HashMap<_, _>>>()?;
    ensure!(seen? == made);
    ensure!(last_heads(&mut slow, 50).await? == made);
    Ok(())
}

/// Reads until `count` tasks are complete; the last head seen of each.
async fn last_heads(
    watch: &mut (impl futures_util::Stream<Item = Head> + Unpin),
    count: usize,
) -> Result<HashMap<TaskId, Head>> {
    let mut last = HashMap::new();
    let mut complete = 0;
    while complete < count {
        let head = within(watch.next()).await?.context("the watch ended")?;
        complete += usize::from(head.state == State::Complete);
        last.insert(head.id.clone(), head);
    }
    Ok(last)
}

async fn counts_follow_the_tasks(stores: Stores) -> Result<()> {
    let store = stores.open().await?;
    let mut made = Vec::new();
    for _ in 0..4 {
        made.push(stored(&*store, new_task()).await?);
    }
    set(&*store, &made[0], State::Initializing).await?;
    set(&*store, &made[1], State::Complete).await?;
    set(&*store, &made[2], State::Complete).await?;
    let later = Timestamp::now().after(Duration::from_secs(1));
    store.sweep(later, 1).await?;
    let counts: BTreeMap<_, _> = store
        .counts()
        .await?
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .collect();
    let wanted = [
        (State::Queued, 1),
        (State::Initializing, 1),
        (State::Complete, 1),
    ];
    ensure!(counts == BTreeMap::from(wanted), "{counts:?}");
    store.check().await?;
    Ok(())
}

async fn within<T>(future: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .context("nothing came within 20 s")
}
