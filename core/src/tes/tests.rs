//! Properties of the whole way of a document: accepted, stored, shown.

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::scheduler::store::RawRecord;
use crate::scheduler::{Head, Owner};
use crate::time::Timestamp;

fn rules() -> Rules {
    let prefixes = ["file:///data", "s3://", "ftp://", "https://"];
    Rules {
        prefixes: prefixes
            .map(|prefix| PrefixRule {
                prefix: prefix.into(),
                write: true,
                list: true,
            })
            .into(),
        ..Rules::default()
    }
}

/// Any JSON, with many of the names and words that mean something.
fn any_json() -> impl Strategy<Value = Value> {
    let word = prop_oneof![
        proptest::sample::select(vec![
            "",
            "FILE",
            "DIRECTORY",
            "/a/b",
            "/a",
            "/a/*/[b]\\",
            "s3://b/k",
            "ftp://u:p@h/x",
            "4",
            "/data/../x",
            "file:///data/%2e%2e",
            "true",
            "\0",
        ])
        .prop_map(str::to_owned),
        ".{0,12}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|n| json!(n)),
        word.prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 64, 8, |inner| {
        let name = proptest::sample::select(vec![
            "name",
            "description",
            "inputs",
            "outputs",
            "resources",
            "executors",
            "volumes",
            "tags",
            "url",
            "path",
            "path_prefix",
            "pathPrefix",
            "type",
            "content",
            "streamable",
            "image",
            "command",
            "workdir",
            "stdin",
            "stdout",
            "stderr",
            "env",
            "ignore_error",
            "cpu_cores",
            "ram_gb",
            "disk_gb",
            "zones",
            "preemptible",
            "backend_parameters",
            "x",
        ]);
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            btree_map(name.prop_map(str::to_owned), inner, 0..8)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// A document that is accepted.
fn good_document() -> impl Strategy<Value = Value> {
    let text = || option::of(".{0,8}".prop_filter("NUL", |s| !s.contains('\0')));
    let url = proptest::sample::select(vec![
        "s3://b/k",
        "/data/a b",
        "file:///data/x",
        "ftp://u:p%40w@h/x",
        "https://h/x?q#f",
    ]);
    let urls = (url.clone(), url, any::<bool>(), 0_u8..4);
    let resources = option::of((1_i32.., 0.001_f64..1e6, any::<bool>()));
    let words = btree_map("[a-z]{1,3}", "[^\0]{0,4}", 0..4);
    (text(), text(), urls, resources, words, vec(text(), 1..4)).prop_map(
        |(name, description, (input, output, lower, kinds), resources, words, arguments)| {
            let mut document = json!({
                "name": name,
                "description": description,
                "inputs": [
                    null,
                    {"url": input, "path": "/in//f/", "type": if lower { "file" } else { "" }},
                    {"content": name, "path": "/in/content", "url": input},
                ],
                "outputs": [
                    {"url": output, "path": "/out/f"},
                    {"url": output, "path": "/out/[ab]*", "path_prefix": "/out"},
                    {"url": output, "path": "/out/d", "type": "directory"},
                ],
                "volumes": [null, "/v/"],
                "tags": words,
                "executors": [{
                    "image": "i",
                    "command": arguments.iter().map(|a| format!("-{a:?}")).collect::<Vec<_>>(),
                    "env": words,
                    "workdir": "/out",
                    "stdout": "/out/log",
                    "ignore_error": lower,
                }],
            });
            if let Some((cores, ram, preemptible)) = resources {
                document["resources"] = json!({
                    "cpu_cores": cores.to_string(), "ramGb": ram, "disk_gb": ram.ceil(),
                    "preemptible": preemptible, "zones": "z",
                });
            }
            let members = document.as_object_mut().unwrap();
            if kinds & 1 == 1 {
                members.remove("inputs");
            }
            if kinds & 2 == 2 {
                members.remove("outputs");
            }
            document
        },
    )
}

fn record(accepted: &Accepted, state: State) -> RawRecord {
    let logs = vec![TaskLog {
        logs: vec![ExecutorLog {
            stdout: Some("o".into()),
            stderr: Some(String::new()),
            ..ExecutorLog::default()
        }],
        system_logs: Some(accepted.warnings.clone()),
        ..TaskLog::default()
    }];
    let now = Timestamp::now();
    RawRecord {
        head: Head {
            id: crate::scheduler::TaskId::random(),
            owner: Owner::default(),
            state,
            created: now,
            changed: now,
            attempt: 1,
            not_before: None,
            version: 1,
        },
        document: serde_json::to_string(&accepted.task).unwrap().into(),
        logs: serde_json::to_string(&logs).unwrap().into(),
    }
}

fn shown(record: &RawRecord, view: View) -> Map<String, Value> {
    let mut out = Vec::new();
    view::write(&mut out, record, view).unwrap();
    serde_json::from_slice(&out).unwrap()
}

/// Whether a null is anywhere in it.
fn has_null(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(elements) => elements.iter().any(has_null),
        Value::Object(members) => members.values().any(has_null),
        _ => false,
    }
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_document() {
    let text = json!({"executors": [{"image": "i", "command": ["c"]}]}).to_string();
    let marked = [b"\xef\xbb\xbf", text.as_bytes()].concat();
    let read = |body: &[u8]| accept(body, &rules()).map(|accepted| accepted.task);
    assert_eq!(read(&marked).unwrap(), read(text.as_bytes()).unwrap());
}

mod fuzz {
    use super::*;

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(body in any::<Vec<u8>>()) {
            let _ = accept(&body, &rules());
        }

        #[test]
        fn no_json_makes_it_panic_and_what_is_refused_is_explained(mut value in any_json()) {
            if let Some(task) = value.as_object_mut() {
                task.entry("executors").or_insert(json!([{"image": "i", "command": ["c"]}]));
            }
            match accept(value.to_string().as_bytes(), &rules()) {
                Ok(accepted) => prop_assert!(!has_null(&serde_json::to_value(accepted.task).unwrap())),
                Err(Rejection::Syntax(msg)) => prop_assert!(false, "{}", msg),
                Err(Rejection::Invalid(errors)) => {
                    prop_assert!(!errors.is_empty());
                    prop_assert!(errors.iter().all(|e| !e.field.is_empty() && !e.msg.is_empty()));
                }
            }
        }

        #[test]
        fn what_was_accepted_is_accepted_again_unchanged(document in good_document()) {
            let first = accept(document.to_string().as_bytes(), &rules()).unwrap();
            let stored = serde_json::to_string(&first.task).unwrap();
            let again = accept(stored.as_bytes(), &rules()).unwrap();
            prop_assert_eq!(&again.task, &first.task);
            prop_assert_eq!(serde_json::to_string(&again.task).unwrap(), stored.clone());
            // And what is stored is read back.
            prop_assert_eq!(serde_json::from_str::<Task>(&stored).unwrap(), first.task);
        }

        #[test]
        fn a_password_is_masked_exactly_where_a_storage_reads_it(user in "[a-z@:%+.*-]{0,12}") {
            let sent = format!("ftp://{user}@h/a:b@c");
            let document = json!({
                "inputs": [{"path": "/in/f", "url": sent}],
                "executors": [{"image": "i", "command": ["c"]}],
            });
            let accepted = accept(document.to_string().as_bytes(), &rules()).unwrap();
            let shown = accepted.task.inputs.unwrap().remove(0).url.unwrap();
            let password = |url: &str| {
                let url: crate::storage::StorageUrl = url.parse().unwrap();
                url.password().map(str::to_owned)
            };
            prop_assert_eq!(password(&shown), password(&sent).map(|_| "***".to_owned()));
            prop_assert_eq!(accepted.secrets.restore("inputs[0].url", &shown), sent);
        }

        #[test]
        fn each_view_has_exactly_its_fields(
            document in good_document(),
            state in proptest::sample::select(State::ALL.to_vec()),
        ) {
            let accepted = accept(document.to_string().as_bytes(), &rules()).unwrap();
            let record = record(&accepted, state);
            let names = |view: &Map<String, Value>| view.keys().cloned().collect::<Vec<_>>();
            let minimal = shown(&record, View::Minimal);
            prop_assert_eq!(names(&minimal), ["id", "state"]);
            let full = shown(&record, View::Full);
            let task = serde_json::to_value(&accepted.task).unwrap();
            let mut expected: Vec<String> = names(task.as_object().unwrap());
            expected.extend(["id", "state", "creation_time", "logs"].map(String::from));
            expected.sort();
            prop_assert_eq!(names(&full), expected);
            let mut basic = full.clone();
            for input in basic.get_mut("inputs").and_then(Value::as_array_mut).into_iter().flatten() {
                input.as_object_mut().unwrap().remove("content");
            }
            basic["logs"] = json!([{"logs": [{"exit_code": 0}], "outputs": []}]);
            prop_assert_eq!(shown(&record, View::Basic), basic);
        }

        #[test]
        fn clients_read_every_view(document in good_document()) {
            let accepted = accept(document.to_string().as_bytes(), &rules()).unwrap();
            let record = record(&accepted, State::Complete);
            for view in [View::Minimal, View::Basic, View::Full] {
                let json = Value::Object(shown(&record, view));
                let reply: TaskReply = serde_json::from_value(json.clone()).unwrap();
                prop_assert_eq!(reply.task.is_some(), view.needs_document());
                if view == View::Full {
                    prop_assert_eq!(reply.task.as_ref(), Some(&accepted.task));
                }
                prop_assert_eq!(serde_json::to_value(&reply).unwrap(), json);
            }
        }
    }
}
