//! Two servers of one namespace: the one that schedules dies or stands still, or both lose the API
//! server.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use rustix::process::Signal;
use serde_json::json;
use tokio::process::Command;

use crate::place::{Place, SOON, script, text, with};
use crate::{Suite, Tests, trials};

pub(crate) fn trials(tests: &Tests) -> Vec<Trial> {
    let mut trials = trials![tests, "ha":
        a_leader_that_is_killed_is_replaced_and_every_task_runs_once,
        a_leader_that_stands_still_starts_nothing_twice_when_it_goes_on,
    ];
    // No other bears it.
    trials.push(tests.alone(
        "ha::while_the_api_server_is_away_reads_are_answered_and_creates_are_503",
        while_the_api_server_is_away_reads_are_answered_and_creates_are_503,
    ));
    trials
}

const TASKS: usize = 12;
/// How many of them are active at once.
const ACTIVE: usize = 4;
/// How long a lease lasts by [`SOON`], and what is left of it when the term of its holder ends.
const LEASE: Duration = Duration::from_secs(6);
const LEFT: Duration = Duration::from_secs(2);
/// Within this time another schedules.
const TAKEOVER: Duration = Duration::from_secs(20);

const THIS: &str = "\nthis server schedules\n";
const STALE: &str = " s old: the API server does not answer\n";

/// Two servers with the tasks of a test, which end when its gate is opened.
struct Pair {
    suite: Arc<Suite>,
    place: Place,
    test: &'static str,
    tasks: Vec<String>,
}

impl Pair {
    /// As many run as may, and the others are queued.
    async fn start(suite: Arc<Suite>, test: &'static str) -> Result<Self> {
        let settings = format!("limits.max_active = {ACTIVE}\n{SOON}");
        let place = Place::start(test, &settings).await?;
        schedules(&place, 0).await?;
        let until = Instant::now() + LEASE;
        place.serve_as(1).await?;
        stands_by(&place, 1, until).await?;
        let mut pair = Self {
            suite,
            place,
            test,
            tasks: Vec::new(),
        };
        for number in 0..TASKS {
            // Each is taken by another than the one before.
            pair.place.ask(number % 2);
            pair.submit().await?;
        }
        pair.place.ask(0);
        let running = || async { Ok((pair.ran() == ACTIVE).then_some(())) };
        pair.place.until("some run", running).await?;
        Ok(pair)
    }

    async fn submit(&mut self) -> Result<()> {
        let path = format!("/{}/{}", self.test, self.tasks.len());
        self.suite.web.put(&path, "seen");
        let url = self.suite.web.url(&path);
        let line = format!("wget -q -O - {url};{}", self.suite.web.gate(self.test));
        self.tasks.push(self.place.submit(&script(&line)).await?);
        Ok(())
    }

    /// Which server schedules, and the other.
    async fn roles(&self) -> Result<(usize, usize)> {
        self.place
            .until("one schedules", || async {
                let second = self.place.ready(1).await?.contains(THIS);
                let first = self.place.ready(0).await?.contains(THIS);
                Ok((first != second).then_some(if first { (0, 1) } else { (1, 0) }))
            })
            .await
    }

    /// How many have begun.
    fn ran(&self) -> usize {
        let asked = |number: &usize| {
            let path = format!("/{}/{number}", self.test);
            self.suite.web.asked(&path) > 0
        };
        (0..self.tasks.len()).filter(asked).count()
    }

    /// Every task is COMPLETE by its first attempt, which ran once, and nothing else is left.
    async fn each_ran_once(&self) -> Result<()> {
        for (number, id) in self.tasks.iter().enumerate() {
            let task = self.place.wait_for(id, "COMPLETE").await?;
            ensure!(task["logs"].as_array().map(Vec::len) == Some(1), "{task:#}");
            let ran = self.suite.web.asked(&format!("/{}/{number}", self.test));
            ensure!(ran == 1, "{id} ran {ran} times");
        }
        self.place.all_gone().await
    }
}

/// Waits until this of two servers schedules; how long that took.
async fn schedules(place: &Place, number: usize) -> Result<Duration> {
    let begun = Instant::now();
    place
        .until("it schedules", || async {
            let ready = place.ready(number).await?;
            Ok(ready.contains(THIS).then_some(()))
        })
        .await?;
    Ok(begun.elapsed())
}

/// This of two servers does not schedule: before `until` it cannot have seen the lease of the other
/// run out.
async fn stands_by(place: &Place, number: usize, until: Instant) -> Result<()> {
    let schedules = place.ready(number).await?.contains(THIS);
    ensure!(!schedules || Instant::now() > until);
    Ok(())
}

async fn a_leader_that_is_killed_is_replaced_and_every_task_runs_once(
    suite: Arc<Suite>,
) -> Result<()> {
    let mut pair = Pair::start(suite, "killed").await?;
    let (leader, other) = pair.roles().await?;
    pair.place.ask(other);
    // Perhaps its term was about to end.
    let until = Instant::now() + LEFT;
    pair.place.kill_as(leader).await?;
    // What runs ends while nobody schedules, and a new task is taken.
    pair.suite.web.open("killed");
    pair.submit().await?;
    stands_by(&pair.place, other, until).await?;
    let took = schedules(&pair.place, other).await?;
    eprintln!("another server schedules after {took:?}");
    ensure!(took < TAKEOVER, "{took:?}");
    pair.each_ran_once().await?;
    // It comes back, and stands by.
    let until = Instant::now() + LEASE;
    pair.place.serve_as(leader).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    stands_by(&pair.place, leader, until).await?;
    pair.roles().await?;
    Ok(())
}

async fn a_leader_that_stands_still_starts_nothing_twice_when_it_goes_on(
    suite: Arc<Suite>,
) -> Result<()> {
    let mut pair = Pair::start(suite, "stopped").await?;
    let (leader, other) = pair.roles().await?;
    pair.place.ask(other);
    pair.suite.web.open("stopped");
    // In the midst of what follows from the end of the first.
    tokio::time::sleep(Duration::from_millis(700)).await;
    pair.place.signal(leader, Signal::STOP).await?;
    let begun = Instant::now();
    pair.submit().await?;
    let took = schedules(&pair.place, other).await?;
    eprintln!("another server schedules after {took:?}");
    ensure!(took < TAKEOVER, "{took:?}");
    tokio::time::sleep(Duration::from_secs(25).saturating_sub(begun.elapsed())).await;
    let until = Instant::now() + LEASE;
    pair.place.signal(leader, Signal::CONT).await?;
    // It takes tasks again, and knows at once that it does not schedule.
    pair.place.ask(leader);
    pair.submit().await?;
    stands_by(&pair.place, leader, until).await?;
    pair.each_ran_once().await?;
    pair.roles().await?;
    Ok(())
}

/// Sends a signal to the API server; after its death it comes back.
async fn signal_api_server(signal: &str) -> Result<()> {
    let inside = concat!(env!("CARGO_MANIFEST_DIR"), "/../conformance/cluster/inside");
    let kill = format!("kill -{signal} $(cat /run/kube-apiserver.pid)");
    let status = Command::new(inside)
        .args(["sh", "-c", &kill])
        .status()
        .await?;
    ensure!(status.success(), "cannot send {signal} to kube-apiserver");
    Ok(())
}

/// What the server can still read.
async fn reads(place: &Place, ids: &[&str]) -> Result<()> {
    for id in ids {
        for view in ["MINIMAL", "FULL"] {
            let path = format!("/tasks/{id}?view={view}");
            let status = place.response("GET", &path, None).await?.status();
            ensure!(status == 200, "GET {path}: {status}");
        }
    }
    let list = place.response("GET", "/tasks", None).await?;
    ensure!(list.status() == 200, "list: {}", list.status());
    let list: serde_json::Value = list.json().await?;
    let count = list["tasks"].as_array().map(Vec::len);
    ensure!(count == Some(ids.len()), "{list:#}");
    Ok(())
}

/// Whether a create was refused, which must be within `limit`; else the task's id.
async fn create(place: &Place, limit: Duration) -> Result<Option<String>> {
    let begun = Instant::now();
    let task = script("true");
    let response = place.response("POST", "/tasks", Some(&task)).await?;
    let (status, took) = (response.status(), begun.elapsed());
    if status == 200 {
        let reply: serde_json::Value = response.json().await?;
        return Ok(Some(text(&reply["id"]).to_owned()));
    }
    ensure!(status == 503, "{status}");
    ensure!(response.headers().contains_key("retry-after"));
    ensure!(took < limit, "{took:?}");
    Ok(None)
}

async fn while_the_api_server_is_away_reads_are_answered_and_creates_are_503(
    suite: Arc<Suite>,
) -> Result<()> {
    let place = Place::start("away", "").await?;
    schedules(&place, 0).await?;
    let ended = place.submit(&script("true")).await?;
    place.wait_for(&ended, "COMPLETE").await?;
    let runs = script(&suite.web.gate("away"));
    let runs = place
        .submit(&with(runs, &json!({ "name": "runs" })))
        .await?;
    place.wait_for(&runs, "RUNNING").await?;

    // It is silent.
    signal_api_server("STOP").await?;
    let begun = Instant::now();
    let said = place
        .until("the server says so", || async {
            let ready = place.ready(0).await?;
            Ok(ready.contains(STALE).then_some(ready))
        })
        .await;
    let took = begun.elapsed();
    let silent = async {
        ensure!(took < Duration::from_secs(30), "{took:?}: {said:?}");
        reads(&place, &[&ended, &runs]).await?;
        for _ in 0..3 {
            ensure!(create(&place, Duration::from_secs(10)).await?.is_none());
        }
        anyhow::Ok(())
    };
    let silent = silent.await;
    signal_api_server("CONT").await?;
    silent?;
    schedules(&place, 0).await?;
    ensure!(!place.ready(0).await?.contains(STALE));

    // It dies and comes back.
    signal_api_server("KILL").await?;
    let (begun, mut refused) = (Instant::now(), 0);
    let made = loop {
        reads(&place, &[&ended, &runs]).await?;
        // One that has just begun takes its time.
        if let Some(id) = create(&place, Duration::from_secs(15)).await? {
            break id;
        }
        refused += 1;
        ensure!(begun.elapsed() < Duration::from_mins(1), "it stays away");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    eprintln!("{refused} creates were refused in {:?}", begun.elapsed());
    ensure!(refused > 0, "it was not away");
    suite.web.open("away");
    for id in [&runs, &made] {
        let task = place.wait_for(id, "COMPLETE").await?;
        ensure!(task["logs"].as_array().map(Vec::len) == Some(1), "{task:#}");
    }
    Ok(())
}
