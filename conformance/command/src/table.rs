//! The table of backends and servers in the docs, made from reports.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use serde_json::Value;

const BEGIN: &str = "<!-- table of runs: begin -->";
const END: &str = "<!-- table of runs: end -->";

/// The options of `tesk-conformance table`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The document whose part between the two markers is replaced; without one, the table is
    /// printed
    #[arg(long, value_name = "FILE")]
    into: Option<PathBuf>,
    /// Files with a report in each line, as the suites write them
    #[arg(required = true, value_name = "REPORTS")]
    reports: Vec<PathBuf>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let mut reports = Vec::new();
    for path in &options.reports {
        let shown = path.display();
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
        for line in text.lines() {
            let report = serde_json::from_str(line).with_context(|| format!("{shown}: {line}"))?;
            reports.push(report);
        }
    }
    if reports.is_empty() {
        bail!("there is no report");
    }
    let table = table(&reports);
    let Some(path) = &options.into else {
        print!("{table}");
        return Ok(());
    };
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
    let text = replaced(&text, &table).with_context(|| format!("{shown} has no {BEGIN}"))?;
    std::fs::write(path, text).with_context(|| format!("cannot write {shown}"))
}

/// `text` with `table` between the markers.
fn replaced(text: &str, table: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{table}{END}{after}"))
}

fn table(reports: &[Value]) -> String {
    // A later report of the same replaces an earlier one.
    let mut rows = BTreeMap::new();
    for report in reports {
        let subject = report["subject"].as_str().unwrap_or_default();
        let (backend, rest) = subject.split_once('-').unwrap_or((subject, ""));
        let read_only = rest.ends_with("read-only");
        let rest = rest.trim_end_matches("read-only").trim_end_matches('-');
        let server = report["server"].as_str().unwrap_or(rest);
        rows.insert((backend, read_only, server), report);
    }
    let mut text = String::from(
        "| backend | server | passed | ignored | failed | claims |\n|---|---|---|---|---|---|\n",
    );
    let mut notes = Vec::<String>::new();
    for ((backend, read_only, server), report) in rows {
        let read_only = if read_only { ", `read_only`" } else { "" };
        let note = reasons(report).map_or_else(String::new, |reasons| {
            let known = notes.iter().position(|note| *note == reasons);
            let index = known.unwrap_or_else(|| {
                notes.push(reasons);
                notes.len() - 1
            });
            format!(" ({})", index + 1)
        });
        let _ = writeln!(
            text,
            "| `{}`{read_only} | {} | {} | {}{note} | {} | {} |",
            cell(backend),
            cell(server),
            report["passed"],
            report["ignored"],
            report["failed"],
            claims(report),
        );
    }
    text.push_str("\nWhy cases were ignored:\n\n");
    for (index, note) in notes.iter().enumerate() {
        let _ = writeln!(text, "{}. {note}", index + 1);
    }
    text
}

/// The capabilities that are claimed.
fn claims(report: &Value) -> String {
    let claims = report["claims"].as_object();
    let names = claims.into_iter().flatten();
    let names: Vec<_> = names
        .filter(|(_, claimed)| claimed.as_bool() == Some(true))
        .map(|(name, _)| format!("`{}`", cell(name)))
        .collect();
    names.join(", ")
}

/// The reasons why cases were ignored, the frequent ones first. That the refusal of something
/// cannot be judged, as it is claimed, goes without saying.
fn reasons(report: &Value) -> Option<String> {
    let mut counts = BTreeMap::<&str, usize>::new();
    for case in report["cases"].as_array().into_iter().flatten() {
        if case["outcome"] == "ignored" {
            let reason = case["reason"].as_str().unwrap_or_default();
            let refusal = reason.starts_with('`') && reason.ends_with("is claimed");
            *counts.entry(if refusal { "" } else { reason }).or_default() += 1;
        }
    }
    let refusals = counts.remove("").unwrap_or_default();
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(reason, count)| (std::cmp::Reverse(*count), *reason));
    let mut texts: Vec<_> = counts
        .into_iter()
        .map(|(reason, count)| format!("{} ({count})", cell(reason)))
        .collect();
    if refusals > 0 {
        texts.push(format!("refusals of what is claimed ({refusals})"));
    }
    (!texts.is_empty()).then(|| texts.join("; "))
}

/// Text that stays in its cell.
fn cell(text: &str) -> String {
    text.replace(['\n', '\r'], " ").replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report(subject: &str, failed: usize) -> Value {
        json!({
            "subject": subject, "server": null, "passed": 5, "ignored": 2, "failed": failed,
            "claims": { "list": true, "write": false, "max_file_size": null },
            "cases": [
                { "case": "a", "outcome": "ignored", "reason": "`list` is claimed" },
                { "case": "b", "outcome": "ignored", "reason": "no x | y" },
                { "case": "c", "outcome": "passed" },
            ],
        })
    }

    #[test]
    fn a_row_names_backend_server_numbers_and_claims() {
        let table = table(&[report("ftp-proftpd-tls", 0), report("s3-moto-read-only", 1)]);
        let rows: Vec<_> = table.lines().skip(2).take(2).collect();
        assert_eq!(rows[0], "| `ftp` | proftpd-tls | 5 | 2 (1) | 0 | `list` |");
        assert_eq!(
            rows[1],
            "| `s3`, `read_only` | moto | 5 | 2 (1) | 1 | `list` |"
        );
        assert!(
            table.ends_with("1. no x \\| y (1); refusals of what is claimed (1)\n"),
            "{table}"
        );
    }

    #[test]
    fn only_what_is_between_the_markers_is_replaced() {
        let text = format!("before {BEGIN}\nold\n{END} after");
        let new = replaced(&text, "new\n").unwrap();
        assert_eq!(new, format!("before {BEGIN}\nnew\n{END} after"));
        assert_eq!(replaced("no marker", "x"), None);
    }
}
