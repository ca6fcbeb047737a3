//! Paths on a server.

use tesk_core::storage::{Error, ErrorKind, Result, StorageUrl};

/// The path of `url` on the server: absolute, without trailing slash; `/` is the root.
///
/// Percent-escapes are decoded. What could end a command (line breaks, NUL) is refused, and so
/// is `..`, because it would be resolved by the server, after the prefix was checked.
pub(super) fn of(url: &StorageUrl) -> Result<String> {
    let invalid = |message: &str| Err(Error::new(ErrorKind::Invalid, url, message));
    if url.path().len() != url.path_and_rest().len() {
        return invalid("`?` and `#` in names must be written as %3F and %23");
    }
    let Ok(path) = String::from_utf8(url.decoded_path()) else {
        return invalid("its path is not UTF-8");
    };
    if path.contains(['\r', '\n', '\0']) {
        return invalid("its path has a line break or a NUL");
    }
    let mut clean = String::with_capacity(path.len());
    for component in path.split('/') {
        match component {
            "" | "." => {}
            ".." => return invalid("its path must not have a `..` component"),
            name => {
                clean.push('/');
                clean.push_str(name);
            }
        }
    }
    if clean.is_empty() {
        clean.push('/');
    }
    Ok(clean)
}

/// The directory that `path` is in; `None` for the root.
pub(super) fn parent(path: &str) -> Option<&str> {
    match path.rsplit_once('/') {
        Some(("", "")) | None => None,
        Some(("", _)) => Some("/"),
        Some((parent, _)) => Some(parent),
    }
}

/// `name` in the directory `path`.
pub(super) fn join(path: &str, name: &str) -> String {
    format!("{}/{name}", path.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(url: &str) -> Result<String> {
        of(&url.parse().unwrap())
    }

    #[test]
    fn escapes_are_decoded_and_slashes_counted_once() {
        assert_eq!(path("ftp://h/a%20b//%C3%A9/./c%3F/").unwrap(), "/a b/é/c?");
        assert_eq!(path("ftp://h/%2Fetc/x").unwrap(), "/etc/x");
        assert_eq!(path("ftp://h").unwrap(), "/");
        assert_eq!(parent("/a/b"), Some("/a"));
        assert_eq!(parent("/a"), Some("/"));
        assert_eq!(parent("/"), None);
        assert_eq!(join("/", "a"), "/a");
    }

    #[test]
    fn a_path_never_becomes_a_second_command() {
        for url in [
            "ftp://h/a%0d%0aDELE%20b",
            "ftp://h/a%0a",
            "ftp://h/%00",
            "ftp://h/%ff",
            "ftp://h/a/%2e%2e/b",
            "ftp://h/a?b",
            "ftp://h/a#b",
        ] {
            assert_eq!(path(url).unwrap_err().kind(), ErrorKind::Invalid, "{url}");
        }
    }
}
