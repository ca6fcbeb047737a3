//! The storage backends that come with `tesk`, one cargo feature each.
//!
//! - [`pvc`] (feature `pvc`): a mounted directory, addressed by `file:` URLs.
//! - [`http`] (feature `http`): web servers, `http:` and `https:`.
//! - [`s3`] (feature `s3`): object stores, `s3:`.
//!
//! A program takes [`builtin()`], adds its own with
//! [`with`](tesk_core::storage::RegistryBuilder::with), and builds a registry from the
//! `[[storage]]` entries of its configuration.

#[cfg(feature = "http")]
pub mod http;
#[cfg(feature = "http")]
pub mod netrc;
#[cfg(feature = "pvc")]
pub mod pvc;
#[cfg(feature = "s3")]
pub mod s3;
#[cfg(any(feature = "http", feature = "s3"))]
mod secret;

use tesk_core::storage::{ConfigEntry, RegistryBuilder};

/// Every backend that this build has.
pub fn builtin() -> RegistryBuilder {
    let builder = RegistryBuilder::default();
    #[cfg(feature = "http")]
    let builder = builder.with("http", http::HttpFactory);
    #[cfg(feature = "pvc")]
    let builder = builder.with("pvc", pvc::PvcFactory);
    #[cfg(feature = "s3")]
    let builder = builder.with("s3", s3::S3Factory);
    builder
}

/// What is served without any configuration: HTTP and HTTPS everywhere, without credentials.
pub fn default_entries() -> Vec<ConfigEntry> {
    #[cfg(feature = "http")]
    let entries = vec![ConfigEntry {
        kind: "http".into(),
        prefix: tesk_core::storage::registry::Prefixes::Many(vec![
            "http://".into(),
            "https://".into(),
        ]),
        options: toml::Table::new(),
    }];
    #[cfg(not(feature = "http"))]
    let entries = Vec::new();
    entries
}
