//! `tesk-conformance storage`.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, anyhow, bail};
use serde::Deserialize;
use tesk_conformance::storage::{Report, Subject};
use tesk_core::storage::{ConfigEntry, RegistryBuilder, StorageUrl, cleanup};

use crate::{junit, text};

/// The options of `tesk-conformance storage`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The file with the storages: the configuration of a server, or one with nothing but
    /// [[storage]] entries and the key `scratch`, a url or a list of them
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// A directory that the suite may write below, in place of those of the file; may be repeated
    #[arg(long, value_name = "URL")]
    scratch: Vec<String>,
    /// Print one JSON document at the end
    #[arg(long, conflicts_with = "junit")]
    json: bool,
    /// Print a `JUnit` XML document at the end
    #[arg(long, help = "Print a JUnit XML document at the end")]
    junit: bool,
    /// Cases that run at the same time
    #[arg(long, value_name = "N", default_value_t = 4)]
    jobs: usize,
    /// Only cases whose name holds this text
    #[arg(value_name = "FILTER")]
    filter: Option<String>,
}

/// What is read of the file; a server's has more.
#[derive(Debug, Deserialize)]
struct Config {
    #[serde(default)]
    storage: Vec<ConfigEntry>,
    scratch: Option<Scratch>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a url or a list of urls")]
enum Scratch {
    One(String),
    Many(Vec<String>),
}

/// Judges, prints, and tells whether all is well.
pub(crate) fn run(options: &Options, plugins: &RegistryBuilder) -> anyhow::Result<bool> {
    let subjects = subjects(options, plugins)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let reports = runtime.block_on(async {
        let mut reports = Vec::new();
        for subject in &subjects {
            reports.push(judge(subject, options).await);
        }
        cleanup::finish().await;
        reports
    });
    // A file system that hangs must not keep us.
    runtime.shutdown_background();
    print(&if options.json {
        format!("{:#}\n", text::document(&reports))
    } else if options.junit {
        junit::document(&reports)
    } else {
        text::summary(&reports)
    })?;
    let failed = reports.iter().any(|report| report.counts()[2] > 0);
    let complaint = match options.filter {
        // It may leave out all of a storage, but not everything.
        Some(_)
            if reports
                .iter()
                .any(|report| Report::idle(std::slice::from_ref(report)).is_none()) =>
        {
            None
        }
        _ => Report::idle(&reports),
    };
    if let Some(complaint) = &complaint {
        eprintln!("tesk-conformance: {complaint}");
    }
    Ok(!failed && complaint.is_none())
}

fn subjects(options: &Options, plugins: &RegistryBuilder) -> anyhow::Result<Vec<Subject>> {
    let file = options.config.display();
    let content =
        std::fs::read_to_string(&options.config).with_context(|| format!("cannot read {file}"))?;
    let config: Config =
        tesk_core::config::parse(&file.to_string(), &content).map_err(|error| anyhow!(error))?;
    let urls = match config.scratch {
        _ if !options.scratch.is_empty() => options.scratch.clone(),
        Some(Scratch::One(url)) => vec![url],
        Some(Scratch::Many(urls)) => urls,
        None => Vec::new(),
    };
    if urls.is_empty() {
        bail!("no scratch url: give --scratch URL, or `scratch = \"URL\"` at the top of {file}");
    }
    let registry = plugins.build(&config.storage)?;
    let subject = |text: &String| {
        // The text itself may hold a password.
        let url: StorageUrl = text
            .parse()
            .map_err(|error| anyhow!("a scratch url {error}"))?;
        let storage = registry.route(&url)?;
        // Of its own, so that all of it can be removed.
        let own = url.join(&format!("tesk-conformance-{:08x}", rand::random::<u32>()));
        Ok(Subject::new(url.to_string(), storage, own))
    };
    urls.iter().map(subject).collect()
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("cannot write the results")
}

async fn judge(subject: &Subject, options: &Options) -> Report {
    let chosen = |name: &str| {
        let filter = options.filter.as_deref();
        filter.is_none_or(|filter| name.contains(filter))
    };
    let quiet = options.json || options.junit;
    let show = |text: &str| {
        // A reader that has gone away must not keep the suite from cleaning up.
        if !quiet && let Err(error) = print(text) {
            tracing::debug!(%error);
        }
    };
    show(&format!("{}\n", subject.name()));
    let each = |judged: &_| show(&text::line(judged));
    let report = subject
        .judge_all(|case| chosen(case.name), options.jobs, each)
        .await;
    if report.counts() != [0, report.cases.len(), 0]
        && let Err(why) = subject.remove_scratch().await
    {
        eprintln!(
            "tesk-conformance: what was written below {} may still be there: {why}",
            subject.name()
        );
    }
    report
}
