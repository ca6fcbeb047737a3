use super::*;
use crate::scheduler::record::Owner;
use crate::tes::OutputFileLog;

const NOW: i64 = 1_000_000;

fn time(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn head(state: State, attempt: u32) -> Head {
    Head {
        id: "t1".parse().unwrap(),
        owner: Owner::default(),
        state,
        created: time(1),
        changed: time(1),
        attempt,
        not_before: None,
        version: 1,
    }
}

fn seen(phase: Phase) -> Observed {
    Observed {
        phase,
        started: Some(time(NOW - 1000)),
        ..Observed::absent()
    }
}

fn lost(reason: &str) -> Phase {
    Phase::Lost {
        reason: reason.to_owned(),
        preempted: false,
    }
}

fn executor(exit_code: i32) -> ExecutorLog {
    ExecutorLog {
        exit_code,
        ..ExecutorLog::default()
    }
}

fn report(outcome: Outcome) -> Phase {
    Phase::Finished(Box::new(Report {
        outcome,
        executors: vec![executor(0)],
        outputs: vec![OutputFileLog {
            url: "file:///out".to_owned(),
            path: "/out".to_owned(),
            size_bytes: 1,
        }],
        notes: vec!["a note".to_owned()],
        started: time(NOW - 1000),
        ended: time(NOW - 1),
    }))
}

fn settings() -> Settings {
    Settings {
        max_attempts: 3,
        back_off: Duration::from_secs(1),
        ..Settings::default()
    }
}

/// Decides for a task with one log for each attempt.
fn decide(head: &Head, observed: Option<Phase>) -> Vec<Action> {
    decide_with(
        head,
        observed.map(seen).as_ref(),
        &Admission::Wait,
        &settings(),
    )
}

fn decide_with(
    head: &Head,
    observed: Option<&Observed>,
    admission: &Admission,
    settings: &Settings,
) -> Vec<Action> {
    let logs = vec![TaskLog::default(); head.attempt.max(1) as usize];
    let situation = Situation {
        head,
        logs: &logs,
        observed,
        admission,
        now: time(NOW),
    };
    reconcile(situation, settings)
}

/// The one write of a decision that begins with it, and what follows.
fn write(actions: &[Action]) -> (&Update, &[Action]) {
    match actions.split_first() {
        Some((Action::Write(update), rest)) => (update, rest),
        _ => panic!("no write first: {actions:?}"),
    }
}

fn lines(update: &Update) -> String {
    let logs = update.logs.as_ref().expect("logs");
    let lines = logs.iter().flat_map(|log| log.system_logs.iter().flatten());
    lines.cloned().collect::<Vec<_>>().join("\n")
}

#[test]
fn a_waiting_task_does_nothing_until_it_is_its_turn() {
    assert!(decide(&head(State::Queued, 0), None).is_empty());
}

#[test]
fn a_task_whose_turn_it_is_reserves_a_number_before_it_submits() {
    let head = head(State::Queued, 0);
    let actions = decide_with(&head, None, &Admission::Go, &settings());
    let (update, rest) = write(&actions);
    assert_eq!(update.attempt, Some(1));
    assert!(update.state.is_none() && update.logs.is_none());
    assert!(matches!(rest, [Action::Submit(attempt)] if attempt.number == 1));
}

#[test]
fn a_second_attempt_has_a_log_of_its_own_and_clears_the_back_off() {
    let mut head = head(State::Queued, 1);
    head.not_before = Some(time(NOW));
    let actions = decide_with(&head, None, &Admission::Go, &settings());
    let (update, rest) = write(&actions);
    assert_eq!(update.attempt, Some(2));
    assert_eq!(update.not_before, Some(None));
    assert_eq!(update.logs.as_ref().map(Vec::len), Some(2));
    assert!(matches!(rest, [Action::Submit(attempt)] if attempt.number == 2));
}

#[test]
fn nothing_is_submitted_before_the_back_off_is_over() {
    let mut head = head(State::Queued, 1);
    head.not_before = Some(time(NOW + 1));
    let actions = decide_with(&head, None, &Admission::Go, &settings());
    assert!(matches!(actions.as_slice(), [Action::Wake(at)] if *at == time(NOW + 1)));
}

#[test]
fn a_reserved_attempt_that_is_not_there_is_submitted_if_the_record_is_not_out_of_date() {
    let actions = decide(&head(State::Queued, 1), Some(Phase::Absent));
    let (update, rest) = write(&actions);
    assert!(update.state.is_none() && update.attempt.is_none() && update.logs.is_none());
    assert!(matches!(rest, [Action::Submit(attempt)] if attempt.number == 1));
}

#[test]
fn a_pending_attempt_leaves_the_task_queued() {
    assert!(decide(&head(State::Queued, 1), Some(Phase::Pending(None))).is_empty());
}

#[test]
fn the_task_follows_its_attempt() {
    for (from, phase, to) in [
        (State::Queued, Phase::Initializing, State::Initializing),
        (State::Queued, Phase::Running, State::Running),
        (State::Initializing, Phase::Running, State::Running),
    ] {
        let actions = decide(&head(from, 1), Some(phase));
        let (update, rest) = write(&actions);
        assert_eq!(update.state, Some(to));
        let start = update.logs.as_ref().and_then(|logs| logs[0].start_time);
        assert_eq!(start, Some(time(NOW - 1000)));
        assert!(rest.is_empty());
    }
}

#[test]
fn what_is_known_already_is_not_written_again() {
    let head = head(State::Running, 1);
    let logs = vec![TaskLog {
        logs: vec![executor(0)],
        start_time: Some(time(NOW - 1000)),
        system_logs: Some(vec!["a note".to_owned()]),
        ..TaskLog::default()
    }];
    let mut observed = seen(Phase::Running);
    observed.executors = vec![executor(0)];
    observed.notes = vec!["a note".to_owned()];
    let mut situation = Situation {
        head: &head,
        logs: &logs,
        observed: Some(&observed),
        admission: &Admission::Wait,
        now: time(NOW),
    };
    assert!(reconcile(situation, &settings()).is_empty());
    let mut more = observed.clone();
    more.executors.push(executor(1));
    situation.observed = Some(&more);
    let actions = reconcile(situation, &settings());
    let (update, _) = write(&actions);
    assert_eq!(update.logs.as_ref().unwrap()[0].logs.len(), 2);
}

#[test]
fn a_running_task_never_goes_back() {
    let actions = decide(&head(State::Running, 1), Some(Phase::Initializing));
    let (update, _) = write(&actions);
    assert_eq!(update.state, Some(State::Running));
}

#[test]
fn the_end_is_written_with_the_final_logs_before_anything_is_removed() {
    for (outcome, state) in [
        (Outcome::Complete, State::Complete),
        (Outcome::ExecutorError, State::ExecutorError),
        (Outcome::SystemError, State::SystemError),
    ] {
        for from in [State::Queued, State::Initializing, State::Running] {
            let actions = decide(&head(from, 1), Some(report(outcome.clone())));
            let (update, rest) = write(&actions);
            assert_eq!(update.state, Some(state), "{from} {outcome:?}");
            let log = &update.logs.as_ref().unwrap()[0];
            assert_eq!((log.logs.len(), log.outputs.len()), (1, 1));
            assert_eq!(log.end_time, Some(time(NOW - 1)));
            assert!(lines(update).contains("a note"));
            assert!(matches!(rest, [Action::Remove(attempt)] if attempt.number == 1));
        }
    }
}

#[test]
fn a_lost_attempt_is_followed_by_another_after_a_growing_wait() {
    for (attempt, wait) in [(1, 1000), (2, 2000)] {
        for phase in [lost("node gone"), report(Outcome::Retry)] {
            let actions = decide(&head(State::Running, attempt), Some(phase));
            let (update, rest) = write(&actions);
            assert_eq!(update.state, Some(State::Queued));
            assert_eq!(update.not_before, Some(Some(time(NOW + wait))));
            assert!(update.attempt.is_none());
            assert!(lines(update).contains("another follows"));
            assert!(matches!(rest, [Action::Remove(_)]));
        }
    }
}

#[test]
fn an_attempt_that_has_disappeared_is_lost() {
    let actions = decide(&head(State::Initializing, 1), Some(Phase::Absent));
    let (update, _) = write(&actions);
    assert_eq!(update.state, Some(State::Queued));
}

#[test]
fn without_attempts_left_the_task_ends_and_says_why() {
    for from in [State::Queued, State::Initializing, State::Running] {
        let actions = decide(&head(from, 3), Some(lost("node gone")));
        let (update, rest) = write(&actions);
        assert_eq!(update.state, Some(State::SystemError));
        assert!(lines(update).contains("attempt 3 of 3 was lost: node gone"));
        assert!(matches!(rest, [Action::Remove(_)]));
    }
}

#[test]
fn a_preempted_task_is_reported_so_only_if_that_is_wanted() {
    let phase = Phase::Lost {
        reason: "preempted".to_owned(),
        preempted: true,
    };
    for (wanted, state) in [(true, State::Preempted), (false, State::SystemError)] {
        let settings = Settings {
            report_preempted: wanted,
            ..settings()
        };
        let observed = seen(phase.clone());
        let head = head(State::Running, 3);
        let actions = decide_with(&head, Some(&observed), &Admission::Wait, &settings);
        assert_eq!(write(&actions).0.state, Some(state));
    }
}

#[test]
fn a_task_being_canceled_ends_what_runs_and_waits_for_it() {
    for phase in [Phase::Pending(None), Phase::Initializing, Phase::Running] {
        let actions = decide(&head(State::Canceling, 1), Some(phase));
        assert!(matches!(actions.as_slice(), [Action::Cancel(attempt)] if attempt.number == 1));
    }
}

#[test]
fn a_task_being_canceled_is_canceled_when_its_attempt_is_gone_even_if_it_finished() {
    for phase in [
        Phase::Absent,
        lost("killed"),
        report(Outcome::Canceled),
        report(Outcome::Complete),
        report(Outcome::Retry),
    ] {
        let actions = decide(&head(State::Canceling, 1), Some(phase));
        assert_eq!(write(&actions).0.state, Some(State::Canceled));
    }
}

#[test]
fn a_task_being_canceled_is_never_submitted() {
    let head = head(State::Canceling, 0);
    let actions = decide_with(&head, None, &Admission::Go, &settings());
    let (update, rest) = write(&actions);
    assert_eq!(update.state, Some(State::Canceled));
    assert!(rest.is_empty());
}

#[test]
fn an_attempt_over_its_time_is_canceled_and_the_task_ends() {
    let settings = Settings {
        time_limit: Some(Duration::from_millis(999)),
        ..settings()
    };
    let head = head(State::Running, 1);
    let decide = |phase| decide_with(&head, Some(&seen(phase)), &Admission::Wait, &settings);
    let actions = decide(Phase::Running);
    assert!(matches!(actions.last(), Some(Action::Cancel(_))));
    for phase in [report(Outcome::Canceled), lost("killed")] {
        let actions = decide(phase);
        let (update, _) = write(&actions);
        assert_eq!(update.state, Some(State::SystemError));
        assert!(lines(update).contains("time limit"));
    }
}

#[test]
fn an_attempt_within_its_time_is_looked_at_when_it_is_over() {
    let settings = Settings {
        time_limit: Some(Duration::from_millis(1500)),
        ..settings()
    };
    let head = head(State::Running, 1);
    let observed = seen(Phase::Running);
    let actions = decide_with(&head, Some(&observed), &Admission::Wait, &settings);
    assert!(matches!(actions.last(), Some(Action::Wake(at)) if *at == time(NOW + 500)));
}

#[test]
fn a_task_that_can_never_run_ends_with_the_reason() {
    let never = Admission::Never("too big".to_owned());
    for attempt in [0, 1] {
        let actions = decide_with(&head(State::Queued, attempt), None, &never, &settings());
        let (update, _) = write(&actions);
        assert_eq!(update.state, Some(State::SystemError));
        assert!(lines(update).contains("too big"));
    }
}

#[test]
fn an_ended_task_is_left_alone() {
    for state in State::ALL.into_iter().filter(|s| s.is_terminal()) {
        for phase in [Phase::Absent, Phase::Running, report(Outcome::Complete)] {
            assert!(decide(&head(state, 1), Some(phase)).is_empty());
        }
    }
}

#[test]
fn every_write_is_a_step_that_the_life_of_a_task_has() {
    let phases = [
        Phase::Absent,
        Phase::Pending(None),
        Phase::Initializing,
        Phase::Running,
        lost("x"),
        report(Outcome::Complete),
        report(Outcome::ExecutorError),
        report(Outcome::SystemError),
        report(Outcome::Retry),
        report(Outcome::Canceled),
    ];
    // What a state can become in one or more steps.
    let reachable = |from: State, to: State| match from {
        State::Queued | State::Initializing | State::Running => to != State::Canceled,
        State::Canceling => to == State::Canceled,
        _ => from == to,
    };
    for from in [
        State::Queued,
        State::Initializing,
        State::Running,
        State::Canceling,
    ] {
        for attempt in 1..=3 {
            for phase in &phases {
                for action in decide(&head(from, attempt), Some(phase.clone())) {
                    if let Action::Write(Update {
                        state: Some(to), ..
                    }) = action
                    {
                        assert!(reachable(from, to), "{from} {phase:?} {to}");
                    }
                }
            }
        }
    }
}

#[test]
fn why_an_attempt_waits_is_said_once_for_each_reason_up_to_a_limit() {
    let head = head(State::Queued, 2);
    let decide = |logs: &[TaskLog], reason: &str| {
        let observed = seen(Phase::Pending(Some(reason.to_owned())));
        let situation = Situation {
            head: &head,
            logs,
            observed: Some(&observed),
            admission: &Admission::Wait,
            now: time(NOW),
        };
        reconcile(situation, &settings())
    };
    let mut logs = vec![TaskLog::default(); 2];
    for name in 'a'..='j' {
        let reason = format!("no room on 3 of 40 nodes for {name}");
        let actions = decide(&logs, &reason);
        let (update, rest) = write(&actions);
        assert!(update.state.is_none() && rest.is_empty());
        logs.clone_from(update.logs.as_ref().unwrap());
        // Figures change all the time.
        let again = format!("no room on 12 of 5 nodes for {name}");
        assert!(decide(&logs, &again).is_empty());
    }
    assert!(logs[0].system_logs.is_none());
    let lines = logs[1].system_logs.as_ref().unwrap();
    assert_eq!(lines.len(), 10);
    assert_eq!(lines[3], "waits: no room on 3 of 40 nodes for d");
    assert!(decide(&logs, "no room on 3 of 40 nodes for k").is_empty());
}

#[test]
fn a_task_that_waits_for_its_turn_says_why_when_it_is_asked_to() {
    let admission = Admission::Explained("others are before it".to_owned());
    let actions = decide_with(&head(State::Queued, 0), None, &admission, &settings());
    let (update, rest) = write(&actions);
    assert_eq!(lines(update), "waits: others are before it");
    assert!(update.attempt.is_none() && update.state.is_none() && rest.is_empty());
}
