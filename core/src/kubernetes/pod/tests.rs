use std::collections::{BTreeMap, HashSet};

use serde_json::{Value, json};

use super::*;
use crate::kubernetes::{Audience, ExtraMount};
use crate::plan::packed;
use crate::tes::{Task, UrlSecrets};

mod fuzz;
mod operator;
mod streams;

/// The plan of a document with one executor, unless `document` says otherwise.
fn plan(document: Value) -> Plan {
    let mut task = json!({"executors": [{"image": "alpine:3", "command": ["true"]}]});
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
    Plan::new("t1", &task, &UrlSecrets::default()).unwrap()
}

fn settings(toml: &str) -> Settings {
    let settings: Settings = toml::from_str(toml).unwrap();
    settings.check().unwrap();
    settings
}

fn surroundings(toml: &str) -> Surroundings {
    let labels = |part: &str| {
        BTreeMap::from([
            ("app.kubernetes.io/managed-by".to_owned(), "tesk".to_owned()),
            ("app.kubernetes.io/component".to_owned(), part.to_owned()),
        ])
    };
    Surroundings {
        settings: settings(&format!("filer_image = \"tesk-filer:1\"\n{toml}")),
        labels: labels("attempt"),
        plan_labels: labels("plan"),
        filer_config: "tesk-filer-0123456789ab".into(),
        grace: Duration::from_secs(30),
        time_limit: Some(Duration::from_hours(24)),
        features: Features::default(),
    }
}

fn attempt() -> AttemptId {
    AttemptId {
        task: "t1".parse().unwrap(),
        number: 1,
    }
}

fn made(plan: &Plan, surroundings: &Surroundings) -> Manifests {
    let manifests = manifests(&attempt(), plan, surroundings).unwrap();
    check(plan, &manifests);
    manifests
}

fn spec(manifests: &Manifests) -> &PodSpec {
    manifests.pod.spec.as_ref().unwrap()
}

fn container<'a>(manifests: &'a Manifests, name: &str) -> &'a Container {
    let mut containers = spec(manifests).containers.iter();
    containers.find(|c| c.name == name).unwrap()
}

fn executors(manifests: &Manifests) -> impl Iterator<Item = &Container> {
    let containers = spec(manifests).containers.iter();
    containers.filter(|container| container.name.starts_with("executor-"))
}

/// What holds for all manifests.
#[track_caller]
fn check(plan: &Plan, manifests: &Manifests) {
    let is_name = |name: &str| {
        name.len() <= 63
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    let spec = spec(manifests);
    let volumes: Vec<&str> = spec.volumes.iter().flatten().map(|v| &*v.name).collect();
    assert!(volumes.iter().all(|name| is_name(name)));
    assert_eq!(volumes.iter().collect::<HashSet<_>>().len(), volumes.len());

    let containers = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers);
    let mut names = HashSet::new();
    for container in containers {
        assert!(is_name(&container.name) && names.insert(&container.name));
        let mut paths = HashSet::new();
        for mount in container.volume_mounts.iter().flatten() {
            assert!(
                paths.insert(&mount.mount_path),
                "{} twice",
                mount.mount_path
            );
            assert!(volumes.contains(&&*mount.name), "{}", mount.name);
            let inside = mount.sub_path.as_deref().unwrap_or_default();
            assert!(!inside.starts_with('/') && !inside.split('/').any(|name| name == ".."));
        }
    }
    assert_eq!(spec.containers.first().unwrap().name, INPUTS);
    assert!(names.contains(&OUTPUTS.to_owned()));
    assert_eq!(spec.automount_service_account_token, Some(false));

    for executor in executors(manifests) {
        let mounts = executor.volume_mounts.iter().flatten();
        let scratch: Vec<_> = mounts.clone().filter(|m| m.name == "scratch").collect();
        assert!(scratch.iter().all(|mount| mount.sub_path.is_some()));
        assert!(scratch.len() <= crate::plan::mounts::MOST + 1);
        for mount in mounts {
            let secret = ["secrets", "config", "plan"].contains(&&*mount.name);
            assert!(!secret, "{} sees {}", executor.name, mount.name);
            // Of what filers have from the operator, no more than an input.
            let mut filer = container(manifests, INPUTS).volume_mounts.iter().flatten();
            let shared = mount.name.starts_with("extra-") && filer.any(|m| m.name == mount.name);
            assert!(!shared || mount.sub_path.as_deref().is_some_and(|sub| !sub.is_empty()));
            // What an executor can write to is its own, or scratch.
            let own = format!("/{}", executor.name);
            let own = mount.name == "handover" && mount.mount_path.ends_with(&own);
            let writable = own || ["scratch", "shm"].contains(&&*mount.name);
            assert_eq!(mount.read_only != Some(true), writable, "{mount:?}");
        }
    }

    // The plan is whole.
    let annotations = manifests.pod.metadata.annotations.as_ref().unwrap();
    let parts = manifests
        .plan
        .iter()
        .flat_map(|part| part.data.as_ref().unwrap());
    let parts: String = parts.map(|(_, part)| part.as_str()).collect();
    let whole = annotations.get(PLAN).unwrap_or(&parts);
    let mut whole: Plan = serde_json::from_slice(&packed::unpack(whole).unwrap()).unwrap();
    for input in &mut whole.inputs {
        input.mounted = None;
    }
    assert_eq!(whole, *plan);
    for part in &manifests.plan {
        let name = part.metadata.name.as_deref().unwrap();
        assert!(is_name(name), "{name}");
        assert!(serde_json::to_vec(part).unwrap().len() < 1 << 20);
    }
    assert!(serde_json::to_vec(&manifests.pod).unwrap().len() < 1 << 20);
}

/// Compares with a snapshot, in which packed plans are left out: their bytes depend on the
/// library that compresses.
#[track_caller]
fn shot(name: &str, manifests: &Manifests) {
    let mut all = json!({ "plan": manifests.plan, "pod": manifests.pod });
    for part in all["plan"].as_array_mut().unwrap() {
        for (_, text) in part["data"].as_object_mut().unwrap() {
            *text = json!("a part of a packed plan");
        }
    }
    if let Some(text) = all["pod"]["metadata"]["annotations"].get_mut(PLAN) {
        *text = json!("a packed plan");
    }
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("tests");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_json_snapshot!(name, all));
}

fn three_executors() -> Plan {
    plan(json!({
        "executors": [
            {"image": "a:1", "command": ["a"], "stdout": "/work/log", "workdir": "/work"},
            {"image": "b:1", "command": ["b"], "stdin": "/work/log", "stderr": "/app/err",
             "env": {"A": "1"}},
            {"image": "c:1", "command": ["c"], "ignore_error": true},
        ],
        "inputs": [{"path": "/data/in"}, {"path": "/ref", "type": "DIRECTORY"}],
        "outputs": [{"path": "/work/out"}, {"path": "/work/logs/*.log", "path_prefix": "/work"}],
        "volumes": ["/shared"],
        "resources": {"cpu_cores": 2, "ram_gb": 4.0, "disk_gb": 10.0},
    }))
}

#[test]
fn a_minimal_task() {
    shot("minimal", &made(&plan(json!({})), &surroundings("")));
}

#[test]
fn three_executors_with_inputs_outputs_volumes_and_streams() {
    shot(
        "three-executors",
        &made(&three_executors(), &surroundings("")),
    );
}

#[test]
fn an_init_container_installs_the_filer_where_no_hook_is_wanted() {
    shot(
        "init",
        &made(&plan(json!({})), &surroundings("install = \"init\"")),
    );
}

#[test]
fn everything_is_restricted_if_the_operator_wants_it() {
    let surroundings = surroundings("restricted = true\ninstall = \"init\"\nshm_size = \"1GiB\"");
    let plan = plan(json!({"outputs": [{"path": "/etc/o"}], "inputs": [{"path": "/i"}]}));
    shot("restricted", &made(&plan, &surroundings));
}

#[test]
fn resources_are_the_pods_own_where_the_server_knows_them() {
    let mut surroundings = surroundings("");
    surroundings.features.pod_resources = true;
    surroundings.features.least = Least {
        millicores: 500,
        memory: 32 << 20,
    };
    let manifests = made(&three_executors(), &surroundings);
    shot("resources-of-the-pod", &manifests);
    let requests = spec(&manifests)
        .resources
        .as_ref()
        .unwrap()
        .requests
        .as_ref();
    // Five containers of half a core each are more than the two that the task asks for.
    assert_eq!(requests.unwrap()["cpu"].0, "2500m");
}

#[test]
fn resources_are_asked_for_once_where_only_containers_have_some() {
    let mut surroundings = surroundings("");
    surroundings.features.least = Least {
        millicores: 10,
        memory: 32 << 20,
    };
    let manifests = made(&three_executors(), &surroundings);
    shot("resources-of-containers", &manifests);
    let asked: Vec<_> = executors(&manifests)
        .map(|c| &*c.resources.as_ref().unwrap().requests.as_ref().unwrap()["memory"].0)
        .collect();
    assert_eq!(asked, ["4294967296", "33554432", "33554432"]);
}

#[test]
fn no_container_asks_for_less_than_the_namespace_allows_or_for_more_than_its_limit() {
    let small = plan(json!({
        "executors": [{"image": "a", "command": ["a"]}, {"image": "b", "command": ["b"]}],
        "resources": {"cpu_cores": 1, "ram_gb": 0.1},
    }));
    for pod_resources in [false, true] {
        let mut surroundings = surroundings("");
        surroundings.features = Features {
            pod_resources,
            least: Least {
                millicores: 1500,
                memory: 1 << 30,
            },
        };
        let manifests = made(&small, &surroundings);
        for container in &spec(&manifests).containers {
            let resources = container.resources.as_ref().unwrap();
            let requests = resources.requests.as_ref().unwrap();
            let limits = resources.limits.as_ref().unwrap();
            assert_eq!(requests["cpu"].0, "1500m");
            assert_eq!(requests["memory"].0, (1 << 30).to_string());
            assert_eq!(limits["memory"].0, (1 << 30).to_string());
            let limit = limits.get("cpu").map(|cpu| &*cpu.0);
            assert!([None, Some("1500m")].contains(&limit));
        }
    }
}

#[test]
fn scratch_is_a_volume_of_the_pods_own_where_a_class_is_set() {
    let surroundings = surroundings("scratch_class = \"fast\"\nshm_size = \"2GiB\"");
    let plan = plan(json!({"resources": {"disk_gb": 100.0}, "inputs": [{"path": "/data/a"}]}));
    shot("scratch-volume", &made(&plan, &surroundings));
}

#[test]
fn the_nodes_own_scratch_is_asked_for_once_and_limited() {
    let manifests = made(&three_executors(), &surroundings(""));
    let requests: Vec<_> = executors(&manifests)
        .map(|c| c.resources.as_ref().unwrap().requests.as_ref().unwrap())
        .filter_map(|requests| requests.get("ephemeral-storage"))
        .collect();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].0, (10_u64 << 30).to_string());
    let scratch = spec(&manifests)
        .volumes
        .iter()
        .flatten()
        .find(|v| v.name == "scratch");
    let limit = scratch
        .unwrap()
        .empty_dir
        .as_ref()
        .unwrap()
        .size_limit
        .as_ref();
    assert_eq!(limit.unwrap().0, (10_u64 << 30).to_string());
}

#[test]
fn a_preemptible_task_in_zones() {
    let surroundings = surroundings(
        r#"
        [patch.preemptible.spec]
        nodeSelector = { "example.com/spot" = "true" }
        tolerations = [{ key = "example.com/spot", operator = "Exists", effect = "NoSchedule" }]
        "#,
    );
    let plan = plan(json!({"resources": {"preemptible": true, "zones": ["eu-1a", "eu-1b"]}}));
    shot("preemptible", &made(&plan, &surroundings));
}

#[test]
fn a_zone_that_no_label_can_name_is_refused() {
    let strange = plan(json!({"resources": {"zones": ["eu-1a", "$(X) \n"]}}));
    let refused = manifests(&attempt(), &strange, &surroundings("")).unwrap_err();
    assert!(refused.contains(r#""$(X) \n""#), "{refused}");
    // Where zones mean nothing, whatever they say means nothing.
    made(&strange, &surroundings("zone_label = \"\""));
}

#[test]
fn paths_that_belong_to_the_image_are_mounted_alone_or_collected() {
    let plan = plan(json!({
        "inputs": [{"path": "/etc/app.conf"}, {"path": "/in.txt"}, {"path": "/data/a"}],
        "outputs": [{"path": "/root/out"}, {"path": "/usr/share/*.txt"}],
    }));
    shot("image-owned-paths", &made(&plan, &surroundings("")));
}

#[test]
fn a_large_plan_lies_in_config_maps() {
    let mut random = 1_u64;
    let mut noise = || {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        // Six bits a letter, however well it is compressed.
        char::from(
            b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"
                [(random >> 58) as usize],
        )
    };
    let content: String = (0..1_200_000).map(|_| noise()).collect();
    let plan = plan(json!({"inputs": [{"path": "/data/a", "url": null, "content": content}]}));
    let manifests = made(&plan, &surroundings(""));
    assert_eq!(manifests.plan.len(), 2);
    let annotations = manifests.pod.metadata.annotations.as_ref().unwrap();
    assert_eq!(annotations[PLAN_PARTS], "2");
    shot("large-plan", &manifests);
}

#[test]
fn passwords_are_seen_by_filers_only() {
    let plan = plan(json!({
        "inputs": [{"path": "/data/a", "url": "ftp://me:***@host/a"}],
        "outputs": [{"path": "/data/b", "url": "s3://b/k"}],
    }));
    let manifests = made(&plan, &surroundings(""));
    shot("passwords", &manifests);
    for name in [INPUTS, OUTPUTS] {
        let container = container(&manifests, name);
        let mut mounts = container.volume_mounts.iter().flatten();
        assert!(mounts.any(|m| m.name == "secrets" && m.read_only == Some(true)));
        let command = container.command.as_ref().unwrap();
        assert!(command.contains(&"--secrets".to_owned()));
    }
}

#[test]
fn a_path_with_a_colon_is_refused_before_the_server_is_asked() {
    let plan = plan(json!({"volumes": ["/a:b"]}));
    let refused = manifests(&attempt(), &plan, &surroundings("")).unwrap_err();
    assert!(refused.starts_with("/a:b: "), "{refused}");
}

#[test]
fn five_hundred_input_directories_are_few_mounts() {
    let directory = |n: usize| {
        json!({"path": format!("/var/lib/cwl/stg{n:05}/x"), "type": "DIRECTORY",
               "url": format!("s3://b/{n}")})
    };
    let inputs: Vec<_> = (0..500).map(directory).collect();
    let manifests = made(&plan(json!({ "inputs": inputs })), &surroundings(""));
    let mounts = container(&manifests, "executor-0")
        .volume_mounts
        .as_ref()
        .unwrap();
    assert!(mounts.len() < 50, "{}", mounts.len());

    // 100 of a kind in each of 5 places cannot all be merged into one.
    let file = |n: usize| json!({"path": format!("/etc/d{}/f{n}", n % 5), "url": "s3://b/k"});
    let inputs: Vec<_> = (0..200).map(file).collect();
    made(&plan(json!({ "inputs": inputs })), &surroundings(""));
}

#[test]
fn as_many_executors_as_messages_have_room_for() {
    let executors = |count: usize| {
        let executor = json!({"image": "i:1", "command": ["c"]});
        plan(json!({ "executors": vec![executor; count] }))
    };
    let room = |toml: &str, count: usize| -> usize {
        let manifests = made(&executors(count), &surroundings(toml));
        let command = container(&manifests, OUTPUTS).command.as_ref().unwrap();
        let at = command
            .iter()
            .position(|w| w == "--termination-room")
            .unwrap();
        command[at + 1].parse().unwrap()
    };
    assert_eq!(room("", 1), 4096);
    assert_eq!(room("", 4), 2048);
    assert_eq!(room("install = \"init\"", 1), 3072);
    let injected = "[[patch.pod.spec.containers]]\nname = \"x\"\n\
                    [[patch.pod.spec.initContainers]]\nname = \"y\"";
    assert_eq!(room(injected, 1), 12 * 1024 / 5);
    // A report in the log needs some 100 bytes to say so.
    assert!(room("", MOST_EXECUTORS) >= 100);
    let refused = manifests(
        &attempt(),
        &executors(MOST_EXECUTORS + 1),
        &surroundings(""),
    );
    assert!(refused.unwrap_err().contains("101 executors"));
}

#[test]
fn the_longest_id_makes_valid_names() {
    let attempt = AttemptId {
        task: format!("t{}", "0".repeat(39)).parse().unwrap(),
        number: u32::MAX,
    };
    let content: String = (0..40_000)
        .map(|n| char::from(33 + (n * n % 89) as u8))
        .collect();
    let mut plan = plan(json!({"inputs": [{"path": "/data/a", "url": null, "content": content}]}));
    plan.inputs = vec![plan.inputs[0].clone(); 50];
    let manifests = manifests(&attempt, &plan, &surroundings("")).unwrap();
    check(&plan, &manifests);
    assert!(manifests.pod.metadata.name.unwrap().len() <= 63);
}

#[test]
fn the_shorter_of_two_time_limits_counts() {
    let toml = "[parameters]\ntime_limit = true";
    let deadline = |parameters: Value, limit: Option<u64>| {
        let mut surroundings = surroundings(toml);
        surroundings.time_limit = limit.map(Duration::from_secs);
        let plan = plan(json!({"resources": {"backend_parameters": parameters}}));
        spec(&made(&plan, &surroundings)).active_deadline_seconds
    };
    assert_eq!(deadline(json!({}), None), None);
    // The scheduler's own limit ends an attempt first, and more politely.
    assert_eq!(deadline(json!({}), Some(100)), Some(160));
    assert_eq!(deadline(json!({"time_limit": "1m"}), Some(100)), Some(60));
    assert_eq!(deadline(json!({"time_limit": "1h"}), Some(100)), Some(160));
    // The server takes no more than this.
    assert_eq!(
        deadline(json!({"time_limit": "99999999h"}), None),
        Some(i64::from(i32::MAX))
    );
}

#[test]
fn nothing_of_a_task_is_a_command_or_a_variable_of_a_container() {
    let plan = three_executors();
    let manifests = made(&plan, &surroundings(""));
    for executor in executors(&manifests) {
        assert_eq!(executor.command.as_ref().unwrap()[0], BINARY);
        assert_eq!((&executor.args, &executor.env), (&None, &None));
        assert_eq!((&executor.env_from, &executor.working_dir), (&None, &None));
    }
}
