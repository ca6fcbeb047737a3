//! Secrets by reference: a configuration names a file or an environment variable, never the
//! secret itself.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use tesk_core::storage::ConfigError;

/// Reads the secret that a configuration refers to by `{key}_file` or `{key}_env`; both are an
/// error, neither is `None`. Line ends at its end are cut.
pub(crate) fn read(
    key: &str,
    file: Option<&Path>,
    env: Option<&str>,
) -> Result<Option<String>, ConfigError> {
    match (file, env) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(ConfigError(format!(
            "`{key}_file` and `{key}_env` exclude each other"
        ))),
        (Some(path), None) => {
            let text = std::fs::read_to_string(path).map_err(|error| {
                ConfigError(format!("{key}: cannot read `{}`: {error}", path.display()))
            })?;
            Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
        }
        (None, Some(name)) => match std::env::var(name) {
            Ok(value) => Ok(Some(value)),
            Err(_) if is_name(name) => Err(ConfigError(format!(
                "{key}: the environment variable `{name}` is not set"
            ))),
            Err(_) => Err(ConfigError(format!(
                "{key}: the environment variable that is named is not set; what is given must be \
                 the name of one, never the secret itself"
            ))),
        },
    }
}

/// Whether a text is as variables are usually named. Any other may be a secret that was written in
/// the place of a name, and is not to be shown.
fn is_name(text: &str) -> bool {
    text.len() <= 64
        && text.starts_with(|c: char| c.is_ascii_uppercase() || c == '_')
        && text
            .chars()
            .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
}

/// A text, or where it is.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// The text itself.
    Text(String),
    /// In a file.
    File {
        /// Its path.
        file: PathBuf,
    },
    /// In an environment variable.
    Env {
        /// Its name.
        env: String,
    },
}

impl Value {
    /// The text. Line ends at its end are cut where it is in a file.
    pub(crate) fn read(&self, key: &str) -> Result<String, ConfigError> {
        let text = match self {
            Self::Text(text) => return Ok(text.clone()),
            Self::File { file } => read(key, Some(file), None)?,
            Self::Env { env } => read(key, None, Some(env))?,
        };
        Ok(text.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_in_the_place_of_a_variable_is_not_shown() {
        let long = "A".repeat(65);
        for secret in ["hunter2", "pass phrase", "1A", "A=B", long.as_str()] {
            let ConfigError(error) = read("password", None, Some(secret)).unwrap_err();
            assert!(!error.contains(secret), "{error}");
            assert!(error.contains("must be the name of one"), "{error}");
        }
        let ConfigError(error) = read("password", None, Some("TESK_TEST_UNSET")).unwrap_err();
        assert!(error.contains("`TESK_TEST_UNSET` is not set"), "{error}");
    }
}
