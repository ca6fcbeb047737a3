//! What clients send, and what is made of it.

use super::*;

#[test]
fn broken_json_is_refused_with_line_and_column() {
    let error = accept(b"{\n \"name\": }", &rules()).unwrap_err();
    assert!(matches!(&error, Rejection::Syntax(_)), "{error:?}");
    assert!(error.to_string().contains("line 2 column 10"), "{error}");
    for body in [
        &b""[..],
        b" \n",
        b"{}{}",
        b"{\"name\":\"\xff\"}",
        b"\"\\ud800\"",
    ] {
        assert!(
            matches!(accept(body, &rules()), Err(Rejection::Syntax(_))),
            "{body:?}"
        );
    }
}

#[test]
fn a_deeply_nested_document_is_refused_before_it_exhausts_the_stack() {
    for open in ["[", "{\"a\":"] {
        let error = accept(open.repeat(100_000).as_bytes(), &rules()).unwrap_err();
        assert!(matches!(error, Rejection::Syntax(_)), "{error:?}");
    }
}

#[test]
fn a_document_that_is_no_object_is_refused() {
    assert_eq!(breaches_of(b"[]")[0], "task: must be an object, not a list");
    assert_eq!(breaches_of(b"null")[0], "task: must be an object, not null");
}

#[test]
fn nulls_vanish_and_empty_values_survive() {
    let echo = echo(json!({
        "name": null,
        "description": "",
        "inputs": [null],
        "volumes": ["/v", null],
        "tags": {"parent_workflow_id": null, "empty": ""},
        "resources": {"cpu_cores": null, "zones": [null, "z"]},
    }));
    assert_eq!(
        echo,
        json!({
            "description": "",
            "inputs": [],
            "volumes": ["/v"],
            "tags": {"empty": ""},
            "resources": {"zones": ["z"]},
        })
    );
}

#[test]
fn unknown_and_read_only_fields_never_come_back() {
    let echo = echo(json!({
        "id": "x", "state": "COMPLETE", "logs": 5, "creation_time": {}, "vendor": ["\u{0}"],
    }));
    assert_eq!(echo, json!({}));
}

#[test]
fn a_misspelt_key_is_ignored_with_a_warning_that_names_the_nearest() {
    let mut warnings = accepted(json!({
        "executors": [{
            "image": "i", "command": ["c"], "std_out": "/o", "ignore_eror": true, "Stdin": "/in",
        }],
        "resources": {"cpus": 2, "memory": 4, "cpu_cores": null},
        "inputs": [null, {"path": "/in", "uri": "s3://b/k", "content": ""}],
        "tag": {"a": "b"},
    }))
    .warnings;
    warnings.sort_unstable();
    let slip = |field: &str, meant: &str| {
        format!("{field} is not a key of TES 1.1, and ignored; did you mean `{meant}`?")
    };
    assert_eq!(
        warnings,
        [
            slip("executors[0].Stdin", "stdin"),
            slip("executors[0].ignore_eror", "ignore_error"),
            slip("executors[0].std_out", "stdout"),
            slip("inputs[1].uri", "url"),
            slip("resources.cpus", "cpu_cores"),
            slip("resources.memory", "ram_gb"),
            slip("tag", "tags"),
        ]
    );
}

#[test]
fn a_clients_own_keys_make_no_warning() {
    let mut executor = json!({
        "image": "i", "command": ["c"], "gpu": true, "x-retries": 3, "std_err": null,
        // Beside the one that it is near to.
        "stdout": "/o", "std_out": "/o",
        "stdi\u{0}": "/in",
    });
    executor["stdin".repeat(100_000)] = json!("/in");
    let accepted = accepted(json!({
        "executors": [executor],
        "id": "x", "state": "COMPLETE", "logs": [], "creation_time": "never", "vendor": {},
    }));
    assert_eq!(accepted.warnings, [""; 0]);
}

#[test]
fn a_flood_of_misspelt_keys_makes_few_warnings() {
    let executor = json!({"image": "i", "command": ["c"], "std_out": "/o", "std_err": "/e"});
    let warnings = accepted(json!({"executors": vec![&executor; 1_000]})).warnings;
    assert_eq!(warnings.len(), 21);
    assert_eq!(warnings[20], "980 more warnings are not listed");
    // Nor are all keys compared.
    let mut own = json!({"image": "i", "command": ["c"]});
    for n in 0..1_000 {
        own[format!("own{n}")] = json!(n);
    }
    let after_many = accepted(json!({"executors": [own, executor]}));
    assert_eq!(after_many.warnings, [""; 0]);
}

#[test]
fn what_is_missing_is_hinted_at_where_its_name_is_misspelt() {
    assert_eq!(
        breaches_of(br#"{"executor": [{"image": "i", "command": ["c"]}]}"#),
        ["executors: at least one is needed; there is `executor`, which is not a key of TES 1.1"]
    );
    assert_eq!(
        breach(json!({"executors": [{"image": "i", "cmd": ["c"]}]})),
        "executors[0].command: missing; there is `cmd`, which is not a key of TES 1.1"
    );
}

#[test]
fn camel_case_is_read_and_snake_case_wins() {
    let accepted = accepted(json!({
        "resources": {
            "cpuCores": 2, "ramGb": 3, "ram_gb": 4, "diskGb": 5, "disk_gb": null,
            "backendParameters": {"nodepool": "a"}, "backendParametersStrict": true,
        },
        "executors": [{"image": "i", "command": ["c"], "workDir": "/w", "ignoreError": "true"}],
        "outputs": [{"path": "/o/*", "url": "s3://b", "pathPrefix": "/o"}],
    }));
    assert_eq!(
        serde_json::to_value(accepted.task).unwrap(),
        json!({
            "outputs": [{"url": "s3://b", "path": "/o/*", "path_prefix": "/o", "type": "FILE"}],
            "resources": {
                "cpu_cores": 2, "ram_gb": 4, "disk_gb": 5,
                "backend_parameters": {"nodepool": "a"}, "backend_parameters_strict": true,
            },
            "executors": [
                {"image": "i", "command": ["c"], "workdir": "/w", "ignore_error": true},
            ],
        })
    );
}

#[test]
fn numbers_and_booleans_may_be_strings_and_come_back_plain() {
    let resources = json!({"resources": {
        "cpu_cores": "4", "ram_gb": 8.0, "disk_gb": "0.5", "preemptible": "True", "zones": "z",
    }});
    let text = serde_json::to_string(&accepted(resources).task.resources).unwrap();
    assert_eq!(
        text,
        r#"{"cpu_cores":4,"preemptible":true,"ram_gb":8,"disk_gb":0.5,"zones":["z"]}"#
    );
    assert_eq!(
        serde_json::to_string(
            &accepted(json!({"resources": {"cpu_cores": 4.0}}))
                .task
                .resources
        )
        .unwrap(),
        r#"{"cpu_cores":4}"#
    );
}

#[test]
fn words_may_be_integers_and_booleans_but_no_fractions() {
    let accepted = accepted(json!({
        "executors": [{"image": "i", "command": ["c", 5, true, ""], "env": {"N": -1}}],
        "tags": {"n": 18_446_744_073_709_551_615_u64},
    }));
    assert_eq!(accepted.task.executors[0].command, ["c", "5", "true", ""]);
    assert_eq!(accepted.task.executors[0].env.as_ref().unwrap()["N"], "-1");
    assert_eq!(accepted.task.tags.unwrap()["n"], "18446744073709551615");
    assert_eq!(
        breaches(json!({
            "executors": [{"image": "i", "command": ["c", 5.0, null, []]}],
            "tags": {"a": 1.5, "b": {}},
        })),
        [
            "executors[0].command[1]: must be a string, not a number",
            "executors[0].command[2]: must be a string, not null",
            "executors[0].command[3]: must be a string, not a list",
            "tags.a: must be a string, not a number",
            "tags.b: must be a string, not an object",
        ]
    );
}

#[test]
fn the_type_is_filled_in_and_read_in_any_case() {
    for (sent, kind) in [
        (json!(null), "FILE"),
        (json!(""), "FILE"),
        (json!("file"), "FILE"),
        (json!("Directory"), "DIRECTORY"),
    ] {
        assert_eq!(
            echo(input(json!({"type": sent})))["inputs"][0]["type"],
            kind
        );
    }
    assert_eq!(
        breach(input(json!({"type": "LINK"}))),
        "inputs[0].type: must be FILE or DIRECTORY"
    );
}

#[test]
fn empty_texts_count_as_absent_where_only_a_path_or_url_makes_sense() {
    let accepted = accepted(json!({
        "executors": [{
            "image": "i", "command": ["c"], "workdir": "", "stdin": "", "stdout": "", "stderr": "",
        }],
        "outputs": [{"path": "/work/o", "url": "s3://b/o", "path_prefix": ""}],
        "inputs": [{"path": "/in", "url": "", "content": "x"}],
    }));
    let task = accepted.task;
    assert_eq!(task.executors[0].workdir, None);
    assert_eq!(task.executors[0].stdin, None);
    assert_eq!(task.outputs.unwrap()[0].path_prefix, None);
    assert_eq!(task.inputs.unwrap()[0].url, None);
    assert_eq!(
        breach(output(json!({"url": ""}))),
        "outputs[0].url: missing"
    );
}

#[test]
fn a_nul_character_is_refused_everywhere_but_in_content() {
    assert_eq!(
        breaches(json!({
            "name": "a\0",
            "inputs": [{"path": "/in\0", "content": "a\0b"}],
            "volumes": ["/v\0"],
            "tags": {"k": "\0"},
            "executors": [{"image": "i", "command": ["c\0"], "env": {"K\0": "v"}}],
        })),
        [
            "inputs[0].path: contains a NUL character",
            "executors[0].command[0]: contains a NUL character",
            "executors[0].env: a key contains a NUL character",
            "volumes[0]: contains a NUL character",
            "name: contains a NUL character",
            "tags.k: contains a NUL character",
        ]
    );
    assert_eq!(
        accepted(json!({"inputs": [{"path": "/in", "content": "a\0b"}]}))
            .task
            .inputs
            .unwrap()[0]
            .content
            .as_deref(),
        Some("a\0b")
    );
}

#[test]
fn all_breaches_are_reported_together_with_the_clients_indices() {
    assert_eq!(
        breaches_of(
            json!({
                "name": 5,
                "executors": [null, {"image": " ", "command": []}],
                "outputs": [null, null, {"path": "/o/x"}, {"path": "rel", "url": "s3://b/k"}],
                "inputs": [{"url": "s3://b/k"}, "x", {"path": "/a", "url": "foo://h/"}],
            })
            .to_string()
            .as_bytes()
        ),
        [
            "inputs[0].path: missing",
            "inputs[1]: must be an object, not a string",
            "outputs[2].url: missing",
            "name: must be a string, not a number",
            "executors[1].image: must not be empty",
            "executors[1].command: must not be empty",
            "inputs[2].url: foo://h/ has another scheme; this server serves file, ftp, https, s3",
            "outputs[3].path: must be an absolute path",
        ]
    );
}

#[test]
fn a_flood_of_breaches_is_cut_short() {
    let inputs = vec![json!(0); 10_000];
    let breaches = breaches(json!({ "inputs": inputs }));
    assert_eq!(breaches.len(), 501);
    assert_eq!(breaches[500], "task: 9500 more errors are not listed");
}

#[test]
fn a_breach_of_a_long_key_does_not_repeat_all_of_it() {
    let key = "k".repeat(1_000_000);
    assert!(breach(json!({"tags": {key: []}})).len() < 200);
}

#[test]
fn a_list_or_object_of_too_many_parts_is_one_breach_and_none_of_it_is_read() {
    let nothings = |count: usize| vec![json!({}); count];
    let words = |count: usize| -> serde_json::Map<String, Value> {
        (0..count).map(|n| (format!("k{n}"), json!(0.5))).collect()
    };
    let executor = |member: &str, value: Value| {
        let mut executor = json!({"image": "i", "command": ["c"]});
        executor[member] = value;
        json!({ "executors": [executor] })
    };
    for (changes, expected) in [
        (
            json!({ "executors": nothings(1_001) }),
            "executors: must have at most 1000 ",
        ),
        (
            json!({ "inputs": nothings(10_001) }),
            "inputs: must have at most 10000 ",
        ),
        (
            json!({ "outputs": nothings(10_001) }),
            "outputs: must have at most 10000 ",
        ),
        (
            json!({ "volumes": nothings(10_001) }),
            "volumes: must have at most 10000 ",
        ),
        (
            json!({ "tags": words(1_001) }),
            "tags: must have at most 1000 ",
        ),
        (
            json!({ "resources": { "zones": nothings(1_001) } }),
            "resources.zones: must have at most 1000 ",
        ),
        (
            json!({ "resources": { "backend_parameters": words(1_001) } }),
            "resources.backend_parameters: must have at most 1000 ",
        ),
        (
            executor("env", words(10_001).into()),
            "executors[0].env: must have at most 10000 ",
        ),
        (
            executor("command", nothings(100_001).into()),
            "executors[0].command: must have at most 100000 ",
        ),
    ] {
        let found = breach(changes);
        assert!(found.starts_with(expected), "{found} for {expected}");
    }
}

#[test]
fn ten_thousand_inputs_and_arguments_with_any_text_are_accepted() {
    let inputs =
        (0..10_000).map(|n| json!({"url": format!("s3://b/{n}"), "path": format!("/in/{n}")}));
    let marks = ",{[:\\\"".repeat(200_000);
    accepted(json!({
        "description": marks,
        "inputs": inputs.collect::<Vec<_>>(),
        "executors": [{"image": "i", "command": vec!["c"; 100_000]}],
    }));
}

#[test]
fn a_document_of_millions_of_parts_is_refused_before_it_is_a_tree() {
    for (start, part, end) in [
        (r#"{"executors":["#, "{},", "{}]}"),
        (r#"{"unknown":["#, "[],", "0]}"),
        (r#"{"unknown":["#, r#"{"a":0},"#, "0]}"),
    ] {
        let body = [start, &part.repeat(300_000), end].concat();
        assert_eq!(
            breaches_of(body.as_bytes()),
            ["task: must have at most 300000 brackets, braces, commas and colons"]
        );
    }
    // Whatever is not JSON is none either way.
    for body in [
        "\"".to_owned() + &"\\".repeat(2_000_000),
        ",".repeat(2_000_000),
    ] {
        accept(body.as_bytes(), &rules()).unwrap_err();
    }
}
