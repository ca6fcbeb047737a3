//! Addresses of files in storages.

use std::fmt;
use std::str::FromStr;

use percent_encoding::{
    AsciiSet, CONTROLS, percent_decode_str, percent_encode, utf8_percent_encode,
};

use crate::rooted::RelPath;
use crate::storage::registry::is_object_store;

/// The address of a file or directory: scheme, authority, and a path that is kept exactly as it
/// was written.
///
/// Unlike a WHATWG URL nothing is normalised: an object key may hold `?`, `#`, `%`, `//` or
/// `..`. What a part means is the plugin's business: `http` sends [`StorageUrl::path`] and
/// [`StorageUrl::query`] as they are, `file` percent-decodes, `s3` takes
/// [`StorageUrl::path_and_rest`] as the key.
///
/// Shown (`Display`, `Debug`) without user information and query string, always.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct StorageUrl {
    scheme: String,
    user: Option<String>,
    password: Option<String>,
    host: String,
    /// From the first `/` after the authority to the end, query and fragment included.
    rest: String,
}

/// Why a text is not the address of a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUrl {
    /// No scheme and no absolute path.
    #[error("is neither a url with a scheme nor an absolute path")]
    NoScheme,
    /// A scheme with odd characters.
    #[error("has an invalid scheme")]
    BadScheme,
    /// A control character.
    #[error("contains a control character")]
    Control,
    /// A scheme that is not followed by `//`.
    #[error("must have // after its scheme")]
    NoAuthority,
}

impl StorageUrl {
    /// The `file:` URL of a path of this machine.
    pub fn from_path(path: &std::path::Path) -> Self {
        use std::os::unix::ffi::OsStrExt;
        Self {
            rest: percent_encode(path.as_os_str().as_bytes(), UNSAFE_IN_PATH).to_string(),
            ..Self::nowhere()
        }
    }

    /// An address of nothing, for messages about bytes in memory.
    pub(crate) fn nowhere() -> Self {
        Self {
            scheme: "file".into(),
            user: None,
            password: None,
            host: String::new(),
            rest: String::new(),
        }
    }

    /// The scheme, in lower case.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// Host and port (or bucket) as written, without user information; may be empty.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The user name, percent-decoded.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The password, percent-decoded. Never to be shown.
    pub fn password(&self) -> Option<&str> {
        self.password.as_deref()
    }

    /// Everything from the first `/` after the authority on, with `?` and `#`: the key of an
    /// object store. Empty or begins with `/`.
    pub fn path_and_rest(&self) -> &str {
        &self.rest
    }

    /// The path as written, up to `?` or `#`.
    pub fn path(&self) -> &str {
        self.rest.split(['?', '#']).next().unwrap_or_default()
    }

    /// The query string, without `?` and without the fragment.
    pub fn query(&self) -> Option<&str> {
        let before_fragment = self.rest.split('#').next().unwrap_or_default();
        before_fragment.split_once('?').map(|(_, q)| q)
    }

    /// The path with percent-escapes decoded, as bytes of a file name; for schemes whose paths
    /// are file names.
    pub fn decoded_path(&self) -> Vec<u8> {
        percent_decode_str(self.path()).collect()
    }

    /// The path of a `file:` URL below `/`, percent-decoded, `.` and `..` resolved without
    /// looking at any file. `None` when it has a NUL.
    pub fn file_path(&self) -> Option<RelPath> {
        let decoded = self.decoded_path();
        let mut components: Vec<&[u8]> = Vec::new();
        for component in decoded.split(|b| *b == b'/') {
            match component {
                b".." => drop(components.pop()),
                b"" | b"." => {}
                name => components.push(name),
            }
        }
        RelPath::new(components.join(&b'/'))
    }

    /// The address of `relative` (a raw file name path with `/`) below this directory: escaped
    /// as the scheme needs, with exactly one slash at the joint, query kept at the end.
    #[must_use]
    pub fn join(&self, relative: &str) -> Self {
        let (relative, path, tail) = if is_object_store(&self.scheme) {
            (relative.to_owned(), self.rest.as_str(), "")
        } else {
            let escaped = utf8_percent_encode(relative, UNSAFE_IN_PATH).to_string();
            let (path, tail) = self.rest.split_at(self.path().len());
            (escaped, path, tail)
        };
        let rest = format!(
            "{}/{}{tail}",
            path.trim_end_matches('/'),
            relative.trim_start_matches('/')
        );
        Self {
            rest,
            ..self.clone()
        }
    }

    /// The address of another file in the same directory, or of the directory itself for an
    /// empty `name`; `name` needs no escaping.
    #[must_use]
    pub fn sibling(&self, name: &str) -> Self {
        let (path, tail) = self.rest.split_at(self.path().len());
        let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
        Self {
            rest: format!("{directory}/{name}{tail}"),
            ..self.clone()
        }
    }

    /// The same address without trailing slashes in its path.
    #[must_use]
    pub fn without_trailing_slash(&self) -> Self {
        let (path, tail) = self.rest.split_at(self.path().len());
        Self {
            rest: format!("{}{tail}", path.trim_end_matches('/')),
            ..self.clone()
        }
    }

    /// The same address with other credentials, or none.
    #[must_use]
    pub fn with_credentials(&self, user: Option<String>, password: Option<String>) -> Self {
        Self {
            user,
            password,
            ..self.clone()
        }
    }

    /// The whole address with credentials: for plan files and plugins only, never for people.
    pub fn to_secret_string(&self) -> String {
        let mut out = format!("{}://", self.scheme);
        if self.user.is_some() || self.password.is_some() {
            out.extend(utf8_percent_encode(
                self.user.as_deref().unwrap_or(""),
                UNSAFE_IN_USERINFO,
            ));
            if let Some(password) = &self.password {
                out.push(':');
                out.extend(utf8_percent_encode(password, UNSAFE_IN_USERINFO));
            }
            out.push('@');
        }
        out.push_str(&self.host);
        out.push_str(&self.rest);
        out
    }
}

impl StorageUrl {
    /// Every form in which something secret of this address may turn up in a text, the longest
    /// first: user information, password, query and the values in it.
    pub(crate) fn secrets(&self) -> Vec<String> {
        let mut secrets = Vec::new();
        if let Some(password) = self.password() {
            let user = self.user().unwrap_or_default();
            let encoded = utf8_percent_encode(password, UNSAFE_IN_USERINFO).to_string();
            secrets.extend([format!("{user}:{encoded}@"), format!("{user}:{password}")]);
            secrets.extend([encoded, password.to_owned()]);
        } else if let Some(user) = self.user() {
            secrets.push(format!("{user}@"));
        }
        if let Some(query) = self.query() {
            secrets.push(query.to_owned());
            for value in query
                .split('&')
                .filter_map(|pair| pair.split_once('=').map(|p| p.1))
            {
                // Short ones (`v=2`) are no secrets, and cutting them would garble the text.
                if value.len() >= 8 {
                    secrets.push(value.to_owned());
                    secrets.push(percent_decode_str(value).decode_utf8_lossy().into_owned());
                }
            }
        }
        secrets.retain(|secret| !secret.is_empty());
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        secrets
    }
}

const UNSAFE_IN_USERINFO: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'%')
    .add(b':')
    .add(b'@')
    .add(b'/')
    .add(b'?')
    .add(b'#');
const UNSAFE_IN_PATH: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

impl FromStr for StorageUrl {
    type Err = InvalidUrl;

    /// Reads `scheme://[user[:password]@]host/path`, or an absolute path, which is taken as it
    /// is and means the same as `file://` with the path escaped.
    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        if text.chars().any(char::is_control) {
            return Err(InvalidUrl::Control);
        }
        if text.starts_with('/') {
            let rest = utf8_percent_encode(text, UNSAFE_IN_PATH).to_string();
            let (user, password) = (None, None);
            return Ok(Self {
                scheme: "file".into(),
                user,
                password,
                host: String::new(),
                rest,
            });
        }
        let (scheme, after) = text.split_once(':').ok_or(InvalidUrl::NoScheme)?;
        let first_is_letter = scheme.starts_with(|c: char| c.is_ascii_alphabetic());
        if !first_is_letter
            || !scheme
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
        {
            return Err(InvalidUrl::BadScheme);
        }
        let after = after.strip_prefix("//").ok_or(InvalidUrl::NoAuthority)?;
        let end = after.find(['/', '?', '#']).unwrap_or(after.len());
        let (authority, rest) = after.split_at(end);
        let (userinfo, host) = match authority.rsplit_once('@') {
            Some((userinfo, host)) => (Some(userinfo), host),
            None => (None, authority),
        };
        let decode = |s: &str| percent_decode_str(s).decode_utf8_lossy().into_owned();
        let (user, password) = match userinfo.map(|u| u.split_once(':').unwrap_or((u, "\0"))) {
            None => (None, None),
            Some((user, "\0")) => (Some(decode(user)), None),
            Some((user, password)) => (Some(decode(user)), Some(decode(password))),
        };
        let scheme = scheme.to_ascii_lowercase();
        Ok(Self {
            scheme,
            user,
            password,
            host: host.to_owned(),
            rest: rest.to_owned(),
        })
    }
}

impl fmt::Display for StorageUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A query may hold a signature. Object keys may hold `?`; cutting them in messages too
        // is the price of never showing a secret.
        write!(f, "{}://{}{}", self.scheme, self.host, self.path())
    }
}

impl fmt::Debug for StorageUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StorageUrl({self})")
    }
}

#[cfg(test)]
mod fuzz {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_is_an_address_that_is_read_again_as_the_same_or_none(text in any::<String>()) {
            if let Ok(url) = text.parse::<StorageUrl>() {
                prop_assert_eq!(&url.to_secret_string().parse::<StorageUrl>(), &Ok(url));
            }
        }

        #[test]
        fn an_address_is_read_again_as_the_same(
            text in "(ftp|S3|h2-x)://([a-z%:@é\\[]{0,8}@)?[a-z0-9.:%@\\[\\]]{0,8}(/[a-z%/.?#@: é]{0,12})?"
        ) {
            let url: StorageUrl = text.parse().unwrap();
            prop_assert_eq!(&url.to_secret_string().parse::<StorageUrl>(), &Ok(url.clone()));
            // Shown it is the same but for what is secret.
            let shown: StorageUrl = url.to_string().parse().unwrap();
            prop_assert_eq!(shown.path_and_rest(), url.path());
            prop_assert_eq!((shown.scheme(), shown.host()), (url.scheme(), url.host()));
            prop_assert_eq!((shown.user(), shown.password(), shown.query()), (None, None, None));
        }

        #[test]
        fn no_password_is_shown(user in "[a-z]{0,3}", password in "[ -~é]{8,16}", rest in "/[a-y]{0,3}") {
            let url: StorageUrl = format!("ftp://host{rest}?sig=zzz").parse().unwrap();
            let url = url.with_credentials(Some(user), Some(password.clone()));
            let read: StorageUrl = url.to_secret_string().parse().unwrap();
            prop_assert_eq!(read.password(), Some(password.as_str()));
            for shown in [url.to_string(), format!("{url:?}")] {
                prop_assert!(!shown.contains(&password) && !shown.contains("zzz"), "{}", shown);
            }
            for secret in [&password, &url.to_secret_string()[6..]] {
                let error = super::super::Error::new(super::super::ErrorKind::Other, &url, secret);
                let shown = error.scrubbed(&url).to_string();
                prop_assert!(!shown.contains(&password) && !shown.contains("zzz"), "{}", shown);
            }
        }

        #[test]
        fn a_name_that_is_joined_is_below_and_decodes_to_itself(
            scheme in "(ftp|file|s3|http)", base in "(/[a-z%]{0,4}){0,3}", name in "[^\0-\x1f\x7f-\u{9f}/][^\0-\x1f\x7f-\u{9f}]{0,9}"
        ) {
            let url: StorageUrl = format!("{scheme}://host{base}").parse().unwrap();
            let joined = url.join(&name);
            let read = joined.to_secret_string().parse();
            prop_assert_eq!(&read, &Ok(joined.clone()));
            let (base, expected) = if scheme == "s3" {
                (url.path_and_rest().as_bytes().to_vec(), joined.path_and_rest().as_bytes().to_vec())
            } else {
                (url.decoded_path(), joined.decoded_path())
            };
            let base = String::from_utf8_lossy(&base).trim_end_matches('/').to_owned();
            prop_assert_eq!(String::from_utf8_lossy(&expected), format!("{base}/{name}"));
        }

        #[test]
        fn a_path_of_a_file_url_never_climbs(rest in "[/.%2eEfF0a]{0,24}") {
            let url: StorageUrl = format!("file:///{rest}").parse().unwrap();
            if let Some(path) = url.file_path() {
                use std::path::Component::Normal;
                prop_assert!(path.as_path().components().all(|c| matches!(c, Normal(_))));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> StorageUrl {
        text.parse().unwrap()
    }

    #[test]
    fn a_shown_address_has_neither_credentials_nor_query() {
        let url = url("ftp://me:s%40cret@host:21/a b?sig=1#x");
        assert_eq!(url.to_string(), "ftp://host:21/a b");
        assert_eq!(url.password(), Some("s@cret"));
        assert_eq!(
            url.to_secret_string(),
            "ftp://me:s%40cret@host:21/a b?sig=1#x"
        );
    }

    #[test]
    fn an_absolute_path_is_a_file_url_taken_as_it_is() {
        let url = url("/data/a%20b?c#d");
        assert_eq!(url.scheme(), "file");
        assert_eq!(url.decoded_path(), b"/data/a%20b?c#d");
    }

    #[test]
    fn joining_puts_exactly_one_slash_and_keeps_the_query() {
        assert_eq!(
            url("http://h/d/?k=v").join("a b/c#").to_secret_string(),
            "http://h/d/a%20b/c%23?k=v"
        );
        assert_eq!(url("s3://b").join("k?x").path_and_rest(), "/k?x");
        assert_eq!(url("s3://b/x?").join("k").path_and_rest(), "/x?/k");
    }

    #[test]
    fn texts_that_are_no_address_say_why() {
        assert_eq!("data/x".parse::<StorageUrl>(), Err(InvalidUrl::NoScheme));
        assert_eq!("_:uuid".parse::<StorageUrl>(), Err(InvalidUrl::BadScheme));
        assert_eq!(
            "http:/x".parse::<StorageUrl>(),
            Err(InvalidUrl::NoAuthority)
        );
        assert_eq!(
            "http://h/\n".parse::<StorageUrl>(),
            Err(InvalidUrl::Control)
        );
    }
}
