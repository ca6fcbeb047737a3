//! Results for people, and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};
use tesk_conformance::storage::{Judged, Outcome, Report};

/// One case.
pub(crate) fn line(judged: &Judged) -> String {
    let case = judged.case;
    match &judged.outcome {
        Outcome::Passed => format!("  ok       {case}\n"),
        Outcome::Ignored(reason) => format!("  ignored  {case}: {}\n", harmless(reason)),
        Outcome::Failed(why) => {
            let why = harmless(why).replace('\n', "\n           ");
            format!("  FAILED   {case}\n           {why}\n")
        }
    }
}

/// The numbers of each storage.
pub(crate) fn summary(reports: &[Report]) -> String {
    let mut text = String::new();
    for report in reports {
        let [passed, ignored, failed] = report.counts();
        let _ = writeln!(
            text,
            "{}: {passed} passed, {ignored} ignored, {failed} failed",
            report.subject
        );
    }
    text
}

/// All reports as one document.
pub(crate) fn document(reports: &[Report]) -> Value {
    let sum = |index: usize| {
        reports
            .iter()
            .map(|report| report.counts()[index])
            .sum::<usize>()
    };
    json!({
        "passed": sum(0),
        "ignored": sum(1),
        "failed": sum(2),
        "subjects": reports.iter().map(Report::to_json).collect::<Vec<_>>(),
    })
}

/// The words of a server on a terminal, which they must not steer.
fn harmless(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() && c != '\n' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}
