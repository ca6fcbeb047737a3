//! MINIMAL, BASIC and FULL.

use std::io::Write as _;
use std::str::FromStr;

use serde::de::Error as _;
use serde_json::Error;

use super::{FieldError, Task, TaskLog};
use crate::scheduler::store::RawRecord;

/// How much of a task a reply shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum View {
    /// `id` and `state`.
    #[default]
    Minimal,
    /// All but contents, captured output and system logs.
    Basic,
    /// All.
    Full,
}

impl View {
    /// Whether a reply in this view needs the document and the logs.
    pub fn needs_document(self) -> bool {
        self != Self::Minimal
    }
}

impl FromStr for View {
    type Err = FieldError;

    /// Reads a view's name in any case; the empty text is [`View::Minimal`].
    fn from_str(s: &str) -> Result<Self, FieldError> {
        match s.to_ascii_uppercase().as_str() {
            "" | "MINIMAL" => Ok(Self::Minimal),
            "BASIC" => Ok(Self::Basic),
            "FULL" => Ok(Self::Full),
            _ => Err(FieldError {
                field: "view".into(),
                msg: "must be MINIMAL, BASIC or FULL".into(),
            }),
        }
    }
}

/// Appends the JSON of a task in `view` to `out`.
///
/// The texts of the record are passed on unread where the view shows all of them: FULL costs
/// about a copy. An error means that the record holds no document, or one that cannot be
/// read; `out` may then end with half a reply.
pub fn write(out: &mut Vec<u8>, record: &RawRecord, view: View) -> Result<(), Error> {
    let head = &record.head;
    // Neither an id nor a state holds anything that JSON would escape.
    write!(out, r#"{{"id":"{}","state":"{}""#, head.id, head.state).map_err(Error::io)?;
    if view.needs_document() {
        write!(out, r#","creation_time":"{}""#, head.created).map_err(Error::io)?;
        if view == View::Full || !has_member(&record.document, &["content"]) {
            splice(out, &record.document)?;
        } else {
            let mut task: Task = serde_json::from_str(&record.document)?;
            for input in task.inputs.iter_mut().flatten() {
                input.content = None;
            }
            splice(out, &serde_json::to_string(&task)?)?;
        }
        out.extend_from_slice(br#","logs":"#);
        if view == View::Full || !has_member(&record.logs, &["stdout", "stderr", "system_logs"]) {
            if !record.logs.starts_with('[') {
                return Err(Error::custom("the record has no logs"));
            }
            out.extend_from_slice(record.logs.as_bytes());
        } else {
            let mut logs: Vec<TaskLog> = serde_json::from_str(&record.logs)?;
            for log in &mut logs {
                log.system_logs = None;
                for executor in &mut log.logs {
                    executor.stdout = None;
                    executor.stderr = None;
                }
            }
            serde_json::to_writer(&mut *out, &logs)?;
        }
    }
    out.push(b'}');
    Ok(())
}

/// Whether the JSON text may have a member of one of these names. A quote inside a string is
/// always escaped, so a text that does not hold the quoted name has no such member.
fn has_member(json: &str, names: &[&str]) -> bool {
    names
        .iter()
        .any(|name| json.contains(&format!("\"{name}\"")))
}

/// Appends the members of a JSON object to the open object at the end of `out`.
fn splice(out: &mut Vec<u8>, object: &str) -> Result<(), Error> {
    let members = object
        .strip_prefix('{')
        .and_then(|rest| rest.strip_suffix('}'))
        .ok_or_else(|| Error::custom("the record has no document"))?;
    if !members.is_empty() {
        out.push(b',');
        out.extend_from_slice(members.as_bytes());
    }
    Ok(())
}
