//! Which bucket and key a URL names, and which names are refused.

use tesk_core::storage::{Error, ErrorKind, Result, StorageUrl};

/// The longest key, in bytes.
/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html>
const MAX_KEY: usize = 1024;

/// A bucket and a key in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) bucket: String,
    /// Empty for the bucket itself; ends with `/` for a directory.
    pub(super) key: String,
}

impl Address {
    /// Takes `s3://bucket/key` apart. Everything after the slash is the key, taken as it is:
    /// nothing in it is percent-decoded, and `?` and `#` are characters as any other.
    pub(super) fn of(url: &StorageUrl) -> Result<Self> {
        let invalid = |message: &str| Error::new(ErrorKind::Invalid, url, message);
        if url.user().is_some() || url.password().is_some() {
            return Err(invalid("s3 urls hold no credentials"));
        }
        let bucket = url.host();
        if !is_bucket(bucket) {
            return Err(invalid("there can be no bucket of that name"));
        }
        let rest = url.path_and_rest();
        let key = match rest.strip_prefix('/') {
            Some(key) => key,
            None if rest.is_empty() => "",
            None => return Err(invalid("has no `/` between bucket and key")),
        };
        if let Some(why) = unaddressable(key) {
            return Err(invalid(why));
        }
        Ok(Self {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
        })
    }

    /// The key of the file that is meant; a key that ends with `/` means a directory.
    pub(super) fn file(&self, url: &StorageUrl) -> Result<&str> {
        if self.key.is_empty() || self.key.ends_with('/') {
            let message = "is the address of a directory, but a file is expected";
            return Err(Error::new(ErrorKind::Invalid, url, message));
        }
        Ok(&self.key)
    }

    /// What the keys of everything in this directory begin with: empty, or ending with `/`.
    pub(super) fn prefix(&self) -> String {
        if self.key.is_empty() || self.key.ends_with('/') {
            self.key.clone()
        } else {
            format!("{}/", self.key)
        }
    }
}

/// Whether `name` can be a bucket: what old and other servers allow besides AWS, but nothing that
/// means something in a path or in the name of a host.
fn is_bucket(name: &str) -> bool {
    let ordinary = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let alphanumeric = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    (3..=255).contains(&name.len())
        && name.chars().all(ordinary)
        && alphanumeric(name.chars().next())
        && alphanumeric(name.chars().next_back())
        && !name.contains("..")
}

/// Whether a bucket can be a part of a host's name: one label (RFC 1123), in lower case because a
/// host's name has no case.
pub(super) fn is_label(bucket: &str) -> bool {
    let ordinary = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    bucket.len() <= 63 && bucket.chars().all(ordinary)
}

/// Why a key cannot be addressed: the library below would take it for another one, or a client on
/// the way would. Refusing it is better than writing the wrong object.
fn unaddressable(key: &str) -> Option<&'static str> {
    if key.len() > MAX_KEY {
        Some("its key is longer than 1024 bytes")
    } else if key.starts_with('/') || key.contains("//") {
        Some("a key with an empty component (`//`) cannot be addressed")
    } else if key.trim() != key {
        Some("a key that begins or ends with white space cannot be addressed")
    } else if key.split('/').any(|part| matches!(part, "." | "..")) {
        Some("a key with a `.` or `..` component cannot be addressed")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(url: &str) -> Result<Address> {
        Address::of(&url.parse().unwrap())
    }

    #[test]
    fn everything_after_the_bucket_is_the_key_as_it_is() {
        for (url, key) in [
            ("s3://bucket", ""),
            ("s3://bucket/", ""),
            ("s3://bucket/a/b", "a/b"),
            ("s3://bucket/a b%20c?d#e+f", "a b%20c?d#e+f"),
            ("s3://bucket/d/", "d/"),
            ("s3://bucket/.hidden/..x/...", ".hidden/..x/..."),
        ] {
            assert_eq!(address(url).unwrap().key, key, "{url}");
        }
    }

    #[test]
    fn keys_that_would_become_other_keys_are_refused() {
        for url in [
            "s3://bucket//a",
            "s3://bucket/a//b",
            "s3://bucket/a//",
            "s3://bucket/ a",
            "s3://bucket/a ",
            "s3://bucket/a\u{a0}",
            "s3://bucket/../other/key",
            "s3://bucket/a/./b",
            "s3://bucket?x",
            "s3://me:secret@bucket/a",
        ] {
            let error = address(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{url}");
            assert!(!error.to_string().contains("secret"));
        }
        let long = format!("s3://bucket/{}", "k".repeat(1025));
        assert!(address(&long).is_err());
    }

    #[test]
    fn a_bucket_is_never_a_path_or_another_host() {
        for name in [
            "",
            "ab",
            "..",
            "a..b",
            "bucket:9000",
            "evil.example.org#",
            "a%2fb",
            "-ab",
            "ab.",
            "b\u{fc}cket",
        ] {
            assert!(!is_bucket(name), "{name}");
        }
        assert!(is_bucket("Old_Bucket.1"));
        assert!(is_label("my-bucket1"));
        for name in ["Bucket", "a.b", "a_b"] {
            assert!(!is_label(name), "{name}");
        }
    }
}
