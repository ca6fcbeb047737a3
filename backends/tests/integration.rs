//! The backends behind the transfer engine, as a task meets them.
//!
//! - `breaking`: lines that keep breaking.
//! - `docs`: the configurations in the docs.
//! - `ftp`: a real server, and ones that answer oddly, lie or fall over.
//! - `http`: servers that answer oddly, redirect, lie or fall over.
//! - `network`: which servers are reached, and who gets which credentials.
//! - `pvc`: paths and symlinks that want to get out.
//! - `s3`: object stores.
//! - `tls`: certificates.
//! - `large`: memory.
//! - `webdav`: servers with WebDAV that are odd, hostile or none.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

#[path = "support/cuts.rs"]
mod cuts;
#[path = "support/ftp.rs"]
mod ftp_server;
#[path = "support/s3_server.rs"]
mod s3_server;
#[path = "support/scripted_ftp.rs"]
mod scripted_ftp;
#[path = "support/server.rs"]
mod server;

#[path = "integration/breaking.rs"]
mod breaking;
#[path = "integration/docs.rs"]
mod docs;
#[path = "integration/ftp.rs"]
mod ftp;
#[path = "integration/ftp_oddities.rs"]
mod ftp_oddities;
#[path = "integration/http.rs"]
mod http;
#[path = "integration/large.rs"]
mod large;
#[path = "integration/network.rs"]
mod network;
#[path = "integration/pvc.rs"]
mod pvc;
#[path = "integration/s3.rs"]
mod s3;
#[path = "integration/tls.rs"]
mod tls;
#[path = "integration/webdav.rs"]
mod webdav;

use std::sync::Arc;

use tesk_core::rooted::{RelPath, Root, Symlinks};
use tesk_core::storage::{ConfigEntry, ConfigError, LocalPath, Registry, Result, StorageUrl};
use tesk_core::transfer::{Engine, Moved, Settings};

#[derive(serde::Deserialize)]
struct Config {
    storage: Vec<ConfigEntry>,
}

fn registry(config: &str) -> std::result::Result<Registry, ConfigError> {
    let config: Config = toml::from_str(config).unwrap();
    tesk_backends::builtin().build(&config.storage)
}

fn url(text: &str) -> StorageUrl {
    text.parse().unwrap()
}

fn content(size: usize) -> Vec<u8> {
    (0..size)
        .map(|i| (i % 251) as u8 ^ (i >> 10) as u8)
        .collect()
}

/// Held by a test that needs much memory: one at a time.
static LARGE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// An engine and a directory of this machine.
struct Bench {
    engine: Engine,
    directory: tempfile::TempDir,
}

impl Bench {
    /// With every web server, without credentials.
    fn new() -> Self {
        Self::with("[[storage]]\ntype = 'http'\nprefix = ['http://', 'https://']")
    }

    fn with(config: &str) -> Self {
        Self::with_ranges(config, 1)
    }

    /// The same, with large files read in ranges of so many MiB.
    fn with_ranges(config: &str, range_mib: u64) -> Self {
        let settings = Settings {
            retry_base_ms: 5,
            retry_max_ms: 20,
            progress_timeout_secs: 30,
            range_mib,
            ..Settings::default()
        };
        Self {
            engine: Engine::new(Arc::new(registry(config).unwrap()), &settings),
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn local(&self, name: &str) -> LocalPath {
        LocalPath {
            root: Arc::new(Root::open(self.directory.path(), Symlinks::InRoot).unwrap()),
            path: RelPath::new(name).unwrap(),
        }
    }

    async fn fetch(&self, from: &str) -> Result<Vec<u8>> {
        let to = self.local("fetched");
        self.engine.fetch_file(&url(from), &to, false).await?;
        let names = to.root.read_dir(&RelPath::default()).unwrap();
        assert!(
            names
                .iter()
                .all(|name| !tesk_core::rooted::is_temp_name(name))
        );
        Ok(std::fs::read(self.directory.path().join("fetched")).unwrap())
    }

    async fn store(&self, content: &[u8], to: &str) -> Result<Moved> {
        std::fs::write(self.directory.path().join("out"), content).unwrap();
        self.engine.store_file(&self.local("out"), &url(to)).await
    }
}
