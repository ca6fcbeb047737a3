//! `filer inputs`: waits until all is prepared, puts the inputs in place and gives the turn to the first executor.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use tesk_core::rooted::{Root, Symlinks};
use tesk_core::staging::{self, Failure};
use tesk_core::storage::RegistryBuilder;
use tesk_core::time::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::handover::{Record, Step, Turn, Verdict};
use crate::{plan_file, prepare, progress, storages};

/// The options of `filer inputs`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The plan: a file with JSON, or a directory with the parts of a packed one.
    #[arg(long, value_name = "PATH")]
    pub plan: PathBuf,
    /// The scratch directory.
    #[arg(long, value_name = "DIR")]
    pub scratch: PathBuf,
    /// The shared directory through which steps hand over.
    #[arg(long, value_name = "DIR")]
    pub handover: PathBuf,
    /// The passwords of the plan's urls, if it does not hold them.
    #[arg(long, value_name = "FILE")]
    pub secrets: Option<PathBuf>,
    /// The configuration file with the storages.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Puts the inputs in place, and records how it went. Gives the exit code.
pub async fn run(
    options: &Options,
    plugins: &RegistryBuilder,
    terminated: &CancellationToken,
) -> anyhow::Result<u8> {
    tokio::select! {
        done = prepare::done(&options.handover) => done.context("cannot see what is prepared")?,
        () = terminated.cancelled() => return Ok(crate::exec::TERMINATED),
    }
    let started = Timestamp::now();
    let turn = Turn::take(&options.handover, Step::Inputs).context("cannot take the turn")?;
    let placed = tokio::select! {
        placed = place(options, plugins) => placed,
        () = terminated.cancelled() => {
            turn.record(Record::new(Verdict::Skipped, started).because("stopped"))?;
            return Ok(crate::exec::TERMINATED);
        }
    };
    let record = match &placed {
        Ok(()) => Record::new(Verdict::Done, started),
        Err(failure) => {
            eprintln!("inputs: {failure}");
            let verdict = if failure.retryable {
                Verdict::FailedForNow
            } else {
                Verdict::Failed
            };
            Record::new(verdict, started).because(&failure.message)
        }
    };
    turn.record(record).context("cannot record how it went")?;
    Ok(u8::from(placed.is_err()))
}

async fn place(options: &Options, plugins: &RegistryBuilder) -> Result<(), Failure> {
    // What is wrong here is wrong for each attempt.
    let definite = |error: anyhow::Error| Failure {
        message: format!("{error:#}"),
        retryable: false,
    };
    let plan =
        plan_file::read_whole(&options.plan, options.secrets.as_deref()).map_err(definite)?;
    let engine = storages::engine(plugins, options.config.as_deref()).map_err(definite)?;
    let scratch = Root::open(&options.scratch, Symlinks::InRoot)
        .with_context(|| format!("cannot open scratch {}", options.scratch.display()))
        .map_err(definite)?;
    let scratch = Arc::new(scratch);
    let work = staging::inputs(&plan, &scratch, &engine);
    progress::shown("inputs", &engine, work).await
}
