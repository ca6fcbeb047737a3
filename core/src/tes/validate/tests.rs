mod fields;
mod reading;
mod urls;

use serde_json::{Value, json};

use super::*;

fn rule(prefix: &str, write: bool, list: bool) -> PrefixRule {
    PrefixRule {
        prefix: prefix.into(),
        write,
        list,
    }
}

fn rules() -> Rules {
    fn pool(value: &str) -> Result<(), String> {
        match value {
            "a" | "b" => Ok(()),
            _ => Err("must be a or b".into()),
        }
    }
    Rules {
        prefixes: vec![
            rule("file:///data", true, true),
            rule("s3://", true, true),
            rule("ftp://", true, true),
            rule("https://", true, false),
            rule("https://dav.example.org/shared", false, true),
        ],
        max_cpu_cores: Some(8),
        max_ram_gb: Some(64.0),
        max_disk_gb: Some(100.0),
        backend_parameters: [("NodePool".to_owned(), ParameterCheck::new(pool))].into(),
    }
}

/// A minimal task with `changes` merged over it.
fn task(changes: Value) -> Vec<u8> {
    let mut task = json!({"executors": [{"image": "alpine", "command": ["true"]}]});
    let Value::Object(changes) = changes else {
        panic!("changes are an object")
    };
    task.as_object_mut().unwrap().extend(changes);
    task.to_string().into_bytes()
}

#[track_caller]
fn accepted(changes: Value) -> Accepted {
    accept(&task(changes), &rules()).unwrap()
}

/// What comes back of the members that were sent.
#[track_caller]
fn echo(changes: Value) -> Value {
    let mut echo = serde_json::to_value(accepted(changes).task).unwrap();
    echo.as_object_mut().unwrap().remove("executors");
    echo
}

/// `field: msg` of each breach.
#[track_caller]
fn breaches(changes: Value) -> Vec<String> {
    breaches_of(&task(changes))
}

#[track_caller]
fn breaches_of(body: &[u8]) -> Vec<String> {
    match accept(body, &rules()) {
        Err(Rejection::Invalid(errors)) => errors
            .into_iter()
            .map(|e| format!("{}: {}", e.field, e.msg))
            .collect(),
        other => panic!("{other:?}"),
    }
}

/// The only breach.
#[track_caller]
fn breach(changes: Value) -> String {
    let breaches = breaches(changes);
    assert_eq!(breaches.len(), 1, "{breaches:?}");
    breaches.into_iter().next().unwrap()
}

#[expect(clippy::needless_pass_by_value, reason = "reads better")]
fn input(changes: Value) -> Value {
    let mut input = json!({"path": "/in", "url": "s3://b/k"});
    input
        .as_object_mut()
        .unwrap()
        .extend(changes.as_object().unwrap().clone());
    json!({"inputs": [input]})
}

#[expect(clippy::needless_pass_by_value, reason = "reads better")]
fn output(changes: Value) -> Value {
    let mut output = json!({"path": "/work/out", "url": "s3://b/k"});
    output
        .as_object_mut()
        .unwrap()
        .extend(changes.as_object().unwrap().clone());
    json!({"outputs": [output]})
}
