//! The life of a task: states, events, and the steps that are legal.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The state of a task, with the names of TES 1.1.
///
/// [`State::Unknown`] and [`State::Paused`] can be asked for in a filter but are never produced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum State {
    /// Never produced.
    Unknown,
    /// Stored; no worker has it yet, or the last attempt was lost and another follows.
    Queued,
    /// Given to a worker: image and inputs are on their way.
    Initializing,
    /// The inputs are in place and the first executor has started.
    Running,
    /// Never produced.
    Paused,
    /// Every executor succeeded (or was ignored) and every output is delivered.
    Complete,
    /// An executor failed and was not ignored.
    ExecutorError,
    /// The engine could not do its part; the system logs say why.
    SystemError,
    /// Canceled, and nothing of it runs any more.
    Canceled,
    /// Stopped to make room, with no attempts left, where the operator wants it reported so.
    Preempted,
    /// Cancel was asked for; something of it may still run.
    Canceling,
}

/// What can happen to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A worker took it.
    Assigned,
    /// Inputs are in place and the first executor has started.
    Started,
    /// All executors succeeded and all outputs are delivered.
    Completed,
    /// An executor failed and was not ignored; deliveries were tried.
    ExecutorFailed,
    /// The engine could not do its part and will not try again.
    SystemFailed,
    /// The attempt was lost; another follows.
    Retried,
    /// The attempt was preempted and none is left.
    Preempted,
    /// Cancel was asked for while nothing of the task existed on a worker.
    CancelledIdle,
    /// Cancel was asked for while something of the task may run.
    CancelRequested,
    /// What was to be canceled is gone.
    Gone,
}

/// A step that the life of a task does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a task that is {from} cannot take the step {event:?}")]
pub struct IllegalTransition {
    /// The state the task is in.
    pub from: State,
    /// What was to happen.
    pub event: Event,
}

impl State {
    /// All states, in the order of the specification.
    pub const ALL: [Self; 11] = [
        Self::Unknown,
        Self::Queued,
        Self::Initializing,
        Self::Running,
        Self::Paused,
        Self::Complete,
        Self::ExecutorError,
        Self::SystemError,
        Self::Canceled,
        Self::Preempted,
        Self::Canceling,
    ];

    /// The name of TES 1.1.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "UNKNOWN",
            Self::Queued => "QUEUED",
            Self::Initializing => "INITIALIZING",
            Self::Running => "RUNNING",
            Self::Paused => "PAUSED",
            Self::Complete => "COMPLETE",
            Self::ExecutorError => "EXECUTOR_ERROR",
            Self::SystemError => "SYSTEM_ERROR",
            Self::Canceled => "CANCELED",
            Self::Preempted => "PREEMPTED",
            Self::Canceling => "CANCELING",
        }
    }

    /// Whether a task stays in this state for ever.
    pub const fn is_terminal(self) -> bool {
        matches!(
            self,
            Self::Complete
                | Self::ExecutorError
                | Self::SystemError
                | Self::Canceled
                | Self::Preempted
        )
    }

    /// The state after `event`, or the refusal of a step that the life of a task does not have.
    pub fn after(self, event: Event) -> Result<Self, IllegalTransition> {
        use State::{Canceling, Initializing, Queued, Running};
        Ok(match (self, event) {
            (Queued, Event::Assigned) => Initializing,
            (Initializing, Event::Started) => Running,
            (Running, Event::Completed) => Self::Complete,
            (Running, Event::ExecutorFailed) => Self::ExecutorError,
            (Queued | Initializing | Running, Event::SystemFailed) => Self::SystemError,
            (Initializing | Running, Event::Retried) => Queued,
            (Initializing | Running, Event::Preempted) => Self::Preempted,
            (Queued, Event::CancelledIdle) => Self::Canceled,
            (Queued | Initializing | Running, Event::CancelRequested) => Canceling,
            (Canceling, Event::Gone) => Self::Canceled,
            (from, event) => return Err(IllegalTransition { from, event }),
        })
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for State {
    type Err = ();

    /// Reads a state's name in any case.
    fn from_str(s: &str) -> Result<Self, ()> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str().eq_ignore_ascii_case(s))
            .ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: [Event; 10] = [
        Event::Assigned,
        Event::Started,
        Event::Completed,
        Event::ExecutorFailed,
        Event::SystemFailed,
        Event::Retried,
        Event::Preempted,
        Event::CancelledIdle,
        Event::CancelRequested,
        Event::Gone,
    ];

    /// Every legal step; all others are refused.
    const STEPS: [(State, Event, State); 16] = [
        (State::Queued, Event::Assigned, State::Initializing),
        (State::Queued, Event::SystemFailed, State::SystemError),
        (State::Queued, Event::CancelledIdle, State::Canceled),
        (State::Queued, Event::CancelRequested, State::Canceling),
        (State::Initializing, Event::Started, State::Running),
        (State::Initializing, Event::SystemFailed, State::SystemError),
        (State::Initializing, Event::Retried, State::Queued),
        (State::Initializing, Event::Preempted, State::Preempted),
        (
            State::Initializing,
            Event::CancelRequested,
            State::Canceling,
        ),
        (State::Running, Event::Completed, State::Complete),
        (State::Running, Event::ExecutorFailed, State::ExecutorError),
        (State::Running, Event::SystemFailed, State::SystemError),
        (State::Running, Event::Retried, State::Queued),
        (State::Running, Event::Preempted, State::Preempted),
        (State::Running, Event::CancelRequested, State::Canceling),
        (State::Canceling, Event::Gone, State::Canceled),
    ];

    #[test]
    fn every_state_takes_its_steps_and_no_others() {
        for from in State::ALL {
            for event in EVENTS {
                let step = STEPS.iter().find(|(f, e, _)| (*f, *e) == (from, event));
                let expected = step
                    .map(|(_, _, to)| *to)
                    .ok_or(IllegalTransition { from, event });
                assert_eq!(from.after(event), expected);
            }
        }
    }

    #[test]
    fn terminal_states_never_change_and_canceling_only_ends_canceled() {
        for (from, event, to) in STEPS {
            assert!(!from.is_terminal(), "{from} takes {event:?}");
            assert!(from != State::Canceling || to == State::Canceled);
        }
        let terminal = State::ALL.into_iter().filter(|s| s.is_terminal());
        assert_eq!(terminal.count(), 5);
    }

    #[test]
    fn names_are_those_of_tes_and_are_read_in_any_case() {
        for state in State::ALL {
            let json = serde_json::to_string(&state).unwrap();
            assert_eq!(json, format!("\"{state}\""));
            assert_eq!(state.as_str().to_lowercase().parse(), Ok(state));
        }
        assert_eq!("COMPLETED".parse::<State>(), Err(()));
    }
}
