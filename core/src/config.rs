//! Reading TOML with errors that a person can act on.
//!
//! [`parse`] reads a file, [`override_from_env`] puts the environment over it, and
//! [`ByteSize`] and [`Span`] are sizes and durations as people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Reads `text` (from `origin`, a file name for messages) as a `T`. An error names line and
/// section, and for an unknown key suggests the nearest one that exists.
pub fn parse<T: DeserializeOwned>(origin: &str, text: &str) -> Result<T, String> {
    toml::from_str(text).map_err(|error: toml::de::Error| {
        let mut message = explain(origin, &error.to_string());
        let Some(span) = error.span() else {
            return message;
        };
        // Where a section is, as opposed to a table in one line, its place is its header.
        if error.message() == "invalid type: map, expected a sequence"
            && let Some(header) = text.get(span.clone()).filter(|at| at.starts_with('['))
        {
            message = format!("{message}\nhelp: write [{header}], with two brackets");
        }
        match section(text, span.start) {
            Some(section) => format!("{message}\nin section {section}"),
            None => message,
        }
    })
}

/// The header of the section that the byte `at` of `text` lies in, as written: `[server]`.
fn section(text: &str, at: usize) -> Option<&str> {
    let line_end = text.get(at..)?.find('\n').map_or(text.len(), |i| at + i);
    text.get(..line_end)?
        .lines()
        .rev()
        .map(str::trim)
        .find(|line| line.starts_with('['))
        .map(|line| line.split('#').next().unwrap_or(line).trim_end())
}

/// A number of bytes: `4096`, `"64 KiB"`, `"16MiB"`, `"2 GB"` (decimal units too).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// A length of time: `"500ms"`, `"30s"`, `"5m"`, `"24h"`, `"30d"`; only 0 needs no unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

const SIZES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

const SPANS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

/// Splits `30 s` into number and factor; a bare number is as it is.
fn quantity(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = (text[..end].parse::<u64>().ok()?, text[end..].trim());
    let factor = match unit {
        "" => 1,
        unit => {
            units
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(unit))?
                .1
        }
    };
    number.checked_mul(factor)
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        quantity(text, &SIZES)
            .map(Self)
            .ok_or_else(|| format!("`{text}` is not a size such as \"16MiB\""))
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bare = text.trim();
        if bare.parse::<u64>().is_ok_and(|number| number != 0) {
            return Err(format!(
                "{bare} of what? write {bare}s, {bare}m, {bare}h or {bare}d"
            ));
        }
        quantity(text, &SPANS)
            .map(|millis| Self(Duration::from_millis(millis)))
            .ok_or_else(|| format!("`{text}` is not a duration such as \"30s\" or \"24h\""))
    }
}

/// The largest unit that leaves no remainder.
fn show(f: &mut fmt::Formatter<'_>, value: u64, units: &[(&str, u64)]) -> fmt::Result {
    let exact = |(_, factor): &&(&str, u64)| value >= *factor && value.is_multiple_of(*factor);
    match units.iter().find(exact) {
        Some((unit, factor)) => write!(f, "{}{unit}", value / factor),
        None => write!(f, "{value}{}", units.last().map_or("", |(unit, _)| unit)),
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, self.0, &SIZES)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(
            f,
            u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX),
            &SPANS,
        )
    }
}

/// A TOML integer or text.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a number or a text with a unit")]
enum Quantity {
    Number(u64),
    Text(String),
}

impl Quantity {
    fn read<T: FromStr<Err = String>, E: de::Error>(self) -> Result<T, E> {
        match self {
            Self::Number(number) => number.to_string().parse(),
            Self::Text(text) => text.parse(),
        }
        .map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Quantity::deserialize(deserializer)?.read()
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Quantity::deserialize(deserializer)?.read()
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Overrides keys of `table` by environment variables: `TESK_SERVER__LISTEN=…` sets
/// `server.listen`. Values are read as TOML, and as plain text where that fails, and where it is a
/// date: no key has one that is not text.
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
            .filter(|value| !value.is_datetime())
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

/// The text of a TOML error with its file, and what helps with it: for an unknown key the nearest
/// known one.
pub fn explain(origin: &str, error: &str) -> String {
    let error = error.trim_end();
    match help(error) {
        Some(help) => format!("{origin}: {error}\nhelp: {help}"),
        None => format!("{origin}: {error}"),
    }
}

fn help(error: &str) -> Option<String> {
    // What std says of a text, and serde of another type.
    if error.contains("invalid socket address") || error.contains("expected socket address") {
        return Some("it must be an address with a port, such as 127.0.0.1:8080".into());
    }
    let (unknown, known) = unknown_key(error)?;
    let known: Vec<_> = known.collect();
    let (file, env) = (format!("{unknown}_file"), format!("{unknown}_env"));
    // Only secrets have both. Who is told that one of them was meant writes the secret where a name
    // belongs, and errors show names.
    if known.contains(&file.as_str()) && known.contains(&env.as_str()) {
        return Some(format!(
            "secrets are given by reference only: `{file}` or `{env}`"
        ));
    }
    nearest(unknown, known).map(|nearest| format!("did you mean `{nearest}`?"))
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
mod fuzz {
    use proptest::prelude::*;

    use super::*;

    /// Something like TOML.
    fn document() -> impl Strategy<Value = String> {
        let line = prop_oneof![
            "\\[{1,2}[a-c\".é]{1,4}\\]{1,2}",
            "[a-dé\".]{1,4} ?= ?(\"[a-z\\\\é]{0,4}\"|'é{0,2}'|[0-9.:TZ-]{1,5}|\\[[1,\"a]{0,4}\\]|\\{a=[0-9]\\})",
            "[#\\[\\]=\"é a]{0,6}",
        ];
        proptest::collection::vec(line, 0..8).prop_map(|lines| lines.join("\n"))
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its names matter")]
    struct Section {
        a: Option<ByteSize>,
        b: Option<Span>,
        c: Option<Box<Section>>,
    }

    proptest! {
        #[test]
        fn no_text_makes_reading_panic(text in document()) {
            if let Err(error) = parse::<Section>("file", &text) {
                prop_assert!(error.starts_with("file: "), "{}", error);
            }
        }

        #[test]
        fn no_variables_make_reading_panic(
            text in document(), names in proptest::collection::vec("TESK_[ABC_é]{0,9}", 0..6), value in "[a-z0-9=\" ]{0,6}"
        ) {
            let mut table = text.parse::<toml::Table>().unwrap_or_default();
            let variables = names.into_iter().map(|name| (name, value.clone()));
            override_from_env(&mut table, variables);
            let _ = table.try_into::<Section>();
        }

        #[test]
        fn sizes_and_spans_are_read_as_they_are_shown(number in any::<u64>()) {
            let size = ByteSize(number);
            prop_assert_eq!(size.to_string().parse(), Ok(size));
            let span = Span(Duration::from_millis(number >> 8));
            prop_assert_eq!(span.to_string().parse(), Ok(span));
        }

        #[test]
        fn no_text_makes_a_quantity_panic(text in "[0-9.kKMGTiBmshd -]{0,24}") {
            let _ = (text.parse::<ByteSize>(), text.parse::<Span>());
        }
    }
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
    fn an_error_names_the_section_it_is_in() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        #[expect(dead_code, reason = "only its names matter")]
        struct Whole {
            server: Server,
        }
        let text = "# a comment\n[server] # the server\nlisten = \"x\"\ndatta = \"y\"\n";
        let error = parse::<Whole>("tesk.toml", text).unwrap_err();
        assert!(error.contains("in section [server]"), "{error}");
        assert!(error.contains("did you mean `data`?"), "{error}");
    }

    #[test]
    fn sizes_and_spans_read_what_people_write_and_show_it_again() {
        for (text, bytes) in [("4096", 4096), ("16MiB", 16 << 20), ("2 gb", 2_000_000_000)] {
            assert_eq!(text.parse::<ByteSize>().unwrap().0, bytes);
        }
        for (text, seconds) in [("0", 0), ("30s", 30), ("5m", 300), ("24 h", 86_400)] {
            assert_eq!(text.parse::<Span>().unwrap().0.as_secs(), seconds);
        }
        assert_eq!("500ms".parse::<Span>().unwrap().to_string(), "500ms");
        assert_eq!("86400s".parse::<Span>().unwrap().to_string(), "1d");
        assert_eq!("16384KiB".parse::<ByteSize>().unwrap().to_string(), "16MiB");
        assert_eq!(ByteSize(0).to_string(), "0B");
        for wrong in ["", "x", "5 parsecs", "-1", "999999999999d"] {
            assert!(wrong.parse::<Span>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_span_without_a_unit_is_refused_unless_it_is_zero() {
        #[derive(Debug, serde::Deserialize)]
        struct Limits {
            retention: Span,
        }
        for number in ["30", "\"30\"", "\" 30 \""] {
            let error = parse::<Limits>("file", &format!("retention = {number}")).unwrap_err();
            let expected = "30 of what? write 30s, 30m, 30h or 30d";
            assert!(error.contains(expected), "{error}");
        }
        let limits = parse::<Limits>("file", "retention = 0").unwrap();
        assert_eq!(limits.retention, Span::default());
    }

    #[test]
    fn a_secret_in_the_configuration_is_told_how_secrets_are_given() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        #[expect(dead_code, reason = "only its names matter")]
        struct Options {
            password_file: Option<String>,
            password_env: Option<String>,
            ca_file: Option<String>,
        }
        let error = parse::<Options>("file", "password = \"x\"").unwrap_err();
        let expected = "secrets are given by reference only: `password_file` or `password_env`";
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains("did you mean"), "{error}");
        // A file of certificates is no secret.
        let error = parse::<Options>("file", "ca_fil = \"x\"").unwrap_err();
        assert!(error.contains("did you mean `ca_file`?"), "{error}");
        let error = parse::<Options>("file", "ca = \"x\"").unwrap_err();
        assert!(!error.contains("secrets"), "{error}");
    }

    #[test]
    fn a_section_of_which_there_are_several_is_told_its_second_bracket() {
        #[derive(Debug, serde::Deserialize)]
        #[expect(dead_code, reason = "only its names matter")]
        struct Users {
            user: Vec<Server>,
        }
        let text = "# a comment\n[user] # the first\nlisten = \"x\"\n";
        let error = parse::<Users>("users.toml", text).unwrap_err();
        let expected = "\nhelp: write [[user]], with two brackets\nin section [user]";
        assert!(error.ends_with(expected), "{error}");
        let error = parse::<Users>("users.toml", "user = { listen = \"x\" }").unwrap_err();
        assert!(!error.contains("help"), "{error}");
    }

    #[test]
    fn an_address_without_a_port_is_told_what_one_is() {
        #[derive(Debug, serde::Deserialize)]
        #[expect(dead_code, reason = "only its names matter")]
        struct Server {
            listen: std::net::SocketAddr,
        }
        for listen in ["\"localhost:8080\"", "\"127.0.0.1\"", "8080"] {
            let error = parse::<Server>("file", &format!("listen = {listen}")).unwrap_err();
            let expected = "help: it must be an address with a port, such as 127.0.0.1:8080";
            assert!(error.contains(expected), "{error}");
        }
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
            ("TESK_SERVER__CREATED", "2026-01-31T12:00:00Z"),
            ("TESK_SERVER", "http://x"),
            ("HOME", "/"),
        ];
        override_from_env(
            &mut table,
            variables.map(|(k, v)| (k.into(), v.into())).into_iter(),
        );
        assert_eq!(table["server"]["listen"].as_str(), Some("127.0.0.1:1"));
        assert_eq!(table["server"]["max_body"].as_integer(), Some(5));
        let created = table["server"]["created"].as_str();
        assert_eq!(created, Some("2026-01-31T12:00:00Z"));
        assert_eq!(table.len(), 1);
    }
}
