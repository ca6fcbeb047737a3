//! Which URLs this server serves.

use std::collections::BTreeSet;

use crate::storage::StorageUrl;
use crate::storage::url::InvalidUrl;
use crate::tes::FileType;

/// One URL prefix that is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixRule {
    /// Such as `s3://bucket/`, `http://` or `file:///data`.
    pub prefix: String,
    /// Whether outputs can be delivered there.
    pub write: bool,
    /// Whether directories can be fetched from there.
    pub list: bool,
}

/// Schemes whose URLs may hold a user's name and password.
const WITH_USERS: [&str; 4] = ["ftp", "ftps", "http", "https"];
/// Schemes whose paths are plain keys: `..`, `?` and `#` mean nothing there.
const WITH_KEYS: [&str; 2] = ["s3", "gs"];

/// Checks the url of an input; an error says what is wrong, and never shows the url.
pub(super) fn check_input(url: &str, kind: FileType, rules: &[PrefixRule]) -> Result<(), String> {
    let (url, rule) = served(url, rules)?;
    if kind == FileType::Directory && !rule.list {
        let scheme = url.scheme();
        return Err(format!("{scheme} cannot list what a DIRECTORY holds"));
    }
    Ok(())
}

/// Checks the url of an output; `is_file` when it names a file rather than a directory.
pub(super) fn check_output(url: &str, is_file: bool, rules: &[PrefixRule]) -> Result<(), String> {
    let (url, rule) = served(url, rules)?;
    if !rule.write {
        return Err(format!("nothing can be delivered to {}", rule.prefix));
    }
    let path = key_or_path(&url);
    if is_file && (path.is_empty() || path.ends_with('/')) {
        return Err("must name a file, not end with /; is type DIRECTORY missing?".into());
    }
    Ok(())
}

/// The rule with the longest prefix of all that `url` is within.
fn served<'a>(url: &str, rules: &'a [PrefixRule]) -> Result<(StorageUrl, &'a PrefixRule), String> {
    let url: StorageUrl = url.parse().map_err(|error| match error {
        InvalidUrl::Control => error.to_string(),
        error => format!("{error}; {}", schemes_served(rules)),
    })?;
    let parsed = || {
        rules
            .iter()
            .filter_map(|r| Some((r.prefix.parse().ok()?, r)))
    };
    if !parsed().any(|(prefix, _): (StorageUrl, _)| prefix.scheme() == url.scheme()) {
        return Err(format!("has another scheme; {}", schemes_served(rules)));
    }
    if (url.user().is_some() || url.password().is_some()) && !WITH_USERS.contains(&url.scheme()) {
        return Err("only FTP and HTTP(S) urls may name a user".into());
    }
    if url.scheme() == "file" {
        if !matches!(url.host(), "" | "localhost") {
            return Err("a file url must not name a host: file:///path".into());
        }
        if url.decoded_path().contains(&0) {
            return Err("contains a NUL character".into());
        }
    } else if url.host().is_empty() {
        return Err("names no host or bucket".into());
    }
    let rule = parsed()
        .filter(|(prefix, _)| is_within(&url, prefix))
        .max_by_key(|(_, rule)| rule.prefix.len());
    match rule {
        Some((_, rule)) => Ok((url, rule)),
        None => Err(format!(
            "is outside of what this server serves: {}",
            listed(rules.iter().map(|rule| rule.prefix.as_str()))
        )),
    }
}

fn schemes_served(rules: &[PrefixRule]) -> String {
    let schemes = rules.iter().filter_map(|r| r.prefix.split(':').next());
    format!("this server serves {}", listed(schemes))
}

fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: BTreeSet<&str> = names.collect();
    if names.is_empty() {
        return "none".into();
    }
    names.into_iter().collect::<Vec<_>>().join(", ")
}

/// Whether `url` is `prefix` or lies below it, whole path components compared. A prefix
/// without a host has every host in it.
fn is_within(url: &StorageUrl, prefix: &StorageUrl) -> bool {
    url.scheme() == prefix.scheme()
        && (url.scheme() == "file"
            || prefix.host().is_empty()
            || prefix.host().eq_ignore_ascii_case(url.host()))
        && {
            let (path, prefix) = (components(url), components(prefix));
            path.starts_with(&prefix)
        }
}

/// The components of the path that a server would resolve.
fn components(url: &StorageUrl) -> Vec<Vec<u8>> {
    if WITH_KEYS.contains(&url.scheme()) {
        let key = url.path_and_rest().trim_end_matches('/');
        let components = key.split('/').skip(1);
        return components.map(|c| c.as_bytes().to_vec()).collect();
    }
    let mut resolved = Vec::new();
    for component in url.decoded_path().split(|b| *b == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                resolved.pop();
            }
            name => resolved.push(name.to_vec()),
        }
    }
    resolved
}

fn key_or_path(url: &StorageUrl) -> &str {
    if WITH_KEYS.contains(&url.scheme()) {
        url.path_and_rest()
    } else {
        url.path()
    }
}
