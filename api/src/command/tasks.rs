//! What a client asks of a server.

use std::fmt::{Display, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use tesk_core::tes::{State, TaskLog};
use tokio::time::{Instant, sleep};

use super::client::{Client, Refused};
use super::{Failure, Outcome, Remote, complain, document, note, print, say, show};

/// How often `wait` and `logs -f` ask.
const POLL: Duration = Duration::from_millis(500);
/// A line that is longer is shown before its end.
const LONGEST_LINE: usize = 64 << 10;
/// How long a server that does not answer is asked again before `submit`, `wait` and `logs -f` give
/// up: a restart, or a proxy that has nobody behind it for a while.
const PATIENCE: Duration = Duration::from_mins(5);
/// The longest pause that a server may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// `tesk submit`
#[derive(Debug, Args)]
pub(super) struct Submit {
    #[command(flatten)]
    remote: Remote,
    /// Task files; - is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The folder that relative urls of outputs are below
    #[arg(long, default_value = ".", value_name = "DIR")]
    output_dir: PathBuf,
    /// Wait until the tasks have ended, as `tesk wait` does
    #[arg(long)]
    wait: bool,
}

/// `tesk get`
#[derive(Debug, Args)]
pub(super) struct Get {
    #[command(flatten)]
    remote: Remote,
    /// Ids of tasks
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
    /// How much to show
    #[arg(long, value_enum, default_value_t)]
    view: View,
    /// Print what the server answers, one JSON document for each task
    #[arg(long)]
    json: bool,
}

/// How much of a task.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum View {
    /// Id and state
    Minimal,
    /// All but contents, captured output and system logs
    Basic,
    /// All
    #[default]
    Full,
}

impl View {
    fn as_str(self) -> &'static str {
        match self {
            Self::Minimal => "MINIMAL",
            Self::Basic => "BASIC",
            Self::Full => "FULL",
        }
    }
}

/// `tesk list`
#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    remote: Remote,
    /// Only tasks in this state
    #[arg(long)]
    state: Option<String>,
    /// Only tasks whose name begins with this
    #[arg(long, value_name = "TEXT")]
    name_prefix: Option<String>,
    /// Only tasks with this tag; may be repeated, for 32 tags at most
    #[arg(long, value_name = "KEY[=VALUE]")]
    tag: Vec<String>,
    /// At most this many tasks
    #[arg(long, default_value_t = 50, value_name = "N")]
    limit: usize,
    /// All tasks
    #[arg(long, conflicts_with = "limit")]
    all: bool,
    /// Print one JSON document with all of them, in the BASIC view
    #[arg(long)]
    json: bool,
}

/// `tesk cancel`
#[derive(Debug, Args)]
pub(super) struct Cancel {
    #[command(flatten)]
    remote: Remote,
    /// Ids of tasks
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
}

/// `tesk logs`
#[derive(Debug, Args)]
pub(super) struct Logs {
    #[command(flatten)]
    remote: Remote,
    /// The id of a task
    #[arg(value_name = "ID")]
    id: String,
    /// Go on until the task has ended
    #[arg(short, long)]
    follow: bool,
}

/// `tesk wait`
#[derive(Debug, Args)]
pub(super) struct Wait {
    #[command(flatten)]
    remote: Remote,
    /// Ids of tasks
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
    /// Give up after this time, such as 30s or 2h
    #[arg(long, value_name = "TIME")]
    timeout: Option<tesk_core::config::Span>,
    /// Print nothing
    #[arg(short, long)]
    quiet: bool,
}

impl Submit {
    pub(super) async fn execute(self) -> Outcome {
        let client = Client::new(&self.remote)?;
        let mut ids = Vec::new();
        let mut failed = false;
        for file in &self.files {
            match self.create(&client, file).await {
                Ok(id) => {
                    say(&format!("{id}\n"))?;
                    ids.push(id);
                }
                Err(error) => {
                    complain(&error);
                    failed = true;
                    break;
                }
            }
        }
        if self.wait {
            wait_for(&client, ids, None, false).await?;
        }
        if failed {
            Err(Failure::Status(1))
        } else {
            Ok(())
        }
    }

    /// Creates the task of a file, and answers its id.
    async fn create(&self, client: &Client, file: &Path) -> Result<String, String> {
        let text = document::absolute(document::read(file)?, file, &self.output_dir)?;
        // A retry of a request whose answer was lost must not make a second task.
        let key = format!("tesk-{:032x}", rand::random::<u128>());
        let mut patience = Patience::default();
        loop {
            let refused = match client.create(&text, &key).await {
                Ok(id) => return Ok(id),
                Err(refused) => refused,
            };
            // A wrong address is worth knowing at once, unless time does not matter.
            let pause = if refused.unreached && !self.wait {
                Err(refused)
            } else {
                patience.endure(refused)
            };
            sleep(pause.map_err(|error| format!("{}: {error}", file.display()))?).await;
        }
    }
}

impl Get {
    pub(super) async fn execute(self) -> Outcome {
        let client = Client::new(&self.remote)?;
        for (index, id) in self.ids.iter().enumerate() {
            let task = client.get(id, self.view.as_str()).await;
            let task = task.map_err(|error| format!("{id}: {error}"))?;
            if self.json {
                print(&show::json(&format!("{task:#}\n")))?;
            } else {
                let gap = if index > 0 { "\n" } else { "" };
                let text = show::details(&show::read(task)?, matches!(self.view, View::Full));
                print(&format!("{gap}{text}"))?;
            }
        }
        Ok(())
    }
}

impl List {
    pub(super) async fn execute(self) -> Outcome {
        let client = Client::new(&self.remote)?;
        let limit = if self.all { usize::MAX } else { self.limit };
        let mut tasks = Vec::new();
        let mut token: Option<String> = None;
        while tasks.len() < limit {
            let size = (limit - tasks.len()).min(500);
            let page = client.list(&self.query(size, token.as_deref())).await?;
            let Value::Array(page_tasks) = page["tasks"].clone() else {
                return Err("the server's answer is odd: it has no tasks"
                    .to_owned()
                    .into());
            };
            tasks.extend(page_tasks);
            // One that is given again would lead here for ever.
            let is_next = |next: &&str| !next.is_empty() && token.as_deref() != Some(*next);
            let next = page["next_page_token"].as_str().filter(is_next);
            token = next.map(str::to_owned);
            if token.is_none() {
                break;
            }
        }
        if self.json {
            return print(&show::json(&format!("{:#}\n", json!({ "tasks": tasks }))));
        }
        let tasks: Result<Vec<_>, _> = tasks.into_iter().map(show::read).collect();
        print(&show::table(&tasks?))?;
        if token.is_some() {
            note("there are more; --all or a higher --limit shows them");
        }
        Ok(())
    }

    fn query(&self, size: usize, token: Option<&str>) -> Vec<(&'static str, String)> {
        let mut query = vec![
            ("view", "BASIC".to_owned()),
            ("page_size", size.to_string()),
        ];
        let optional = [
            ("state", self.state.as_deref()),
            ("name_prefix", self.name_prefix.as_deref()),
            ("page_token", token),
        ];
        for (name, value) in optional {
            query.extend(value.map(|value| (name, value.to_owned())));
        }
        for tag in &self.tag {
            let (key, value) = tag.split_once('=').unwrap_or((tag, ""));
            query.push(("tag_key", key.to_owned()));
            query.push(("tag_value", value.to_owned()));
        }
        query
    }
}

impl Cancel {
    pub(super) async fn execute(self) -> Outcome {
        let client = Client::new(&self.remote)?;
        let mut failed = false;
        for id in &self.ids {
            // One that fails does not keep the others running.
            if let Err(error) = client.cancel(id).await {
                complain(&format!("{id}: {error}"));
                failed = true;
            }
        }
        if failed {
            Err(Failure::Status(1))
        } else {
            Ok(())
        }
    }
}

impl Logs {
    pub(super) async fn execute(self) -> Outcome {
        let client = Client::new(&self.remote)?;
        let mut shown = Shown::default();
        let mut patience = Patience::default();
        loop {
            let task = match client.get(&self.id, "FULL").await {
                Ok(task) => show::read(task)?,
                Err(refused) if self.follow => {
                    sleep(patience.endure(refused)?).await;
                    continue;
                }
                Err(refused) => return Err(refused.into()),
            };
            patience = Patience::default();
            let logs = task.logs.as_deref().unwrap_or_default();
            print(&shown.rest_of(logs))?;
            if !self.follow {
                return Ok(());
            }
            if task.state.is_terminal() {
                note(task.state.as_str());
                return Ok(());
            }
            let executor = logs.last().map_or(0, |log| log.logs.len());
            let all = task.task.as_ref().map_or(0, |task| task.executors.len());
            let runs = task.state == State::Running && executor < all;
            if !(runs && self.live(&client, &mut shown, executor).await?) {
                sleep(POLL).await;
            }
        }
    }

    /// Shows what an executor prints, until it ends. `false` if that is not to be had.
    async fn live(
        &self,
        client: &Client,
        shown: &mut Shown,
        executor: usize,
    ) -> Result<bool, Failure> {
        if !shown.is_new(executor) {
            return Ok(false);
        }
        let mut output = match client.output(&self.id, executor).await {
            Ok(Some(output)) => output,
            Ok(None) => return Ok(false),
            // The task itself is asked for next, with patience.
            Err(refused) if refused.passes.is_some() => return Ok(false),
            Err(refused) => return Err(refused.into()),
        };
        let mut skip = *shown.bytes_of(executor);
        let mut line = Vec::new();
        let mut ended = false;
        while !ended {
            match output.chunk().await {
                Ok(Some(chunk)) => {
                    let known = skip.min(chunk.len());
                    skip -= known;
                    line.extend_from_slice(&chunk[known..]);
                }
                Ok(None) => {
                    ended = true;
                    if !line.is_empty() {
                        line.push(b'\n');
                    }
                }
                // Such as a server that is replaced: it is asked again.
                Err(_) => return Ok(false),
            }
            let whole = line.iter().rposition(|byte| *byte == b'\n');
            let long = line.len() >= LONGEST_LINE;
            if let Some(end) = whole.or_else(|| long.then(|| line.len() - 1)) {
                if shown.bytes == 0 {
                    print(&format!("--- executor {}\n", executor + 1))?;
                }
                let text: Vec<u8> = line.drain(..=end).collect();
                shown.bytes += text.len();
                print(&printable(&text))?;
            }
        }
        shown.followed(executor);
        Ok(true)
    }
}

fn printable(output: &[u8]) -> String {
    show::harmless(&String::from_utf8_lossy(output).replace("\r\n", "\n"))
}

/// What `logs -f` has shown of each attempt.
#[derive(Default)]
struct Shown {
    /// Executors, and lines of the system log.
    attempts: Vec<(usize, usize)>,
    /// The executor that is followed, and how much of its output is shown.
    executor: usize,
    bytes: usize,
}

impl Shown {
    /// Whether nothing is known yet of the end of an executor of the present attempt.
    fn is_new(&self, executor: usize) -> bool {
        self.attempts
            .last()
            .is_none_or(|(shown, _)| *shown <= executor)
    }

    /// How much is shown of the output of an executor of the present attempt.
    fn bytes_of(&mut self, executor: usize) -> &mut usize {
        if self.executor != executor {
            self.executor = executor;
            self.bytes = 0;
        }
        &mut self.bytes
    }

    fn followed(&mut self, executor: usize) {
        if let Some((shown, _)) = self.attempts.last_mut() {
            *shown = executor + 1;
        }
    }

    fn rest_of(&mut self, logs: &[TaskLog]) -> String {
        let mut text = String::new();
        if self.attempts.len() < logs.len() {
            self.bytes = 0;
        }
        self.attempts.resize(logs.len(), (0, 0));
        for (log, (executors, lines)) in logs.iter().zip(&mut self.attempts) {
            let mut rest = log.clone();
            // Its number goes with its label.
            for seen in rest.logs.iter_mut().take(*executors) {
                seen.stdout = None;
                seen.stderr = None;
            }
            text.push_str(&show::streams(&rest, usize::MAX));
            *executors = log.logs.len().max(*executors);
            let system = log.system_logs.as_deref().unwrap_or_default();
            for line in system.iter().skip(*lines) {
                let _ = writeln!(text, "--- system: {}", show::one_line(line));
            }
            *lines = system.len();
        }
        text
    }
}

impl Wait {
    pub(super) async fn execute(self) -> Outcome {
        let client = Client::new(&self.remote)?;
        let timeout = self.timeout.map(|timeout| timeout.0);
        wait_for(&client, self.ids, timeout, self.quiet).await
    }
}

/// With a server that does not answer at present.
#[derive(Default)]
struct Patience {
    /// Since when there is no answer.
    silent: Option<Instant>,
}

impl Patience {
    /// How long to wait before the server is asked again; or why there is no use in that.
    fn endure(&mut self, refused: Refused) -> Result<Duration, Refused> {
        let Some(pause) = refused.passes else {
            return Err(refused);
        };
        match self.silent {
            None => {
                let minutes = PATIENCE.as_secs() / 60;
                complain(&format!("{refused}; asking again for {minutes} minutes"));
                self.silent = Some(Instant::now());
            }
            Some(since) if since.elapsed() >= PATIENCE => return Err(refused),
            Some(_) => {}
        }
        Ok(pause.clamp(POLL, LONGEST_PAUSE))
    }
}

/// Waits until all of `ids` have ended, and prints each as it does.
async fn wait_for(
    client: &Client,
    mut ids: Vec<String>,
    timeout: Option<Duration>,
    quiet: bool,
) -> Outcome {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let mut all_complete = true;
    let mut patience = Patience::default();
    loop {
        let mut running = Vec::new();
        let mut pause = POLL;
        let mut rest = ids.into_iter();
        for id in rest.by_ref() {
            let of_task = |error: &dyn Display| Failure::Error(format!("{id}: {error}"));
            match client.get(&id, "MINIMAL").await {
                Ok(task) => {
                    patience = Patience::default();
                    let task = show::read(task).map_err(|error| of_task(&error))?;
                    if !task.state.is_terminal() {
                        running.push(id);
                        continue;
                    }
                    all_complete &= task.state == State::Complete;
                    if !quiet {
                        say(&format!("{id} {}\n", task.state))?;
                    }
                }
                // A task that is not there is a reason to give up.
                Err(refused) if refused.passes.is_none() => return Err(of_task(&refused)),
                // A server that is away is not; it would not answer for the others either.
                Err(refused) => {
                    pause = patience.endure(refused)?;
                    running.push(id);
                    break;
                }
            }
        }
        running.extend(rest);
        ids = running;
        if ids.is_empty() {
            break;
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(Failure::Error(format!(
                "not ended in time: {}",
                ids.join(", ")
            )));
        }
        let left = deadline.map(|deadline| deadline - Instant::now());
        sleep(left.map_or(pause, |left| pause.min(left))).await;
    }
    if all_complete {
        Ok(())
    } else {
        Err(Failure::Status(1))
    }
}

#[cfg(test)]
mod tests {
    use tesk_core::tes::ExecutorLog;

    use super::*;

    #[test]
    fn after_a_broken_connection_the_output_of_the_next_executor_is_shown_from_its_start() {
        let ended = |executors: usize| {
            let log = ExecutorLog {
                stdout: Some("one\n".into()),
                ..ExecutorLog::default()
            };
            [TaskLog {
                logs: vec![log; executors],
                ..TaskLog::default()
            }]
        };
        let mut shown = Shown::default();
        shown.rest_of(&ended(0));
        *shown.bytes_of(0) += 4;
        assert_eq!(*shown.bytes_of(0), 4);
        // It broke, and the first executor has ended when the task is asked for.
        assert!(shown.rest_of(&ended(1)).contains("one"));
        assert_eq!(*shown.bytes_of(1), 0);
    }
}
