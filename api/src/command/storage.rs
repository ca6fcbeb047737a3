//! `tesk storage`: looks at the storages of a configuration, and copies between them.

pub(super) mod probe;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use futures_util::StreamExt as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Map, Value, json};
use tesk_core::config::Span;
use tesk_core::storage::{Checksum, EntryKind, FileInfo, StorageUrl};
use tesk_core::transfer::{Copied, Counters, End, Engine};
use tokio::signal::unix::SignalKind;

use super::{Failure, Outcome, configuration, engine, listen, print, show, start_log};
use crate::config::Config;

/// How often the progress of a copy is shown.
const POLL: Duration = Duration::from_millis(200);
/// Lines of a long listing that are written together.
const LINES: usize = 256;

/// `tesk storage`
#[derive(Debug, Subcommand)]
pub(super) enum Storage {
    /// Probe storages and say what is wrong; the exit status is 1 if one fails
    ///
    /// Without urls, every prefix of the configuration is probed, except those that serve every
    /// host. A probe looks at the prefix and begins to list it; it changes nothing unless
    /// --write is given.
    Check(Check),
    /// List a directory: sizes in bytes, times of the last change, names
    Ls(Ls),
    /// Show what is at a url
    Stat(Stat),
    /// Copy a file or directory between storages, or a storage and this machine
    Cp(Cp),
}

/// `tesk storage check`
#[derive(Debug, Args)]
pub(super) struct Check {
    #[command(flatten)]
    storages: Storages,
    /// Urls to probe in place of the prefixes of the configuration
    #[arg(value_name = "URL")]
    urls: Vec<String>,
    /// Also write a small file of a unique name, read it back and remove it
    #[arg(long)]
    write: bool,
    /// How long looking, writing and removing may each take [default: 20s]
    #[arg(long, value_name = "TIME")]
    timeout: Option<Span>,
}

/// `tesk storage ls`
#[derive(Debug, Args)]
pub(super) struct Ls {
    #[command(flatten)]
    storages: Storages,
    /// A directory, or a file
    #[arg(value_name = "URL")]
    url: String,
    /// Everything below it, in the order in which it comes
    #[arg(short, long)]
    recursive: bool,
    /// One JSON object in each line
    #[arg(long)]
    json: bool,
}

/// `tesk storage stat`
#[derive(Debug, Args)]
pub(super) struct Stat {
    #[command(flatten)]
    storages: Storages,
    /// A file or directory
    #[arg(value_name = "URL")]
    url: String,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// `tesk storage cp`
#[derive(Debug, Args)]
pub(super) struct Cp {
    #[command(flatten)]
    storages: Storages,
    /// Where from: a url, or a path of this machine
    #[arg(value_name = "FROM")]
    from: String,
    /// Where to: a url, or a path of this machine. Always the full name of the copy
    #[arg(value_name = "TO")]
    to: String,
    /// Copy a directory with everything below it
    #[arg(short, long)]
    recursive: bool,
}

/// Which storages: the same as those of `tesk serve`, and the files of this machine.
#[derive(Debug, Args)]
struct Storages {
    /// The configuration file; only its storages and transfer settings matter here
    #[arg(long, value_name = "FILE", env = "TESK_CONFIG")]
    config: Option<PathBuf>,
}

impl Storages {
    /// `log` is what is logged unless `TESK_LOG` says.
    fn config(&self, log: &str) -> Result<Config, String> {
        start_log(log)?;
        engine::install_crypto();
        configuration(self.config.as_deref())
    }

    fn engine(&self, log: &str) -> Result<Engine, String> {
        let mut config = self.config(log)?;
        let transfer = config.transfer.clone();
        // With the rights of the caller: it is their own command.
        engine::allow_all_files(&mut config)?;
        let registry = engine::registry(&config.storage)?;
        Ok(Engine::new(Arc::new(registry), &transfer))
    }
}

impl Storage {
    pub(super) async fn execute(self) -> Outcome {
        match self {
            Self::Check(command) => command.execute().await,
            Self::Ls(command) => command.execute().await,
            Self::Stat(command) => command.execute().await,
            Self::Cp(command) => command.execute().await,
        }
    }
}

fn url(text: &str) -> Result<StorageUrl, String> {
    // The text itself may hold a password.
    text.parse().map_err(|error| format!("the url {error}"))
}

impl Check {
    async fn execute(self) -> Outcome {
        let options = probe::Options {
            write: self.write,
            limit: self.timeout.map_or(probe::LIMIT, |span| span.0),
        };
        let probes = if self.urls.is_empty() {
            let config = self.storages.config("error")?;
            let registry = engine::registry(&config.storage)?;
            probe::prefixes(&Arc::new(registry), options).boxed()
        } else {
            let urls = self.urls.iter().map(|text| url(text));
            let urls = urls.collect::<Result<Vec<_>, _>>()?;
            probe::urls(self.storages.engine("error")?.registry(), urls, options).boxed()
        };
        probe::report(probes).await
    }
}

impl Ls {
    async fn execute(self) -> Outcome {
        let engine = self.storages.engine("warn")?;
        let url = url(&self.url)?;
        let found = engine.stat(&url).await.map_err(|e| e.to_string())?;
        match found.map(|entry| entry.kind) {
            None => return Err(nothing(&url)),
            Some(EntryKind::File(info)) => {
                // As it is shown: a query may be secret.
                let shown = url.to_string();
                let name = shown.rsplit('/').next().unwrap_or_default();
                return print(&self.line(name, &EntryKind::File(info)));
            }
            Some(EntryKind::Directory) => {}
        }
        let url = url.without_trailing_slash();
        let entries = engine.list(&url).await.map_err(|e| e.to_string())?;
        let mut entries = entries.ready_chunks(LINES);
        // What a listing that is not recursive shows: of all that is below, the first names.
        let mut names = BTreeMap::<String, EntryKind>::new();
        while let Some(chunk) = entries.next().await {
            let mut lines = String::new();
            let mut failure = None;
            for entry in chunk {
                let entry = match entry {
                    Ok(entry) => entry,
                    Err(error) => {
                        failure = Some(error.to_string());
                        break;
                    }
                };
                let path = entry.path.trim_end_matches('/');
                match path.split_once('/') {
                    _ if self.recursive => lines.push_str(&self.line(path, &entry.kind)),
                    Some((first, _)) => drop(names.insert(first.into(), EntryKind::Directory)),
                    None => drop(names.entry(path.into()).or_insert(entry.kind)),
                }
            }
            print(&lines)?;
            if let Some(error) = failure {
                return Err(error.into());
            }
        }
        for (name, kind) in &names {
            print(&self.line(name, kind))?;
        }
        Ok(())
    }

    fn line(&self, name: &str, kind: &EntryKind) -> String {
        if self.json {
            let mut object = Map::from_iter([("name".to_owned(), name.into())]);
            facts(&mut object, kind);
            return show::json(&format!("{}\n", Value::from(object)));
        }
        let name = show::one_line(name);
        match kind {
            EntryKind::Directory => format!("{:>15}  {:20}  {name}/\n", "-", "-"),
            EntryKind::File(info) => {
                let size = info.size.map_or("?".into(), |size| size.to_string());
                let modified = info.modified.map_or("?".into(), show::seconds);
                format!("{size:>15}  {modified:20}  {name}\n")
            }
        }
    }
}

fn nothing(url: &StorageUrl) -> Failure {
    Failure::Error(format!("{url}: nothing is there"))
}

/// What is known of a file or directory, as JSON.
fn facts(object: &mut Map<String, Value>, kind: &EntryKind) {
    let mut set = |key: &str, value: Value| {
        object.insert(key.to_owned(), value);
    };
    let EntryKind::File(info) = kind else {
        return set("type", "directory".into());
    };
    set("type", "file".into());
    set("size", info.size.into());
    set("modified", json!(info.modified));
    if let Some(version) = &info.version {
        set("version", version.0.as_str().into());
    }
    if let Some(checksum) = checksum(info) {
        set("checksum", checksum.into());
    }
    if let Some(mode) = info.mode {
        set("mode", format!("{mode:04o}").into());
    }
}

/// `md5:…`, `sha256:…`, `crc64nvme:…` and the like.
fn checksum(info: &FileInfo) -> Option<String> {
    match info.checksum.as_ref()? {
        Checksum::Md5(sum) => Some(format!("md5:{}", hex::encode(sum))),
        Checksum::Sha256(sum) => Some(format!("sha256:{}", hex::encode(sum))),
        Checksum::Crc64Nvme(sum) => Some(format!("crc64nvme:{sum:016x}")),
        Checksum::Crc32c(sum) => Some(format!("crc32c:{sum:08x}")),
        Checksum::Crc32(sum) => Some(format!("crc32:{sum:08x}")),
        _ => None,
    }
}

impl Stat {
    async fn execute(self) -> Outcome {
        let engine = self.storages.engine("warn")?;
        let url = url(&self.url)?;
        let found = engine.stat(&url).await.map_err(|e| e.to_string())?;
        let Some(entry) = found else {
            return Err(nothing(&url));
        };
        let mut object = Map::from_iter([("url".to_owned(), url.to_string().into())]);
        facts(&mut object, &entry.kind);
        if self.json {
            return print(&show::json(&format!("{:#}\n", Value::from(object))));
        }
        let mut text = String::new();
        // The order in which a person reads.
        for key in [
            "url", "type", "size", "modified", "version", "checksum", "mode",
        ] {
            let value = match object.get(key) {
                None => continue,
                Some(Value::Null) => "not told".to_owned(),
                Some(Value::String(text)) => show::one_line(text),
                Some(other) => other.to_string(),
            };
            let _ = writeln!(text, "{key:<12}{value}");
        }
        print(&text)
    }
}

impl Cp {
    async fn execute(self) -> Outcome {
        let engine = self.storages.engine("warn")?;
        let (from, to) = (End::parse(&self.from)?, End::parse(&self.to)?);
        let begin = Instant::now();
        let work = async {
            if self.recursive {
                engine.copy_directory(&from, &to).await
            } else {
                engine.copy_file(&from, &to).await
            }
        };
        let mut interrupt = listen(SignalKind::interrupt())?;
        let mut terminate = listen(SignalKind::terminate())?;
        // What is dropped takes its half-done files along; a signal's default would not.
        let copied = tokio::select! {
            copied = shown(&engine, work) => copied.map_err(|error| error.to_string())?,
            _ = interrupt.recv() => return Err(Failure::Status(130)),
            _ = terminate.recv() => return Err(Failure::Status(143)),
        };
        let Copied { files, bytes } = copied;
        let took = begin.elapsed();
        let files = match files {
            1 => "1 file".to_owned(),
            n => format!("{n} files"),
        };
        print(&format!(
            "{files}, {} in {}\n",
            show::bytes(bytes),
            show::duration(took)
        ))
    }
}

/// Runs `work`; shows how far it is if standard error is a terminal.
async fn shown<T>(engine: &Engine, work: impl Future<Output = T>) -> T {
    if !std::io::stderr().is_terminal() {
        return work.await;
    }
    let style = ProgressStyle::with_template("{spinner} {elapsed:>4}  {msg}");
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    let counters = engine.counters();
    let begin = Instant::now();
    let mut work = std::pin::pin!(work);
    let done = loop {
        match tokio::time::timeout(POLL, &mut work).await {
            Ok(done) => break done,
            Err(_) => bar.set_message(far(&counters, begin.elapsed())),
        }
        bar.tick();
    };
    bar.finish_and_clear();
    done
}

fn far(counters: &Counters, elapsed: Duration) -> String {
    let done = counters.bytes_done.load(Relaxed);
    format!(
        "{} of {} files, {} of {}, {}/s",
        counters.files_done.load(Relaxed),
        counters.files_total.load(Relaxed),
        show::bytes(done),
        show::bytes(counters.bytes_total.load(Relaxed)),
        show::bytes((done as f64 / elapsed.as_secs_f64().max(0.001)) as u64),
    )
}
