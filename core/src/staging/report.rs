//! A report as it leaves a pod.
//!
//! There are two ways out: the termination message of a container (at most 4096 bytes, often
//! less), and its log. The report takes the first if it fits, compressed; else the message says
//! that it is in the log, and how to know it there. Length and SHA-256 are of the plain JSON, so
//! that a report cut short or mixed with foreign lines is never taken for whole.
//!
//! ```text
//! message:  tesk-report/1 <length> <sha256> <base64 of deflated JSON>
//! or        tesk-report/1 <length> <sha256> log
//! log:      tesk-report/1 <sha256> <base64 …>      (one or more lines, in order)
//! ```

use std::borrow::Cow;
use std::io::{Read, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use sha2::{Digest, Sha256};

use crate::scheduler::compute::Report;

const MARK: &str = "tesk-report/1";
/// The longest line in a log: container runtimes split those above 16 KiB.
const LINE: usize = 8 * 1024;
/// The most that a report takes in a log, in bytes: well under the 10 MiB at which logs are
/// rotated by default.
const MAX_LOG: usize = 6 * 1024 * 1024;
/// The largest report, in bytes: a record has room for it beside the logs of earlier attempts.
const MAX_JSON: usize = 32 * 1024 * 1024;

/// A report, packed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// For the termination message.
    pub message: String,
    /// Lines for the log, if the message could not hold it all.
    pub log: Option<String>,
}

/// Packs `report` for a termination message of at most `room` bytes. A report that is too large
/// for the log as well is cut, and says so: see [`to_json`].
pub fn pack(report: &Report, room: usize) -> serde_json::Result<Packed> {
    let mut report = Cow::Borrowed(report);
    loop {
        let json = within_limit(&mut report)?;
        let digest = hex::encode(Sha256::digest(&json));
        let mut deflate = DeflateEncoder::new(Vec::new(), Compression::default());
        // Writing to memory does not fail.
        let _ = deflate.write_all(&json);
        let packed = STANDARD.encode(deflate.finish().unwrap_or_default());
        let head = format!("{MARK} {} {digest}", json.len());
        let message = format!("{head} {packed}");
        if message.len() <= room {
            return Ok(Packed { message, log: None });
        }
        if packed.len() <= MAX_LOG || is_bare(&report) {
            let mut log = String::with_capacity(packed.len() + packed.len() / 64);
            let mut rest = packed.as_str();
            while !rest.is_empty() {
                let (line, after) = rest.split_at(rest.len().min(LINE));
                log.extend([MARK, " ", &digest, " ", line, "\n"]);
                rest = after;
            }
            return Ok(Packed {
                message: format!("{head} log"),
                log: Some(log),
            });
        }
        cut(report.to_mut());
    }
}

/// `report` as JSON that a record has room for, at most 32 MiB. One that is larger loses the end of
/// its list of delivered files, then the beginnings of what commands have printed, then the first
/// notes, and says so.
pub fn to_json(report: &Report) -> serde_json::Result<Vec<u8>> {
    within_limit(&mut Cow::Borrowed(report))
}

/// Cuts `report` until it has at most [`MAX_JSON`] bytes, as far as there is something to cut.
fn within_limit(report: &mut Cow<'_, Report>) -> serde_json::Result<Vec<u8>> {
    loop {
        let json = serde_json::to_vec(report.as_ref())?;
        if json.len() <= MAX_JSON || is_bare(report) {
            return Ok(json);
        }
        cut(report.to_mut());
    }
}

/// Leaves half of the delivered files, or, where none is listed, of what commands have printed, or,
/// where they printed nothing, of the notes.
fn cut(report: &mut Report) {
    let note = if !report.outputs.is_empty() {
        report.outputs.truncate(report.outputs.len() / 2);
        CUT
    } else if has_tails(report) {
        for executor in &mut report.executors {
            for tail in [&mut executor.stdout, &mut executor.stderr] {
                tail.iter_mut().for_each(halve);
            }
        }
        CUT_TAILS
    } else {
        report.notes.drain(..report.notes.len().div_ceil(2));
        CUT_NOTES
    };
    if report.notes.last().is_none_or(|last| last != note) {
        report.notes.push(note.to_owned());
    }
}

const CUT: &str = "there are more delivered files than a report can list";
const CUT_TAILS: &str = "commands have printed more than a report can hold";
const CUT_NOTES: &str = "there are more notes than a report can hold";

/// Whether nothing can be taken from a report.
fn is_bare(report: &Report) -> bool {
    let own = |note: &String| [CUT, CUT_TAILS, CUT_NOTES].contains(&note.as_str());
    report.outputs.is_empty() && !has_tails(report) && report.notes.iter().all(own)
}

fn has_tails(report: &Report) -> bool {
    let executors = report.executors.iter();
    let tails = executors.flat_map(|executor| [&executor.stdout, &executor.stderr]);
    !tails.flatten().all(String::is_empty)
}

/// Leaves the second half of a text.
fn halve(text: &mut String) {
    let half = (text.len() / 2..=text.len()).find(|at| text.is_char_boundary(at.to_owned()));
    text.drain(..half.unwrap_or_default().max(1).min(text.len()));
}

/// Why a report cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// The message is not one of [`pack`].
    #[error("the termination message holds no report")]
    NotAReport,
    /// The report is in the log: ask again with it.
    #[error("the report is in the log")]
    InLog,
    /// Part of it is missing, or it was changed.
    #[error("the report is not whole")]
    Broken,
    /// It is whole, but not of this version.
    #[error("the report has another form: {0}")]
    Foreign(String),
}

/// Unpacks a report from a termination message and, where the message says so, the log.
pub fn unpack(message: &str, log: Option<&str>) -> Result<Report, Unreadable> {
    let mut words = message.split_whitespace();
    let mark = words.next();
    let (Some(length), Some(digest), Some(body)) = (words.next(), words.next(), words.next())
    else {
        return Err(Unreadable::NotAReport);
    };
    let length: usize = length.parse().map_err(|_| Unreadable::NotAReport)?;
    if mark != Some(MARK) || length > MAX_JSON {
        return Err(Unreadable::NotAReport);
    }
    let packed = if body == "log" {
        let start = format!("{MARK} {digest} ");
        let lines = log.ok_or(Unreadable::InLog)?.lines();
        lines.filter_map(|line| line.strip_prefix(&start)).collect()
    } else {
        body.to_owned()
    };
    let deflated = STANDARD.decode(packed).map_err(|_| Unreadable::Broken)?;
    let mut json = Vec::new();
    DeflateDecoder::new(&*deflated)
        .take(length as u64 + 1)
        .read_to_end(&mut json)
        .map_err(|_| Unreadable::Broken)?;
    if json.len() != length || hex::encode(Sha256::digest(&json)) != digest {
        return Err(Unreadable::Broken);
    }
    serde_json::from_slice(&json).map_err(|error| Unreadable::Foreign(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::compute::Outcome;
    use crate::tes::OutputFileLog;
    use crate::time::Timestamp;

    fn report(files: usize) -> Report {
        let file = |n: usize| OutputFileLog {
            // What does not compress.
            url: format!("s3://b/{}", hex::encode(Sha256::digest(n.to_le_bytes()))),
            path: format!("/out/{n}"),
            size_bytes: n as u64,
        };
        Report {
            outcome: Outcome::Complete,
            executors: Vec::new(),
            outputs: (0..files).map(file).collect(),
            notes: vec!["ä note\nof two lines".to_owned()],
            started: Timestamp::from_millis(1),
            ended: Timestamp::from_millis(2),
        }
    }

    #[test]
    fn a_small_report_travels_in_the_message() {
        let report = report(3);
        let packed = pack(&report, 4096).unwrap();
        assert!(packed.message.len() <= 4096 && packed.log.is_none());
        assert_eq!(unpack(&packed.message, None), Ok(report));
    }

    #[test]
    fn a_large_report_travels_in_the_log_among_other_lines() {
        let report = report(5000);
        let packed = pack(&report, 4096).unwrap();
        assert!(packed.message.len() < 200);
        let log = packed.log.unwrap();
        assert!(log.lines().all(|line| line.len() < 16 * 1024));
        assert_eq!(unpack(&packed.message, None), Err(Unreadable::InLog));
        let noisy = format!("tesk-report/1 x y\nhello\n{log}bye\n");
        assert_eq!(unpack(&packed.message, Some(&noisy)), Ok(report));
    }

    #[test]
    fn a_report_that_is_not_whole_is_never_taken_for_one() {
        let packed = pack(&report(5000), 4096).unwrap();
        let log = packed.log.unwrap();
        let cut = &log[..log.len() - 20];
        assert_eq!(unpack(&packed.message, Some(cut)), Err(Unreadable::Broken));
        let small = pack(&report(1), 4096).unwrap().message;
        assert_eq!(
            unpack(&small[..small.len() - 8], None),
            Err(Unreadable::Broken)
        );
        for message in ["", "OOMKilled", "tesk-report/1 1 2", "tesk-report/2 1 2 3"] {
            assert_eq!(unpack(message, None), Err(Unreadable::NotAReport));
        }
    }

    #[test]
    fn a_report_too_large_for_the_log_says_that_it_is_cut() {
        let packed = pack(&report(200_000), 4096).unwrap();
        let log = packed.log.unwrap();
        assert!(log.len() < MAX_LOG + MAX_LOG / 64);
        let report = unpack(&packed.message, Some(&log)).unwrap();
        assert!(report.outputs.len() >= 25_000);
        assert_eq!(report.notes.iter().filter(|n| *n == CUT).count(), 1);
    }

    #[test]
    fn a_report_in_a_file_is_no_larger_than_a_record_may_be() {
        let small = report(3);
        assert_eq!(
            to_json(&small).unwrap(),
            serde_json::to_vec(&small).unwrap()
        );
        let json = to_json(&report(300_000)).unwrap();
        assert!(json.len() <= MAX_JSON && json.len() > MAX_JSON / 2);
        let report: Report = serde_json::from_slice(&json).unwrap();
        assert_eq!(report.outputs.len(), 150_000);
        assert_eq!(report.notes.iter().filter(|n| *n == CUT).count(), 1);
    }

    #[test]
    fn a_report_that_packs_well_is_no_larger_than_a_record_may_be() {
        let mut large = report(2);
        large.executors = vec![crate::tes::ExecutorLog::default(); 100];
        for executor in &mut large.executors {
            executor.stdout = Some("\u{1}".repeat(1 << 18));
        }
        let packed = pack(&large, 4096).unwrap();
        let report = unpack(&packed.message, packed.log.as_deref()).unwrap();
        assert!(serde_json::to_vec(&report).unwrap().len() <= MAX_JSON);
        let left = report.executors[0].stdout.as_ref().unwrap().len();
        assert!(left >= 1 << 15, "{left}");
        assert_eq!(report.notes.iter().filter(|n| *n == CUT_TAILS).count(), 1);
    }

    #[test]
    fn a_report_full_of_notes_keeps_the_last_ones() {
        let mut large = report(2);
        // Of a hundred executors, and last of the outputs.
        large.notes = (0..20_000)
            .map(|n| format!("{n} {}", "é".repeat(1000)))
            .collect();
        let packed = pack(&large, 4096).unwrap();
        let report = unpack(&packed.message, packed.log.as_deref()).unwrap();
        assert!(report.notes.len() > 5_000, "{}", report.notes.len());
        let (own, notes) = report.notes.split_last().unwrap();
        assert_eq!(own, CUT_NOTES);
        assert!(notes.iter().any(|note| note.starts_with("19999 ")));
    }
}
