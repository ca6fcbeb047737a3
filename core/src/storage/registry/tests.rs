use async_trait::async_trait;

use super::*;
use crate::storage::{ByteRange, Opened, Version};

/// A storage that only has a name.
#[derive(Debug)]
#[expect(dead_code, reason = "its `Debug` is what tells storages apart")]
struct Named(String);

#[async_trait]
impl Storage for Named {
    fn capabilities(&self) -> Capabilities {
        Capabilities::read_only()
    }
    async fn stat(&self, _: &StorageUrl) -> Result<Option<crate::storage::Entry>> {
        Ok(None)
    }
    async fn read(&self, url: &StorageUrl, _: ByteRange, _: Option<&Version>) -> Result<Opened> {
        Err(Error::unsupported(url, "reading"))
    }
}

#[derive(Debug)]
struct NamedFactory(&'static [&'static str]);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    name: String,
}

impl Factory for NamedFactory {
    fn schemes(&self) -> &[&str] {
        self.0
    }
    fn create(&self, entry: &Entry) -> Result<Arc<dyn Storage>, ConfigError> {
        Ok(Arc::new(Named(entry.options::<Options>()?.name)))
    }
}

#[derive(Debug, Deserialize)]
struct File {
    storage: Vec<Entry>,
}

fn build(text: &str) -> Result<Registry, ConfigError> {
    RegistryBuilder::default()
        .with("web", NamedFactory(&["http", "https"]))
        .with("disk", NamedFactory(&["file"]))
        .with("objects", NamedFactory(&["s3"]))
        .build(&toml::from_str::<File>(text).unwrap().storage)
}

fn serving(prefixes: &[&str]) -> Registry {
    prefixes
        .iter()
        .fold(Registry::default(), |registry, prefix| {
            let storage: Arc<dyn Storage> = Arc::new(Named((*prefix).to_owned()));
            registry.serving(prefix, &storage).unwrap()
        })
}

/// The prefix that serves `url`, or the kind of the refusal.
fn routed(registry: &Registry, url: &str) -> Result<String, ErrorKind> {
    let storage = registry
        .route(&url.parse().unwrap())
        .map_err(|e| e.kind())?;
    Ok(format!("{storage:?}")
        .trim_matches(|c| c != '"')
        .trim_matches('"')
        .trim_start_matches("Named(\"")
        .to_owned())
}

#[test]
fn the_longest_prefix_wins_by_whole_components() {
    let registry = serving(&[
        "http://",
        "http://host",
        "http://host/a",
        "http://host/a/b/",
    ]);
    for (url, prefix) in [
        ("http://hostile/a", "http://"),
        ("http://host", "http://host"),
        ("http://host/ab", "http://host"),
        ("http://host/a", "http://host/a"),
        ("http://host/a?q", "http://host/a"),
        ("http://host/a/bc", "http://host/a"),
        ("http://host/a/b", "http://host/a/b/"),
        ("http://host/a/b/c", "http://host/a/b/"),
        ("http://user:pw@HOST:80/a/b/c", "http://host/a/b/"),
        ("http://host:8080/a/b/c", "http://"),
    ] {
        assert_eq!(routed(&registry, url).as_deref(), Ok(prefix), "{url}");
    }
    assert_eq!(routed(&registry, "https://host/a"), Err(ErrorKind::Invalid));
}

#[test]
fn a_file_path_is_resolved_before_it_is_compared() {
    let registry = serving(&["file:///data", "file:///data/ref"]);
    for (url, expected) in [
        ("/data/x", Ok("file:///data")),
        ("file://localhost/data", Ok("file:///data")),
        ("file:///d%61ta/./x", Ok("file:///data")),
        ("/data/ref/../x", Ok("file:///data")),
        ("/other/../data/x", Ok("file:///data")),
        ("/data/x/../ref/y", Ok("file:///data/ref")),
        ("/data2/x", Err(ErrorKind::Invalid)),
        ("/data/../etc/passwd", Err(ErrorKind::Denied)),
        ("file:///data/%2e%2e/etc/passwd", Err(ErrorKind::Denied)),
        ("file:///data/..%2fetc", Err(ErrorKind::Denied)),
        ("file:///data/a%00", Err(ErrorKind::Invalid)),
        ("file://host/data/x", Err(ErrorKind::Invalid)),
    ] {
        let expected = expected.map(str::to_owned);
        assert_eq!(routed(&registry, url), expected, "{url}");
    }
}

#[test]
fn a_file_prefix_with_a_host_is_refused_and_told_its_third_slash() {
    for (prefix, meant) in [
        ("file://data", "file:///data"),
        ("FILE://data/ref/", "file:///data/ref/"),
        ("file://data?sig=secret", "file:///data"),
    ] {
        let error = Prefix::new(prefix).unwrap_err().to_string();
        let expected = format!("must have three slashes: did you mean {meant}?");
        assert!(error.ends_with(&expected), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
    for prefix in ["file://", "file:///data", "file://localhost/data", "/data"] {
        let registry = serving(&[prefix]);
        assert_eq!(routed(&registry, "/data/x").as_deref(), Ok(prefix));
        let other = routed(&registry, "file://data/data/x");
        assert_eq!(other, Err(ErrorKind::Invalid), "{prefix}");
    }
}

#[test]
fn credentials_of_a_prefix_are_not_reached_by_climbing() {
    let registry = serving(&["https://h/public", "s3://b/public"]);
    for url in [
        "https://h/public/../private",
        "https://h/public/%2E%2e/private",
        "https://h/public/..\\private",
        "https://h/public/..%2fprivate",
    ] {
        assert_eq!(routed(&registry, url), Err(ErrorKind::Denied), "{url}");
    }
    assert!(routed(&registry, "s3://b/public/../x").is_ok());
}

#[test]
fn no_spelling_of_a_path_evades_the_prefix_that_serves_it() {
    let prefixes = [
        "ftp://h/",
        "ftp://h/reference",
        "http://",
        "http://h/re%66/x",
    ];
    let registry = serving(&prefixes);
    for (url, prefix) in [
        ("ftp://h/%72eference/x", "ftp://h/reference"),
        ("ftp://h//reference/x", "ftp://h/reference"),
        ("ftp://h/./%2e/reference", "ftp://h/reference"),
        ("ftp://h/reference%3Fx", "ftp://h/"),
        ("ftp://h/a%2Fb\\c", "ftp://h/"),
        ("ftp://h/reference/a%2Fb", "ftp://h/reference"),
        ("http://h/ref/%78//y", "http://h/re%66/x"),
        ("http://h/ref?/x", "http://"),
    ] {
        assert_eq!(routed(&registry, url).as_deref(), Ok(prefix), "{url}");
    }
    // A server decides whether these are slashes, and resolves `..`.
    for url in [
        "ftp://h/reference%2Fx",
        "ftp://h/%2Freference/x",
        "http://h/ref\\x",
        "http://h/ref%5Cx/y",
        "http://h/a/../ref/x",
        "ftp://h/a/%2e%2e/reference/x",
    ] {
        assert_eq!(routed(&registry, url), Err(ErrorKind::Denied), "{url}");
    }
    assert!(routed(&registry, "http://other/a/../b").is_ok());
    let registry = serving(&["s3://b/", "s3://b/x"]);
    for (url, prefix) in [
        ("s3://b//x", "s3://b/"),
        ("s3://b/%78", "s3://b/"),
        ("s3://b/x?", "s3://b/"),
    ] {
        assert_eq!(routed(&registry, url).as_deref(), Ok(prefix), "{url}");
    }
    let registry = serving(&["https://h/", "https://h/projects/a%2Fb"]);
    let routed = routed(&registry, "https://h/projects/a%2fb/x");
    assert_eq!(routed.as_deref(), Ok("https://h/projects/a%2Fb"));
}

#[test]
fn no_spelling_of_a_host_evades_the_prefix_that_serves_it() {
    let prefixes = [
        "https://",
        "https://data.example.org/private",
        "https://10.0.0.5/",
        "https://[2001:db8::5]/",
        "ftp://",
        "ftp://h/",
    ];
    let registry = serving(&prefixes);
    for (url, prefix) in [
        ("https://DATA.example.org:443/private/x", 1),
        ("https://data.example.org./private/x", 1),
        ("https://data.example.org:/private/x", 1),
        ("https://data.example.org:8443/private/x", 0),
        ("https://10.0.0.5/x", 2),
        ("https://[::ffff:10.0.0.5]/x", 2),
        ("https://[2001:DB8:0::5]:443/x", 3),
        ("https://other_one.example/x", 0),
        ("https://1.2.3.4.example/x", 0),
        ("ftp://h:21/x", 5),
    ] {
        assert_eq!(
            routed(&registry, url).as_deref(),
            Ok(prefixes[prefix]),
            "{url}"
        );
    }
    for url in [
        "https://data%2Eexample.org/private/x",
        "https://data.example.org\\private/x",
        "https://data.example.org:0443/private/x",
        "https://\u{ff44}ata.example.org/private/x",
        "https:// data.example.org/private/x",
        "https://0x0a.0.0.5/x",
        "https://10.5/x",
        "https://167772165/x",
        "https://[::ffff:10.0.0.5%eth0]/x",
        "ftp://h:021/x",
        "ftp://h:+21/x",
        "ftp://h:65536/x",
    ] {
        assert_eq!(routed(&registry, url), Err(ErrorKind::Denied), "{url}");
    }
    let registry = serving(&["https://"]);
    assert!(routed(&registry, "https://b\u{fc}cher.example/x").is_ok());
}

#[test]
fn all_errors_of_a_configuration_come_together() {
    let error = build(
        r#"
        storage = [
            { type = "wbe", prefix = "http://a" },
            { type = "web", prefix = ["ftp://a", "http://u:secret@b"], name = "x" },
            { type = "disk", prefix = "file:///data", nmae = "x" },
            { type = "disk", prefix = ["/data/", "file:///data", "file:///x/../y"], name = "x" },
            { type = "disk", prefix = [], name = "x" },
            { type = "plugin", prefix = "plugin://", name = "x" },
        ]
        "#,
    )
    .unwrap_err()
    .to_string();
    for part in [
        "storage[0] (type `wbe`): is unknown; this program has `disk`, `objects`, `web`; did you mean `web`?",
        "storage[1] (type `web`): the prefix `ftp://a` is not served by this type, but `http://`, `https://` is",
        "storage[1] (type `web`): the prefix `http://b` must not hold credentials",
        "unknown field `nmae`",
        "did you mean `name`?",
        "storage[3] (type `disk`): the prefix `file:///data` is given twice",
        "must have no `..`",
        "storage[4] (type `disk`): has no prefix",
        "storage[5] (type `plugin`): is unknown; this program has `disk`, `objects`, `web`; others may have been left out when it was built (cargo features)",
    ] {
        assert!(error.contains(part), "{part:?} is not in:\n{error}");
    }
    assert!(!error.contains("secret"), "{error}");
}

#[test]
fn an_unserved_url_is_told_what_is_served() {
    let registry = build(
        r#"
        [[storage]]
        type = "objects"
        prefix = ["s3://b", "s3://a"]
        name = "x"
        "#,
    )
    .unwrap();
    let error = registry
        .route(&"gs://b/k?sig=secret".parse().unwrap())
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "gs://b/k: is not served here; what is: s3://a, s3://b"
    );
    assert_eq!(registry.prefixes().len(), 2);
    assert_eq!(routed(&registry, "s3://a/k").as_deref(), Ok("x"));
}
