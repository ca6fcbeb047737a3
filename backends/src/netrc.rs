//! Credentials by host, in the format of `ftp(1)` and `curl(1)`.
//!
//! Known are `machine`, `default`, `login`, `password`, `account` (ignored), `macdef` (skipped
//! to the next empty line), comments from `#` at the start of a token to the end of the line, and
//! tokens in double quotes with `\"`, `\\`, `\n`, `\r` and `\t`.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tesk_core::storage::ConfigError;

/// Where the `.netrc` file is.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Location {
    /// In the home directory, or nowhere.
    Home(bool),
    /// At this path.
    Path(PathBuf),
}

/// The entries of one file.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Netrc {
    machines: Vec<Machine>,
}

#[derive(Clone, Default, PartialEq, Eq)]
struct Machine {
    /// In lower case; `None` is `default`.
    host: Option<String>,
    login: Option<String>,
    password: Option<String>,
}

impl fmt::Debug for Netrc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts = self.machines.iter().map(|m| m.host.as_deref());
        f.debug_list()
            .entries(hosts.map(|host| host.unwrap_or("default")))
            .finish()
    }
}

impl Netrc {
    /// Reads the file at `path`.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let refused = |why: &dyn fmt::Display| {
            ConfigError(format!("netrc: cannot read `{}`: {why}", path.display()))
        };
        let text = std::fs::read_to_string(path).map_err(|e| refused(&e))?;
        Self::parse(&text).map_err(|e| refused(&e))
    }

    /// The file that an entry's key `netrc` names; nothing without one.
    pub fn load(location: Option<&Location>) -> Result<Self, ConfigError> {
        match location {
            None | Some(Location::Home(false)) => Ok(Self::default()),
            Some(Location::Path(path)) => Self::read(path),
            Some(Location::Home(true)) => match Self::usual_path() {
                Some(path) => Self::read(&path),
                None => Err(ConfigError("netrc: there is no home directory".into())),
            },
        }
    }

    /// Where it is by convention: `$NETRC`, or `.netrc` in the home directory.
    pub fn usual_path() -> Option<PathBuf> {
        std::env::var_os("NETRC")
            .map(PathBuf::from)
            .or_else(|| std::env::home_dir().map(|home| home.join(".netrc")))
    }

    /// The user name and password for `host` (without port): of the first entry that names it,
    /// else of `default`.
    pub fn credentials(&self, host: &str) -> Option<(&str, &str)> {
        let host = host.to_ascii_lowercase();
        let named = self
            .machines
            .iter()
            .find(|m| m.host.as_ref() == Some(&host));
        let machine = named.or_else(|| self.machines.iter().find(|m| m.host.is_none()))?;
        let login = machine.login.as_deref().unwrap_or_default();
        let password = machine.password.as_deref().unwrap_or_default();
        (!login.is_empty() || !password.is_empty()).then_some((login, password))
    }

    /// Reads the text of such a file. Errors name the line and never quote it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut tokens = Tokens { text, at: 0 };
        let mut machines: Vec<Machine> = Vec::new();
        while let Some(word) = tokens.next()? {
            let line = tokens.line();
            let mut value = || {
                let value = tokens.next()?;
                value.ok_or_else(|| format!("line {line}: a value is missing"))
            };
            match word.as_str() {
                "machine" => {
                    let host = Some(value()?.to_ascii_lowercase());
                    machines.push(Machine {
                        host,
                        ..Machine::default()
                    });
                }
                "default" => machines.push(Machine::default()),
                "macdef" => {
                    value()?;
                    tokens.skip_to_empty_line();
                }
                key @ ("login" | "password" | "account") => {
                    let value = value()?;
                    let machine = machines
                        .last_mut()
                        .ok_or_else(|| format!("line {line}: `{key}` before any `machine`"))?;
                    match key {
                        "login" => machine.login = Some(value),
                        "password" => machine.password = Some(value),
                        _ => {}
                    }
                }
                _ => return Err(format!("line {line}: unknown word")),
            }
        }
        Ok(Self { machines })
    }
}

struct Tokens<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Tokens<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn line(&self) -> usize {
        self.text[..self.at].lines().count().max(1)
    }

    fn next(&mut self) -> Result<Option<String>, String> {
        loop {
            let rest = self.rest().trim_start();
            self.at = self.text.len() - rest.len();
            if !rest.starts_with('#') {
                break;
            }
            self.at += rest.find('\n').unwrap_or(rest.len());
        }
        if self.rest().is_empty() {
            return Ok(None);
        }
        if self.rest().starts_with('"') {
            return self.quoted().map(Some);
        }
        let rest = self.rest();
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        let word = rest[..end].to_owned();
        self.at += end;
        Ok(Some(word))
    }

    fn quoted(&mut self) -> Result<String, String> {
        let mut word = String::new();
        let mut chars = self.rest().char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += at + 1;
                    return Ok(word);
                }
                '\\' => match chars.next() {
                    Some((_, 'n')) => word.push('\n'),
                    Some((_, 'r')) => word.push('\r'),
                    Some((_, 't')) => word.push('\t'),
                    Some((_, c)) => word.push(c),
                    None => break,
                },
                c => word.push(c),
            }
        }
        Err(format!("line {}: a quote is not closed", self.line()))
    }

    fn skip_to_empty_line(&mut self) {
        let mut lines = self.rest().split_inclusive('\n').skip(1);
        let skipped: usize = self.rest().find('\n').map_or(self.rest().len(), |end| {
            let body = lines.by_ref().take_while(|line| !line.trim().is_empty());
            end + 1 + body.map(str::len).sum::<usize>()
        });
        self.at += skipped;
    }
}

#[cfg(test)]
mod fuzz {
    use proptest::prelude::*;

    use super::*;

    fn quoted(text: &str) -> String {
        let escaped = text.replace('\\', "\\\\").replace('"', "\\\"");
        format!("\"{}\"", escaped.replace('\n', "\\n"))
    }

    proptest! {
        #[test]
        fn no_text_makes_reading_panic_or_is_quoted(
            words in proptest::collection::vec(
                "(machine|default|login|password|macdef|account|\"[a\\\\\"]{0,3}|#|s3cr3t|é| |\n|\n\n)", 0..20
            )
        ) {
            for between in ["", " "] {
                if let Err(error) = Netrc::parse(&words.join(between)) {
                    prop_assert!(!error.contains("s3cr3t"), "{}", error);
                }
            }
        }

        #[test]
        fn what_is_quoted_is_read_as_it_is(login in "[ -~é\n\t]{1,12}", password in "[ -~é\n\t]{0,12}") {
            let (l, p) = (quoted(&login), quoted(&password));
            let netrc = Netrc::parse(&format!("machine H login {l}\npassword {p} machine i")).unwrap();
            prop_assert_eq!(netrc.credentials("h"), Some((login.as_str(), password.as_str())));
            prop_assert_eq!(netrc.credentials("i"), None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
        # people
        machine ftp.example.org login me password "p w\"\\#"   # behind
        machine Data.Example.Org
            login you
            account ignored
            password pass#word
        macdef init
            machine evil login x password y
            cd /pub

        machine bare
        default login anonymous password guest@
    "#;

    #[test]
    fn each_host_has_its_own_credentials() {
        let netrc = Netrc::parse(FILE).unwrap();
        assert_eq!(
            netrc.credentials("ftp.example.org"),
            Some(("me", "p w\"\\#"))
        );
        assert_eq!(
            netrc.credentials("DATA.example.org"),
            Some(("you", "pass#word"))
        );
    }

    #[test]
    fn a_macro_is_no_entry_and_an_empty_entry_hides_the_default() {
        let netrc = Netrc::parse(FILE).unwrap();
        assert_eq!(netrc.credentials("evil"), Some(("anonymous", "guest@")));
        assert_eq!(netrc.credentials("bare"), None);
        assert_eq!(Netrc::default().credentials("x"), None);
    }

    #[test]
    fn what_is_wrong_is_told_by_its_line_without_quoting_it() {
        for (text, error) in [
            ("machine a login x\nsecret", "line 2: unknown word"),
            ("login secret", "line 1: `login` before any `machine`"),
            (
                "machine a\npassword \"secret",
                "line 2: a quote is not closed",
            ),
            ("machine", "line 1: a value is missing"),
        ] {
            assert_eq!(Netrc::parse(text).unwrap_err(), error);
        }
    }

    #[test]
    fn shown_it_holds_no_secret() {
        let shown = format!("{:?}", Netrc::parse(FILE).unwrap());
        assert_eq!(
            shown,
            r#"["ftp.example.org", "data.example.org", "bare", "default"]"#
        );
    }
}
