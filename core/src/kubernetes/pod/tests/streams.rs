//! Inputs that are mounted where they are.

use super::*;

pub(super) const CLAIM: &str = r#"
    [[mounts]]
    path = "/credentials"
    secret = "s3"
    [[mounts]]
    path = "/storage"
    claim = "shared"
    sub_path = "tasks/"
    streamable = "file:///data"
"#;

/// A streamable input, FILE unless `more` says otherwise.
fn input(path: &str, url: &str) -> Value {
    json!({"path": path, "url": url, "streamable": true})
}

fn directory(path: &str, url: &str) -> Value {
    json!({"path": path, "url": url, "streamable": true, "type": "DIRECTORY"})
}

/// What the last executor sees of claims: where, and what of them.
fn streams(manifests: &Manifests) -> Vec<(String, String)> {
    let executor = executors(manifests).last().unwrap();
    let mounts = executor.volume_mounts.iter().flatten();
    let mounts = mounts.filter(|mount| mount.name.starts_with("extra-"));
    mounts
        .map(|mount| {
            let sub_path = mount.sub_path.clone().unwrap_or_default();
            (mount.mount_path.clone(), sub_path)
        })
        .collect()
}

fn packed_plan(manifests: &Manifests) -> Plan {
    let annotations = manifests.pod.metadata.annotations.as_ref().unwrap();
    serde_json::from_slice(&packed::unpack(&annotations[PLAN]).unwrap()).unwrap()
}

#[test]
fn a_file_and_a_directory_are_mounted_from_their_claim() {
    let plan = plan(json!({
        "inputs": [
            input("/in/genome.fa", "file:///data/ref/genome.fa"),
            directory("/index", "file:///data/ref/an%20index/"),
            {"path": "/in/reads", "url": "file:///data/reads"},
        ],
        "outputs": [{"path": "/in/out", "url": "file:///data/out"}],
    }));
    let manifests = made(&plan, &surroundings(CLAIM));
    shot("streamable", &manifests);
    let expected = [
        ("/in/genome.fa", "tasks/ref/genome.fa"),
        ("/index", "tasks/ref/an index"),
    ];
    let expected = expected.map(|(path, sub)| (path.to_owned(), sub.to_owned()));
    assert_eq!(streams(&manifests), expected);
    let mounted: Vec<_> = packed_plan(&manifests)
        .inputs
        .into_iter()
        .map(|input| input.mounted)
        .collect();
    let seen = |path: &str| Some(format!("/storage/ref/{path}"));
    assert_eq!(mounted, [seen("genome.fa"), seen("an index"), None]);
}

#[test]
fn no_other_container_starts_before_mounted_inputs_were_looked_at() {
    let plan = plan(json!({"inputs": [input("/in/a", "file:///data/a")]}));
    let manifests = made(&plan, &surroundings(CLAIM));
    let init = spec(&manifests).init_containers.as_ref().unwrap();
    let command = init[0].command.as_ref().unwrap();
    assert_eq!((init.len(), init[0].name.as_str()), (1, PREPARE));
    assert!(command.contains(&"--config".to_owned()));
    assert!(container(&manifests, INPUTS).lifecycle.is_none());
    let outputs = container(&manifests, OUTPUTS).command.as_ref().unwrap();
    assert!(outputs.contains(&"3072".to_owned()), "{outputs:?}");
}

#[test]
fn another_attempt_copies() {
    let plan = plan(json!({"inputs": [input("/in/a", "file:///data/a")]}));
    let second = AttemptId {
        number: 2,
        ..attempt()
    };
    let copied = manifests(&second, &plan, &surroundings(CLAIM)).unwrap();
    assert_eq!(streams(&copied), []);
    assert_eq!(packed_plan(&copied), plan);
    assert!(spec(&copied).init_containers.is_none());
}

#[test]
fn what_the_operator_does_not_offer_or_a_cluster_cannot_mount_is_copied() {
    let nested = format!("{CLAIM}[[mounts]]\npath = \"/storage/b\"\nclaim = \"b\"");
    let silent = CLAIM.replace("streamable = ", "#");
    for (path, url, settings) in [
        ("/in/a", "file:///data/a", silent.as_str()),
        ("/in/a", "s3://data/a", CLAIM),
        ("/in/a", "file:///database/a", CLAIM),
        ("/in/a", "file:///data/../a", CLAIM),
        ("/in/a", "file:///data/%2e%2e/a", CLAIM),
        ("/in/a", "file:///data/%ff", CLAIM),
        ("/in/a", "file:///data", CLAIM),
        ("/in/a", "file:///data/a?b", CLAIM),
        ("/in/a", "file:///data/a%0ab", CLAIM),
        ("/in/a", "file://host/data/a", CLAIM),
        ("/in/a", "file://me@/data/a", CLAIM),
        ("/in/a", "file://me:***@/data/a", CLAIM),
        ("/in/a:b", "file:///data/a", CLAIM),
        // Executors would see what that mount hides.
        ("/in/a", "file:///data/b/a", &nested),
    ] {
        let plan = plan(json!({"inputs": [input(path, url)]}));
        let manifests = made(&plan, &surroundings(settings));
        assert_eq!(streams(&manifests), [], "{path} {url}");
        assert_eq!(packed_plan(&manifests), plan);
    }
    let plan = plan(json!({"inputs": [input("/in/a", "file:///data/x/../bc/./a")]}));
    let streams = streams(&made(&plan, &surroundings(&nested)));
    assert_eq!(streams, [("/in/a".to_owned(), "tasks/bc/a".to_owned())]);
}

#[test]
fn the_mount_with_the_longest_prefix_is_taken() {
    let toml = format!(
        "{CLAIM}[[mounts]]\npath = \"/other\"\nclaim = \"other\"\nstreamable = \"file:///data/b\""
    );
    let plan = plan(json!({"inputs": [input("/in/a", "file:///data/b/a")]}));
    let manifests = made(&plan, &surroundings(&toml));
    assert_eq!(streams(&manifests), [("/in/a".to_owned(), "a".to_owned())]);
}

#[test]
fn of_many_some_are_mounted() {
    let inputs: Vec<_> = (0..500)
        .map(|n| input(&format!("/etc/d{n}"), &format!("file:///data/{n}")))
        .collect();
    // 200 of them are as many single files as fit.
    let plan = plan(json!({ "inputs": inputs[..200] }));
    let manifests = made(&plan, &surroundings(CLAIM));
    assert_eq!(streams(&manifests).len(), crate::plan::mounts::WANTED);
}

#[test]
fn only_claims_of_the_filer_with_a_url_are_streamable() {
    for (mount, expected) in [
        ("secret = \"s\", streamable = \"file:///a\"", "only a claim"),
        (
            "claim = \"c\", in = \"executors\", streamable = \"file:///a\"",
            "only a claim",
        ),
        ("claim = \"c\", streamable = \"s3://a\"", "must be a url"),
        (
            "claim = \"c\", streamable = \"file://h/a\"",
            "must be a url",
        ),
        ("claim = \"c\", streamable = \"a\"", "must be a url"),
    ] {
        let toml = format!("mounts = [{{ path = \"/a\", {mount} }}]");
        let settings: Settings = toml::from_str(&toml).unwrap();
        let refused = settings.check().unwrap_err();
        assert!(refused.contains(expected), "{mount}: {refused}");
    }
}
