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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::scheduler::{Head, Owner};
    use crate::tes::State;
    use crate::time::Timestamp;

    fn record(document: &Value, logs: &Value) -> RawRecord {
        RawRecord {
            head: Head {
                id: "t1".parse().unwrap(),
                owner: Owner::default(),
                state: State::Running,
                created: Timestamp::from_millis(0),
                changed: Timestamp::from_millis(0),
                attempt: 1,
                not_before: None,
                version: 1,
            },
            document: document.to_string().into(),
            logs: logs.to_string().into(),
        }
    }

    fn shown(record: &RawRecord, view: View) -> Value {
        let mut out = Vec::new();
        write(&mut out, record, view).unwrap();
        serde_json::from_slice(&out).unwrap()
    }

    fn full() -> (Value, Value) {
        let document = json!({
            "name": "n", "description": "the \"content\": is \"stdout\"",
            "inputs": [
                {"path": "/i", "type": "FILE", "content": "secret"},
                {"path": "/j", "type": "FILE", "url": "s3://b/k"},
            ],
            "outputs": [{"url": "s3://b/o", "path": "/o", "type": "FILE"}],
            "resources": {"cpu_cores": 4, "ram_gb": 0.5},
            "executors": [{
                "image": "i", "command": ["c"], "stdout": "/out", "stderr": "/err",
                "ignore_error": true,
            }],
            "volumes": ["/v"],
            "tags": {"content": "kept"},
        });
        let logs = json!([
            {
                "logs": [{
                    "start_time": "2026-01-31T00:00:00.000Z", "stdout": "o", "stderr": "e",
                    "exit_code": 0,
                }],
                "metadata": {"host": "h"},
                "outputs": [{"url": "s3://b/o", "path": "/o", "size_bytes": "5"}],
                "system_logs": ["lost"],
            },
            {"logs": [], "outputs": []},
        ]);
        (document, logs)
    }

    #[test]
    fn minimal_has_id_and_state() {
        let (document, logs) = full();
        let mut out = Vec::new();
        write(&mut out, &record(&document, &logs), View::Minimal).unwrap();
        assert_eq!(out, br#"{"id":"t1","state":"RUNNING"}"#);
    }

    #[test]
    fn full_has_everything() {
        let (document, logs) = full();
        let mut expected = document.clone();
        let members = expected.as_object_mut().unwrap();
        members.insert("id".into(), json!("t1"));
        members.insert("state".into(), json!("RUNNING"));
        members.insert("creation_time".into(), json!("1970-01-01T00:00:00.000Z"));
        members.insert("logs".into(), logs.clone());
        assert_eq!(shown(&record(&document, &logs), View::Full), expected);
    }

    #[test]
    fn basic_has_no_contents_no_captured_output_and_no_system_logs() {
        let (document, logs) = full();
        let mut expected = shown(&record(&document, &logs), View::Full);
        let drop = |value: &mut Value, name: &str| {
            value.as_object_mut().unwrap().remove(name).unwrap();
        };
        drop(&mut expected["inputs"][0], "content");
        drop(&mut expected["logs"][0], "system_logs");
        drop(&mut expected["logs"][0]["logs"][0], "stdout");
        drop(&mut expected["logs"][0]["logs"][0], "stderr");
        assert_eq!(shown(&record(&document, &logs), View::Basic), expected);
        assert_eq!(expected["executors"][0]["stdout"], "/out");
        assert_eq!(expected["tags"]["content"], "kept");
    }

    #[test]
    fn a_record_without_texts_shows_minimal_only() {
        let mut bare = record(&json!({}), &json!([]));
        assert_eq!(shown(&bare, View::Full)["logs"], json!([]));
        bare.document = "".into();
        bare.logs = "".into();
        shown(&bare, View::Minimal);
        for view in [View::Basic, View::Full] {
            assert!(write(&mut Vec::new(), &bare, view).is_err());
        }
    }

    #[test]
    fn names_of_views_are_read_in_any_case() {
        assert_eq!("".parse(), Ok(View::Minimal));
        assert_eq!("minimal".parse(), Ok(View::Minimal));
        assert_eq!("Basic".parse(), Ok(View::Basic));
        assert_eq!("FULL".parse(), Ok(View::Full));
        let error = "x".parse::<View>().unwrap_err();
        assert_eq!(error.field, "view");
    }
}
