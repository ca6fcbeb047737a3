//! The storage backends that come with `tesk`, one cargo feature each.
//!
//! - [`ftp`] (feature `ftp`): FTP servers, plain and with TLS, `ftp:` and `ftps:`.
//! - [`opendal`] (feature `opendal` and one for each service): what else OpenDAL knows.
//! - [`pvc`] (feature `pvc`): a mounted directory, addressed by `file:` URLs.
//! - [`http`] (feature `http`): web servers, `http:` and `https:`.
//! - [`s3`] (feature `s3`): object stores, `s3:`.
//!
//! A program takes [`builtin()`], adds its own with
//! [`with`](tesk_core::storage::RegistryBuilder::with), and builds a registry from the
//! `[[storage]]` entries of its configuration.

#[cfg(any(feature = "http", feature = "opendal", feature = "s3"))]
mod client;
#[cfg(feature = "ftp")]
pub mod ftp;
#[cfg(feature = "http")]
pub mod http;
#[cfg(any(feature = "ftp", feature = "http"))]
pub mod netrc;
#[cfg(any(feature = "ftp", feature = "http", feature = "opendal", feature = "s3"))]
mod network;
#[cfg(feature = "opendal")]
pub mod opendal;
#[cfg(feature = "pvc")]
pub mod pvc;
#[cfg(feature = "s3")]
pub mod s3;
#[cfg(any(feature = "ftp", feature = "http", feature = "opendal", feature = "s3"))]
mod secret;
#[cfg(any(feature = "ftp", feature = "http", feature = "opendal", feature = "s3"))]
pub mod tls;

use tesk_core::storage::registry::Prefixes;
use tesk_core::storage::{ConfigEntry, RegistryBuilder};

/// Every backend that this build has.
pub fn builtin() -> RegistryBuilder {
    let builder = RegistryBuilder::default();
    #[cfg(feature = "ftp")]
    let builder = builder.with("ftp", ftp::FtpFactory);
    #[cfg(feature = "http")]
    let builder = builder.with("http", http::HttpFactory);
    #[cfg(feature = "opendal")]
    let builder = builder.with("opendal", opendal::OpenDalFactory);
    #[cfg(feature = "pvc")]
    let builder = builder.with("pvc", pvc::PvcFactory);
    #[cfg(feature = "s3")]
    let builder = builder.with("s3", s3::S3Factory);
    builder
}

/// What is served without any configuration: web and FTP servers everywhere, without credentials.
pub fn default_entries() -> Vec<ConfigEntry> {
    let entries: &[(&str, &[&str])] = &[
        #[cfg(feature = "ftp")]
        ("ftp", &["ftp://", "ftps://"]),
        #[cfg(feature = "http")]
        ("http", &["http://", "https://"]),
    ];
    entries
        .iter()
        .map(|(kind, prefixes)| ConfigEntry {
            kind: (*kind).to_owned(),
            prefix: Prefixes::Many(prefixes.iter().map(|&prefix| prefix.to_owned()).collect()),
            options: toml::Table::new(),
        })
        .collect()
}

#[cfg(test)]
mod fuzz {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    const KEYS: &[&str] = &[
        "path",
        "read_only",
        "durable",
        "username",
        "password_file",
        "password_env",
        "netrc",
        "tls",
        "tls13",
        "ca_file",
        "passive",
        "connections",
        "idle_secs",
        "connect_timeout_secs",
        "allow_private",
        "deny_networks",
        "allow_networks",
        "bearer_file",
        "bearer_env",
        "headers",
        "proxy",
        "endpoint",
        "region",
        "access_key_id_env",
        "profile",
        "anonymous",
        "part_mib",
        "zebra",
    ];
    const VALUES: &[&str] = &[
        "true",
        "false",
        "0",
        "-1",
        "1",
        "9223372036854775807",
        "1e300",
        "''",
        "'x'",
        "'explicit'",
        "'epsv'",
        "'s3cr3t'",
        "'/nothing'",
        "'http://h:1/'",
        "'://'",
        "'10.0.0.0/8'",
        "[]",
        "['x']",
        "['::/0']",
        "{}",
        "{ a = 'b' }",
        "2024-01-01",
    ];

    proptest! {
        #[test]
        fn no_entry_makes_a_factory_panic(
            kind in select(vec!["ftp", "http", "pvc", "s3", "gopher"]),
            prefix in "(ftp|ftps|http|https|s3|file|é)?(:|:/|://)[a-z:@/.]{0,6}",
            options in proptest::collection::btree_map(select(KEYS), select(VALUES), 0..5),
        ) {
            let options = options.iter().map(|(key, value)| format!("{key} = {value}\n"));
            let entry = ConfigEntry {
                kind: kind.to_owned(),
                prefix: Prefixes::One(prefix),
                options: toml::from_str(&options.collect::<String>()).unwrap(),
            };
            if let Err(error) = builtin().build(&[entry]) {
                prop_assert!(!error.to_string().is_empty());
            }
        }
    }
}
