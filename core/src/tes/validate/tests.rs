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
        backend_parameters: [("NodePool".to_owned(), pool as fn(&str) -> _)].into(),
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

// Reading.

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
        let error = accept(open.repeat(1_000_000).as_bytes(), &rules()).unwrap_err();
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
                "inputs": [{"url": "s3://b/k"}, "x", {"path": "/a", "url": "gopher://h/"}],
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
            "inputs[2].url: has another scheme; this server serves file, ftp, https, s3",
            "outputs[3].path: must be an absolute path",
        ]
    );
}

#[test]
fn a_flood_of_breaches_is_cut_short() {
    let inputs = vec![json!(0); 100_000];
    let breaches = breaches(json!({ "inputs": inputs }));
    assert_eq!(breaches.len(), 501);
    assert_eq!(breaches[500], "task: 99500 more errors are not listed");
}

#[test]
fn a_breach_of_a_long_key_does_not_repeat_all_of_it() {
    let key = "k".repeat(1_000_000);
    assert!(breach(json!({"tags": {key: []}})).len() < 200);
}

// Rules.

#[test]
fn an_executor_with_image_and_command_is_needed() {
    for executors in [json!(null), json!([]), json!([null])] {
        assert_eq!(
            breach(json!({"executors": executors})),
            "executors: at least one is needed"
        );
    }
    assert_eq!(
        breaches(json!({"executors": [{}, {"image": "\t", "command": [""]}]})),
        [
            "executors[0].image: missing",
            "executors[0].command: must not be empty",
            "executors[1].image: must not be empty",
            "executors[1].command[0]: must not be empty",
        ]
    );
}

#[test]
fn keys_of_env_and_tags_are_not_empty_and_variables_have_no_equals_sign() {
    assert_eq!(
        breaches(json!({
            "tags": {"": "x", "a=b": ""},
            "executors": [{"image": "i", "command": ["c"], "env": {"": "x", "A=B": "y"}}],
        })),
        [
            "executors[0].env: a key must not be empty",
            "executors[0].env.A=B: a variable's name must not contain =",
            "tags: a key must not be empty",
        ]
    );
}

#[test]
fn paths_are_absolute_and_stay_where_they_are() {
    let executor = json!({
        "image": "i", "command": ["c"],
        "workdir": "w", "stdin": "/../etc", "stdout": "/", "stderr": "//./",
    });
    assert_eq!(
        breaches(json!({
            "executors": [executor],
            "inputs": [{"path": "/a/../b", "url": "s3://b/k"}, {"path": "", "url": "s3://b/k"}],
            "outputs": [
                {"path": "/", "url": "s3://b/k"},
                {"path": "/a/\\..", "url": "s3://b/k"},
                {"path": "/a/*/\\../x", "url": "s3://b/k", "path_prefix": "/a"},
            ],
            "volumes": ["v", "/proc/v", "/.tesk"],
        })),
        [
            "executors[0].workdir: must be an absolute path",
            "executors[0].stdin: must not contain a .. component",
            "executors[0].stdout: must not be /",
            "executors[0].stderr: must not be /",
            "inputs[0].path: must not contain a .. component",
            "inputs[1].path: must be an absolute path",
            "outputs[0].path: must not be /",
            "outputs[1].path: must not contain a .. component",
            "outputs[2].path: must not contain a .. component",
            "volumes[0]: must be an absolute path",
            "volumes[1]: must not lie in /proc, which belongs to the system",
            "volumes[2]: must not lie in /.tesk, which belongs to the system",
        ]
    );
    accepted(json!({"executors": [{"image": "i", "command": ["c"], "workdir": "/"}]}));
}

#[test]
fn nothing_lies_below_a_file_input() {
    let file = |path: &str| json!({"path": path, "url": "s3://b/k"});
    assert_eq!(
        breaches(json!({
            "inputs": [file("/d/f/x"), file("/d/f-1"), file("//d/f/"), file("/d/f")],
            "outputs": [file("/d/f"), file("/d/f/y/z")],
            "volumes": ["/d/f", "/d/fa"],
        })),
        [
            "volumes[0]: lies below inputs[2].path, which is a file",
            "inputs[0].path: lies below inputs[2].path, which is a file",
            "outputs[1].path: lies below inputs[2].path, which is a file",
        ]
    );
}

#[test]
fn content_wins_over_a_url_that_is_not_even_read() {
    for url in [json!("nonsense://x"), json!(5), json!(["\0"])] {
        let echo = echo(json!({"inputs": [{"path": "/in", "content": "x", "url": url}]}));
        assert_eq!(echo["inputs"][0]["content"], "x");
    }
    let masked = accepted(input(json!({"content": "x", "url": "ftp://u:secret@h/"})));
    assert!(masked.secrets.0.is_empty());
    assert_eq!(
        masked.task.inputs.unwrap()[0].url.as_deref(),
        Some("ftp://u:***@h/")
    );
    assert_eq!(
        breach(input(json!({"content": "x", "type": "DIRECTORY"}))),
        "inputs[0].content: a DIRECTORY cannot have content"
    );
}

#[test]
fn empty_content_is_an_empty_file_or_gives_way_to_the_url() {
    assert_eq!(
        echo(json!({"inputs": [{"path": "/in", "content": ""}]})),
        json!({"inputs": [{"path": "/in", "type": "FILE", "content": ""}]})
    );
    accepted(input(json!({"content": "", "type": "DIRECTORY"})));
    assert_eq!(
        breach(input(json!({"content": "", "url": "x://h/"}))),
        "inputs[0].url: has another scheme; this server serves file, ftp, https, s3"
    );
    assert_eq!(
        breach(json!({"inputs": [{"path": "/in"}]})),
        "inputs[0].url: missing"
    );
}

#[test]
fn several_contents_of_131072_quotes_are_accepted() {
    let content = "\"\n".repeat(65_536);
    let inputs: Vec<_> = (0..8)
        .map(|i| json!({"path": format!("/in/{i}"), "content": content}))
        .collect();
    let task = accepted(json!({ "inputs": inputs })).task;
    assert_eq!(task.inputs.unwrap()[7].content.as_deref(), Some(&*content));
}

#[test]
fn a_scheme_that_is_not_served_is_refused_and_those_that_are_listed() {
    for url in ["gopher://h/x", "_:uuid", "rel/path", "mailto:x"] {
        let breach = breach(input(json!({ "url": url })));
        assert!(
            breach.ends_with("this server serves file, ftp, https, s3"),
            "{breach}"
        );
    }
    accepted(input(json!({"url": "S3://no-such-bucket/k"})));
    accepted(input(
        json!({"url": "HTTPS://any.example.org:8443/k?sig=1"}),
    ));
}

#[test]
fn a_file_url_stays_within_the_configured_directories() {
    for url in [
        "/data/x",
        "file:///data/x",
        "file://localhost/data/x",
        "/data/a/../b",
        "/data/./x",
        "FILE:///data//x",
        "/data/%2e%2e/x",
        "/data",
    ] {
        accepted(input(json!({ "url": url })));
    }
    for url in [
        "/data2/x",
        "/dat",
        "/",
        "/data/../etc/passwd",
        "file:///data/%2e%2e/etc/passwd",
        "file:///data/..%2fetc/passwd",
        "file:///data/../data2/x",
        "file://",
        "file://evil/data/x",
        "file:///data/%00",
    ] {
        let breach = breach(input(json!({ "url": url })));
        assert!(!breach.contains("passwd"), "{breach}");
    }
}

#[test]
fn the_longest_prefix_decides_whether_one_can_list_and_write() {
    let directory = |url: &str| input(json!({"type": "DIRECTORY", "url": url}));
    accepted(directory("s3://b/d/"));
    accepted(directory("https://dav.example.org/shared/d"));
    assert_eq!(
        breach(directory("https://example.org/d")),
        "inputs[0].url: https cannot list what a DIRECTORY holds"
    );
    assert_eq!(
        breach(directory("https://dav.example.org/shared/../d")),
        "inputs[0].url: https cannot list what a DIRECTORY holds"
    );
    accepted(output(json!({"url": "https://dav.example.org/other/f"})));
    assert_eq!(
        breach(output(json!({"url": "https://dav.example.org/shared/f"}))),
        "outputs[0].url: nothing can be delivered to https://dav.example.org/shared"
    );
}

#[test]
fn a_file_output_names_a_file() {
    for url in ["s3://b/k/", "s3://b", "/data/out/", "https://h/x/?y=z"] {
        let breach = breach(output(json!({ "url": url })));
        assert!(breach.contains("must name a file"), "{breach}");
        accepted(output(json!({"url": url, "type": "DIRECTORY"})));
        accepted(output(
            json!({"url": url, "path": "/o/*", "path_prefix": "/o"}),
        ));
    }
    accepted(output(json!({"url": "https://h/x?dir=/"})));
}

#[test]
fn a_pattern_needs_a_prefix_that_its_literal_part_begins_with() {
    let pattern =
        |path: &str, prefix: Option<&str>| output(json!({"path": path, "path_prefix": prefix}));
    for (path, prefix) in [
        ("/work/out/*.txt", "/work"),
        ("/work/out/*.txt", "/work/out/"),
        ("/work/out/a?", "/work/out/a"),
        ("/work//out/*", "/work/./out"),
        ("/w[o]rk/x", "/"),
        ("/a\\*b/*", "/a*b"),
    ] {
        accepted(pattern(path, Some(prefix)));
    }
    for (path, prefix) in [
        ("/work/out/*.txt", "/out"),
        ("/work/out/*.txt", "work"),
        ("/work/out/*.txt", "/work/out/*"),
        ("/work*", "/work/"),
        ("/work/*/x", "/work/../etc"),
        ("/a\\*b/*", "/a\\*b"),
    ] {
        assert_eq!(
            breach(pattern(path, Some(prefix))),
            "outputs[0].path_prefix: must be how path begins, before the first wildcard"
        );
    }
    assert_eq!(
        breach(pattern("/work/*", None)),
        "outputs[0].path_prefix: missing: a path with wildcards needs it"
    );
    // Without a wildcard it does not matter.
    accepted(pattern("/work/[", Some("foreign")));
    accepted(pattern("/work/\\*", None));
}

#[test]
fn passwords_are_kept_apart_and_shown_as_stars() {
    let sent = json!({
        "inputs": [null, {"path": "/in", "url": "ftp://me:p%40ss:x@h/a@b"}],
        "outputs": [{"path": "/work/o", "url": "https://me:%2a@h/o?x=u:p@h"}],
    });
    let accepted = accepted(sent);
    assert_eq!(accepted.secrets.0["inputs[0].url"], "p%40ss:x");
    assert_eq!(accepted.secrets.0["outputs[0].url"], "%2a");
    let task = &accepted.task;
    let url = task.inputs.as_ref().unwrap()[0].url.as_deref().unwrap();
    assert_eq!(url, "ftp://me:***@h/a@b");
    assert_eq!(
        accepted.secrets.restore("inputs[0].url", url),
        "ftp://me:p%40ss:x@h/a@b"
    );
    assert_eq!(
        task.outputs.as_ref().unwrap()[0].url,
        "https://me:***@h/o?x=u:p@h"
    );
    assert!(!format!("{accepted:?}").contains("ss:x"));
}

#[test]
fn only_ftp_and_http_urls_name_a_user() {
    accepted(input(json!({"url": "ftp://user@h/x"})));
    for url in ["s3://key:secret@b/k", "file://me@localhost/data/x"] {
        assert_eq!(
            breach(input(json!({ "url": url }))),
            "inputs[0].url: only FTP and HTTP(S) urls may name a user"
        );
    }
    accepted(input(json!({"url": "s3://b/a:b@c"})));
    accepted(input(json!({"url": "/data/x://a:b@c"})));
}

#[test]
fn resources_are_positive_and_within_the_operators_limits() {
    assert_eq!(
        breaches(json!({"resources": {"cpu_cores": 0, "ram_gb": -0.5, "disk_gb": 0}})),
        [
            "resources.cpu_cores: must be more than 0",
            "resources.ram_gb: must be more than 0",
            "resources.disk_gb: must be more than 0",
        ]
    );
    assert_eq!(
        breaches(json!({"resources": {"cpu_cores": 9, "ram_gb": 64.5, "disk_gb": 1e300}})),
        [
            "resources.cpu_cores: must be at most 8 on this server",
            "resources.ram_gb: must be at most 64 on this server",
            "resources.disk_gb: must be at most 100 on this server",
        ]
    );
    assert_eq!(
        breaches(json!({"resources": {"cpu_cores": 4.5, "ram_gb": "NaN", "disk_gb": "much"}})),
        [
            "resources.cpu_cores: must be an integer",
            "resources.ram_gb: must be a number, not a string",
            "resources.disk_gb: must be a number, not a string",
        ]
    );
    assert_eq!(
        breach(json!({"resources": {"cpu_cores": 2_147_483_648_u32}})),
        "resources.cpu_cores: must be at most 2147483647"
    );
    accepted(json!({"resources": {"cpu_cores": 8, "ram_gb": 0.0021, "disk_gb": 100}}));
}

#[test]
fn an_unsupported_backend_parameter_is_dropped_with_a_warning_or_refused_if_strict() {
    let parameters = |strict: bool| {
        json!({"resources": {
            "backend_parameters": {"NODEPOOL": "a", "gpu": "1"},
            "backend_parameters_strict": strict,
        }})
    };
    let lenient = accepted(parameters(false));
    assert_eq!(
        lenient.warnings,
        ["backend parameter gpu is ignored: it is not supported by this server"]
    );
    let kept = lenient.task.resources.unwrap().backend_parameters.unwrap();
    assert_eq!(kept, [("NODEPOOL".to_owned(), "a".to_owned())].into());
    assert_eq!(
        breach(parameters(true)),
        "resources.backend_parameters.gpu: is not supported by this server"
    );
    let value = accepted(json!({"resources": {"backend_parameters": {"nodePool": "z"}}}));
    assert_eq!(
        value.warnings,
        ["backend parameter nodePool is ignored: it must be a or b"]
    );
    assert_eq!(
        breach(json!({"resources": {"backend_parameters": {"nodepool": "a", "NodePool": "b"}}})),
        "resources.backend_parameters.nodepool: another key differs from this one only in case"
    );
}

#[test]
fn a_task_that_cannot_be_planned_is_refused_at_once() {
    let inputs: Vec<_> = (0..300)
        .map(|i| json!({"path": format!("/etc/{i}"), "content": "x"}))
        .collect();
    let breach = breach(json!({ "inputs": inputs }));
    assert!(breach.contains("need 301 mounts"), "{breach}");
}
