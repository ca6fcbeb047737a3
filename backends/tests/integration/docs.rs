//! What the docs tell operators to copy.

use super::Config;

const BACKENDS: &str = include_str!("../../../docs/backends.md");

/// The blocks of the docs that are TOML.
fn blocks() -> impl Iterator<Item = &'static str> {
    let parts = BACKENDS.split("```toml\n").skip(1);
    parts.map(|part| part.split("```").next().unwrap())
}

#[test]
fn every_configuration_in_the_docs_can_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let names = vec!["localhost".to_owned()];
    let authority = rcgen::generate_simple_self_signed(names).unwrap();
    let ca_file = folder.path().join("ca.pem");
    std::fs::write(&ca_file, authority.cert.pem()).unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "secret\n").unwrap();
    let quoted = |path: &std::path::Path| format!("\"{}\"", path.display());
    let mut count = 0;
    for block in blocks() {
        // Secrets and certificates that are there, in place of those of the docs.
        let line = |line: &str| match line.split(" = ").next().unwrap() {
            "ca_file" => format!("ca_file = {}\n", quoted(&ca_file)),
            key if key.ends_with("_file") => format!("{key} = {}\n", quoted(&secret)),
            key if key.ends_with("_env") => format!("{key} = \"PATH\"\n"),
            key if line.contains("{ file = ") => {
                format!("{key} = {{ file = {} }}\n", quoted(&secret))
            }
            _ => format!("{line}\n"),
        };
        let text = block.lines().map(line).collect::<String>();
        let mut config: Config = toml::from_str(&text).unwrap();
        // Its services are features of their own.
        let is_built = |kind: &str| kind != "opendal" || cfg!(feature = "opendal-azblob");
        config.storage.retain(|entry| is_built(&entry.kind));
        let built = tesk_backends::builtin().build(&config.storage);
        assert!(built.is_ok(), "{block}\n{built:?}");
        count += config.storage.len();
    }
    assert!(count >= 15, "{count} entries");
}
