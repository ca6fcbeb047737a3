//! Which URLs this server serves.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use crate::storage::StorageUrl;
use crate::storage::registry::{Prefix, Unserved, is_object_store};
use crate::storage::url::InvalidUrl;
use crate::tes::FileType;
use crate::tes::rejection::shortened;

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

/// Checks the url of an input; an error says what is wrong, and shows nothing secret of the url.
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
    let mut rules_by_prefix: Vec<(Prefix, &PrefixRule)> = rules
        .iter()
        .filter_map(|rule| Some((Prefix::new(&rule.prefix).ok()?, rule)))
        .collect();
    rules_by_prefix.sort_by_key(|(prefix, _)| Reverse(prefix.specificity()));
    if !rules_by_prefix
        .iter()
        .any(|(p, _)| p.scheme() == url.scheme())
    {
        let hint = if url.scheme() == "file" {
            "; file: urls need a pvc storage, or `--allow-path DIR`"
        } else {
            ""
        };
        let (url, served) = (shown(&url), schemes_served(rules));
        return Err(format!("{url} has another scheme; {served}{hint}"));
    }
    if (url.user().is_some() || url.password().is_some()) && !WITH_USERS.contains(&url.scheme()) {
        return Err("only FTP and HTTP(S) urls may name a user".into());
    }
    if url.scheme() != "file" && url.host().is_empty() {
        return Err("names no host or bucket".into());
    }
    match Prefix::choose(rules_by_prefix.iter().map(|(prefix, _)| prefix), &url) {
        Ok(index) => Ok((url, rules_by_prefix[index].1)),
        Err(Unserved::Unknown) => Err(format!(
            "{} is outside of what this server serves: {}",
            shown(&url),
            listed(rules.iter().map(|rule| rule.prefix.as_str()))
        )),
        Err(other) => Err(other.to_string()),
    }
}

/// The beginning of a url, without what is secret. One that was relative is not what its author
/// wrote, so it has to be named.
fn shown(url: &StorageUrl) -> String {
    // A password with a slash that is not escaped is read as a part of the path.
    let is_odd = url.scheme() != "file" && url.path_and_rest().contains('@');
    let shown = if is_odd {
        format!("{}://…", url.scheme())
    } else {
        url.to_string()
    };
    let start = shortened(&shown);
    let cut = if start.len() < shown.len() { "…" } else { "" };
    format!("{start}{cut}")
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

fn key_or_path(url: &StorageUrl) -> &str {
    if is_object_store(url.scheme()) {
        url.path_and_rest()
    } else {
        url.path()
    }
}
