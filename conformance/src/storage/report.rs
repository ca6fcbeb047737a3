//! What came of a suite, for programs.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};
use tesk_core::storage::Capabilities;

/// The environment variable that names a file to which [`main`](super::main) appends its
/// reports, each as a line of JSON.
pub const REPORT: &str = "TESK_CONFORMANCE_REPORT";

/// How a case ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The promise is kept.
    Passed,
    /// It could not be judged: why.
    Ignored(String),
    /// It is not kept: how that shows.
    Failed(String),
}

/// One case that was judged.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The name of the case.
    pub case: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took.
    pub took: Duration,
}

/// What came of the cases of one subject.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its name.
    pub subject: String,
    /// Which server it was, if that is known.
    pub server: Option<String>,
    /// What the storage claims.
    pub claims: Capabilities,
    /// The cases that were chosen, in the order of the table.
    pub cases: Vec<Judged>,
}

impl Report {
    /// How many cases passed, were ignored, and failed.
    pub fn counts(&self) -> [usize; 3] {
        let mut counts = [0; 3];
        for judged in &self.cases {
            counts[match judged.outcome {
                Outcome::Passed => 0,
                Outcome::Ignored(_) => 1,
                Outcome::Failed(_) => 2,
            }] += 1;
        }
        counts
    }

    /// As JSON: `subject`, `server`, `claims`, the numbers `passed`, `ignored` and `failed`, and
    /// `cases` with `case`, `outcome`, `seconds`, and `reason` where there is one.
    pub fn to_json(&self) -> Value {
        let [passed, ignored, failed] = self.counts();
        let case = |judged: &Judged| {
            let (outcome, reason) = match &judged.outcome {
                Outcome::Passed => ("passed", None),
                Outcome::Ignored(reason) => ("ignored", Some(reason)),
                Outcome::Failed(reason) => ("failed", Some(reason)),
            };
            let mut case = json!({
                "case": judged.case,
                "outcome": outcome,
                "seconds": (judged.took.as_secs_f64() * 1000.0).round() / 1000.0,
            });
            if let Some(reason) = reason {
                case["reason"] = reason.as_str().into();
            }
            case
        };
        json!({
            "subject": self.subject,
            "server": self.server,
            "claims": self.claims,
            "passed": passed,
            "ignored": ignored,
            "failed": failed,
            "cases": self.cases.iter().map(case).collect::<Vec<_>>(),
        })
    }

    /// Says so if a subject had no case that could be judged, or there is no subject at all:
    /// nothing was proved then.
    pub fn idle(reports: &[Self]) -> Option<String> {
        let judged = |report: &&Self| report.cases.len() > report.counts()[1];
        let idle = reports.iter().filter(|report| !judged(report));
        let mut idle: Vec<_> = idle.map(|report| report.subject.as_str()).collect();
        if reports.is_empty() {
            idle.push("(no storage at all)");
        }
        (!idle.is_empty()).then(|| format!("not a single case ran for: {}", idle.join(", ")))
    }

    pub(super) fn append(reports: &[Self]) -> anyhow::Result<()> {
        let Some(path) = std::env::var_os(REPORT) else {
            return Ok(());
        };
        let mut lines = String::new();
        // Of one that a filter left out there is nothing to tell.
        for report in reports.iter().filter(|report| !report.cases.is_empty()) {
            let _ = writeln!(lines, "{}", report.to_json());
        }
        let mut file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot write the report {}", path.display()))?;
        Ok(file.write_all(lines.as_bytes())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(outcomes: &[Outcome]) -> Report {
        let judged = |outcome: &Outcome| Judged {
            case: "some_case",
            outcome: outcome.clone(),
            took: Duration::from_millis(1500),
        };
        Report {
            subject: "s".into(),
            server: None,
            claims: Capabilities::read_only(),
            cases: outcomes.iter().map(judged).collect(),
        }
    }

    #[test]
    fn a_subject_of_which_all_is_ignored_has_proved_nothing() {
        let idle = |outcomes: &[Outcome]| Report::idle(&[report(outcomes)]);
        let ignored = Outcome::Ignored("no server".into());
        assert_eq!(idle(&[ignored.clone(), Outcome::Passed]), None);
        assert_eq!(idle(&[Outcome::Failed("x".into())]), None);
        assert!(idle(&[ignored]).unwrap().ends_with(": s"));
        assert!(Report::idle(&[]).is_some());
    }

    #[test]
    fn a_report_tells_numbers_claims_and_reasons() {
        let json = report(&[Outcome::Passed, Outcome::Ignored("why".into())]).to_json();
        assert_eq!((&json["passed"], &json["ignored"]), (&1.into(), &1.into()));
        assert_eq!(json["claims"]["list"], false);
        assert_eq!(json["cases"][1]["reason"], "why");
        assert_eq!(json["cases"][0]["seconds"], 1.5);
        assert!(json["cases"][0].get("reason").is_none());
    }
}
