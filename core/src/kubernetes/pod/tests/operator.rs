//! What the operator sets: parameters, mounts and patches.

use super::*;

const PARAMETERS: &str = r#"
    [parameters]
    resources = { gpu = "nvidia.com/gpu" }
    node_selector = { disktype = "example.com/disktype" }
    priority_classes = ["tesk-low", "tesk-high"]
    queues = ["science"]
    runtime_classes = ["tesk-sandbox"]
    storage_classes = ["fast"]
    image_pull_secrets = ["registry"]
    time_limit = true
    [parameters.reference_data]
    genomes = { claim = "genomes", path = "/ref/genomes" }
    models = { claim = "shared", path = "/ref/models", sub_path = "models/v1" }
"#;

fn with(parameters: &Value) -> Plan {
    plan(json!({"resources": {"backend_parameters": parameters}}))
}

#[test]
fn every_backend_parameter() {
    let all = with(&json!({
        "GPU": "2", "disktype": "ssd", "priority_class": "tesk-high", "queue": "science",
        "runtime_class": "tesk-sandbox", "storage_class": "fast", "image_pull_secret": "registry",
        "reference_data": "models, genomes", "Time_Limit": "90m",
    }));
    let toml = format!("image_pull_secrets = [\"all\"]\n{PARAMETERS}");
    shot("parameters", &made(&all, &surroundings(&toml)));
}

#[test]
fn a_parameter_is_checked_as_a_task_comes_in() {
    let settings = settings(PARAMETERS);
    let said = |key: &str, value: &str| {
        super::super::parameters::check(&settings.parameters, key, value)
            .err()
            .unwrap_or_default()
    };
    for (key, value, expected) in [
        ("gpu", "1", ""),
        ("gpu", "1024", ""),
        ("gpu", "0", "must be a number from 1 to 1024"),
        ("gpu", "1025", "must be a number from 1 to 1024"),
        ("gpu", "one", "must be a number from 1 to 1024"),
        ("gpu", "-1", "must be a number from 1 to 1024"),
        ("disktype", "ssd", ""),
        ("disktype", "", "must be a label value"),
        ("disktype", "-x", "must be a label value"),
        ("disktype", "$(X)", "must be a label value"),
        ("priority_class", "tesk-low", ""),
        (
            "priority_class",
            "system-node-critical",
            "must be tesk-low or tesk-high",
        ),
        ("queue", "other", "must be science"),
        ("runtime_class", "", "must be tesk-sandbox"),
        ("storage_class", "fast\n", "must be fast"),
        ("image_pull_secret", "tesk-t1", "must be registry"),
        ("reference_data", "genomes", ""),
        ("reference_data", " models , genomes,", ""),
        (
            "reference_data",
            "genomes,home",
            "must be a list of genomes, models",
        ),
        ("time_limit", "90m", ""),
        ("time_limit", "0s", "must be a length of time"),
        ("time_limit", "soon", "must be a length of time"),
        ("host_network", "true", "is not supported by this server"),
    ] {
        let said = said(key, value);
        assert!(said.starts_with(expected), "{key}={value}: {said}");
        assert_eq!(
            said.is_empty(),
            expected.is_empty(),
            "{key}={value}: {said}"
        );
    }
}

#[test]
fn a_parameter_that_the_operator_does_not_offer_is_unknown() {
    let nothing = Settings::default();
    assert_eq!(checks(&nothing.parameters).len(), 0);
    for key in PARAMETERS_OF_OURS {
        let said = super::super::parameters::check(&nothing.parameters, key, "x").unwrap_err();
        assert_eq!(said, "is not supported by this server", "{key}");
    }
    let all: Vec<_> = checks(&settings(PARAMETERS).parameters)
        .into_keys()
        .collect();
    assert_eq!(all.len(), PARAMETERS_OF_OURS.len() + 2);
}

const PARAMETERS_OF_OURS: [&str; 7] = super::super::PARAMETERS;

#[test]
fn a_parameter_that_is_not_allowed_any_more_ends_the_task() {
    let refused = manifests(&attempt(), &with(&json!({"gpu": "1"})), &surroundings(""));
    assert_eq!(
        refused.unwrap_err(),
        "backend parameter gpu is not supported by this server"
    );
}

#[test]
fn reference_data_named_twice_is_mounted_once() {
    let plan = with(&json!({"reference_data": "genomes,models,genomes"}));
    let manifests = made(&plan, &surroundings(PARAMETERS));
    let mounts = container(&manifests, "executor-0")
        .volume_mounts
        .iter()
        .flatten();
    let data: Vec<_> = mounts
        .filter(|m| m.mount_path.starts_with("/ref/"))
        .collect();
    assert_eq!(data.len(), 2);
    assert!(data.iter().all(|mount| mount.read_only == Some(true)));
    let filer = container(&manifests, INPUTS).volume_mounts.iter().flatten();
    assert_eq!(
        filer.filter(|m| m.mount_path.starts_with("/ref/")).count(),
        0
    );
}

#[test]
fn mounts_of_the_operator_are_the_filers_or_read_only() {
    let toml = r#"
        [[mounts]]
        path = "/storage"
        claim = "storage"
        sub_path = "tasks"
        [[mounts]]
        path = "/credentials"
        secret = "s3-credentials"
        read_only = true
        [[mounts]]
        path = "/licences"
        config_map = "licences"
        in = "executors"
    "#;
    let manifests = made(&three_executors(), &surroundings(toml));
    shot("mounts", &manifests);
    for executor in executors(&manifests) {
        let mounts = executor.volume_mounts.iter().flatten();
        let paths: Vec<_> = mounts.map(|mount| &*mount.mount_path).collect();
        assert!(paths.contains(&"/licences"));
        assert!(!paths.contains(&"/storage") && !paths.contains(&"/credentials"));
    }
}

#[test]
fn a_task_cannot_hide_what_the_operator_shows() {
    let toml = "[[mounts]]\npath = \"/licences\"\nconfig_map = \"l\"\nin = \"executors\"";
    for path in ["/licences", "/licences/mine"] {
        let plan = plan(json!({ "volumes": [path] }));
        let refused = manifests(&attempt(), &plan, &surroundings(toml)).unwrap_err();
        assert!(refused.contains("collides with /licences"), "{refused}");
    }
    made(
        &plan(json!({"volumes": ["/licences2"]})),
        &surroundings(toml),
    );
}

#[test]
fn settings_that_no_pod_could_have_are_refused_by_name() {
    for (toml, expected) in [
        ("instance = \"a b\"", "kubernetes.instance"),
        ("instance = \"\"", "kubernetes.instance"),
        ("log_tail = \"1KiB\"", "kubernetes.log_tail"),
        ("parameters.resources = { GPU = \"x/y\" }", "lower case"),
        (
            "parameters.node_selector = { Disk = \"x/y\" }",
            "lower case",
        ),
        (
            "parameters.resources = { queue = \"x/y\" }",
            "has a meaning already",
        ),
        (
            "parameters.resources = { a = \"x/y\" }\nparameters.node_selector = { a = \"x/y\" }",
            "both a resource and a label",
        ),
        (
            "mounts = [{ path = \"/a\" }]",
            "needs one of claim, secret and config_map",
        ),
        (
            "mounts = [{ path = \"/a\", claim = \"c\", secret = \"s\" }]",
            "needs one of",
        ),
        (
            "mounts = [{ path = \"/a\", secret = \"s\", sub_path = \"x\" }]",
            "sub_path",
        ),
        (
            "mounts = [{ path = \"a\", claim = \"c\" }]",
            "must be absolute",
        ),
        (
            "mounts = [{ path = \"/a/\", claim = \"c\" }]",
            "must be absolute",
        ),
        (
            "mounts = [{ path = \"/a/../b\", claim = \"c\" }]",
            "must be absolute",
        ),
        (
            "mounts = [{ path = \"/a:b\", claim = \"c\" }]",
            "must be absolute",
        ),
        (
            "mounts = [{ path = \"/.tesk/bin\", claim = \"c\" }]",
            "must not lie in /.tesk",
        ),
        (
            "mounts = [{ path = \"/a\", claim = \"c\" }, { path = \"/a\", secret = \"s\" }]",
            "two mounts have the path",
        ),
        (
            "parameters.reference_data = { x = { claim = \"c\", path = \"/proc/x\" } }",
            "must not lie in /proc",
        ),
    ] {
        let settings: Settings = toml::from_str(toml).unwrap();
        let refused = settings.check().unwrap_err();
        assert!(refused.contains(expected), "{toml}: {refused}");
    }
    // Whom a mount is for makes a difference.
    settings(
        "mounts = [{ path = \"/a\", claim = \"c\" }, \
         { path = \"/a\", claim = \"d\", in = \"executors\" }]",
    );
    let mount = ExtraMount {
        path: "/a".into(),
        claim: Some("c".into()),
        secret: None,
        config_map: None,
        sub_path: None,
        streamable: None,
        read_only: false,
        audience: Audience::Filer,
    };
    let twice = Settings {
        mounts: vec![mount.clone(), mount],
        ..Settings::default()
    };
    assert!(twice.check().is_err());
}

#[test]
fn patches_of_every_kind() {
    let toml = r#"
        [patch.pod]
        metadata = { labels = { team = "x" }, annotations = { "example.com/a" = "b" } }
        [patch.pod.spec]
        tolerations = [{ key = "example.com/tasks", operator = "Exists" }]
        volumes = [{ name = "cache", emptyDir = {} }]
        [[patch.pod.spec.containers]]
        name = "meter"
        image = "meter:1"
        [patch.executor]
        env = [{ name = "LICENCE", value = "server" }]
        volumeMounts = [{ name = "cache", mountPath = "/cache" }]
        securityContext = { runAsNonRoot = true }
        [patch.filer]
        env = [{ name = "HTTPS_PROXY", value = "http://proxy:3128" }]
        resources = { limits = { cpu = "1" } }
    "#;
    let surroundings = surroundings(toml);
    let manifests = manifests(&attempt(), &plan(json!({})), &surroundings).unwrap();
    shot("patches", &manifests);
}

#[track_caller]
fn patched(toml: &str) -> Value {
    let mut pod: Pod = serde_json::from_value(json!({
        "metadata": {"labels": {"a": "1"}},
        "spec": {
            "containers": [
                {"name": "inputs", "image": "f", "env": [{"name": "A", "value": "1"}]},
                {"name": "executor-0", "image": "e", "env": [{"name": "A", "value": "1"}],
                 "command": ["x", "y"]},
            ],
            "tolerations": [{"key": "old"}],
            "volumes": [{"name": "v", "emptyDir": {}}],
        },
    }))
    .unwrap();
    let patches: crate::kubernetes::Patches = toml::from_str(toml).unwrap();
    check_patches(&patches).unwrap();
    super::super::patch::apply(&mut pod, true, &patches).unwrap();
    serde_json::to_value(pod).unwrap()
}

#[test]
fn objects_are_merged_and_scalars_replaced() {
    let pod = patched("[pod]\nmetadata.labels = { b = \"2\" }\nspec.priority = 7");
    assert_eq!(pod["metadata"]["labels"], json!({"a": "1", "b": "2"}));
    assert_eq!(pod["spec"]["priority"], 7);
    let pod = patched("[pod]\nmetadata.labels = { a = \"2\" }");
    assert_eq!(pod["metadata"]["labels"], json!({"a": "2"}));
}

#[test]
fn lists_with_a_key_are_merged_by_it() {
    let pod = patched(
        "[[pod.spec.containers]]\nname = \"executor-0\"\nimage = \"other\"\n\
         env = [{ name = \"A\", value = \"2\" }, { name = \"B\", value = \"3\" }]\n\
         [[pod.spec.volumes]]\nname = \"w\"\nemptyDir = {}",
    );
    let executor = &pod["spec"]["containers"][1];
    assert_eq!(executor["image"], "other");
    assert_eq!(
        executor["env"],
        json!([{"name": "A", "value": "2"}, {"name": "B", "value": "3"}])
    );
    assert_eq!(
        pod["spec"]["containers"][0]["env"],
        json!([{"name": "A", "value": "1"}])
    );
    assert_eq!(pod["spec"]["volumes"].as_array().unwrap().len(), 2);
}

#[test]
fn lists_without_a_key_are_replaced() {
    let pod =
        patched("[pod]\nspec.tolerations = [{ key = \"new\" }]\n[executor]\ncommand = [\"z\"]");
    assert_eq!(pod["spec"]["tolerations"], json!([{"key": "new"}]));
    assert_eq!(pod["spec"]["containers"][1]["command"], json!(["z"]));
}

#[test]
fn filers_and_executors_have_patches_of_their_own() {
    let pod = patched("[executor]\nstdin = true\n[filer]\ntty = true");
    let [filer, executor] = &pod["spec"]["containers"].as_array().unwrap()[..] else {
        panic!("two containers")
    };
    assert_eq!(
        (&filer["tty"], &filer["stdin"]),
        (&json!(true), &Value::Null)
    );
    assert_eq!(
        (&executor["tty"], &executor["stdin"]),
        (&Value::Null, &json!(true))
    );
}

#[test]
fn a_preemptible_pod_has_the_last_word() {
    let pod = patched(
        "[pod]\nspec.priority = 1\nspec.nodeName = \"n\"\n[preemptible]\nspec.priority = 2",
    );
    assert_eq!(
        (&pod["spec"]["priority"], &pod["spec"]["nodeName"]),
        (&json!(2), &json!("n"))
    );
}

#[test]
fn a_field_that_kubernetes_does_not_have_is_named() {
    for (toml, expected) in [
        ("pod = { spec = { dnsPolicy = \"Default\" } }", None),
        (
            "pod = { spec = { nodeSelektor = { a = \"b\" } } }",
            Some("kubernetes.patch.pod: Kubernetes has no field spec.nodeSelektor"),
        ),
        (
            "preemptible = { spec = { tolerations = [{ kee = \"x\" }] } }",
            Some("kubernetes.patch.preemptible: Kubernetes has no field spec.tolerations.kee"),
        ),
        (
            "executor = { resources = { limit = { cpu = \"1\" } } }",
            Some("kubernetes.patch.executor: Kubernetes has no field resources.limit"),
        ),
        (
            "filer = { env = \"A=1\" }",
            Some("kubernetes.patch.filer: "),
        ),
    ] {
        let patches: crate::kubernetes::Patches = toml::from_str(toml).unwrap();
        let said = check_patches(&patches).err();
        match expected {
            None => assert_eq!(said, None, "{toml}"),
            Some(expected) => assert!(said.unwrap().starts_with(expected), "{toml}"),
        }
    }
}
