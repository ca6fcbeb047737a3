use proptest::prelude::*;
use serde_json::{Value, json};

use super::glob::Pattern;
use super::*;
use crate::storage::StorageUrl;
use crate::tes::{Task, UrlSecrets};

/// The plan of a stored document with one executor, unless `document` says otherwise.
fn plan(document: Value) -> Result<Plan, PlanError> {
    let mut task = json!({"executors": [{"image": "alpine", "command": ["true"]}]});
    let Value::Object(document) = document else {
        panic!("a document is an object")
    };
    task.as_object_mut().unwrap().extend(document);
    for list in ["inputs", "outputs"] {
        for file in task[list].as_array_mut().into_iter().flatten() {
            let file = file.as_object_mut().unwrap();
            file.entry("type").or_insert(json!("FILE"));
            file.entry("url").or_insert(json!("s3://b/k"));
        }
    }
    let task: Task = serde_json::from_value(task).unwrap();
    Plan::new("t1", &task, &UrlSecrets::default())
}

/// The mounts, single files marked by a final `!`.
#[track_caller]
fn mounts(document: Value) -> Vec<String> {
    let mark = |mount: &Mount| match mount.kind {
        MountKind::Directory => mount.path.clone(),
        MountKind::File => format!("{}!", mount.path),
    };
    plan(document).unwrap().mounts.iter().map(mark).collect()
}

fn files(paths: &[&str]) -> Value {
    paths.iter().map(|path| json!({ "path": path })).collect()
}

fn directories(paths: &[&str]) -> Value {
    let directory = |path: &&str| json!({"path": path, "type": "DIRECTORY"});
    paths.iter().map(directory).collect()
}

#[test]
fn tmp_is_always_scratch() {
    let plan = plan(json!({})).unwrap();
    assert_eq!(plan.mounts.len(), 1);
    assert_eq!(plan.mounts[0].path, "/tmp");
    assert_eq!(plan.directories, ["/tmp"]);
    assert_eq!((plan.version, &*plan.task), (VERSION, "t1"));
}

#[test]
fn an_input_stays_streamable_if_nothing_else_touches_it() {
    let streamable = |others: Value| {
        let mut document = json!({
            "inputs": [{"path": "/in/a", "type": "DIRECTORY", "streamable": true}],
        });
        if let Some(inputs) = others["inputs"].as_array() {
            let own = document["inputs"].as_array_mut().unwrap();
            own.extend(inputs.iter().cloned());
        }
        for key in ["outputs", "volumes", "executors"] {
            if !others[key].is_null() {
                document[key] = others[key].clone();
            }
        }
        plan(document).unwrap().inputs[0].streamable
    };
    let executor =
        |key: &str, path: &str| json!({"executors": [{"image": "i", "command": ["c"], key: path}]});
    for untouched in [
        json!({}),
        json!({"inputs": files(&["/in/b", "/in/ab"])}),
        json!({"outputs": files(&["/in/b", "/out/a"])}),
        json!({"volumes": ["/in", "/in/ab"]}),
        executor("stdin", "/in/a/x"),
        executor("stdout", "/in/b"),
        executor("workdir", "/in"),
    ] {
        assert!(streamable(untouched.clone()), "{untouched}");
    }
    for touched in [
        json!({"inputs": files(&["/in/a/b"])}),
        json!({"inputs": directories(&["/in"])}),
        json!({"outputs": files(&["/in/a/b"])}),
        json!({"outputs": files(&["/in/*"])}),
        json!({"outputs": files(&["/in/a/*.txt"])}),
        json!({"outputs": directories(&["/in"])}),
        json!({"volumes": ["/in/a"]}),
        json!({"volumes": ["/in/a/b"]}),
        executor("stdout", "/in/a/log"),
        executor("stderr", "/in/a/log"),
        executor("workdir", "/in/a"),
    ] {
        assert!(!streamable(touched.clone()), "{touched}");
    }
    let twice = json!({"path": "/in/a", "type": "DIRECTORY", "streamable": true});
    let plan = plan(json!({"inputs": [twice, twice], "volumes": ["/v"]})).unwrap();
    assert!(plan.inputs.iter().all(|input| !input.streamable));
}

#[test]
fn the_hint_of_what_is_no_file_elsewhere_means_nothing() {
    let plan = plan(json!({"inputs": [
        {"path": "/a", "url": null, "content": "x", "streamable": true},
        {"path": "/tmp", "type": "DIRECTORY", "streamable": true},
        {"path": "/b", "streamable": false},
        {"path": "/c"},
    ]}));
    let plan = plan.unwrap();
    assert!(plan.inputs.iter().all(|input| !input.streamable));
}

#[test]
fn the_directories_of_files_are_mounted_and_merged() {
    assert_eq!(
        mounts(json!({
            "inputs": files(&["/data/a", "/data/b", "/data/sub/c", "/data-2/d"]),
            "outputs": files(&["/data/out", "/work/x/y"]),
            "volumes": ["/work", "/tmp/v"],
        })),
        ["/data", "/data-2", "/tmp", "/work"]
    );
}

#[test]
fn a_directory_is_mounted_itself_and_not_what_lies_beside_it() {
    assert_eq!(
        mounts(json!({
            "inputs": directories(&["/app/data", "/ref"]),
            "outputs": directories(&["/usr/share/results"]),
        })),
        ["/app/data", "/ref", "/tmp", "/usr/share/results"]
    );
}

#[test]
fn an_input_beside_files_of_the_image_is_mounted_alone() {
    assert_eq!(
        mounts(json!({
            "inputs": files(&["/in.txt", "/etc/app.conf", "/usr/local/x", "/etc/app.conf"]),
        })),
        ["/etc/app.conf!", "/in.txt!", "/tmp", "/usr/local/x!"]
    );
}

#[test]
fn an_output_beside_files_of_the_image_is_collected_from_the_container() {
    let plan = plan(json!({
        "inputs": files(&["/etc/in"]),
        "outputs": [
            {"path": "/root/a"},
            {"path": "/etc/in"},
            {"path": "/work/b"},
            {"path": "/usr/share/*.txt", "path_prefix": "/usr"},
            {"path": "/out*/x", "path_prefix": "/"},
        ],
    }))
    .unwrap();
    let collected: Vec<_> = plan
        .outputs
        .iter()
        .map(|o| o.collected_at.as_deref())
        .collect();
    assert_eq!(
        collected,
        [
            Some("/.tesk/collected/0"),
            None,
            None,
            Some("/.tesk/collected/3"),
            Some("/.tesk/collected/4"),
        ]
    );
    assert_eq!(
        plan.directories,
        ["/etc", "/tmp", "/work", "/.tesk/collected"]
    );
}

#[test]
fn a_redirected_stream_is_a_file_of_its_own_and_hides_no_program() {
    let document = json!({
        "executors": [
            {"image": "i", "command": ["c"], "stdout": "/app/log", "stderr": "/work/err"},
            {"image": "i", "command": ["c"], "stdin": "/app/log", "stdout": "/dev/null",
             "stderr": "/out.txt"},
        ],
        "outputs": [{"path": "/work/o"}, {"path": "/out.txt"}],
    });
    assert_eq!(
        mounts(document.clone()),
        ["/app/log!", "/out.txt!", "/tmp", "/work"]
    );
    let plan = plan(document).unwrap();
    assert_eq!(plan.directories, ["/app", "/tmp", "/work"]);
    assert_eq!(plan.outputs[1].collected_at, None);
}

#[test]
fn a_stream_that_names_a_directory_is_left_to_the_runtime() {
    assert_eq!(
        mounts(json!({
            "executors": [{"image": "i", "command": ["c"], "stdout": "/w"}],
            "volumes": ["/w/v"],
        })),
        ["/tmp", "/w/v"]
    );
}

#[test]
fn directories_that_lie_in_scratch_exist_before_the_first_executor() {
    let plan = plan(json!({
        "executors": [
            {"image": "i", "command": ["c"], "workdir": "/work/w/", "stdout": "/work/log/o"},
            {"image": "i", "command": ["c"], "workdir": "/app"},
        ],
        "inputs": [{"path": "/work/i/f"}, {"path": "/work/d", "type": "DIRECTORY"}],
        "outputs": [
            {"path": "/work/o/f"},
            {"path": "/work/p/*/q", "path_prefix": "/work"},
            {"path": "/work/e", "type": "DIRECTORY"},
        ],
        "volumes": ["/work", "/work/v//"],
    }))
    .unwrap();
    assert_eq!(plan.mounts.len(), 2);
    assert_eq!(
        plan.directories,
        [
            "/tmp",
            "/work",
            "/work/d",
            "/work/e",
            "/work/i",
            "/work/log",
            "/work/o",
            "/work/p",
            "/work/v",
            "/work/w"
        ]
    );
    // A working directory of the image is the runtime's to make.
    assert_eq!(plan.executors[1].workdir.as_deref(), Some("/app"));
}

#[test]
fn one_directory_for_each_of_ten_thousand_inputs_becomes_one_mount() {
    let paths: Vec<_> = (0..10_000)
        .map(|i| json!({"path": format!("/var/lib/cwl/stg{i}/file")}))
        .collect();
    let start = std::time::Instant::now();
    assert_eq!(mounts(json!({ "inputs": paths })), ["/tmp", "/var/lib/cwl"]);
    assert!(start.elapsed().as_secs() < 10);
}

#[test]
fn up_to_32_mounts_stay_apart_and_the_deepest_are_merged_first() {
    let mut paths: Vec<_> = (0..31).map(|i| format!("/d{i:02}/x/f")).collect();
    let as_files = |paths: &[String]| {
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        json!({ "inputs": files(&paths) })
    };
    assert_eq!(mounts(as_files(&paths)).len(), 32);
    // One more is merged with the neighbour it shares most with.
    paths.push("/d07/y/f".into());
    let merged = mounts(as_files(&paths));
    assert_eq!(merged.len(), 32);
    assert!(merged.contains(&"/d07".into()), "{merged:?}");
    paths.push("/d07/x/z/g".into());
    paths.push("/d09/a/b/c".into());
    paths.push("/d09/a/d/c".into());
    let merged = mounts(as_files(&paths));
    assert!(merged.contains(&"/d08/x".into()), "{merged:?}");
}

#[test]
fn mounts_that_only_the_image_has_in_common_are_not_merged_and_at_last_refused() {
    let many = |n: usize| {
        let inputs: Vec<_> = (0..n)
            .map(|i| json!({"path": format!("/m{i}/f")}))
            .collect();
        json!({ "inputs": inputs })
    };
    assert_eq!(mounts(many(255)).len(), 256);
    let error = plan(many(256)).unwrap_err();
    assert!(error.to_string().contains("need 257 mounts"), "{error}");
}

#[test]
fn reserved_places_have_no_plan() {
    for path in ["/proc/x", "/dev/x", "/sys/x/y", "/.tesk/collected/0"] {
        assert!(plan(json!({"inputs": files(&[path])})).is_err(), "{path}");
        assert!(plan(json!({"outputs": files(&[path])})).is_err(), "{path}");
        assert!(plan(json!({"volumes": [path]})).is_err(), "{path}");
    }
    assert!(plan(json!({"outputs": files(&["/\\proc/x"])})).is_err());
}

#[test]
fn a_pattern_whose_quoting_hides_dots_has_no_plan() {
    for path in ["/work/\\./x/*", "/work/x/\\.\\./*", "/work/*/\\./x"] {
        let output = json!({"path": path, "path_prefix": "/work", "url": "s3://b/d/"});
        let error = plan(json!({"outputs": [output]})).unwrap_err().to_string();
        assert!(error.contains("a quoted . or .. component"), "{error}");
    }
}

#[test]
fn quoting_is_removed_and_slashes_are_normalised() {
    let plan = plan(json!({
        "inputs": [{"path": "//in/./a\\*b/"}],
        "outputs": [
            {"path": "/work//a\\*b/"},
            {"path": "/work/d\\[/", "type": "DIRECTORY", "url": "s3://b/d//"},
            {"path": "/work/./\\*/*.txt", "path_prefix": "/work//", "url": "s3://b/p/"},
            {"path": "/work/[x", "path_prefix": "ignored", "url": "/data/a b/"},
        ],
    }))
    .unwrap();
    assert_eq!(plan.inputs[0].path, "/in/a\\*b");
    let outputs: Vec<_> = plan
        .outputs
        .iter()
        .map(|o| (o.url.as_str(), o.from.clone()))
        .collect();
    assert_eq!(
        outputs,
        [
            ("s3://b/k", OutputSource::File("/work/a*b".into())),
            ("s3://b/d", OutputSource::Directory("/work/d[".into())),
            (
                "s3://b/p",
                OutputSource::Pattern {
                    pattern: "/work/\\*/*.txt".into(),
                    prefix: "/work/".into(),
                }
            ),
            ("/data/a b/", OutputSource::File("/work/[x".into())),
        ]
    );
}

#[test]
fn the_same_output_to_the_same_url_is_delivered_once() {
    let plan = plan(json!({"outputs": [
        {"path": "/w/a", "url": "s3://b/1"},
        {"path": "/w//a", "url": "s3://b/1"},
        {"path": "/w/a", "url": "s3://b/2"},
        {"path": "/w/d", "url": "s3://b/d", "type": "DIRECTORY"},
        {"path": "/w/d/", "url": "s3://b/d/", "type": "DIRECTORY"},
    ]}))
    .unwrap();
    let kept: Vec<_> = plan.outputs.iter().map(|o| o.index).collect();
    assert_eq!(kept, [0, 2, 3]);
}

#[test]
fn passwords_are_put_back_and_never_shown() {
    let task: Task = serde_json::from_value(json!({
        "executors": [],
        "inputs": [{"path": "/d", "url": "ftp://u:***@h/d/", "type": "DIRECTORY"}],
        "outputs": [{"path": "/w/o", "url": "ftp://u:***@h/o", "type": "FILE"}],
    }))
    .unwrap();
    let secrets = UrlSecrets(
        [("inputs[0].url", "s%40cret"), ("outputs[0].url", "other")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into(),
    );
    let plan = Plan::new("t", &task, &secrets).unwrap();
    assert_eq!(
        plan.inputs[0].from,
        InputSource::Url("ftp://u:s%40cret@h/d".into())
    );
    assert_eq!(plan.outputs[0].url, "ftp://u:other@h/o");
    let shown = format!("{plan:?}");
    assert!(
        !shown.contains("cret") && !shown.contains("other"),
        "{shown}"
    );
}

#[test]
fn content_wins_and_no_source_at_all_is_an_empty_file() {
    let sources = |input: Value| {
        let plan = plan(json!({"inputs": [input]})).unwrap();
        plan.inputs[0].from.clone()
    };
    assert_eq!(
        sources(json!({"path": "/d/f", "content": "x"})),
        InputSource::Content("x".into())
    );
    assert_eq!(
        sources(json!({"path": "/d/f", "content": ""})),
        InputSource::Url("s3://b/k".into())
    );
    assert_eq!(
        sources(json!({"path": "/d/f", "url": null, "content": ""})),
        InputSource::Content(String::new())
    );
}

#[test]
fn resources_are_in_bytes_and_absent_ones_are_left_open() {
    assert_eq!(
        plan(json!({})).unwrap().resources,
        PlannedResources::default()
    );
    let plan = plan(json!({"resources": {
        "cpu_cores": 4, "ram_gb": 0.0021, "disk_gb": 1e300, "preemptible": true, "zones": ["z"],
        "backend_parameters": {"NodePool": "a"},
    }}))
    .unwrap();
    let resources = plan.resources;
    assert_eq!(resources.cpu_cores, Some(4));
    assert_eq!(resources.ram_bytes, Some(2_254_858));
    assert_eq!(resources.disk_bytes, Some(u64::MAX));
    assert!(resources.preemptible);
    assert_eq!(resources.backend_parameters["nodepool"], "a");
}

#[test]
fn a_plan_survives_its_json() {
    let plan = plan(json!({
        "inputs": files(&["/d/a"]),
        "outputs": [{"path": "/etc/*", "path_prefix": "/etc"}],
    }))
    .unwrap();
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
}

#[test]
fn a_match_is_delivered_below_the_url_with_one_slash_at_the_joint() {
    for prefix in ["/work", "/work/"] {
        for url in ["s3://b/x", "s3://b/x/", "s3://b/x//"] {
            let url: StorageUrl = url.parse().unwrap();
            let target = url.join(delivered_name("/work/out/a.txt", prefix));
            assert_eq!(target.to_secret_string(), "s3://b/x/out/a.txt");
        }
    }
    assert_eq!(delivered_name("/work/a1", "/work/a"), "1");
    assert_eq!(delivered_name("/work/a", "/work/a"), "a");
    assert_eq!(delivered_name("/work/a", "/"), "work/a");
}

fn path() -> impl Strategy<Value = String> {
    let component = proptest::sample::select(vec![
        "a", "b", "c", "usr", "etc", "home", "var", "opt", "tmp", "root", "d*", "e?",
    ]);
    proptest::collection::vec(component, 1..5).prop_map(|parts| format!("/{}", parts.join("/")))
}

mod fuzz {
    use super::*;

    proptest! {
        #[test]
        fn every_file_is_in_exactly_one_mount_or_collected(
            inputs in proptest::collection::vec(path(), 0..60),
            outputs in proptest::collection::vec((path(), any::<bool>()), 0..60),
            volumes in proptest::collection::vec(path(), 0..5),
        ) {
            let outputs: Vec<_> = outputs
                .into_iter()
                .map(|(path, directory)| {
                    let kind = if directory { "DIRECTORY" } else { "FILE" };
                    json!({"path": path, "type": kind, "path_prefix": "/"})
                })
                .collect();
            // A last component of its own: a file with something below it would not be let in.
            let inputs: Vec<_> = inputs.iter().map(|path| json!({"path": format!("{path}/in")})).collect();
            let plan = plan(json!({"inputs": inputs, "outputs": outputs, "volumes": volumes})).unwrap();
            let covering = |path: &str| {
                plan.mounts.iter().filter(|m| paths::is_within(path, &m.path)).count()
            };
            for mount in &plan.mounts {
                prop_assert_eq!(covering(&mount.path), 1);
                let named = volumes.contains(&mount.path)
                    || plan.outputs.iter().any(|o| o.from == OutputSource::Directory(mount.path.clone()));
                prop_assert!(
                    mount.kind == MountKind::File || named || !paths::owned_by_image(&mount.path),
                    "{:?}", mount
                );
            }
            for input in &plan.inputs {
                prop_assert_eq!(covering(&input.path), 1);
            }
            for output in &plan.outputs {
                let place = match &output.from {
                    OutputSource::File(path) | OutputSource::Directory(path) => path.clone(),
                    OutputSource::Pattern { pattern, .. } => Pattern::new(pattern).directory(),
                };
                let expected = usize::from(output.collected_at.is_none());
                prop_assert_eq!(covering(&place), expected);
            }
            for directory in &plan.directories {
                let leads_to_mount = plan.mounts.iter().any(|m| paths::is_within(&m.path, directory));
                prop_assert!(
                    covering(directory) == 1 || leads_to_mount || directory == paths::COLLECTED
                );
            }
        }
    }
}
