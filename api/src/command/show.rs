//! Tasks for people: tables and details.

use std::fmt::Write;

use serde_json::Value;
use tesk_core::tes::{State, TaskLog, TaskReply};
use tesk_core::time::Timestamp;

/// One line for each task. Only the last column holds what is not ASCII.
pub(super) fn table(tasks: &[TaskReply]) -> String {
    let header = ["ID", "STATE", "CREATED", "TOOK", "NAME"].map(str::to_owned);
    let rows = tasks.iter().map(|task| {
        let name = task.task.as_ref().and_then(|task| task.name.as_deref());
        [
            one_line(&task.id),
            task.state.to_string(),
            task.creation_time.map_or_else(String::new, seconds),
            took(task),
            one_line(name.unwrap_or_default()),
        ]
    });
    let rows: Vec<_> = std::iter::once(header).chain(rows).collect();
    let widths = [0, 1, 2, 3].map(|column| {
        let cells = rows.iter().map(|row| row[column].len());
        cells.max().unwrap_or_default()
    });
    let mut text = String::new();
    for [id, state, created, took, name] in rows {
        let [a, b, c, d] = widths;
        let line = format!("{id:<a$}  {state:<b$}  {created:<c$}  {took:>d$}  {name}");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// All of a task that fits a screen; `full` adds what its executors wrote.
pub(super) fn details(task: &TaskReply, full: bool) -> String {
    let mut text = String::new();
    let mut line = |key: &str, value: &str| {
        let _ = writeln!(text, "{key:<12}{}", one_line(value));
    };
    line("id", &task.id);
    line("state", task.state.as_str());
    if let Some(document) = &task.task {
        if let Some(name) = &document.name {
            line("name", name);
        }
        if let Some(description) = &document.description {
            line("description", description);
        }
        for (key, value) in document.tags.iter().flatten() {
            line("tag", &format!("{key}={value}"));
        }
        if let Some(created) = task.creation_time {
            line("created", &seconds(created));
        }
        for (index, executor) in document.executors.iter().enumerate() {
            let command = executor.command.join(" ");
            line(
                &format!("executor {}", index + 1),
                &format!("{} in {}", shortened(&command, 60), executor.image),
            );
        }
    }
    let logs = task.logs.as_deref().unwrap_or_default();
    for (index, log) in logs.iter().enumerate() {
        text.push_str(&attempt(log, index, logs.len()));
        if full {
            text.push_str(&streams(log, usize::MAX));
        }
    }
    text
}

/// Times, exit codes, outputs and system logs of an attempt.
fn attempt(log: &TaskLog, index: usize, attempts: usize) -> String {
    let mut text = String::new();
    if attempts > 1 {
        let _ = writeln!(text, "attempt {}", index + 1);
    }
    for (index, executor) in log.logs.iter().enumerate() {
        let took = between(executor.start_time, executor.end_time);
        let label = format!("executor {}", index + 1);
        let _ = writeln!(text, "{label:<12}exit code {} {took}", executor.exit_code);
    }
    text.push_str(&outputs(log));
    for line in log.system_logs.iter().flatten() {
        let _ = writeln!(text, "{:<12}{}", "system log", one_line(line));
    }
    text
}

/// Delivered files with their sizes.
pub(super) fn outputs(log: &TaskLog) -> String {
    let mut text = String::new();
    for output in &log.outputs {
        let size = bytes(output.size_bytes);
        let _ = writeln!(text, "{:<12}{size:>9}  {}", "output", one_line(&output.url));
    }
    text
}

/// What the executors of an attempt wrote, each stream under its label; of each, `lines` lines
/// at most.
pub(super) fn streams(log: &TaskLog, lines: usize) -> String {
    let mut text = String::new();
    for (index, executor) in log.logs.iter().enumerate() {
        for (stream, content) in [("stdout", &executor.stdout), ("stderr", &executor.stderr)] {
            let Some(content) = content.as_deref().filter(|content| !content.is_empty()) else {
                continue;
            };
            let all = content.lines().count();
            let hidden = all.saturating_sub(lines);
            let _ = write!(text, "--- executor {} {stream}", index + 1);
            if hidden > 0 {
                let _ = write!(text, ", the last {lines} of {all} lines");
            }
            text.push('\n');
            for line in content.lines().skip(hidden) {
                text.push_str(&harmless(line));
                text.push('\n');
            }
        }
    }
    text
}

/// What a server showed, as the type that it should be.
pub(super) fn read(task: Value) -> Result<TaskReply, String> {
    serde_json::from_value(task).map_err(|error| format!("the server's answer is odd: {error}"))
}

/// `4.2 MiB`
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

fn took(task: &TaskReply) -> String {
    let logs = task.logs.as_deref().unwrap_or_default();
    let start = logs.first().and_then(|log| log.start_time);
    let end = match logs.last().and_then(|log| log.end_time) {
        Some(end) => Some(end),
        None if task.state == State::Running => Some(Timestamp::now()),
        None => None,
    };
    match (start, end) {
        (Some(start), Some(end)) => duration(end.since(start)),
        _ => String::new(),
    }
}

fn between(start: Option<Timestamp>, end: Option<Timestamp>) -> String {
    match (start, end) {
        (Some(start), Some(end)) => format!("after {}", duration(end.since(start))),
        _ => String::new(),
    }
}

/// `2h03m`, `4m05s`, `1.2s`
pub(super) fn duration(duration: std::time::Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{:.1}s", duration.as_secs_f64()),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// Milliseconds interest nobody here.
pub(super) fn seconds(time: Timestamp) -> String {
    let text = time.to_string();
    match text.split_once('.') {
        Some((seconds, _)) => format!("{seconds}Z"),
        None => text,
    }
}

fn shortened(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Text of others on one line of a terminal, which it must not steer.
pub(super) fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if steers(c) { ' ' } else { c })
        .collect()
}

/// Text of others on a terminal: lines and tabs, but no escape sequences.
pub(super) fn harmless(text: &str) -> String {
    text.chars()
        .map(|c| {
            if steers(c) && !matches!(c, '\t' | '\n') {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

/// A JSON document on a terminal, which its texts must not steer. JSON itself escapes controls below
/// 32 only; those that are left are the line ends between its parts.
pub(super) fn json(document: &str) -> String {
    let mut text = String::with_capacity(document.len());
    for c in document.chars() {
        if steers(c) && (c == '\u{7f}' || !c.is_ascii()) {
            let _ = write!(text, "\\u{:04x}", u32::from(c));
        } else {
            text.push(c);
        }
    }
    text
}

/// Controls (C0, delete, C1), separators of lines, and what turns the direction of writing
/// (Unicode Standard Annex #9): one could show another text than there is.
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}'
        )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_has_one_clean_line_for_each_task() {
        let task = json!({
            "id": "t1", "state": "RUNNING", "creation_time": "2026-01-31T12:00:00.123Z",
            "name": "two\nlines \u{1b}[31m", "executors": [], "logs": [],
        });
        let minimal = json!({ "id": "t2\u{9b}", "state": "EXECUTOR_ERROR" });
        let text = table(&[read(task).unwrap(), read(minimal).unwrap()]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[1].contains("2026-01-31T12:00:00Z"), "{text}");
        assert!(lines[1].contains("two lines  [31m"), "{text}");
        assert!(lines[2].starts_with("t2   EXECUTOR_ERROR"), "{text}");
    }

    #[test]
    fn sizes_and_durations_are_short() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(4 << 20), "4.0 MiB");
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
        let seconds = std::time::Duration::from_secs;
        assert_eq!(duration(seconds(5)), "5.0s");
        assert_eq!(duration(seconds(245)), "4m05s");
        assert_eq!(duration(seconds(7380)), "2h03m");
    }

    #[test]
    fn what_an_executor_wrote_cannot_steer_the_terminal() {
        assert_eq!(harmless("a\tb\u{1b}[2Jc\nd"), "a\tb\u{fffd}[2Jc\nd");
        for c in [
            '\r', '\u{7f}', '\u{9b}', '\u{202e}', '\u{2066}', '\u{200f}', '\u{2028}',
        ] {
            assert_eq!(harmless(&format!("{c}é")), "\u{fffd}é");
            assert_eq!(one_line(&format!("{c}é")), " é");
        }
    }

    #[test]
    fn a_json_document_is_the_same_without_what_steers_a_terminal() {
        let value = json!({ "é\u{7f}\u{9b}": ["\u{202e}\u{2066}\u{2028}", "\u{1b}\r\n\t\\"] });
        let shown = super::json(&format!("{value:#}\n"));
        let steering = |c: char| steers(c) && c != '\n';
        assert!(!shown.contains(steering), "{shown:?}");
        assert!(shown.contains("é\\u007f\\u009b"), "{shown}");
        assert_eq!(serde_json::from_str::<Value>(&shown).unwrap(), value);
    }
}
