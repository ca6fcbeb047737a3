//! The rules of all other fields.

use super::*;

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
            "executors[0].command: missing",
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
                {"path": "/a/\\./*", "url": "s3://b/k", "path_prefix": "/a"},
                {"path": "/a/.\\./x/*", "url": "s3://b/k", "path_prefix": "/a"},
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
            "outputs[2].path: must not contain a quoted . or .. component",
            "outputs[3].path: must not contain a quoted . or .. component",
            "outputs[4].path: must not contain a quoted . or .. component",
            "volumes[0]: must be an absolute path",
            "volumes[1]: must not lie in /proc, which belongs to the system",
            "volumes[2]: must not lie in /.tesk, which belongs to the system",
        ]
    );
    accepted(json!({"executors": [{"image": "i", "command": ["c"], "workdir": "/"}]}));
}

#[test]
fn an_executor_works_in_nothing_that_belongs_to_the_system() {
    let executor = |workdir: &str, stdin: &str, stdout: &str, stderr: &str| {
        json!({"executors": [{
            "image": "i", "command": ["c"],
            "workdir": workdir, "stdin": stdin, "stdout": stdout, "stderr": stderr,
        }]})
    };
    assert_eq!(
        breaches(executor(
            "/proc/self/fd/4",
            "/proc//x",
            "/sys/x",
            "/.tesk/x"
        )),
        [
            "executors[0].workdir: must not lie in /proc, which belongs to the system",
            "executors[0].stdin: must not lie in /proc, which belongs to the system",
            "executors[0].stdout: must not lie in /sys, which belongs to the system",
            "executors[0].stderr: must not lie in /.tesk, which belongs to the system",
        ]
    );
    accepted(executor(
        "/process",
        "/dev/null",
        "/dev/null",
        "/dev/stderr",
    ));
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
fn two_inputs_for_one_file_are_accepted_with_a_warning() {
    let file = |path: &str| json!({"path": path, "url": "s3://b/k"});
    assert_eq!(
        accepted(json!({"inputs": [file("/in/a"), file("/in/b"), file("/in//a")]})).warnings,
        ["inputs[2].path names the same file as inputs[0].path; the later input wins"]
    );
    // Trees merge.
    let tree = json!({"path": "/in", "url": "s3://b/d", "type": "DIRECTORY"});
    let merged = accepted(json!({"inputs": [tree, tree, file("/in/a")]}));
    assert_eq!(merged.warnings, [""; 0]);
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
fn wildcards_that_are_none_are_accepted_with_a_warning() {
    let warnings =
        |path: &str| accepted(output(json!({"path": path, "path_prefix": "/w"}))).warnings;
    let stars = "outputs[0].path: ** is read as *, which stays within one directory;";
    let braces = "outputs[0].path: {…,…} is read as it is written, not as a choice;";
    for (path, said) in [
        ("/w/**/*.bam", stars),
        ("/w/a**", stars),
        ("/w/\\***", stars),
        ("/w/*.{bam,bai}", braces),
        ("/w/{x}*/{a,b}", braces),
    ] {
        let warnings = warnings(path);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].starts_with(said), "{warnings:?}");
    }
    assert_eq!(warnings("/w/**.{a,b}").len(), 2);
    for path in [
        "/w/*/*",
        "/w/*\\**",
        "/w/\\*\\*?",
        "/w/*.{bam}",
        "/w/*,{bam}",
        "/w/*.\\{bam,bai}",
        "/w/{a,b}",
    ] {
        assert_eq!(warnings(path), [""; 0], "{path}");
    }
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
fn a_flood_of_unsupported_parameters_makes_few_warnings() {
    let parameters: serde_json::Map<_, _> =
        (0..1000).map(|i| (format!("k{i}"), json!("v"))).collect();
    let warnings = accepted(json!({"resources": {"backend_parameters": parameters}})).warnings;
    assert_eq!(warnings.len(), 21);
    assert_eq!(warnings[20], "980 more warnings are not listed");
}

#[test]
fn a_task_that_cannot_be_planned_is_refused_at_once() {
    let inputs: Vec<_> = (0..300)
        .map(|i| json!({"path": format!("/etc/{i}"), "content": "x"}))
        .collect();
    let breach = breach(json!({ "inputs": inputs }));
    assert!(breach.contains("need 301 mounts"), "{breach}");
}
