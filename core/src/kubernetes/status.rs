//! What a pod's status says of its attempt: a pure function.
//!
//! The status of the container `outputs` decides when an attempt is over, never the pod's phase
//! or a container's index: whatever else was put into the pod does not count.

use std::cmp::Reverse;

use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateTerminated, ContainerStatus, Event, Pod, PodCondition, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Deserialize;

use super::pod::{BINARY, INPUTS, OUTPUTS, PREPARE, STOP};
use super::settings::Patience;
use crate::config::Span;
use crate::scheduler::compute::{Observed, Outcome, Phase, Report};
use crate::staging::report::{self, Unreadable};
use crate::tes::ExecutorLog;
use crate::time::Timestamp;

#[cfg(test)]
mod tests;

/// What was seen of a pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Look {
    /// For the scheduler.
    pub observed: Observed,
    /// What else is to be done.
    pub need: Option<Need>,
}

/// What is to be done about a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Need {
    /// Its report is in the log of the container `outputs`: look again with that.
    Log,
    /// Its first container has not been seen to start for long: [`trouble`] is in its events.
    Events,
    /// It waits for what will never come: its supervisors are to be told this reason.
    Stop(String),
}

/// Looks at a pod; `log` is that of the container `outputs`, if it was read.
pub fn look(pod: &Pod, log: Option<&str>, patience: &Patience, now: Timestamp) -> Look {
    let nothing = PodStatus::default();
    let view = View {
        pod,
        status: pod.status.as_ref().unwrap_or(&nothing),
        patience,
        now,
    };
    let mut need = None;
    let phase = match view.over(log) {
        Some(Ok(phase)) => phase,
        Some(Err(Need::Log)) => {
            need = Some(Need::Log);
            Phase::Running
        }
        Some(Err(needed)) => {
            need = Some(needed);
            view.alive()
        }
        None => {
            need = view.stop();
            view.alive()
        }
    };
    Look {
        observed: Observed {
            phase,
            started: view.status.start_time.as_ref().map(time),
            executors: view.executors(),
            notes: view.notes(),
            progress: None,
        },
        need,
    }
}

/// Whether a pod was to go long ago, so that its node must be gone or out of reach.
pub fn is_silent(pod: &Pod, patience: &Patience, now: Timestamp) -> bool {
    let deleted = pod.metadata.deletion_timestamp.as_ref().map(time);
    is_over(deleted, patience.node_lost, now)
}

/// Whether the container `outputs` ended so long ago that its log will never be had.
pub fn is_stale(pod: &Pod, patience: &Patience, now: Timestamp) -> bool {
    let statuses = pod.status.iter().flat_map(|s| &s.container_statuses);
    let outputs = statuses.flatten().find(|status| status.name == OUTPUTS);
    let ended = outputs
        .and_then(terminated)
        .and_then(|end| end.finished_at.as_ref());
    is_over(ended.map(time), patience.node_lost, now)
}

/// Whether an executor's container runs, or has run.
pub fn has_output(pod: &Pod, executor: usize) -> bool {
    let name = super::pod::executor(executor);
    let mut statuses = pod
        .status
        .iter()
        .flat_map(|s| &s.container_statuses)
        .flatten();
    statuses.any(|status| status.name == name && has_begun(status))
}

/// What keeps a pod from starting, according to its events, the newest first; `None` if nothing
/// does. Each volume that cannot be mounted has an event of its own, in the same second.
pub fn trouble(events: &[Event]) -> Option<String> {
    let seen = |event: &Event| {
        let series = event.series.as_ref();
        let series = series.and_then(|series| series.last_observed_time.as_ref());
        let times = [series, event.event_time.as_ref()];
        let last = event.last_timestamp.as_ref().map(time);
        let times = times.into_iter().flatten();
        last.max(times.map(|time| millis(&time.0)).max())
    };
    let is_warning = |event: &&Event| event.type_.as_deref() == Some("Warning");
    // What went wrong before the last good news is over.
    let good = events.iter().filter(|event| !is_warning(event)).map(seen);
    let good = good.max();
    let mut bad: Vec<&Event> = events
        .iter()
        .filter(is_warning)
        .filter(|event| good.is_none_or(|good| seen(event) >= good))
        .collect();
    bad.sort_by_key(|event| Reverse(seen(event)));
    let mut words: Vec<String> = Vec::new();
    for event in bad {
        let reason = event.reason.as_deref().unwrap_or_default();
        let message = event.message.as_deref().unwrap_or_default();
        let said = sentence([reason, message]);
        if !words.contains(&said) {
            words.push(said);
        }
    }
    words.truncate(TROUBLES);
    (!words.is_empty()).then(|| sentence(["it does not start", &words.join("; ")]))
}

/// The most events that are told of a pod that does not start.
const TROUBLES: usize = 3;
/// Why a container waits, as far as waiting will not help.
const NEVER: [&str; 3] = [
    "InvalidImageName",
    "CreateContainerConfigError",
    "ErrImageNeverPull",
];
/// Why a container waits when all is well.
const USUAL: [&str; 2] = ["ContainerCreating", "PodInitializing"];
/// In the message of such a wait that may end all the same: the kubelet tries again.
const PASSING: [&str; 2] = ["failed to sync", "failed to prepare subPath"];
/// Why a pod is not yet to be put on a node: somebody else decides when it is.
const GATED: &str = "SchedulingGated";
/// The exit code of a filer that was told to end.
const TERMINATED: i32 = 143;
/// Why a container ended that never began.
const NOT_BEGUN: [&str; 2] = ["StartError", "ContainerCannotRun"];

struct View<'a> {
    pod: &'a Pod,
    status: &'a PodStatus,
    patience: &'a Patience,
    now: Timestamp,
}

impl View<'_> {
    fn container(&self, name: &str) -> Option<&ContainerStatus> {
        self.containers().find(|status| status.name == name)
    }

    /// All containers, those that run before the others included.
    fn containers(&self) -> impl Iterator<Item = &ContainerStatus> {
        let first = self.status.init_container_statuses.iter().flatten();
        first.chain(self.status.container_statuses.iter().flatten())
    }

    fn is_deleted(&self) -> bool {
        self.pod.metadata.deletion_timestamp.is_some()
    }

    /// The executors, in order.
    fn executor_statuses(&self) -> impl Iterator<Item = &ContainerStatus> {
        (0..).map_while(|number| self.container(&super::pod::executor(number)))
    }

    /// How it ended, if nothing of it runs any more or will run.
    fn over(&self, log: Option<&str>) -> Option<Result<Phase, Need>> {
        let failed = matches!(self.status.phase.as_deref(), Some("Failed" | "Succeeded"));
        if let Some(end) = self.container(OUTPUTS).and_then(terminated) {
            let message = end.message.as_deref().unwrap_or_default();
            return match report::unpack(message, log) {
                Ok(report) => Some(Ok(self.reported(report))),
                Err(Unreadable::InLog) => Some(Err(Need::Log)),
                // Commands have a time of grace, too.
                Err(_) if self.is_deleted() && self.is_busy() && !failed => self.silent(),
                Err(_) if end.exit_code != 0 => Some(Ok(self.lost())),
                Err(error) => Some(Ok(lost(error.to_string()))),
            };
        }
        if failed {
            return Some(Ok(self.lost()));
        }
        self.silent().or_else(|| self.stuck())
    }

    /// Over, with a report.
    fn reported(&self, mut report: Report) -> Phase {
        // Supervisors may have been told to end one after another, and have taken that for a
        // failure of the command.
        let told = self.told_to_end().is_some_and(|told| told <= report.ended);
        if report.outcome != Outcome::Complete && (told || self.status.reason.is_some()) {
            return self.lost();
        }
        report.notes.extend(self.notes());
        Phase::Finished(Box::new(report))
    }

    /// When it was told to make room, or to go.
    fn told_to_end(&self) -> Option<Timestamp> {
        let disrupted = self.disrupted();
        let disrupted = disrupted.and_then(|d| d.last_transition_time.as_ref());
        let metadata = &self.pod.metadata;
        // The time by which it has to be gone.
        let deleted = metadata.deletion_timestamp.as_ref().map(|deleted| {
            let grace = metadata.deletion_grace_period_seconds.unwrap_or(0);
            Timestamp::from_millis(time(deleted).as_millis() - grace * 1000)
        });
        disrupted.map(time).into_iter().chain(deleted).min()
    }

    /// Whether an executor runs.
    fn is_busy(&self) -> bool {
        self.executor_statuses()
            .any(|status| status.state.as_ref().is_some_and(|s| s.running.is_some()))
    }

    /// It was told to go long ago, and does not.
    fn silent(&self) -> Option<Result<Phase, Need>> {
        is_silent(self.pod, self.patience, self.now)
            .then(|| Ok(lost("its node does not answer".to_owned())))
    }

    fn disrupted(&self) -> Option<&PodCondition> {
        self.condition("DisruptionTarget")
            .filter(|condition| condition.status == "True")
    }

    /// Over, without a report.
    fn lost(&self) -> Phase {
        let status = self.status;
        let message = status.message.as_deref().unwrap_or_default();
        match status.reason.as_deref() {
            Some("DeadlineExceeded") => {
                return self.refused("stopped: over its time limit".to_owned());
            }
            Some("Evicted") if is_own_fault(message) => {
                return self.refused(format!("stopped: over its disk space: {message}"));
            }
            _ => {}
        }
        if let Some(disrupted) = self.disrupted() {
            let reason = disrupted.reason.as_deref().unwrap_or("disrupted");
            let why = disrupted.message.as_deref().unwrap_or(message);
            return Phase::Lost {
                reason: sentence([reason, why]),
                preempted: true,
            };
        }
        if let Some(reason) = &status.reason {
            return lost(sentence([reason, message]));
        }
        if self.is_deleted() {
            return lost("its pod was deleted".to_owned());
        }
        for name in [PREPARE, INPUTS, OUTPUTS] {
            let failed = self.container(name).and_then(terminated);
            let Some(end) = failed.filter(|end| end.exit_code != 0) else {
                continue;
            };
            let ended = format!(
                "the container {name} ended with exit code {}",
                end.exit_code
            );
            let reason = end.reason.as_deref().unwrap_or_default();
            let message = end.message.as_deref().unwrap_or_default();
            return lost(sentence([&ended, reason, message]));
        }
        lost("its pod ended without a report".to_owned())
    }

    /// The filer itself cannot start: nobody will ever report.
    fn stuck(&self) -> Option<Result<Phase, Need>> {
        let scheduled = self.condition("PodScheduled");
        if scheduled.is_none_or(|condition| condition.status != "True") {
            // A queue decides when a gate opens.
            let condition = scheduled.filter(|c| c.reason.as_deref() != Some(GATED))?;
            let created = self.pod.metadata.creation_timestamp.as_ref().map(time);
            let reason = said(condition)?;
            return self
                .is_over(created, self.patience.schedule)
                .then(|| Ok(self.refused(format!("no node had room in time: {reason}"))));
        }
        if let Some(reason) = self.unprepared().or_else(|| self.unsupervised()) {
            return Some(Ok(lost(reason)));
        }
        let since = scheduled.and_then(|condition| condition.last_transition_time.as_ref());
        let since = since.map(time);
        for name in [PREPARE, INPUTS, OUTPUTS] {
            let container = self.container(name);
            if container.is_some_and(has_begun) || name == PREPARE && container.is_none() {
                continue;
            }
            return match container.and_then(waiting) {
                Some((reason, message)) if !USUAL.contains(&reason) => {
                    let what = format!("the container {name} does not start");
                    self.is_over(since, self.patience.image_pull)
                        .then(|| Ok(lost(sentence([&what, reason, message]))))
                }
                // The kubelet tells nothing of a pod before it has all its images, which may
                // take its time, or its volumes, which may never come.
                _ => self
                    .is_over(since, self.patience.start)
                    .then_some(Err(Need::Events)),
            };
        }
        None
    }

    /// The kubelet has left out the hook, as it may after a restart of its own.
    fn unsupervised(&self) -> Option<String> {
        let status = self.executor_statuses().find(|status| {
            let message = not_begun(status).and_then(|end| end.message.as_deref());
            message.is_some_and(|m| m.contains(BINARY) && m.contains("no such file"))
        })?;
        Some(format!(
            "{} has no supervisor: what starts first in the pod did not put it there",
            status.name
        ))
    }

    /// How the inputs ended in a way that no step after them will ever see.
    fn unprepared(&self) -> Option<String> {
        let end = self.container(INPUTS).and_then(terminated)?;
        let told_to_end =
            self.is_deleted() || self.disrupted().is_some() || self.status.reason.is_some();
        if end.exit_code == 0 || told_to_end {
            return None;
        }
        let ended = format!(
            "the container {INPUTS} ended with exit code {}",
            end.exit_code
        );
        let message = end.message.as_deref().unwrap_or_default().trim();
        // The kubelet ends a container whose hook has failed.
        if end.exit_code == TERMINATED || !message.is_empty() {
            return Some(sentence([&ended, "its hook failed", message]));
        }
        let outputs = self.container(OUTPUTS).and_then(begun)?;
        let since = end.finished_at.as_ref().map(time).max(Some(outputs));
        let reason = end.reason.as_deref().unwrap_or_default();
        self.is_over(since, self.patience.start)
            .then(|| sentence([&ended, reason]))
    }

    /// How far it is.
    fn alive(&self) -> Phase {
        let scheduled = self.condition("PodScheduled");
        if scheduled.is_none_or(|condition| condition.status != "True") {
            return Phase::Pending(self.unschedulable());
        }
        // The node has not taken it yet. It soon will, and say when: one change of the record less.
        if self.status.start_time.is_none() {
            return Phase::Pending(None);
        }
        let in_place = self
            .container(INPUTS)
            .and_then(terminated)
            .is_some_and(|end| end.exit_code == 0);
        let first = self.executor_statuses().next();
        if in_place && first.is_some_and(has_begun) {
            Phase::Running
        } else {
            Phase::Initializing
        }
    }

    fn unschedulable(&self) -> Option<String> {
        said(self.condition("PodScheduled")?)
    }

    /// Why nothing more is to be waited for, once an executor can never start.
    fn stop(&self) -> Option<Need> {
        let annotations = self.pod.metadata.annotations.as_ref();
        if self.is_deleted() || annotations.is_some_and(|all| all.contains_key(STOP)) {
            return None;
        }
        // Containers start one after another: an image is asked for when the one before it runs.
        let mut since = self.status.start_time.as_ref().map(time);
        since = since.max(self.container(INPUTS).and_then(begun));
        for status in self.executor_statuses() {
            let name = &status.name;
            if let Some(end) = not_begun(status) {
                let reason = end.reason.as_deref().unwrap_or_default();
                let message = end.message.as_deref().unwrap_or_default();
                return Some(Need::Stop(sentence([name, reason, message])));
            }
            since = since.max(begun(status));
            let Some((reason, message)) = waiting(status) else {
                continue;
            };
            let passes = PASSING.iter().any(|words| message.contains(words));
            let never = NEVER.contains(&reason) && !passes
                || (!USUAL.contains(&reason) && self.is_over(since, self.patience.image_pull));
            if never {
                return Some(Need::Stop(sentence([name, reason, message])));
            }
        }
        None
    }

    /// Executors that have ended, as far as is known before the report.
    fn executors(&self) -> Vec<ExecutorLog> {
        self.executor_statuses().map_while(ended).collect()
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        for status in self.containers() {
            let name = &status.name;
            if let Some(end) = terminated(status) {
                let message = end.message.as_deref().unwrap_or_default().trim();
                if end.reason.as_deref() == Some("OOMKilled") {
                    notes.push(format!("{name}: out of memory (OOMKilled)"));
                }
                // Only a hook that fails says anything there.
                if [PREPARE, INPUTS].contains(&name.as_str()) && !message.is_empty() {
                    notes.push(format!("{name}: {message}"));
                }
            } else if let Some((reason, message)) = waiting(status)
                && !USUAL.contains(&reason)
            {
                let what = format!("{name} waits");
                notes.push(sentence([&what, reason, message]));
            }
        }
        notes
    }

    fn condition(&self, name: &str) -> Option<&PodCondition> {
        let conditions = self.status.conditions.iter().flatten();
        conditions
            .into_iter()
            .find(|condition| condition.type_ == name)
    }

    fn is_over(&self, since: Option<Timestamp>, patience: Span) -> bool {
        is_over(since, patience, self.now)
    }

    /// The end of a task that no other attempt can help.
    fn refused(&self, reason: String) -> Phase {
        let started = self.status.start_time.as_ref().map_or(self.now, time);
        Phase::Finished(Box::new(Report {
            outcome: Outcome::SystemError,
            executors: self.executors(),
            outputs: Vec::new(),
            notes: vec![reason],
            started,
            ended: self.now,
        }))
    }
}

/// Whether `patience` is at an end that began `since`. Without a beginning it is not, and zero is
/// for ever.
fn is_over(since: Option<Timestamp>, Span(patience): Span, now: Timestamp) -> bool {
    !patience.is_zero() && since.is_some_and(|since| since.after(patience) <= now)
}

fn lost(reason: String) -> Phase {
    Phase::Lost {
        reason,
        preempted: false,
    }
}

/// Whether a pod was evicted for what it used itself, and not for others.
fn is_own_fault(message: &str) -> bool {
    [
        "exceeds the limit",
        "exceeds the total limit",
        "exceeded its local ephemeral storage limit",
    ]
    .iter()
    .any(|words| message.contains(words))
}

/// Parts of a sentence, those that say something.
fn sentence<const N: usize>(parts: [&str; N]) -> String {
    let parts = parts.map(str::trim);
    let said: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    said.join(": ")
}

fn said(condition: &PodCondition) -> Option<String> {
    let reason = condition.reason.as_deref()?;
    let message = condition.message.as_deref().unwrap_or_default();
    Some(sentence([reason, message]))
}

/// The end of a container that never began.
fn not_begun(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    terminated(status).filter(|end| {
        let reason = end.reason.as_deref();
        reason.is_some_and(|reason| NOT_BEGUN.contains(&reason))
    })
}

/// Whether it runs, its hook included, or has ended.
fn has_begun(status: &ContainerStatus) -> bool {
    status.started == Some(true) || terminated(status).is_some()
}

/// When a container began, or was found to be unable to.
fn begun(status: &ContainerStatus) -> Option<Timestamp> {
    let state = status.state.as_ref()?;
    let running = state
        .running
        .as_ref()
        .and_then(|run| run.started_at.as_ref());
    let ended = state.terminated.as_ref();
    let ended = ended.and_then(|end| end.started_at.as_ref().or(end.finished_at.as_ref()));
    running.or(ended).map(time)
}

fn terminated(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    status.state.as_ref()?.terminated.as_ref()
}

fn waiting(status: &ContainerStatus) -> Option<(&str, &str)> {
    let ContainerState { waiting, .. } = status.state.as_ref()?;
    let waiting = waiting.as_ref()?;
    Some((
        waiting.reason.as_deref()?,
        waiting.message.as_deref().unwrap_or_default(),
    ))
}

/// The log of an executor whose container has ended, unless it was not run. What its supervisor
/// says may have been changed by the command; the report will have the truth.
fn ended(status: &ContainerStatus) -> Option<ExecutorLog> {
    #[derive(Deserialize)]
    struct Message {
        exit_code: Option<i32>,
        started: Timestamp,
        ended: Timestamp,
    }
    let end = terminated(status)?;
    let message = end.message.as_deref().unwrap_or_default();
    let (exit_code, started, ended) = match serde_json::from_str::<Message>(message) {
        Ok(message) => (
            message.exit_code?,
            Some(message.started),
            Some(message.ended),
        ),
        Err(_) => (
            end.exit_code,
            end.started_at.as_ref().map(time),
            end.finished_at.as_ref().map(time),
        ),
    };
    Some(ExecutorLog {
        start_time: started,
        end_time: ended,
        exit_code,
        ..ExecutorLog::default()
    })
}

fn time(Time(time): &Time) -> Timestamp {
    millis(time)
}

fn millis(time: &jiff::Timestamp) -> Timestamp {
    Timestamp::from_millis(time.as_millisecond())
}
