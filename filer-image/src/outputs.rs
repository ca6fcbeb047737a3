//! `filer outputs`: waits for the last executor or for a death, delivers outputs, and reports.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use tesk_core::plan::Plan;
use tesk_core::rooted::{Root, Symlinks};
use tesk_core::scheduler::compute::{Outcome, Report};
use tesk_core::staging::{self, Delivered, Failure, report};
use tesk_core::storage::RegistryBuilder;
use tesk_core::tes::ExecutorLog;
use tesk_core::time::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::exec::TERMINATED;
use crate::handover::{
    POLL, Record, Seen, Step, StopFile, Turn, Verdict, Watch, clip, ignores_errors,
};
use crate::{plan_file, progress, storages};

/// The exit code of a process that SIGKILL ended, which is what the kernel does to a container
/// that is out of memory.
const KILLED: i32 = 137;
/// Lines of each sort that are taken from an executor's record.
const MAX_LINES: usize = 100;

/// The options of `filer outputs`.
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
    /// A file that ends the waiting once there is something in it: the reason.
    #[arg(long, value_name = "FILE")]
    pub stop_file: Option<PathBuf>,
    /// How many bytes of the end of each stream of an executor are reported.
    #[arg(long, value_name = "BYTES", default_value_t = 10 * 1024)]
    pub tail: usize,
    /// A file for the whole report as JSON.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// A file for the packed report: the container's termination message. What does not fit is
    /// written to standard output.
    #[arg(long, value_name = "FILE")]
    pub termination_message: Option<PathBuf>,
    /// How many bytes the termination message may have.
    #[arg(long, value_name = "BYTES", default_value_t = 4096)]
    pub termination_room: usize,
}

/// Waits, delivers and reports. Gives the exit code: 0 when there is a report, whatever it says.
pub async fn run(
    options: &Options,
    plugins: &RegistryBuilder,
    terminated: &CancellationToken,
) -> anyhow::Result<u8> {
    let done = deliver_and_report(options, plugins, terminated).await;
    if let (Err(error), Some(path)) = (&done, &options.termination_message) {
        // Instead of the report, which this is no form of.
        let _ = std::fs::write(path, clip(&format!("{error:#}")));
    }
    done
}

async fn deliver_and_report(
    options: &Options,
    plugins: &RegistryBuilder,
    terminated: &CancellationToken,
) -> anyhow::Result<u8> {
    let began = Timestamp::now();
    let turn = Turn::take(&options.handover, Step::Outputs).context("cannot take the turn")?;
    let plan = plan_file::read_whole(&options.plan, options.secrets.as_deref())?;
    let work = async {
        let course = Course::follow(options, &plan).await;
        let delivered = if course.started() {
            deliver(options, plugins, &plan).await
        } else {
            Delivered::default()
        };
        course.report(&plan, delivered, began, options.tail)
    };
    let report = tokio::select! {
        // First: what was told to end delivers nothing more.
        biased;
        () = terminated.cancelled() => {
            turn.record(Record::new(Verdict::Skipped, began).because("stopped"))?;
            return Ok(TERMINATED);
        }
        report = work => report,
    };
    if let Some(path) = &options.report {
        std::fs::write(path, serde_json::to_vec(&report)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &options.termination_message {
        let packed = report::pack(&report, options.termination_room)?;
        if let Some(log) = packed.log {
            print!("{log}");
        }
        std::fs::write(path, packed.message)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    for note in &report.notes {
        eprintln!("outputs: {note}");
    }
    turn.record(Record::new(Verdict::Done, began))
        .context("cannot record how it went")?;
    Ok(0)
}

async fn deliver(options: &Options, plugins: &RegistryBuilder, plan: &Plan) -> Delivered {
    let engine = storages::engine(plugins, options.config.as_deref());
    let scratch = Root::open(&options.scratch, Symlinks::InRoot).map_err(anyhow::Error::from);
    match (engine, scratch) {
        (Ok(engine), Ok(scratch)) => {
            let scratch = Arc::new(scratch);
            let work = staging::outputs(plan, &scratch, &engine);
            progress::shown("outputs", &engine, work).await
        }
        (Err(error), _) | (_, Err(error)) => {
            let mut delivered = Delivered::default();
            delivered.failures.push(Failure {
                message: format!("outputs cannot be delivered: {error:#}"),
                retryable: false,
            });
            delivered
        }
    }
}

/// How the steps before this one went.
#[derive(Debug)]
struct Course {
    inputs: Seen,
    executors: Vec<Seen>,
    /// The reason why nothing more is waited for.
    stopped: Option<String>,
}

impl Course {
    /// Waits until no executor will run any more.
    async fn follow(options: &Options, plan: &Plan) -> Self {
        let stop = StopFile::new(options.stop_file.clone());
        let mut inputs = Watch::new(&options.handover, Step::Inputs);
        let mut watches: Vec<Watch> = (0..plan.executors.len())
            .map(|number| Watch::new(&options.handover, Step::Executor(number)))
            .collect();
        loop {
            // Asked before the look: a step that was running then is waited for.
            let stopped = stop.reason();
            let course = Self {
                inputs: inputs.look(),
                executors: watches.iter_mut().map(Watch::look).collect(),
                stopped,
            };
            if course.is_settled(plan) {
                return course;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn is_settled(&self, plan: &Plan) -> bool {
        let steps = self.steps();
        for (step, seen) in steps {
            match seen {
                Seen::Over(record) if record.verdict == Verdict::Done => {}
                Seen::Died(_) if ignores_errors(plan, step) => {}
                Seen::Over(_) | Seen::Died(_) => return true,
                Seen::NotStarted => return self.stopped.is_some(),
                Seen::Running => return false,
            }
        }
        true
    }

    fn steps(&self) -> impl Iterator<Item = (Step, &Seen)> {
        let executors = self.executors.iter().enumerate();
        let executors = executors.map(|(number, seen)| (Step::Executor(number), seen));
        [(Step::Inputs, &self.inputs)].into_iter().chain(executors)
    }

    /// Whether any executor has started: its turn came, and it was not skipped.
    fn started(&self) -> bool {
        let ran = match self.executors.first() {
            Some(Seen::Over(record)) => record.exit_code.is_some(),
            Some(Seen::Died(_) | Seen::Running) => true,
            Some(Seen::NotStarted) | None => false,
        };
        ran && matches!(&self.inputs, Seen::Over(record) if record.verdict == Verdict::Done)
    }

    fn report(
        self,
        plan: &Plan,
        mut delivered: Delivered,
        began: Timestamp,
        tail: usize,
    ) -> Report {
        let mut notes = Vec::new();
        let mut executors = Vec::new();
        let mut started = began;
        // Why the attempt ended before its last executor, if it did.
        let mut cause = None;
        for (step, seen) in self.steps() {
            let ignored = ignores_errors(plan, step);
            match seen {
                Seen::Over(record) => {
                    if step == Step::Inputs {
                        started = record.started;
                    }
                    notes.extend(
                        record
                            .notes
                            .iter()
                            .take(MAX_LINES)
                            .map(|n| format!("{step}: {}", clip(n))),
                    );
                    let failures = record
                        .failures
                        .iter()
                        .take(MAX_LINES)
                        .map(|failure| Failure {
                            message: clip(&failure.message),
                            retryable: failure.retryable,
                        });
                    delivered.failures.extend(failures);
                    if let Some(exit_code) = record.exit_code.filter(|_| step != Step::Inputs) {
                        executors.push(ExecutorLog {
                            start_time: Some(record.started),
                            end_time: Some(record.ended),
                            stdout: Some(end_of(&record.stdout, tail)),
                            stderr: Some(end_of(&record.stderr, tail)),
                            exit_code,
                        });
                    }
                    let outcome = match (record.verdict, record.exit_code) {
                        (Verdict::Done, _) => continue,
                        (Verdict::FailedForNow, _) => Outcome::Retry,
                        (Verdict::Failed, Some(_)) => Outcome::ExecutorError,
                        (Verdict::Failed | Verdict::Skipped | Verdict::Broken, _) => {
                            Outcome::SystemError
                        }
                    };
                    if outcome != Outcome::ExecutorError {
                        let reason = record
                            .reason
                            .as_deref()
                            .map_or("no reason is known".into(), clip);
                        notes.push(format!("{step}: {reason}"));
                    }
                    cause = Some(outcome);
                }
                Seen::Died(why) if step == Step::Inputs => {
                    notes.push(format!("{step} died: {why}"));
                    cause = Some(Outcome::Retry);
                }
                Seen::Died(why) => {
                    notes.push(format!("{step} died: {why}"));
                    executors.push(ExecutorLog {
                        exit_code: KILLED,
                        ..ExecutorLog::default()
                    });
                    if ignored {
                        continue;
                    }
                    cause = Some(Outcome::ExecutorError);
                }
                Seen::NotStarted | Seen::Running => {
                    let reason = self.stopped.as_deref().unwrap_or("no reason is known");
                    notes.push(format!("{step} did not start: {reason}"));
                    cause = Some(Outcome::SystemError);
                }
            }
            // What follows was skipped for this very reason.
            break;
        }
        notes.extend(delivered.notes.iter().cloned());
        notes.extend(
            delivered
                .failures
                .iter()
                .map(|failure| failure.message.clone()),
        );
        let executor_failed = cause == Some(Outcome::ExecutorError);
        Report {
            outcome: match cause {
                None | Some(Outcome::ExecutorError) => {
                    staging::verdict(executor_failed, &delivered)
                }
                Some(other) => other,
            },
            executors,
            outputs: delivered.outputs,
            notes,
            started,
            ended: Timestamp::now(),
        }
    }
}

/// The last `tail` bytes of a hostile text, less what would cut a character.
fn end_of(text: &str, tail: usize) -> String {
    let mut start = text.len().saturating_sub(tail);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text[start..].to_owned()
}
