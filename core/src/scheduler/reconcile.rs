//! The pure decision of what to do next for one task: no clock, no I/O.
//!
//! | state | attempt | what is observed | what follows |
//! |---|---|---|---|
//! | QUEUED | none | | its turn: reserve the next number, then submit; else wait, and say why |
//! | QUEUED | reserved | absent | write, to learn whether this is still so; submit |
//! | QUEUED… | reserved | pending | wait |
//! | QUEUED… | reserved | initializing, running | INITIALIZING, RUNNING; ended executors are logged |
//! | INITIALIZING, RUNNING | reserved | absent | as lost |
//! | QUEUED… | reserved | lost, or the report says retry | QUEUED with a back-off; without attempts left SYSTEM_ERROR; then remove |
//! | QUEUED… | reserved | finished | the report's end, with its logs; then remove |
//! | QUEUED… | reserved | over the time limit | cancel it; SYSTEM_ERROR when it is gone |
//! | CANCELING | reserved | pending, initializing, running | cancel it |
//! | CANCELING | any | absent, lost, finished | CANCELED, with what it left; then remove |
//! | terminal | any | any | nothing |

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::time::Duration;

use super::compute::{AttemptId, Observed, Outcome, Phase, Report};
use super::record::Head;
use super::run::Settings;
use super::store::Update;
use crate::tes::{Event, ExecutorLog, State, TaskLog};
use crate::time::Timestamp;

/// One thing to be done. A list of them is done in order, and no further than the first that
/// fails.
#[derive(Clone, Debug)]
pub enum Action {
    /// Change the record, if it is still of the version that was looked at.
    Write(Update),
    /// Start the attempt, or find that it was started.
    Submit(AttemptId),
    /// End what runs of the attempt.
    Cancel(AttemptId),
    /// Remove what the attempt left.
    Remove(AttemptId),
    /// Look again at this time.
    Wake(Timestamp),
}

/// Whether a task that waits gets its turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Not now.
    Wait,
    /// Not now, for a reason that its log shall say.
    Explained(String),
    /// Now.
    Go,
    /// It can never run here, for this reason.
    Never(String),
}

/// What is looked at to decide.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// The record's changing part.
    pub head: &'a Head,
    /// The record's logs.
    pub logs: &'a [TaskLog],
    /// The current attempt, as seen on the worker; `None` without one.
    pub observed: Option<&'a Observed>,
    /// Whose turn it is.
    pub admission: &'a Admission,
    /// The present time.
    pub now: Timestamp,
}

/// Decides what to do next for one task.
pub fn reconcile(situation: Situation<'_>, settings: &Settings) -> Vec<Action> {
    let head = situation.head;
    if head.state.is_terminal() {
        return Vec::new();
    }
    let decision = Decision {
        situation,
        settings,
    };
    if let Admission::Never(reason) = situation.admission {
        return decision.refused(reason);
    }
    match head.current_attempt() {
        None if head.state == State::Canceling => decision.gone(None),
        None => decision.waiting(),
        Some(attempt) => {
            let absent = Observed::absent();
            let observed = situation.observed.unwrap_or(&absent);
            if head.state == State::Canceling {
                decision.canceling(attempt, observed)
            } else {
                decision.active(attempt, observed)
            }
        }
    }
}

struct Decision<'a> {
    situation: Situation<'a>,
    settings: &'a Settings,
}

impl Decision<'_> {
    /// It has no attempt: make one, if it is its turn.
    fn waiting(&self) -> Vec<Action> {
        let Situation {
            head,
            logs,
            admission,
            now,
            ..
        } = self.situation;
        if let Some(not_before) = head.not_before
            && not_before > now
        {
            return vec![Action::Wake(not_before)];
        }
        if *admission == Admission::Wait {
            return Vec::new();
        }
        if let Admission::Explained(reason) = admission {
            return self.waits(reason);
        }
        let number = head.attempt + 1;
        let logs = (logs.len() < number as usize).then(|| {
            let mut logs = logs.to_vec();
            logs.resize_with(number as usize, TaskLog::default);
            logs
        });
        // Reserved before it is submitted: whoever comes after a crash knows the number is taken.
        let reserve = Update {
            attempt: Some(number),
            not_before: Some(None),
            logs,
            ..Update::default()
        };
        let attempt = AttemptId {
            task: head.id.clone(),
            number,
        };
        vec![Action::Write(reserve), Action::Submit(attempt)]
    }

    /// It has an attempt and is not being canceled.
    fn active(&self, attempt: AttemptId, observed: &Observed) -> Vec<Action> {
        match &observed.phase {
            // What was read may be old: another scheduler may have seen the attempt through to its
            // end and removed it. A write that changes nothing finds out.
            Phase::Absent if self.situation.head.state == State::Queued => {
                vec![Action::Write(Update::default()), Action::Submit(attempt)]
            }
            Phase::Absent => self.lost(attempt, observed, "it has disappeared", false),
            Phase::Pending(None) => Vec::new(),
            Phase::Pending(Some(reason)) => self.waits(reason),
            Phase::Initializing => self.progress(attempt, observed, &[Event::Assigned]),
            Phase::Running => self.progress(attempt, observed, &[Event::Assigned, Event::Started]),
            Phase::Lost { reason, preempted } => self.lost(attempt, observed, reason, *preempted),
            Phase::Finished(report) => self.finished(attempt, report),
        }
    }

    /// It waits: its log says why.
    fn waits(&self, reason: &str) -> Vec<Action> {
        let situation = self.situation;
        match waits(situation.logs, situation.head.attempt, reason) {
            Some(logs) => vec![Action::Write(Update {
                logs: Some(logs),
                ..Update::default()
            })],
            None => Vec::new(),
        }
    }

    /// The attempt is alive: follow it.
    fn progress(&self, attempt: AttemptId, observed: &Observed, events: &[Event]) -> Vec<Action> {
        let head = self.situation.head;
        let state = advance(head.state, events);
        let mut log = self.log();
        log.start_time = log.start_time.or(observed.started);
        if observed.executors.len() > log.logs.len() {
            log.logs.clone_from(&observed.executors);
        }
        add_lines(&mut log, &observed.notes);

        let mut actions = Vec::new();
        let changed = log != self.log();
        if state != head.state || changed {
            actions.push(Action::Write(Update {
                state: Some(state),
                logs: changed.then(|| self.logs_with(log)),
                ..Update::default()
            }));
        }
        if let Some(end) = self.deadline(observed.started) {
            if end <= self.situation.now {
                actions.push(Action::Cancel(attempt));
            } else {
                actions.push(Action::Wake(end));
            }
        }
        actions
    }

    /// The attempt is over and has a report.
    fn finished(&self, attempt: AttemptId, report: &Report) -> Vec<Action> {
        let log = self.reported(report);
        let over_time = self
            .deadline(Some(report.started))
            .is_some_and(|end| end <= report.ended);
        let (events, reason): (&[Event], _) = match report.outcome {
            Outcome::Complete => (&[Event::Assigned, Event::Started, Event::Completed], None),
            Outcome::ExecutorError => (
                &[Event::Assigned, Event::Started, Event::ExecutorFailed],
                None,
            ),
            Outcome::SystemError => (&[Event::SystemFailed], None),
            Outcome::Canceled if over_time => (&[Event::SystemFailed], Some(self.over_time())),
            Outcome::Canceled => {
                return self.again(attempt, log, "it was stopped from outside", false);
            }
            Outcome::Retry => {
                let cause = report
                    .notes
                    .last()
                    .map_or("the infrastructure failed", String::as_str);
                return self.again(attempt, log, cause, false);
            }
        };
        self.end(Some(attempt), log, events, reason)
    }

    /// The attempt is over and left no report.
    fn lost(
        &self,
        attempt: AttemptId,
        observed: &Observed,
        reason: &str,
        preempted: bool,
    ) -> Vec<Action> {
        let log = self.left(observed);
        // What has disappeared does not say any more when it began.
        let deadline = self.deadline(log.start_time);
        if deadline.is_some_and(|end| end <= self.situation.now) {
            let reason = Some(self.over_time());
            return self.end(Some(attempt), log, &[Event::SystemFailed], reason);
        }
        self.again(attempt, log, reason, preempted)
    }

    /// Back to the queue, or to the end if no attempt is left.
    fn again(
        &self,
        attempt: AttemptId,
        mut log: TaskLog,
        reason: &str,
        preempted: bool,
    ) -> Vec<Action> {
        let Situation { head, now, .. } = self.situation;
        let number = attempt.number;
        if number >= self.settings.max_attempts {
            let line = format!("attempt {number} of {number} was lost: {reason}");
            let event = if preempted && self.settings.report_preempted {
                Event::Preempted
            } else {
                Event::SystemFailed
            };
            return self.end(Some(attempt), log, &[Event::Assigned, event], Some(line));
        }
        let line = format!("attempt {number} was lost: {reason}; another follows");
        add_lines(&mut log, &[line]);
        log.end_time = log.end_time.or(Some(now));
        let update = Update {
            state: Some(advance(head.state, &[Event::Assigned, Event::Retried])),
            not_before: Some(Some(now.after(self.back_off(number)))),
            logs: Some(self.logs_with(log)),
            ..Update::default()
        };
        vec![Action::Write(update), Action::Remove(attempt)]
    }

    /// The client does not want it any more.
    fn canceling(&self, attempt: AttemptId, observed: &Observed) -> Vec<Action> {
        match &observed.phase {
            Phase::Pending(_) | Phase::Initializing | Phase::Running => {
                vec![Action::Cancel(attempt)]
            }
            Phase::Absent => self.gone(None),
            Phase::Lost { .. } => self.gone(Some((attempt, self.left(observed)))),
            Phase::Finished(report) => self.gone(Some((attempt, self.reported(report)))),
        }
    }

    fn gone(&self, left: Option<(AttemptId, TaskLog)>) -> Vec<Action> {
        let (attempt, log) = match left {
            Some((attempt, log)) => (Some(attempt), log),
            None => (None, self.log()),
        };
        self.end(attempt, log, &[Event::Gone], Some("canceled".to_owned()))
    }

    /// The compute side will never run it.
    fn refused(&self, reason: &str) -> Vec<Action> {
        if self.situation.head.state == State::Canceling {
            return self.gone(None);
        }
        let attempt = self.situation.head.current_attempt();
        let reason = Some(reason.to_owned());
        self.end(attempt, self.log(), &[Event::SystemFailed], reason)
    }

    /// The end of the task: state and final logs in one write, and only then the removal.
    fn end(
        &self,
        attempt: Option<AttemptId>,
        mut log: TaskLog,
        events: &[Event],
        reason: Option<String>,
    ) -> Vec<Action> {
        if let Some(reason) = reason {
            add_lines(&mut log, &[reason]);
        }
        if log.start_time.is_some() {
            log.end_time = log.end_time.or(Some(self.situation.now));
        }
        let update = Update {
            state: Some(advance(self.situation.head.state, events)),
            logs: Some(self.logs_with(log)),
            ..Update::default()
        };
        let mut actions = vec![Action::Write(update)];
        actions.extend(attempt.map(Action::Remove));
        actions
    }

    /// The log of the current attempt as it is stored.
    fn log(&self) -> TaskLog {
        let index = self.situation.head.attempt.saturating_sub(1) as usize;
        self.situation.logs.get(index).cloned().unwrap_or_default()
    }

    /// All logs, with this one for the current attempt.
    fn logs_with(&self, log: TaskLog) -> Vec<TaskLog> {
        let index = self.situation.head.attempt.saturating_sub(1) as usize;
        let mut logs = self.situation.logs.to_vec();
        if logs.len() <= index {
            logs.resize_with(index + 1, TaskLog::default);
        }
        logs[index] = log;
        logs
    }

    /// The log with what a report says.
    fn reported(&self, report: &Report) -> TaskLog {
        let mut log = self.log();
        log.start_time = Some(report.started);
        log.end_time = Some(report.ended);
        log.logs.clone_from(&report.executors);
        log.outputs.clone_from(&report.outputs);
        add_lines(&mut log, &report.notes);
        log
    }

    /// The log with what was seen of an attempt that left no report.
    fn left(&self, observed: &Observed) -> TaskLog {
        let mut log = self.log();
        log.start_time = log.start_time.or(observed.started);
        if observed.executors.len() > log.logs.len() {
            let executors: &[ExecutorLog] = &observed.executors;
            log.logs = executors.to_vec();
        }
        add_lines(&mut log, &observed.notes);
        log
    }

    fn deadline(&self, started: Option<Timestamp>) -> Option<Timestamp> {
        Some(started?.after(self.settings.time_limit?))
    }

    fn over_time(&self) -> String {
        let limit = self.settings.time_limit.unwrap_or_default();
        format!("stopped: over the time limit of {} s", limit.as_secs())
    }

    fn back_off(&self, attempt: u32) -> Duration {
        let factor = 1_u32
            .checked_shl(attempt.saturating_sub(1))
            .unwrap_or(u32::MAX);
        self.settings
            .back_off
            .saturating_mul(factor)
            .min(self.settings.max_back_off)
    }
}

/// The logs with a line that says why attempt number `attempt` waits; `None` if they say so
/// already, perhaps with other numbers, or have said enough: what a cluster lacks can be put in
/// ever new words.
pub(super) fn waits(logs: &[TaskLog], attempt: u32, reason: &str) -> Option<Vec<TaskLog>> {
    const MOST: usize = 10;
    const WAITS: &str = "waits: ";
    let mut logs = logs.to_vec();
    let log = logs.get_mut(attempt.saturating_sub(1) as usize)?;
    let line = format!("{WAITS}{reason}");
    let there = log.system_logs.get_or_insert_default();
    let said = there
        .iter()
        .filter(|there| there.starts_with(WAITS))
        .count();
    if said >= MOST || there.iter().any(|there| same_but_for_numbers(there, &line)) {
        return None;
    }
    there.push(line);
    Some(logs)
}

fn same_but_for_numbers(a: &str, b: &str) -> bool {
    fn numbers_cut(text: &str) -> impl Iterator<Item = char> {
        let mut in_number = false;
        text.chars().filter_map(move |c| {
            let digit = c.is_ascii_digit();
            let first = digit && !in_number;
            in_number = digit;
            if first {
                Some('0')
            } else {
                (!digit).then_some(c)
            }
        })
    }
    numbers_cut(a).eq(numbers_cut(b))
}

/// The state after those of the events that it can take, in their order: an attempt that is
/// seen late has taken several steps at once.
fn advance(state: State, events: &[Event]) -> State {
    events
        .iter()
        .fold(state, |state, event| state.after(*event).unwrap_or(state))
}

/// Adds the lines that are not there yet: an attempt is looked at many times.
fn add_lines(log: &mut TaskLog, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    let there = log.system_logs.get_or_insert_default();
    let known: HashSet<&str> = there.iter().map(String::as_str).collect();
    let mut new: Vec<String> = Vec::new();
    let mut added = HashSet::new();
    for line in lines {
        if !known.contains(line.as_str()) && added.insert(line) {
            new.push(line.clone());
        }
    }
    there.append(&mut new);
}
