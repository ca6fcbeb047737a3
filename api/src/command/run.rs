//! `tesk run`: one task here and now, with no server.

use std::fmt::Write;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tesk_core::local::RuntimeChoice;
use tesk_core::scheduler::{self, NewTask, Owner, Progress, TaskId};
use tesk_core::tes::{self, Rejection, State, TaskLog, TaskReply};
use tokio::signal::unix::{Signal, SignalKind};

use super::engine::{self, Alone};
use super::{
    Failure, Outcome, complain, configuration, document, listen, note, runtime_parser, say, show,
    start_log,
};
use crate::config::EngineChoice;

/// From when on a second signal is another wish.
const AGAIN: Duration = Duration::from_secs(1);
/// Lines shown of the end of what an executor wrote.
const LINES: usize = 20;
/// How often the record is looked at.
const POLL: Duration = Duration::from_millis(100);

/// `tesk run`
#[derive(Debug, Args)]
pub(super) struct Run {
    /// The task file, JSON; - is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// What runs the executors [default: auto, or local.runtime of the configuration]
    #[arg(long, value_parser = runtime_parser())]
    runtime: Option<RuntimeChoice>,
    /// Where it runs [default: local, or server.engine of the configuration]
    #[arg(long, value_name = "ENGINE")]
    engine: Option<EngineChoice>,
    /// The folder that relative urls of outputs are below
    #[arg(long, default_value = ".", value_name = "DIR")]
    output_dir: PathBuf,
    /// Keep records and scratch space here [default: a temporary directory]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The configuration file; only its storages, limits and engine matter here
    #[arg(long, value_name = "FILE", env = "TESK_CONFIG")]
    config: Option<PathBuf>,
    /// Print the finished task as JSON; what happens meanwhile goes to standard error
    #[arg(long)]
    json: bool,
}

impl Run {
    pub(super) async fn execute(self) -> Outcome {
        start_log("warn")?;
        engine::install_crypto();
        let mut config = configuration(self.config.as_deref())?;
        if let Some(runtime) = self.runtime {
            config.local.runtime = runtime;
        }
        if let Some(engine) = self.engine {
            config.server.engine = engine;
        }
        // The files of this machine, with the rights of the caller: it is their own task. A
        // cluster does not see them.
        if config.server.engine == EngineChoice::Local {
            engine::allow_all_files(&mut config)?;
        }
        let text = document::read(&self.file)?;
        let text = document::absolute(text, &self.file, &self.output_dir)?;

        // Not before: a signal has to end a wait for standard input.
        let mut signals = Signals::listen()?;
        let temporary = match self.data {
            Some(_) => None,
            None => Some(Temporary::new()?),
        };
        let data = temporary.as_ref().map(|temporary| &temporary.0);
        if let Some(data) = self.data.as_ref().or(data) {
            config.server.data.clone_from(data);
        }
        let accepted = tes::accept(&text, &engine::rules(&config)?)
            .map_err(|rejection| refusal(&self.file, rejection))?;
        // Boxed: with all requests of a start it is large.
        let Some(alone) = Box::pin(Alone::start(config, signals.next())).await? else {
            return Err(Failure::Status(130));
        };
        let outcome = self.run(&alone, accepted, &mut signals).await;
        alone.end().await;
        drop(temporary);
        outcome
    }

    async fn run(&self, alone: &Alone, accepted: tes::Accepted, signals: &mut Signals) -> Outcome {
        let engine = &alone.engine;
        let store = engine.store();
        let document = serde_json::to_string(&accepted.task).map_err(|error| error.to_string())?;
        let id = TaskId::random();
        let executors = accepted.task.executors.len();
        for warning in &accepted.warnings {
            note(&format!("warning: {}", show::one_line(warning)));
        }
        let task = NewTask {
            id: id.clone(),
            owner: Owner::default(),
            document: document.into(),
            name: accepted.task.name.clone(),
            tags: accepted.task.tags.clone().into_iter().flatten().collect(),
            secrets: accepted.secrets,
            warnings: accepted.warnings,
            idempotency: None,
        };
        store
            .create(task)
            .await
            .map_err(|error| error.to_string())?;

        let mut live = Live::new(executors, self.json);
        // It may have gone on before it is looked at.
        live.update(State::Queued, None, None);
        let mut asked: Option<Instant> = None;
        let record = loop {
            let record = store
                .get(&id)
                .await
                .map_err(|error| error.to_string())?
                .ok_or_else(|| "the task is gone".to_owned())?;
            let observed = engine.observe(&id).await.ok().flatten();
            let progress = observed
                .as_ref()
                .and_then(|observed| observed.progress.as_ref());
            live.update(record.head.state, record.logs.last(), progress);
            if record.head.state.is_terminal() {
                break record;
            }
            tokio::select! {
                () = tokio::time::sleep(POLL) => continue,
                () = signals.next() => {}
            }
            match asked {
                // `timeout` and others tell us and our group: that is one wish, not two.
                Some(since) if since.elapsed() < AGAIN => continue,
                Some(_) => {
                    // The task's process ends itself soon; its files must stay until then.
                    note(&format!("tesk: left; {}", alone.remains()));
                    std::process::exit(130);
                }
                None => asked = Some(Instant::now()),
            }
            live.say("canceling; once more to leave at once");
            let canceled = scheduler::cancel(&*store, &id).await;
            canceled.map_err(|error| error.to_string())?;
        };
        live.end();
        let state = record.head.state;
        let reply = TaskReply {
            id: id.to_string(),
            state,
            creation_time: Some(record.head.created),
            task: Some(accepted.task),
            logs: Some(record.logs),
        };
        if self.json {
            let json = serde_json::to_string_pretty(&reply).map_err(|error| error.to_string())?;
            say(&show::json(&format!("{json}\n")))?;
        } else {
            say(&summary(&reply, live.elapsed()))?;
        }
        match state {
            State::Complete => Ok(()),
            State::Canceled if asked.is_some() => Err(Failure::Status(130)),
            _ => Err(Failure::Status(1)),
        }
    }
}

/// What the executors wrote, where the outputs are, and how it ended, in the last line.
fn summary(task: &TaskReply, took: Duration) -> String {
    let mut text = String::new();
    let mut delivered = 0;
    if let Some(log) = task.logs.as_ref().and_then(|logs| logs.last()) {
        text.push_str(&show::streams(log, LINES));
        for line in log.system_logs.iter().flatten() {
            let _ = writeln!(text, "{:<12}{}", "system log", show::one_line(line));
        }
        text.push_str(&show::outputs(log));
        delivered = log.outputs.len();
    }
    let files = match delivered {
        0 => String::new(),
        1 => ", 1 file delivered".to_owned(),
        n => format!(", {n} files delivered"),
    };
    let took = show::duration(took);
    let _ = writeln!(text, "{took}{files}: {}", task.state);
    text
}

fn refusal(file: &Path, rejection: Rejection) -> Failure {
    let file = file.display();
    match rejection {
        Rejection::Syntax(text) => Failure::Error(format!("{file} is not a task: {text}")),
        Rejection::Invalid(errors) => {
            for error in &errors {
                let text = format!("{file}: {}: {}", error.field, error.msg);
                complain(&show::one_line(&text));
            }
            Failure::Status(1)
        }
    }
}

/// Tells of changes as they come: a spinner on a terminal, plain lines always.
struct Live {
    began: Instant,
    state: Option<State>,
    executors: usize,
    ended: usize,
    bar: ProgressBar,
    to_stderr: bool,
}

impl Live {
    fn new(executors: usize, to_stderr: bool) -> Self {
        let target = if std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let style = ProgressStyle::with_template("{spinner} {elapsed:>4}  {msg}");
        let bar = ProgressBar::with_draw_target(None, target)
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.enable_steady_tick(Duration::from_millis(120));
        Self {
            began: Instant::now(),
            state: None,
            executors,
            ended: 0,
            bar,
            to_stderr,
        }
    }

    fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    fn update(&mut self, state: State, log: Option<&TaskLog>, progress: Option<&Progress>) {
        if self.state != Some(state) {
            self.state = Some(state);
            if !state.is_terminal() {
                self.say(state.as_str());
            }
        }
        if let Some(log) = log {
            // A new attempt begins anew.
            self.ended = self.ended.min(log.logs.len());
            for executor in &log.logs[self.ended..] {
                self.ended += 1;
                let (number, all) = (self.ended, self.executors);
                let code = executor.exit_code;
                self.say(&format!(
                    "executor {number} of {all} ended with exit code {code}"
                ));
            }
        }
        self.bar.set_message(match progress {
            Some(progress) if progress.bytes_total > 0 => format!(
                "{}: {} of {} files, {} of {}",
                progress.step,
                progress.files_done,
                progress.files_total,
                show::bytes(progress.bytes_done),
                show::bytes(progress.bytes_total),
            ),
            Some(progress) => progress.step.clone(),
            None => state.to_string(),
        });
    }

    fn say(&self, text: &str) {
        let line = format!("{:>7}  {text}", show::duration(self.elapsed()));
        self.bar.suspend(|| {
            if self.to_stderr {
                note(&line);
            } else {
                // Not even a full disk must end the task.
                let _ = say(&format!("{line}\n"));
            }
        });
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// The signals that ask for an end. That of a terminal that is closed is left alone under `nohup`.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Option<Signal>,
}

impl Signals {
    fn listen() -> Result<Self, String> {
        let hangup = if ignores_hangup() {
            None
        } else {
            Some(listen(SignalKind::hangup())?)
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup,
        })
    }

    async fn next(&mut self) {
        let Self {
            interrupt,
            terminate,
            hangup,
        } = self;
        let hung_up = async {
            match hangup.as_mut() {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        let hung_up = tokio::select! {
            _ = interrupt.recv() => false,
            _ = terminate.recv() => false,
            _ = hung_up => true,
        };
        if hung_up {
            // Kernel and shell may both send it: a second one asks for nothing more.
            self.hangup = None;
        }
    }
}

/// Whether this process was started so that it outlives its terminal.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|signals| u64::from_str_radix(signals.trim(), 16).ok());
    // SIGHUP is 1, the lowest bit.
    ignored.is_some_and(|signals| signals & 1 != 0)
}

/// A directory that goes with the command.
struct Temporary(PathBuf);

impl Temporary {
    fn new() -> Result<Self, String> {
        use std::os::unix::fs::DirBuilderExt;
        let path = std::env::temp_dir().join(format!("tesk-run-{:016x}", rand::random::<u64>()));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|error| format!("cannot make {}: {error}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(error) = tesk_core::rooted::remove_tree(&self.0) {
            note(&format!(
                "tesk: cannot remove {}: {error}",
                self.0.display()
            ));
        }
    }
}
