//! What a `href` in a multistatus reply names.
//!
//! Nothing is ever asked for at a `href`: all that is taken from it is the name of something in
//! the directory that was listed.

use percent_encoding::percent_decode_str;
use reqwest::Url;

/// What a `href` names, seen from what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// What was asked for.
    Itself,
    /// Something of this name in it.
    Child(String),
}

/// What `href` names, if that is at or directly in `base`; else why not.
///
/// It may be absolute or relative (RFC 4918, 8.3) and is compared as what its escapes stand for.
/// Scheme and port do not count: servers behind proxies do not know theirs.
pub(super) fn named(base: &Url, href: &str) -> Result<Named, &'static str> {
    if href.is_empty() || href.chars().any(char::is_control) {
        return Err("is no address");
    }
    // A backslash would be taken for a slash.
    let url = base
        .join(&href.replace('\\', "%5C"))
        .map_err(|_| "is no address")?;
    if url.host_str() != base.host_str() {
        return Err("is on another server");
    }
    let mut segments = segments(&url);
    for above in self::segments(base) {
        if segments.next() != Some(above) {
            return Err("is not in it");
        }
    }
    let Some(name) = segments.next() else {
        return Ok(Named::Itself);
    };
    if segments.next().is_some() {
        return Err("is not directly in it");
    }
    if name.contains(&b'/') || name.contains(&0) || matches!(&*name, b"." | b"..") {
        return Err("has an impossible name");
    }
    String::from_utf8(name)
        .map(Named::Child)
        .map_err(|_| "has a name that is not UTF-8")
}

/// The names on the way, decoded.
fn segments(url: &Url) -> impl Iterator<Item = Vec<u8>> {
    let names = url.path().split('/').filter(|name| !name.is_empty());
    names.map(|name| percent_decode_str(name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(href: &str) -> Result<Named, &'static str> {
        named(&Url::parse("http://h:81/a%20b/d/?q").unwrap(), href)
    }

    #[test]
    fn a_child_is_found_in_any_spelling() {
        for itself in ["/a%20b/d/", "/a b/d", "http://h:81/a%20b/%64/", ".", "./"] {
            assert_eq!(at(itself), Ok(Named::Itself), "{itself}");
        }
        for (href, name) in [
            ("/a%20b/d/x", "x"),
            ("/a%20b/d/x/", "x"),
            ("/a%20b/d//x//", "x"),
            ("https://h/a b/d/x?query#fragment", "x"),
            ("x%20y%25%3F%23", "x y%?#"),
            ("/a%20b/d/%c3%a4", "ä"),
            ("/a%20b/d/ä", "ä"),
            ("/a%20b/d/a\\b", "a\\b"),
            ("/a%20b/d/...", "..."),
        ] {
            assert_eq!(at(href), Ok(Named::Child(name.into())), "{href}");
        }
    }

    #[test]
    fn nothing_outside_of_the_directory_is_named() {
        for href in [
            "",
            "http://evil/a%20b/d/x",
            "//evil/a%20b/d/x",
            "http://h@evil/a%20b/d/x",
            "file:///a%20b/d/x",
            "/",
            "/a%20b",
            "/a%20b/",
            "/a%20b/dx",
            "/a%20b/d2/x",
            "/etc/passwd",
            "../x",
            "/a%20b/d/../x",
            "/a%20b/d/%2e%2e/x",
            "/a%20b/d/.%2E/x",
            "/a%20b/d/x/y",
            "/a%20b/d/x%2Fy",
            "/a%20b/d/..%2f..%2fetc",
            "/a%20b/d/x%00",
            "/a%20b/d/x\n",
            "/a%20b/d/%ff",
        ] {
            assert!(at(href).is_err(), "{href}: {:?}", at(href));
        }
    }
}
