//! What a pod's status says of its attempt: a pure function.
//!
//! The status of the container `outputs` decides when an attempt is over, never the pod's phase
//! or a container's index: whatever else was put into the pod does not count.

use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateTerminated, ContainerStatus, Pod, PodCondition, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Deserialize;

use super::pod::{INPUTS, OUTPUTS, STOP};
use super::settings::Patience;
use crate::config::Span;
use crate::scheduler::compute::{Observed, Outcome, Phase, Report};
use crate::staging::report::{self, Unreadable};
use crate::tes::ExecutorLog;
use crate::time::Timestamp;

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
        Some(Err(needed)) => {
            need = Some(needed);
            Phase::Running
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

/// Why a container waits, as far as waiting will not help.
const NEVER: [&str; 3] = [
    "InvalidImageName",
    "CreateContainerConfigError",
    "ErrImageNeverPull",
];
/// Why a container waits when all is well.
const USUAL: [&str; 2] = ["ContainerCreating", "PodInitializing"];

struct View<'a> {
    pod: &'a Pod,
    status: &'a PodStatus,
    patience: &'a Patience,
    now: Timestamp,
}

impl View<'_> {
    fn container(&self, name: &str) -> Option<&ContainerStatus> {
        let statuses = self.status.container_statuses.iter().flatten();
        statuses.into_iter().find(|status| status.name == name)
    }

    /// The executors, in order.
    fn executor_statuses(&self) -> impl Iterator<Item = &ContainerStatus> {
        (0..).map_while(|number| self.container(&super::pod::executor(number)))
    }

    /// How it ended, if nothing of it runs any more or will run.
    fn over(&self, log: Option<&str>) -> Option<Result<Phase, Need>> {
        if let Some(end) = self.container(OUTPUTS).and_then(terminated) {
            let message = end.message.as_deref().unwrap_or_default();
            return Some(match report::unpack(message, log) {
                Ok(mut report) => {
                    report.notes.extend(self.notes());
                    Ok(Phase::Finished(Box::new(report)))
                }
                Err(Unreadable::InLog) => Err(Need::Log),
                Err(_) if end.exit_code != 0 => Ok(self.lost()),
                Err(error) => Ok(lost(error.to_string())),
            });
        }
        if matches!(self.status.phase.as_deref(), Some("Failed" | "Succeeded")) {
            return Some(Ok(self.lost()));
        }
        let deleted = self.pod.metadata.deletion_timestamp.as_ref();
        if let Some(deleted) = deleted
            && self.is_over(Some(time(deleted)), self.patience.node_lost)
        {
            return Some(Ok(lost("its node does not answer".to_owned())));
        }
        self.stuck().map(Ok)
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
        let disrupted = self.condition("DisruptionTarget");
        if let Some(disrupted) = disrupted.filter(|condition| condition.status == "True") {
            let reason = disrupted.reason.as_deref().unwrap_or("disrupted");
            let why = disrupted.message.as_deref().unwrap_or(message);
            return Phase::Lost {
                reason: format!("{reason}: {why}"),
                preempted: true,
            };
        }
        if let Some(reason) = &status.reason {
            return lost(format!("{reason}: {message}"));
        }
        for name in [INPUTS, OUTPUTS] {
            let failed = self.container(name).and_then(terminated);
            let Some(end) = failed.filter(|end| end.exit_code != 0) else {
                continue;
            };
            let message = end.message.as_deref().unwrap_or_default().trim();
            let reason = end.reason.as_deref().unwrap_or_default();
            return lost(format!(
                "the container {name} ended with exit code {}{}{reason}{}{message}",
                end.exit_code,
                if reason.is_empty() { "" } else { ": " },
                if message.is_empty() { "" } else { ": " },
            ));
        }
        lost("its pod ended without a report".to_owned())
    }

    /// The filer itself cannot start: nobody will ever report.
    fn stuck(&self) -> Option<Phase> {
        let scheduled = self.condition("PodScheduled");
        if scheduled.is_none_or(|condition| condition.status != "True") {
            let created = self.pod.metadata.creation_timestamp.as_ref().map(time);
            let reason = self.unschedulable()?;
            return self
                .is_over(created, self.patience.schedule)
                .then(|| self.refused(format!("no node had room in time: {reason}")));
        }
        let since = scheduled.and_then(|condition| condition.last_transition_time.as_ref());
        let since = since.map(time);
        for name in [INPUTS, OUTPUTS] {
            let container = self.container(name);
            if container.is_some_and(|c| c.started == Some(true) || terminated(c).is_some()) {
                continue;
            }
            let waiting = container.and_then(waiting);
            let patience = match waiting {
                Some((reason, _)) if !USUAL.contains(&reason) => self.patience.image_pull,
                _ => self.patience.start,
            };
            if self.is_over(since, patience) {
                let (reason, message) = waiting.unwrap_or(("no status", ""));
                return Some(lost(format!(
                    "the container {name} does not start: {reason}: {message}"
                )));
            }
        }
        None
    }

    /// How far it is.
    fn alive(&self) -> Phase {
        let scheduled = self.condition("PodScheduled");
        if scheduled.is_none_or(|condition| condition.status != "True") {
            return Phase::Pending(self.unschedulable());
        }
        let in_place = self
            .container(INPUTS)
            .and_then(terminated)
            .is_some_and(|end| end.exit_code == 0);
        let first = self.executor_statuses().next();
        let started = first.is_some_and(|c| c.started == Some(true) || terminated(c).is_some());
        if in_place && started {
            Phase::Running
        } else {
            Phase::Initializing
        }
    }

    fn unschedulable(&self) -> Option<String> {
        let condition = self.condition("PodScheduled")?;
        let reason = condition.reason.as_deref()?;
        let message = condition.message.as_deref().unwrap_or_default();
        Some(format!("{reason}: {message}"))
    }

    /// Why nothing more is to be waited for, once an executor can never start.
    fn stop(&self) -> Option<Need> {
        let annotations = self.pod.metadata.annotations.as_ref();
        if annotations.is_some_and(|annotations| annotations.contains_key(STOP)) {
            return None;
        }
        for status in self.executor_statuses() {
            let name = &status.name;
            if let Some(end) = terminated(status)
                && let Some(reason @ ("StartError" | "ContainerCannotRun")) = end.reason.as_deref()
            {
                let message = end.message.as_deref().unwrap_or_default();
                return Some(Need::Stop(format!("{name}: {reason}: {message}")));
            }
            let Some((reason, message)) = waiting(status) else {
                continue;
            };
            let started = self.status.start_time.as_ref().map(time);
            let never = NEVER.contains(&reason)
                || (!USUAL.contains(&reason) && self.is_over(started, self.patience.image_pull));
            if never {
                return Some(Need::Stop(format!("{name}: {reason}: {message}")));
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
        for status in self.status.container_statuses.iter().flatten() {
            let name = &status.name;
            if let Some(end) = terminated(status) {
                if end.reason.as_deref() == Some("OOMKilled") {
                    notes.push(format!("{name}: out of memory (OOMKilled)"));
                }
            } else if let Some((reason, message)) = waiting(status)
                && !USUAL.contains(&reason)
            {
                notes.push(format!("{name} waits: {reason}: {message}"));
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

    /// Whether `patience` is at an end that began `since`. Without a beginning it is not, and
    /// zero is for ever.
    fn is_over(&self, since: Option<Timestamp>, Span(patience): Span) -> bool {
        !patience.is_zero() && since.is_some_and(|since| since.after(patience) <= self.now)
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

fn time(time: &Time) -> Timestamp {
    Timestamp::from_millis(time.0.as_millisecond())
}
