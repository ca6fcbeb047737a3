//! Tasks that mean harm.

use proptest::prelude::*;

use super::*;

/// In every text of a hostile task.
const MARK: &str = "HOSTILE";

/// Texts that mean something to shells, templates, YAML, JSON or Kubernetes.
fn text() -> impl Strategy<Value = String> {
    let traps = prop::sample::select(vec![
        "$(X)",
        "$$(X)",
        "${X}",
        "`x`",
        "'",
        "\"",
        "\\",
        "\n",
        "\r\n- x: y\n",
        "{}",
        "{{ .x }}",
        "*a",
        "&b",
        "!!t",
        "# c",
        "---\n",
        "%",
        "\u{202e}",
        "\u{feff}",
        "ä",
        "<>",
        "null",
        "~",
    ]);
    prop_oneof![
        (traps.clone(), traps).prop_map(|(a, b)| format!("{a}{MARK}{b}")),
        "\\PC{0,20}".prop_map(|text| format!("{text}{MARK}")),
    ]
}

fn path() -> impl Strategy<Value = String> {
    let top = prop::sample::select(vec!["/data", "/etc", "/work/x", "", "/usr/share", "/tmp"]);
    (top, text()).prop_map(|(top, text)| {
        let name = text.replace([':', '/'], "_");
        format!("{top}/{name}")
    })
}

proptest! {
    #[test]
    fn no_text_of_a_task_is_in_the_manifests_but_images_and_mounts(
        words in prop::collection::vec(text(), 1..4),
        (key, value, tag, url, content, parameter) in
            (text(), text(), text(), text(), text(), text()),
        (input, output, volume, stream, workdir) in (path(), path(), path(), path(), path()),
        mounted in path(),
    ) {
        let document = json!({
            "name": tag, "description": value, "tags": {&key: tag},
            "executors": [{
                "image": "alpine:3", "command": words, "env": {&key: value},
                "stdin": input, "stdout": stream, "stderr": stream, "workdir": workdir,
            }],
            "inputs": [
                {"path": input, "url": format!("s3://b/{url}"), "name": tag, "type": "FILE"},
                {"path": mounted, "url": format!("file:///data/{url}"), "type": "FILE",
                 "streamable": true},
                {"path": "/c", "url": null, "content": content, "type": "FILE"},
            ],
            "outputs": [{"path": output, "url": format!("s3://b/{url}"), "type": "DIRECTORY"}],
            "volumes": [volume],
            "resources": {"backend_parameters": {}, "disk_gb": 1.0},
        });
        let task: Task = serde_json::from_value(document).unwrap();
        // Some paths are refused.
        let Ok(mut plan) = Plan::new("t1", &task, &UrlSecrets::default()) else {
            return Ok(());
        };
        let surroundings = surroundings(super::streams::CLAIM);
        let made = made(&plan, &surroundings);
        let all = json!({ "plan": made.plan, "pod": made.pod });
        prop_assert_eq!(betrayed(&all, ""), None);

        plan.resources.backend_parameters.insert("queue".to_owned(), parameter.clone());
        prop_assert!(manifests(&attempt(), &plan, &surroundings).is_err());
        plan.resources.backend_parameters.clear();
        plan.resources.zones = vec![parameter];
        if let Ok(made) = manifests(&attempt(), &plan, &surroundings) {
            prop_assert!(is_label_value(&plan.resources.zones[0]));
            check(&plan, &made);
        }
    }
}

/// Where there is a text of a task that must not be there.
fn betrayed(value: &Value, key: &str) -> Option<String> {
    match value {
        Value::String(text) if text.contains(MARK) => {
            (!["mountPath", "subPath", "image"].contains(&key)).then(|| format!("{key}: {text}"))
        }
        Value::Array(values) => values.iter().find_map(|value| betrayed(value, key)),
        Value::Object(fields) => fields.iter().find_map(|(key, value)| {
            if key.contains(MARK) {
                return Some(key.clone());
            }
            betrayed(value, key)
        }),
        _ => None,
    }
}
