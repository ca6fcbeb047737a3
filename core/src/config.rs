//! Reading TOML with errors that a person can act on.

use serde::de::DeserializeOwned;

/// Reads `text` (from `origin`, a file name for messages) as a `T`. An error names the line,
/// and for an unknown key suggests the nearest one that exists.
pub fn parse<T: DeserializeOwned>(origin: &str, text: &str) -> Result<T, String> {
    toml::from_str(text).map_err(|error| explain(origin, &error.to_string()))
}

/// Overrides keys of `table` by environment variables: `TESK_SERVER__LISTEN=…` sets
/// `server.listen`. Values are read as TOML, and as plain text where that fails.
pub fn override_from_env(
    table: &mut toml::Table,
    variables: impl Iterator<Item = (String, String)>,
) {
    for (name, value) in variables {
        let Some(path) = name.strip_prefix("TESK_").filter(|p| p.contains("__")) else {
            continue;
        };
        let value = toml::from_str::<toml::Table>(&format!("v = {value}"))
            .ok()
            .and_then(|mut t| t.remove("v"))
            .unwrap_or(toml::Value::String(value));
        let keys: Vec<_> = path.split("__").map(str::to_ascii_lowercase).collect();
        let Some((last, parents)) = keys.split_last() else {
            continue;
        };
        let mut at = &mut *table;
        for key in parents {
            let next = at
                .entry(key.clone())
                .or_insert_with(|| toml::Table::new().into());
            if !next.is_table() {
                *next = toml::Table::new().into();
            }
            at = next.as_table_mut().expect("was made a table above");
        }
        at.insert(last.clone(), value);
    }
}

/// The text of a TOML error with its file, and the nearest known key for an unknown one.
pub fn explain(origin: &str, error: &str) -> String {
    let error = error.trim_end();
    let mut out = format!("{origin}: {error}");
    if let Some((unknown, known)) = unknown_key(error)
        && let Some(nearest) = nearest(unknown, known)
    {
        out.push_str("\nhelp: did you mean `");
        out.push_str(nearest);
        out.push_str("`?");
    }
    out
}

/// The name among `known` that is nearest to `unknown`, if one is near enough to be a slip.
pub fn nearest<'a>(unknown: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(unknown, name), name))
        .filter(|(distance, name)| *distance <= (name.len().max(unknown.len()) / 3).max(1))
        .min()
        .map(|(_, name)| name)
}

/// Takes serde's "unknown field `x`, expected one of `a`, `b`" apart.
fn unknown_key(error: &str) -> Option<(&str, impl Iterator<Item = &str>)> {
    let (_, rest) = error.split_once("unknown field `")?;
    let (unknown, rest) = rest.split_once('`')?;
    Some((unknown, rest.split('`').skip(1).step_by(2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its names matter")]
    struct Server {
        listen: String,
        data: Option<String>,
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_name() {
        let error = parse::<Server>("tesk.toml", "listne = \"x\"").unwrap_err();
        assert!(error.starts_with("tesk.toml: "), "{error}");
        assert!(error.contains("line 1"), "{error}");
        assert!(error.contains("did you mean `listen`?"), "{error}");
    }

    #[test]
    fn a_key_that_resembles_none_gets_no_suggestion() {
        let error = parse::<Server>("tesk.toml", "zebra = 1").unwrap_err();
        assert!(!error.contains("did you mean"), "{error}");
    }

    #[test]
    fn the_environment_overrides_nested_keys() {
        let mut table: toml::Table = toml::from_str("[server]\nlisten = \"a\"").unwrap();
        let variables = [
            ("TESK_SERVER__LISTEN", "127.0.0.1:1"),
            ("TESK_SERVER__MAX_BODY", "5"),
            ("TESK_SERVER", "http://x"),
            ("HOME", "/"),
        ];
        override_from_env(
            &mut table,
            variables.map(|(k, v)| (k.into(), v.into())).into_iter(),
        );
        assert_eq!(table["server"]["listen"].as_str(), Some("127.0.0.1:1"));
        assert_eq!(table["server"]["max_body"].as_integer(), Some(5));
        assert_eq!(table.len(), 1);
    }
}
