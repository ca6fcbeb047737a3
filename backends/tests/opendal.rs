//! The services of `type = "opendal"` keep the promises of `Storage`: one in memory always, those
//! that `conformance/servers/opendal` starts where it names them.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use tesk_conformance::storage::{self, Subject};
use tesk_core::storage::{Capabilities, ConfigEntry, Storage, StorageUrl};

#[derive(serde::Deserialize)]
struct Config {
    storage: Vec<ConfigEntry>,
}

/// The cases that need files above 8 MiB.
const LARGE: [&str; 4] = [
    "usual_part_sizes_and_one_byte_more_or_less_are_kept",
    "a_source_that_fails_fails_the_writing",
    "a_writing_that_is_dropped_leaves_what_was_there",
    "core_resumes_over_a_line_that_keeps_breaking",
];

/// The storage of an entry, and its URL below the prefix.
fn configured(entry: ConfigEntry) -> anyhow::Result<(Arc<dyn Storage>, StorageUrl)> {
    let url: StorageUrl = format!("{}scratch", entry.prefixes()[0]).parse()?;
    let registry = tesk_backends::builtin().build(&[entry])?;
    Ok((registry.route(&url)?, url))
}

/// Where the server of an entry is.
fn server(entry: &ConfigEntry) -> Option<SocketAddr> {
    let endpoint = entry.options.get("options")?.get("endpoint")?.as_str()?;
    endpoint
        .strip_prefix("http://")?
        .split('/')
        .next()?
        .parse()
        .ok()
}

fn main() -> ExitCode {
    storage::main(async || {
        let mut text = "[[storage]]\ntype = 'opendal'\nprefix = 'memory://all/'\n\
                        service = 'memory'\n"
            .to_owned();
        // The entries of servers that run.
        if let Ok(file) = std::env::var("TESK_TEST_OPENDAL") {
            text += &std::fs::read_to_string(&file).context(file)?;
        }
        let config: Config = toml::from_str(&text)?;
        let mut claims = Capabilities::read_only();
        claims.list = true;
        claims.ranges = true;
        claims.write = true;
        claims.remove = true;
        let mut subjects = Vec::new();
        for entry in config.storage {
            let name = entry.options["service"].as_str().unwrap_or_default();
            let name = format!("opendal-{name}");
            let (storage, url) = configured(entry.clone())?;
            let mut subject = Subject::new(name, storage, url).at_least(claims);
            if subject.name() == "opendal-gcs" {
                for case in LARGE {
                    subject = subject.excused(case, "fake-gcs-server has no uploads in parts");
                }
            }
            if let Some(server) = server(&entry) {
                subject = subject.reached_through(server, move |proxy| {
                    let mut entry = entry.clone();
                    let options = entry.options["options"].as_table_mut().context("options")?;
                    let endpoint = options["endpoint"].as_str().context("endpoint")?;
                    let endpoint = endpoint.replace(&server.to_string(), &proxy.to_string());
                    options.insert("endpoint".to_owned(), endpoint.into());
                    configured(entry)
                });
            }
            subjects.push(subject);
        }
        Ok(subjects)
    })
}
