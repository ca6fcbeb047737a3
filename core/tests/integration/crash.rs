//! Processes that are killed at any moment, and what comes after.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tesk_core::local::{self, LocalSettings};
use tesk_core::scheduler::TaskId;
use tesk_core::tes::State;

use super::harness::{Place, ended, eventually, executor, new_task, settings, shell, system_logs};
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        "crash":
        a_killed_engine_loses_no_task_and_runs_none_twice,
        an_attempt_outlives_its_engine,
        an_attempt_that_is_killed_is_followed_by_another,
        attempts_run_out,
        a_cancel_of_an_adopted_attempt_ends_it,
    ]
}

/// A task loses an attempt with each server that is killed before it has started that.
fn lenient(settings: &mut LocalSettings) {
    settings.scheduler.max_attempts = 100;
    settings.scheduler.max_back_off = Duration::from_secs(1);
}

/// An engine in a process of its own: reads a task from each line, answers with its id.
pub(crate) fn server(place: &Path) -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let mut settings = settings(place).expect("settings");
        lenient(&mut settings);
        // Something of the process before may still be going.
        let end = Instant::now() + Duration::from_secs(30);
        let engine = loop {
            match local::open(settings.clone()).await {
                Err(error) if error.to_string().contains("in use") && Instant::now() < end => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                other => break other.expect("an engine"),
            }
        };
        println!("ready");
        for line in std::io::stdin().lines() {
            let document: Value = serde_json::from_str(&line.expect("a line")).expect("JSON");
            let task = new_task(&document, place).expect("a task");
            let id = task.id.clone();
            engine.store().create(task).await.expect("stored");
            println!("{id}");
        }
        engine.stop().await;
    });
    ExitCode::SUCCESS
}

struct Server {
    child: Child,
    answers: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Server {
    fn start(place: &Place) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("__server")
            .arg(place.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().context("stdout")?;
        let mut answers = BufReader::new(stdout).lines();
        ensure!(answers.next().context("ready")?? == "ready");
        Ok(Self { child, answers })
    }

    fn submit(&mut self, task: &Value) -> Result<TaskId> {
        let stdin = self.child.stdin.as_mut().context("stdin")?;
        writeln!(stdin, "{task}")?;
        Ok(self.answers.next().context("an answer")??.parse()?)
    }

    fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn a_killed_engine_loses_no_task_and_runs_none_twice() -> Result<()> {
    let place = Place::new()?;
    let mut ids = Vec::new();
    for round in 0..12_u64 {
        let mut server = Server::start(&place)?;
        for _ in 0..3 {
            // Each run of an attempt leaves one line; outputs are delivered by whole files, so
            // the line count tells how often an executor ran within one attempt.
            let task = json!({
                "outputs": [{ "url": place.url(&format!("out-{}", ids.len())), "path": "/work/out" }],
                "executors": [executor("echo start >> /work/out; sleep 0.05; echo end >> /work/out")],
            });
            ids.push(server.submit(&task)?);
        }
        tokio::time::sleep(Duration::from_millis(round * 9)).await;
        server.kill()?;
    }
    let running = place.start_with(lenient).await?;
    for (index, id) in ids.iter().enumerate() {
        let record = running.end(id).await?;
        ended(&record, State::Complete)?;
        ensure!(place.read(&format!("out-{index}"))? == "start\nend\n");
        // An attempt that was given out is never given out again; one that was lost before it
        // started may be followed by another.
        ensure!(record.logs.len() as u32 == record.head.attempt);
        let done = record.logs.iter().filter(|log| !log.outputs.is_empty());
        ensure!(done.count() == 1, "{:?}", record.logs);
    }
    eventually("no attempt is left", || Ok(place.attempts()?.is_empty())).await
}

async fn an_attempt_outlives_its_engine() -> Result<()> {
    let place = Place::new()?;
    let mut server = Server::start(&place)?;
    let task = json!({
        "outputs": [{ "url": place.url("out"), "path": "/work/out" }],
        "executors": [executor("echo once >> /work/out; sleep 1")],
    });
    let id = server.submit(&task)?;
    eventually("the attempt runs", || {
        Ok(running_attempt(&place, &id)?.is_some())
    })
    .await?;
    server.kill()?;
    eventually("it is done without an engine", || {
        Ok(place.file("out").exists())
    })
    .await?;
    let running = place.start().await?;
    let record = running.end(&id).await?;
    ended(&record, State::Complete)?;
    ensure!(record.logs.len() == 1, "{:?}", record.logs);
    ensure!(place.read("out")? == "once\n");
    Ok(())
}

/// The process of a task's first attempt, once its first executor runs.
pub(crate) fn running_attempt(place: &Place, id: &TaskId) -> Result<Option<i32>> {
    let status = place
        .path()
        .join(format!("data/attempts/{id}-1/status.json"));
    let Ok(status) = std::fs::read(status) else {
        return Ok(None);
    };
    let status: Value = serde_json::from_slice(&status)?;
    if status["running"] != json!(true) {
        return Ok(None);
    }
    let pid = status["process"][0].as_i64().context("a process id")?;
    Ok(Some(pid as i32))
}

async fn an_attempt_that_is_killed_is_followed_by_another() -> Result<()> {
    let place = Place::new()?;
    let running = place.start().await?;
    // The first attempt hangs; what it left is not there for the second.
    std::fs::write(place.file("hang"), "1")?;
    let task = json!({
        "inputs": [{ "url": place.url("hang"), "path": "/work/hang" }],
        "volumes": ["/vol"],
        "executors": [executor(
            "test -e /vol/x && exit 9; touch /vol/x; test $(cat /work/hang) = 0 || sleep 60"
        )],
    });
    let id = running.submit(&place, &task).await?;
    let mut pid = None;
    eventually("the attempt runs", || {
        pid = running_attempt(&place, &id)?;
        Ok(pid.is_some())
    })
    .await?;
    running.until(&id, |s| s == State::Running).await?;
    std::fs::write(place.file("hang"), "0")?;
    let pid = pid.and_then(Pid::from_raw).context("a process id")?;
    kill_process(pid, Signal::KILL)?;
    let record = running.end(&id).await?;
    ended(&record, State::Complete)?;
    ensure!(record.logs.len() == 2 && record.head.attempt == 2);
    ensure!(system_logs(&record).contains("attempt 1 was lost"));
    eventually("no attempt is left", || Ok(place.attempts()?.is_empty())).await
}

async fn attempts_run_out() -> Result<()> {
    let place = Place::new()?;
    let running = place
        .start_with(|settings| {
            settings.launcher.program = "/bin/false".into();
        })
        .await?;
    let record = running.run(&place, &shell("true")).await?;
    ended(&record, State::SystemError)?;
    ensure!(record.logs.len() == 3, "{:?}", record.logs);
    ensure!(system_logs(&record).contains("attempt 3 of 3 was lost"));
    Ok(())
}

async fn a_cancel_of_an_adopted_attempt_ends_it() -> Result<()> {
    let place = Place::new()?;
    let mut server = Server::start(&place)?;
    let id = server.submit(&shell("sleep 60"))?;
    eventually("the attempt runs", || {
        Ok(running_attempt(&place, &id)?.is_some())
    })
    .await?;
    server.kill()?;
    let running = place.start().await?;
    running.until(&id, |s| s == State::Running).await?;
    running.cancel(&id).await?;
    ended(&running.end(&id).await?, State::Canceled)?;
    eventually("no attempt is left", || Ok(place.attempts()?.is_empty())).await
}
