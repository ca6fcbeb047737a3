//! `tesk-conformance` as a person starts it.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// Runs the suite with a configuration that serves `folder` as `file:///data`.
fn storage(folder: &Path, head: &str, entry: &str, arguments: &[&str]) -> Output {
    let config = folder.join("storage.toml");
    let path = folder.join("data");
    std::fs::create_dir_all(&path).unwrap();
    let path = path.display();
    let text = format!(
        "{head}\n[[storage]]\ntype = 'pvc'\nprefix = 'file:///data'\npath = '{path}'\n{entry}"
    );
    std::fs::write(&config, text).unwrap();
    Command::new(env!("CARGO_BIN_EXE_tesk-conformance"))
        .args(["storage", "--config"])
        .arg(&config)
        .args(arguments)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const SCRATCH: &str = "scratch = 'file:///data/scratch'";

#[test]
fn the_whole_suite_runs_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let run = storage(folder.path(), SCRATCH, "", &["--json"]);
    assert!(run.status.success(), "{}", text(&run.stderr));
    let document: Value = serde_json::from_slice(&run.stdout).unwrap();
    assert!(document["passed"].as_u64() > Some(30), "{document}");
    assert_eq!(document["failed"], 0);
    let subject = &document["subjects"][0];
    assert_eq!(subject["subject"], "file:///data/scratch");
    assert_eq!(subject["claims"]["atomic_write"], true);
    let cases = subject["cases"].as_array().unwrap();
    let ignored = cases.iter().filter(|case| case["outcome"] == "ignored");
    for case in ignored {
        assert!(
            case["reason"].as_str().is_some_and(|r| !r.is_empty()),
            "{case}"
        );
    }
    let scratch = folder.path().join("data/scratch");
    assert_eq!(std::fs::read_dir(scratch).unwrap().count(), 0);
}

#[test]
fn a_filter_chooses_cases_and_people_read_a_line_for_each() {
    let folder = tempfile::tempdir().unwrap();
    let run = storage(folder.path(), SCRATCH, "", &["renam"]);
    assert!(run.status.success(), "{run:?}");
    let shown = text(&run.stdout);
    assert!(shown.starts_with("file:///data/scratch\n"), "{shown}");
    assert!(shown.contains("  ok       "), "{shown}");
    assert!(shown.contains(": `rename` is claimed\n"), "{shown}");
    assert!(shown.ends_with(" 0 failed\n"), "{shown}");
    assert!(!shown.contains("empty_file"), "{shown}");
}

#[test]
fn a_run_of_no_case_has_failed() {
    let folder = tempfile::tempdir().unwrap();
    let none = storage(folder.path(), SCRATCH, "", &["no_such_case"]);
    assert_eq!(none.status.code(), Some(1), "{none:?}");
    assert!(text(&none.stderr).contains("not a single case ran"));
    let no_scratch = storage(folder.path(), "", "", &[]);
    assert_eq!(no_scratch.status.code(), Some(1));
    assert!(
        text(&no_scratch.stderr).contains("--scratch"),
        "{no_scratch:?}"
    );
    let secret = ["--scratch", "nope://me:s3cret@host/x"];
    let unserved = storage(folder.path(), "", "", &secret);
    assert_eq!(unserved.status.code(), Some(1));
    assert!(!format!("{unserved:?}").contains("s3cret"), "{unserved:?}");
}

#[test]
fn failures_show_in_the_exit_status_and_in_junit() {
    let folder = tempfile::tempdir().unwrap();
    let gone = "[[storage]]\ntype='pvc'\nprefix='file:///gone'\npath='/no/such/volume'\n";
    let run = storage(
        folder.path(),
        "",
        gone,
        &["--junit", "--scratch", "file:///gone/s"],
    );
    assert_eq!(run.status.code(), Some(1));
    let shown = text(&run.stdout);
    assert!(
        shown.contains("<testsuite name=\"file:///gone/s\""),
        "{shown}"
    );
    assert!(shown.contains("<failure message="), "{shown}");
    assert!(shown.contains("volume is not there"), "{shown}");
}
