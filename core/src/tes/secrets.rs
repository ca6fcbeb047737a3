//! Passwords in URLs, kept apart from the document that shows them as `***`.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

const MASK: &str = "***";

/// Passwords cut from a document's URLs, by the field they came from (`inputs[0].url`, the
/// index as in the stored document), percent-encoded as the client wrote them.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UrlSecrets(pub BTreeMap<String, String>);

impl UrlSecrets {
    /// `url` with the password of `field`, if one was cut from it.
    pub fn restore(&self, field: &str, url: &str) -> String {
        match (self.0.get(field), password(url)) {
            (Some(secret), Some(range)) => {
                [&url[..range.start], secret, &url[range.end..]].concat()
            }
            _ => url.to_owned(),
        }
    }
}

impl std::fmt::Debug for UrlSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UrlSecrets({} hidden)", self.0.len())
    }
}

/// Whether the password in `url` is masked.
pub(crate) fn is_masked(url: &str) -> bool {
    password(url).is_some_and(|range| &url[range] == MASK)
}

/// Masks the password in `url`, and returns it.
pub(super) fn mask(url: &mut String) -> Option<String> {
    let range = password(url)?;
    let secret = url[range.clone()].to_owned();
    url.replace_range(range, MASK);
    Some(secret)
}

/// Where in `scheme://user:password@host/…` the password is.
fn password(url: &str) -> Option<Range<usize>> {
    let start = url.find("://")? + 3;
    // An absolute path is taken as it is, whatever it holds.
    if url.starts_with('/') {
        return None;
    }
    let end = url[start..]
        .find(['/', '?', '#'])
        .map_or(url.len(), |at| start + at);
    let at = start + url[start..end].rfind('@')?;
    let colon = start + url[start..at].find(':')?;
    Some(colon + 1..at)
}
