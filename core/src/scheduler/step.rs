//! One look at one task, and what follows from it.

use super::compute::{AttemptId, Compute, ComputeError, Observed, Refusal};
use super::reconcile::{Action, Admission, Situation, reconcile, waits};
use super::record::{Head, Record, TaskId};
use super::run::Settings;
use super::store::{StoreError, TaskStore, Update};
use crate::crash;
use crate::plan::Plan;
use crate::tes::{Event, Task, TaskLog};
use crate::time::Timestamp;

/// Where a task stands after a step.
#[derive(Debug)]
pub(super) struct Stepped {
    /// `None` when the task is not in the store.
    pub(super) head: Option<Head>,
    /// When to look again, if nothing happens before.
    pub(super) wake: Option<Timestamp>,
    /// There was no room for its attempt.
    pub(super) busy: bool,
    /// What was seen, if nothing was to be done about it.
    pub(super) quiet: Option<Box<Quiet>>,
}

/// What a step has seen of an attempt and did nothing about. As decisions follow from nothing
/// else, the next step that sees the same need not read the record: of thousands of tasks that
/// run, most are like that whenever they are looked at.
#[derive(Debug)]
pub(super) struct Quiet {
    version: u64,
    observed: Observed,
    /// From then on there is something to be done.
    until: Option<Timestamp>,
}

/// A step could not be finished. Nothing is lost: the next one begins anew.
#[derive(Debug, thiserror::Error)]
pub(super) enum StepError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Compute(#[from] ComputeError),
    #[error("a fault of this program; its log has the place")]
    Panic,
    #[error("the scheduler stops")]
    Stopped,
}

/// Looks at a task, decides, and does what was decided, until nothing is left to be done now.
/// `quiet` is from the step before.
pub(super) async fn step(
    store: &dyn TaskStore,
    compute: &dyn Compute,
    settings: &Settings,
    id: &TaskId,
    mut admission: Admission,
    quiet: Option<Box<Quiet>>,
) -> Result<Stepped, StepError> {
    let mut seen = None;
    if let Some(quiet) = quiet
        && !matches!(admission, Admission::Never(_))
        && let Ok(Some(head)) = store.head(id).await
        && head.version == quiet.version
        && let Some(attempt) = head.current_attempt()
    {
        let observed = compute.observe(&attempt).await?;
        let due = quiet.until.is_some_and(|time| time <= Timestamp::now());
        if observed == quiet.observed && !due {
            return Ok(Stepped {
                head: Some(head),
                wake: quiet.until,
                busy: false,
                quiet: Some(quiet),
            });
        }
        seen = Some((head.version, observed));
    }
    loop {
        let record = match store.get(id).await {
            Err(StoreError::Corrupt(reason)) => {
                let head = damaged(store, compute, settings, id, &reason).await?;
                return Ok(Stepped::at(head));
            }
            record => record?,
        };
        let Some(record) = record else {
            return Ok(Stepped::at(None));
        };
        let version = record.head.version;
        // What was seen before a change of the record says nothing of what follows from it.
        let seen = seen.take().filter(|(at, _)| *at == version);
        let observed = match (record.head.current_attempt(), seen) {
            (Some(_), Some((_, observed))) => Some(observed),
            (Some(attempt), None) => Some(compute.observe(&attempt).await?),
            (None, _) => None,
        };
        let situation = Situation {
            head: &record.head,
            logs: &record.logs,
            observed: observed.as_ref(),
            admission: &admission,
            now: Timestamp::now(),
        };
        let actions = reconcile(situation, settings);
        let idle = !matches!(admission, Admission::Never(_))
            && actions
                .iter()
                .all(|action| matches!(action, Action::Wake(_)));
        match apply(store, compute, settings, record.head, actions).await? {
            Applied::Done(stepped) => {
                let quiet = observed.filter(|_| idle).map(|observed| {
                    Box::new(Quiet {
                        version,
                        observed,
                        until: stepped.wake,
                    })
                });
                return Ok(Stepped { quiet, ..stepped });
            }
            // The number is used up or the record has changed: the turn was for what it was.
            Applied::Changed => {}
            Applied::Never(reason) => admission = Admission::Never(reason),
        }
    }
}

impl Stepped {
    /// Nothing more is to be done now.
    fn at(head: Option<Head>) -> Self {
        Self {
            head,
            wake: None,
            busy: false,
            quiet: None,
        }
    }
}

/// Ends a task whose document or logs are lost, which somebody has removed or edited: it could
/// neither be started nor shown. If the head cannot be read either, nothing can be changed, and
/// somebody may mend it.
async fn damaged(
    store: &dyn TaskStore,
    compute: &dyn Compute,
    settings: &Settings,
    id: &TaskId,
    reason: &str,
) -> Result<Option<Head>, StepError> {
    let Some(head) = store.head(id).await? else {
        return Ok(None);
    };
    if head.state.is_terminal() {
        return Ok(Some(head));
    }
    tracing::error!(task = %id, reason, "ends a task whose record is damaged");
    let attempt = head.current_attempt();
    let events = [Event::SystemFailed, Event::Gone];
    let mut states = events
        .iter()
        .filter_map(|event| head.state.after(*event).ok());
    let mut logs = Vec::new();
    logs.resize_with(head.attempt.max(1) as usize, TaskLog::default);
    if let Some(log) = logs.last_mut() {
        log.system_logs = Some(vec![format!("the record of the task is damaged: {reason}")]);
    }
    let update = Update {
        state: states.next(),
        logs: Some(logs),
        ..Update::default()
    };
    let head = store.update(id, head.version, update).await?;
    // The sweep removes what is left of it.
    if let Some(attempt) = attempt {
        compute.cancel(&attempt, settings.grace).await?;
    }
    Ok(Some(head))
}

enum Applied {
    Done(Stepped),
    /// Another changed the record meanwhile.
    Changed,
    /// The compute side refuses the task for good.
    Never(String),
}

async fn apply(
    store: &dyn TaskStore,
    compute: &dyn Compute,
    settings: &Settings,
    mut head: Head,
    actions: Vec<Action>,
) -> Result<Applied, StepError> {
    let mut wake = None;
    let mut busy = false;
    for action in actions {
        match action {
            Action::Write(update) => match write(store, &head, update).await {
                Ok(new) => {
                    if new.state != head.state {
                        tracing::info!(task = %new.id, from = %head.state, to = %new.state, attempt = new.attempt);
                    }
                    if new.state.is_terminal() {
                        crash::point("attempt.ended");
                    } else if new.attempt != head.attempt {
                        crash::point("attempt.reserved");
                    } else if new.not_before.is_some() {
                        crash::point("attempt.lost");
                    }
                    head = new;
                }
                Err(StoreError::Conflict) => return Ok(Applied::Changed),
                Err(error) => return Err(error.into()),
            },
            Action::Submit(attempt) => {
                let Some(record) = store.get_with_secrets(&attempt.task).await? else {
                    return Ok(Applied::Changed);
                };
                let plan = match plan(&record) {
                    Ok(plan) => plan,
                    Err(reason) => return Ok(Applied::Never(reason)),
                };
                match compute.submit(&attempt, &plan).await {
                    // The worker says when it has more to tell.
                    Ok(()) => {}
                    Err(Refusal::Busy(reason)) => {
                        busy = true;
                        if let Some(new) = note_wait(store, &record, &attempt, &reason).await? {
                            head = new;
                        }
                    }
                    Err(Refusal::Never(reason)) => return Ok(Applied::Never(reason)),
                    Err(Refusal::Unknown(error)) => return Err(error.into()),
                }
            }
            Action::Cancel(attempt) => compute.cancel(&attempt, settings.grace).await?,
            Action::Remove(attempt) => remove(compute, &attempt).await,
            Action::Wake(time) => wake = Some(time),
        }
    }
    Ok(Applied::Done(Stepped {
        head: Some(head),
        wake,
        busy,
        quiet: None,
    }))
}

/// Changes a record. Logs that the store cannot hold are cut: else the task would never end.
async fn write(store: &dyn TaskStore, head: &Head, update: Update) -> Result<Head, StoreError> {
    let cut = update.clone();
    let written = store.update(&head.id, head.version, update).await;
    let Err(error @ StoreError::TooLarge { .. }) = &written else {
        return written;
    };
    let (reason, mut cut) = (error.to_string(), cut);
    for log in cut.logs.iter_mut().flatten() {
        log.outputs.clear();
        for executor in &mut log.logs {
            (executor.stdout, executor.stderr) = (None, None);
        }
    }
    if let Some(log) = cut.logs.iter_mut().flatten().last() {
        let note = format!("{reason}: what was delivered and printed is left out");
        log.system_logs.get_or_insert_default().push(note);
    }
    store.update(&head.id, head.version, cut).await
}

/// Says in a task's log why an attempt has to wait, if it does not say so yet.
async fn note_wait(
    store: &dyn TaskStore,
    record: &Record,
    attempt: &AttemptId,
    reason: &str,
) -> Result<Option<Head>, StoreError> {
    tracing::debug!(%attempt, reason, "no room for an attempt");
    let Some(logs) = waits(&record.logs, attempt.number, reason) else {
        return Ok(None);
    };
    let update = Update {
        logs: Some(logs),
        ..Update::default()
    };
    let (id, version) = (&record.head.id, record.head.version);
    match store.update(id, version, update).await {
        Ok(head) => Ok(Some(head)),
        // The next look says it.
        Err(StoreError::Conflict) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes what an attempt left. What cannot be removed now is left to the sweep: the task has
/// ended all the same.
async fn remove(compute: &dyn Compute, attempt: &AttemptId) {
    if let Err(error) = compute.remove(attempt).await {
        tracing::warn!(%attempt, %error, "an attempt could not be removed");
    }
}

fn plan(record: &Record) -> Result<Plan, String> {
    let task: Task = serde_json::from_str(&record.document)
        .map_err(|error| format!("the stored document cannot be read: {error}"))?;
    Plan::new(record.head.id.as_str(), &task, &record.secrets).map_err(|error| error.to_string())
}

/// Removes what attempts left that no record speaks of any more, and ends those that run.
pub(super) async fn sweep_attempts(
    store: &dyn TaskStore,
    compute: &dyn Compute,
    settings: &Settings,
) -> Result<(), StepError> {
    for attempt in compute.attempts().await? {
        // A number that the head does not have yet was reserved since the head was read, perhaps
        // by another scheduler.
        let wanted = |head: Option<Head>| {
            head.is_some_and(|head| {
                !head.state.is_terminal()
                    && (head.current_attempt().as_ref() == Some(&attempt)
                        || head.attempt < attempt.number)
            })
        };
        // Where another engine has scheduled until now, its last attempts may be known before
        // the records that speak of them.
        let wanted = async {
            let known = wanted(store.head(&attempt.task).await?);
            Ok(known || wanted(store.head_now(&attempt.task).await?))
        };
        match wanted.await {
            Ok(false) => {}
            // A record that cannot be read may be mended, and keeps no other from being swept.
            Ok(true) | Err(StoreError::Corrupt(_)) => continue,
            Err(error) => return Err(error.into()),
        }
        // One that cannot be looked at, or ended, keeps no other from being swept.
        let swept = async {
            let Observed { phase, .. } = compute.observe(&attempt).await?;
            if phase.is_over() {
                remove(compute, &attempt).await;
            } else {
                tracing::warn!(%attempt, "ending an attempt that no task has");
                compute.cancel(&attempt, settings.grace).await?;
            }
            Ok::<_, ComputeError>(())
        };
        if let Err(error) = swept.await {
            tracing::warn!(%attempt, %error, "an attempt that no task has is left for the next sweep");
        }
        crash::point("sweep.attempt");
    }
    Ok(())
}
