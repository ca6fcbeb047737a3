//! What servers answer, and what it means.

use std::fmt;
use std::io;

use suppaftp::FtpError;
use suppaftp::types::Response;
use tesk_core::storage::{Error, ErrorKind, StorageUrl};

use crate::network::Refused;

/// The longest text of a server that is shown.
const SHOWN: usize = 200;

/// A final answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) code: u16,
    /// All lines, without the code of the first.
    pub(super) text: String,
}

impl From<Response> for Reply {
    fn from(response: Response) -> Self {
        let text = String::from_utf8_lossy(&response.body);
        // Not every code in use is one that the library knows.
        let written = text.get(..3).and_then(|code| code.parse().ok());
        let code = match response.status.code() {
            0 => written.unwrap_or_default(),
            known => known as u16,
        };
        let text = if written.is_some() {
            &text[3..]
        } else {
            &*text
        };
        let text = text.trim_start_matches([' ', '-']).trim_end().to_owned();
        Self { code, text }
    }
}

impl Reply {
    /// The command was carried out.
    pub(super) fn is_done(&self) -> bool {
        (200..300).contains(&self.code)
    }

    /// The server does not know the command, or not in this form.
    pub(super) fn is_unknown_command(&self) -> bool {
        matches!(self.code, 202 | 500 | 501 | 502 | 504)
    }

    /// The server has no connection left for this client.
    pub(super) fn is_crowded(&self) -> bool {
        let text = self.text.to_ascii_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
        self.code == 421
            || (matches!(self.code, 430 | 530)
                && says(&[
                    "too many",
                    "maximum",
                    "limit",
                    "already logged",
                    "try again",
                ]))
    }

    fn says(&self, words: &[&str]) -> bool {
        let text = self.text.to_ascii_lowercase();
        words.iter().any(|word| text.contains(word))
    }

    /// The text says that it is forbidden: one code (550) serves for everything.
    pub(super) fn says_denied(&self) -> bool {
        self.says(&[
            "permission denied",
            "access denied",
            "access is denied",
            "not permitted",
            "not allowed",
            "forbidden",
        ])
    }

    /// The text says that there is nothing.
    pub(super) fn says_missing(&self) -> bool {
        self.says(&[
            "no such file",
            "not found",
            "does not exist",
            "doesn't exist",
            "cannot find",
        ])
    }

    /// The text says that a directory holds nothing; some servers call that an error.
    pub(super) fn says_empty(&self) -> bool {
        self.says(&["no files", "no file found", "empty"])
    }

    pub(super) fn says_not_empty(&self) -> bool {
        self.says(&["not empty"])
    }

    /// What kind of failure it is, and whether a retry may help.
    fn kind(&self) -> (ErrorKind, bool) {
        let kind = match self.code {
            452 | 552 => ErrorKind::Full,
            _ if self.is_crowded() => ErrorKind::Unavailable,
            332 | 430 | 530 | 532 => ErrorKind::Unauthenticated,
            // A connection that is protected differently than the server wants: RFC 2228.
            521 | 522 | 533..=537 => ErrorKind::Denied,
            501 | 551 => ErrorKind::Invalid,
            500 | 502 | 504 => ErrorKind::Unsupported,
            550 | 553 => ErrorKind::Denied,
            // Order of commands: what was sent before was lost.
            503 => ErrorKind::Unavailable,
            100..=199 | 400..=499 => ErrorKind::Unavailable,
            // A success that does not belong to what was asked.
            200..=399 => ErrorKind::Unavailable,
            _ => ErrorKind::Other,
        };
        (kind, kind == ErrorKind::Unavailable)
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = self.text.split(['\r', '\n']).next().unwrap_or_default();
        let shown: String = line
            .chars()
            .take(SHOWN)
            .flat_map(char::escape_debug)
            .collect();
        write!(f, "the server answered {} {shown}", self.code)
    }
}

/// Why something could not be done.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server said no. The connection is still good, unless it said that it closes it.
    Reply(Reply),
    /// The connection is lost, or it is unknown what comes next on it.
    Broken(FtpError),
    /// It took too long.
    Timeout,
    /// A name that is not UTF-8, as far as it can be shown.
    Name(String),
    /// A listing in an unknown form.
    Listing(String),
    /// A listing that is longer than any; why.
    Endless(String),
    /// A link that leads to a directory it is in, by its path.
    Loop(String),
    /// A failure that is classified already.
    Error(Error),
}

impl From<FtpError> for Failure {
    fn from(error: FtpError) -> Self {
        match error {
            FtpError::UnexpectedResponse(response) => Self::Reply(response.into()),
            other => Self::Broken(other),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Broken(FtpError::ConnectionError(error))
    }
}

impl Failure {
    /// As an error at `url`. `message` says what could not be done; `password` is cut from what
    /// the server says.
    pub(super) fn error(self, url: &StorageUrl, message: &str, password: &str) -> Error {
        match self {
            Self::Error(error) => error,
            Self::Reply(mut reply) => {
                let (kind, retryable) = reply.kind();
                // Before it is shortened and escaped. Shorter ones are words that texts have
                // anyway.
                if password.len() >= 4 {
                    reply.text = reply.text.replace(password, "***");
                }
                Error::new(kind, url, format!("{message}: {reply}")).with_retryable(retryable)
            }
            Self::Timeout => {
                let message = format!("{message}: the server did not answer in time");
                Error::new(ErrorKind::Unavailable, url, message)
            }
            Self::Name(name) => {
                let message = format!("{message}: the name `{name}` is not UTF-8");
                Error::new(ErrorKind::Invalid, url, message)
            }
            Self::Listing(line) => {
                let message = format!("{message}: no line of it is understood, such as `{line}`");
                Error::new(ErrorKind::Invalid, url, message)
            }
            Self::Endless(why) => Error::new(ErrorKind::Invalid, url, format!("{message}: {why}")),
            Self::Loop(path) => {
                let message = format!("{message}: `{path}` leads back to where it is");
                Error::new(ErrorKind::Invalid, url, message)
            }
            Self::Broken(error) => broken(url, message, error),
        }
    }
}

fn broken(url: &StorageUrl, message: &str, error: FtpError) -> Error {
    match error {
        FtpError::ConnectionError(error) => {
            let refused = matches!(error.get_ref(), Some(inner) if inner.is::<Refused>());
            let kind = if refused {
                ErrorKind::Denied
            } else if error.kind() == io::ErrorKind::InvalidInput {
                ErrorKind::Invalid
            } else {
                ErrorKind::Unavailable
            };
            Error::new(kind, url, message).with_source(error)
        }
        FtpError::SecureError(text) => {
            // Of the library's error only the text is left.
            let untrusted = text.contains("certificate");
            let message = if untrusted {
                format!("{message}: the server's certificate is not trusted: {text}")
            } else {
                format!("{message}: tls: {text}")
            };
            Error::new(ErrorKind::Unavailable, url, message).with_retryable(!untrusted)
        }
        FtpError::BadResponse | FtpError::InvalidAddress(_) => {
            let message = format!("{message}: the server's answer is not ftp");
            Error::new(ErrorKind::Unavailable, url, message)
        }
        error => Error::new(ErrorKind::Unavailable, url, message).with_source(error),
    }
}

#[cfg(test)]
mod fuzz {
    use proptest::prelude::*;
    use suppaftp::Status;

    use super::*;

    proptest! {
        #[test]
        fn no_answer_makes_the_reader_panic_and_each_is_shown_in_one_short_line(
            code in 0_u32..1000, body in any::<Vec<u8>>(), text in "[0-9]{0,4}[- ]?[\\PC\r\n\t\u{1b}]{0,300}"
        ) {
            for body in [&body[..], text.as_bytes()] {
                let reply = Reply::from(Response::new(Status::from(code), body.to_vec()));
                let shown = reply.to_string();
                prop_assert!(!shown.contains(char::is_control), "{:?}", shown);
                prop_assert!(shown.len() < 3000, "{}", shown.len());
                let failure = Failure::Reply(reply);
                let _ = failure.error(&"ftp://host/x".parse().unwrap(), "cannot", "");
            }
        }

        #[test]
        fn a_password_that_is_repeated_is_not_shown(password in "[!-~é\\\\\"]{8,16}", before in 0_usize..210) {
            let text = format!("530 {} {password} is wrong", "x".repeat(before));
            let reply = Reply::from(Response::new(Status::from(530), text.into_bytes()));
            let error = Failure::Reply(reply).error(&"ftp://host/x".parse().unwrap(), "cannot", &password);
            let shown = error.to_string();
            let start: String = password.chars().take(5).collect();
            for secret in [&start, &start.escape_debug().to_string()] {
                prop_assert!(!shown.contains(secret.as_str()), "{}", shown);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use suppaftp::Status;

    use super::*;

    fn failed(text: &str) -> Error {
        let code: u32 = text[..3].parse().unwrap();
        let response = Response::new(Status::from(code), text.as_bytes().to_vec());
        let failure = Failure::from(FtpError::UnexpectedResponse(response));
        failure.error(&"ftp://host/x".parse().unwrap(), "cannot", "hunter2")
    }

    #[test]
    fn answers_are_classified_by_code_and_where_that_says_little_by_text() {
        use ErrorKind::{Denied, Full, Invalid, Other, Unauthenticated, Unavailable, Unsupported};
        for (text, kind, retryable) in [
            ("421 Timeout.", Unavailable, true),
            ("425 no data connection", Unavailable, true),
            ("426 aborted", Unavailable, true),
            ("431 odd", Unavailable, true),
            ("450 busy", Unavailable, true),
            ("452 no space", Full, false),
            ("552 quota", Full, false),
            ("500 what?", Unsupported, false),
            ("501 bad name", Invalid, false),
            ("522 SSL session reuse required", Denied, false),
            ("530 Login incorrect.", Unauthenticated, false),
            ("530 Sorry, too many users", Unavailable, true),
            ("550 x: Permission denied", Denied, false),
            ("553 Could not create file.", Denied, false),
            ("599 odd", Other, false),
        ] {
            let error = failed(text);
            assert_eq!(
                (error.kind(), error.is_retryable()),
                (kind, retryable),
                "{text}"
            );
            let shown = format!("the server answered {text}");
            assert!(error.to_string().contains(&shown), "{error}");
        }
    }

    #[test]
    fn a_password_that_is_escaped_or_cut_when_it_is_shown_is_not_shown() {
        for (before, password) in [(0, "it's \"me\""), (195, "hunter22")] {
            let text = format!("530 {}{password}", "x".repeat(before)).into_bytes();
            let failure = Failure::Reply(Response::new(Status::NotLoggedIn, text).into());
            let shown = failure.error(&"ftp://host/x".parse().unwrap(), "cannot", password);
            assert!(shown.to_string().ends_with("***"), "{shown}");
        }
    }

    #[test]
    fn what_a_server_says_is_shown_in_one_short_line_without_the_password() {
        let long = format!("550-hunter2 \u{1b}[31m {}\r\n550 end", "x".repeat(5000));
        let text = failed(&long).to_string();
        assert!(text.len() < 400, "{}", text.len());
        assert!(!text.contains(['\n', '\u{1b}']), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}
