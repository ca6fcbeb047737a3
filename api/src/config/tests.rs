use std::collections::BTreeSet;

use serde::de::DeserializeOwned;
use tesk_core::storage::registry::Prefixes;

use super::*;

const EXAMPLE: &str = include_str!("../../../tesk.example.toml");

fn load(text: &str, variables: &[(&str, &str)]) -> Result<Config, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let variables = variables
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    Config::load(Some(file.path()), variables)
}

/// The example with every commented-out key put in.
fn uncommented() -> String {
    let is_key = |line: &&str| {
        line.strip_prefix('#')
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '['))
    };
    let lines = EXAMPLE.lines();
    lines
        .map(|line| if is_key(&line) { &line[1..] } else { line })
        .fold(String::new(), |text, line| text + line + "\n")
}

#[test]
fn the_example_is_the_default() {
    let example = load(EXAMPLE, &[]).unwrap();
    let default = Config::default();
    assert_eq!(example.server, default.server);
    assert_eq!(example.service_info, default.service_info);
    assert_eq!(example.auth, default.auth);
    assert_eq!(example.limits, default.limits);
    assert_eq!(example.local, default.local);
    assert_eq!(example.transfer, default.transfer);
    let entries = |entries: &[ConfigEntry]| serde_json::to_value(entries).unwrap();
    assert_eq!(
        entries(&example.storage),
        entries(&tesk_backends::default_entries())
    );
}

#[test]
fn the_example_is_valid_with_every_optional_key_too() {
    let config = load(&uncommented(), &[]).unwrap();
    assert_eq!(config.limits.max_cpu_cores, Some(64));
    assert_eq!(config.storage.len(), 5);
}

/// The keys that `T` knows: those it names when it meets one that it does not know.
fn keys<T: DeserializeOwned>() -> BTreeSet<String> {
    let error = toml::from_str::<T>("zebra = 1")
        .err()
        .map(|error| error.to_string());
    named_in(&error.expect("unknown keys are refused"))
}

fn named_in(error: &str) -> BTreeSet<String> {
    let known = error.split_once("expected").unwrap().1;
    known
        .split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_key_is_in_the_example() {
    fn check(section: &str, keys: &BTreeSet<String>) {
        let text = uncommented();
        let table: toml::Table = toml::from_str(&text).unwrap();
        let table = match section {
            "" => &table,
            section => table[section].as_table().unwrap(),
        };
        let present: BTreeSet<_> = table.keys().cloned().collect();
        assert_eq!(&present, keys, "[{section}]");
    }
    check("", &keys::<Config>());
    check("server", &keys::<Server>());
    check("service_info", &keys::<ServiceInfo>());
    check("limits", &keys::<Limits>());
    check("local", &keys::<Local>());
    check("transfer", &keys::<transfer::Settings>());
    // One key each: serde then says "expected `users`".
    check("auth", &BTreeSet::from(["users".to_owned()]));
}

#[test]
fn the_chart_takes_every_key_but_those_that_it_sets_itself() {
    let schema = include_str!("../../../deploy/helm/tesk/values.schema.json");
    let schema: serde_json::Value = serde_json::from_str(schema).unwrap();
    let sections = &schema["properties"]["config"]["properties"];
    let check = |section: &str, keys: &BTreeSet<String>, set: &[&str]| {
        let taken = sections[section]["properties"].as_object().unwrap().keys();
        let taken = taken.cloned().chain(set.iter().map(|&key| key.into()));
        assert_eq!(&taken.collect::<BTreeSet<_>>(), keys, "[{section}]");
    };
    let by_values = ["allow_open", "context_path", "data", "engine", "listen"];
    check("server", &keys::<Server>(), &by_values);
    check("service_info", &keys::<ServiceInfo>(), &[]);
    check("limits", &keys::<Limits>(), &[]);
    check("transfer", &keys::<transfer::Settings>(), &[]);
    let by_values = [
        "context",
        "filer_image",
        "image_pull_secrets",
        "kubeconfig",
        "namespace",
        "scratch_class",
    ];
    check("kubernetes", &keys::<kubernetes::Settings>(), &by_values);
}

#[test]
fn every_option_of_a_backend_is_in_the_example() {
    for (kind, prefix) in [
        ("ftp", "ftp://x/"),
        ("http", "http://x/"),
        ("pvc", "file:///"),
        ("s3", "s3://x/"),
    ] {
        let entry = ConfigEntry {
            kind: kind.into(),
            prefix: Prefixes::One(prefix.into()),
            options: toml::Table::from_iter([("zebra".to_owned(), 1.into())]),
        };
        let error = tesk_backends::builtin()
            .build(&[entry])
            .unwrap_err()
            .to_string();
        for key in named_in(&error) {
            let line = format!("\n#{key} = ");
            assert!(
                EXAMPLE.contains(&line),
                "{kind}: {key} is not in the example"
            );
        }
    }
}

#[test]
fn an_unknown_key_is_refused_with_its_section_and_the_nearest_name() {
    let error = load("[server]\nlistne = \"127.0.0.1:1\"\n", &[]).unwrap_err();
    for text in ["line 2", "[server]", "did you mean `listen`?"] {
        assert!(error.contains(text), "{text} is not in {error}");
    }
    let error = load("[sever]\n", &[]).unwrap_err();
    assert!(error.contains("did you mean `server`?"), "{error}");
}

#[test]
fn common_mistakes_are_told_what_to_write() {
    for (text, expected) in [
        (
            "[storage]\ntype = \"ftp\"\nprefix = \"ftp://\"",
            "write [[storage]], with two brackets",
        ),
        (
            "[[kubernetes.mounts]]\npath = \"/a\"\n[storage]",
            "write [[storage]], with two brackets",
        ),
        (
            "[kubernetes.mounts]\npath = \"/a\"",
            "write [[kubernetes.mounts]], with two brackets",
        ),
        (
            "[server]\nlisten = \"localhost:8080\"",
            "must be an address with a port",
        ),
        ("[limits]\nretention = 30", "30 of what?"),
    ] {
        let error = load(text, &[]).unwrap_err();
        assert!(error.contains(expected), "{expected} is not in {error}");
    }
    let error = load("", &[("TESK_SERVER__LISTEN", "8080")]).unwrap_err();
    assert!(error.contains("must be an address with a port"), "{error}");
}

#[test]
fn the_environment_overrides_the_file_and_its_errors_say_so() {
    let text = "[server]\nlisten = \"127.0.0.1:1\"\n";
    let config = load(
        text,
        &[
            ("TESK_SERVER__LISTEN", "127.0.0.1:2"),
            ("TESK_LIMITS__GRACE", "3s"),
        ],
    );
    let config = config.unwrap();
    assert_eq!(config.server.listen.port(), 2);
    assert_eq!(config.limits.grace.0.as_secs(), 3);
    let error = load(text, &[("TESK_SERVER__LISTNE", "x")]).unwrap_err();
    assert!(error.starts_with("environment"), "{error}");
    assert!(error.contains("did you mean `listen`?"), "{error}");
}

#[test]
fn values_that_cannot_work_are_refused_with_their_key() {
    for (text, key) in [
        ("[server]\ncontext_path = \"tesk\"", "server.context_path"),
        ("[server]\ncontext_path = \"/{id}\"", "server.context_path"),
        (
            "[server]\ncontext_path = \"/metrics\"",
            "server.context_path",
        ),
        (
            "[server]\nallowed_origins = [\"https://x/path\"]",
            "server.allowed_origins",
        ),
        (
            "[service_info]\ncontact_url = \"nobody\"",
            "service_info.contact_url",
        ),
        ("[service_info]\ncreated_at = \"2026-01-31\"", "created_at"),
        ("[limits]\nattempts = 0", "limits.attempts"),
        ("[local]\nlog_tail = \"1KiB\"", "local.log_tail"),
        ("[server]\nheader_timeout = \"soon\"", "header_timeout"),
    ] {
        let error = load(text, &[]).unwrap_err();
        assert!(error.contains(key), "{key} is not in {error}");
    }
}

#[test]
fn an_open_server_beyond_loopback_must_be_wanted() {
    let refused = |text: &str| load(text, &[]).unwrap().refuse_open_to_others().is_err();
    assert!(refused("[server]\nlisten = \"0.0.0.0:80\""));
    assert!(refused("[server]\nlisten = \"[::]:80\""));
    assert!(!refused("[server]\nlisten = \"[::1]:80\""));
    assert!(!refused(
        "[server]\nlisten = \"0.0.0.0:80\"\nallow_open = true"
    ));
    assert!(!refused(
        "[server]\nlisten = \"0.0.0.0:80\"\n[auth]\nusers = \"u.toml\""
    ));
}
