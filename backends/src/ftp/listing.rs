//! Lines of listings: machine-readable ones (RFC 3659) and the two forms of `LIST` in use.
//!
//! The form of `LIST` was never specified, so the reader looks for what all servers have: in
//! the Unix form a date with the size before it and the name after it, in the DOS form a date
//! at the start. Whatever stands between may be anything.

use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use tesk_core::storage::{FileInfo, Version};
use tesk_core::time;

/// After so long the second in which a file was changed is over.
const SETTLED_AFTER: SignedDuration = SignedDuration::from_millis(1100);

/// What one line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Something in the directory.
    Found(Found),
    /// The directory itself, with the server's mark of it.
    Itself(Option<String>),
    /// Nothing of interest: a headline, the parent, a device.
    Nothing,
    /// Not of the form that is read.
    Garbage,
}

/// Something in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) name: String,
    pub(super) kind: Kind,
    /// The server's mark of the file or directory: equal for two names of the same.
    pub(super) unique: Option<String>,
}

/// What it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File(FileInfo),
    Directory,
    /// A link, or something of which the line does not say what it is; with the link's target
    /// where it is told.
    Link(Option<String>),
}

/// The version of a file by its time (as in `MDTM`) and size; none without a time.
pub(super) fn version(time: Option<&str>, size: Option<u64>) -> Option<Version> {
    let time = time.filter(|time| time.len() >= 14 && time.is_ascii())?;
    let size = size.map_or_else(|| "?".to_owned(), |size| size.to_string());
    Some(Version(format!("{time}-{size}")))
}

/// The size of a file in this version, where it was told.
pub(super) fn size(version: &Version) -> Option<u64> {
    let (_, size) = version.0.rsplit_once('-')?;
    size.parse().ok()
}

/// The time of a file as in `MDTM` (RFC 3659, 2.3): UTC, to the second.
pub(super) fn modified(time: Option<&str>) -> Option<time::Timestamp> {
    let time = instant(time?.get(..14)?)?;
    Some(time::Timestamp::from_millis(time.as_millisecond()))
}

fn instant(time: &str) -> Option<Timestamp> {
    let time = jiff::fmt::strtime::parse("%Y%m%d%H%M%S", time).ok()?;
    let time = time.to_datetime().ok()?.to_zoned(TimeZone::UTC).ok()?;
    Some(time.timestamp())
}

/// How long from `now` until the version of a file tells it from any later one. Times have seconds,
/// so a file that was changed just now may change again and keep its version; `None` is not at all.
pub(super) fn settles_in(info: &FileInfo, now: Timestamp) -> Option<Duration> {
    let (time, _) = info.version.as_ref()?.0.split_once('-')?;
    if time.len() > 14 {
        return None;
    }
    let wait = instant(time)?.duration_until(now);
    let wait = SETTLED_AFTER.checked_sub(wait)?;
    // A server whose clock is far ahead is not waited for.
    let wait = Duration::try_from(wait).ok()?;
    (!wait.is_zero() && wait < 3 * Duration::from_secs(1)).then_some(wait)
}

/// Reads a line of `MLSD`, or the one of `MLST` without its leading space.
pub(super) fn machine_readable(line: &str) -> Line {
    // Facts hold no space: the first one ends them.
    let Some((facts, name)) = line.split_once(' ') else {
        return Line::Garbage;
    };
    if name.is_empty() || !(facts.ends_with(';') || facts.is_empty()) {
        return Line::Garbage;
    }
    let (mut kind, mut size, mut time, mut unique) = (None, None, None, None);
    for fact in facts.split_terminator(';') {
        let Some((key, value)) = fact.split_once('=') else {
            return Line::Garbage;
        };
        match key.to_ascii_lowercase().as_str() {
            "type" => kind = Some(value),
            "size" => size = value.parse().ok(),
            "modify" => time = Some(value),
            "unique" => unique = Some(value.to_owned()),
            _ => {}
        }
    }
    let kind = match kind.map(str::to_ascii_lowercase).as_deref() {
        Some("file") => Kind::File(FileInfo {
            size,
            version: version(time, size),
            modified: modified(time),
            ..FileInfo::default()
        }),
        Some("cdir") => return Line::Itself(unique),
        Some("pdir") => return Line::Nothing,
        Some("dir") if name == "." => return Line::Itself(unique),
        Some("dir") if name == ".." => return Line::Nothing,
        Some("dir") => Kind::Directory,
        Some(link) if link.starts_with("os.unix=slink") || link.starts_with("os.unix=symlink") => {
            // The type as written: paths have upper and lower case.
            let target = kind.and_then(|kind| kind.split_once(':'));
            Kind::Link(target.map(|(_, target)| target.to_owned()))
        }
        // A device, a socket.
        Some(_) => return Line::Nothing,
        None => Kind::Link(None),
    };
    let name = name.to_owned();
    Line::Found(Found { name, kind, unique })
}

/// Reads a line of `LIST`.
pub(super) fn human_readable(line: &str) -> Line {
    let first = line.split_whitespace().next().unwrap_or_default();
    let is_headline = first.eq_ignore_ascii_case("total") && line.split_whitespace().count() <= 3;
    if first.is_empty() || is_headline {
        return Line::Nothing;
    }
    match unix(line).or_else(|| dos(line)) {
        Some(Line::Found(found)) if matches!(found.name.as_str(), "." | "..") => Line::Nothing,
        Some(line) => line,
        None => Line::Garbage,
    }
}

/// `drwxr-sr-x+  2 ftp-user some group  4096 Jan  5 10:30 name`
fn unix(line: &str) -> Option<Line> {
    let words = words(line);
    let mode = words.first()?.text;
    let is_mode = mode.len() >= 10
        && mode.is_ascii()
        && mode[1..10].bytes().all(|b| b"rwxsStTlL-".contains(&b));
    if !is_mode {
        return None;
    }
    let (at, date) = (2..words.len()).find_map(|at| Some((at, date_words(&words[at..])?)))?;
    // A second word follows only where the number is that of a device, as in `5, 0`.
    let size = words[at - 1].text.parse().ok();
    let last = &words[at + date - 1];
    // One space parts the date from the name; more belong to the name.
    let name = line.get(last.end + 1..).filter(|name| !name.is_empty())?;
    let found = |name: &str, kind| {
        Some(Line::Found(Found {
            name: name.to_owned(),
            kind,
            unique: None,
        }))
    };
    match mode.as_bytes()[0] {
        b'-' => found(
            name,
            Kind::File(FileInfo {
                size,
                ..FileInfo::default()
            }),
        ),
        b'd' => found(name, Kind::Directory),
        b'l' => match name.split_once(" -> ") {
            Some((name, target)) => found(name, Kind::Link(Some(target.to_owned()))),
            None => found(name, Kind::Link(None)),
        },
        b'b' | b'c' | b'p' | b's' | b'D' => Some(Line::Nothing),
        _ => None,
    }
}

/// `01-05-24  10:30AM       <DIR>          name` or `2024-01-05  10:30  1,234 name`
fn dos(line: &str) -> Option<Line> {
    let words = words(line);
    let [date, time, rest @ ..] = words.as_slice() else {
        return None;
    };
    let is_date = |text: &str| {
        let parts: Vec<_> = text.split(['-', '/', '.']).collect();
        parts.len() == 3 && parts.iter().all(|part| is_number(part, 0, 9999))
    };
    let clock = time
        .text
        .trim_end_matches(|c: char| c.is_ascii_alphabetic());
    if !is_date(date.text) || !is_clock(clock) {
        return None;
    }
    let is_half = |word: &Word<'_>| matches!(word.text, "AM" | "PM" | "am" | "pm");
    let (size, rest) = match rest {
        [half, size, rest @ ..] if is_half(half) => (size, rest),
        [size, rest @ ..] => (size, rest),
        [] => return None,
    };
    rest.first()?;
    let after = line.get(size.end + 1..)?;
    let (kind, name) = match size.text {
        "<DIR>" => (Kind::Directory, after.trim_start()),
        "<JUNCTION>" | "<SYMLINK>" | "<SYMLINKD>" => {
            let name = after.trim_start();
            let name = name.split_once(" [").map_or(name, |(name, _)| name);
            (Kind::Link(None), name)
        }
        number => {
            let digits: String = number.chars().filter(|c| !matches!(c, ',' | '.')).collect();
            let size = Some(digits.parse().ok()?);
            let info = FileInfo {
                size,
                ..FileInfo::default()
            };
            (Kind::File(info), after)
        }
    };
    let name = name.to_owned();
    (!name.is_empty()).then_some(Line::Found(Found {
        name,
        kind,
        unique: None,
    }))
}

struct Word<'a> {
    text: &'a str,
    /// Where it ends in the line.
    end: usize,
}

fn words(line: &str) -> Vec<Word<'_>> {
    let mut words = Vec::new();
    let mut at = 0;
    for text in line.split(' ') {
        let end = at + text.len();
        if !text.is_empty() {
            words.push(Word { text, end });
        }
        at = end + 1;
    }
    words
}

/// How many words a date takes, if there is one at the start: `Jan 5 10:30`, `5 Jan 2024` or
/// `2024-01-05 10:30`, and with a time zone.
fn date_words(words: &[Word<'_>]) -> Option<usize> {
    const MONTHS: [&str; 12] = [
        "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
    ];
    let text = |at: usize| words.get(at).map_or("", |word| word.text);
    let is_month = |text: &str| MONTHS.iter().any(|month| text.eq_ignore_ascii_case(month));
    let is_day = |text: &str| is_number(text.trim_end_matches([',', '.']), 1, 31);
    let is_time = |text: &str| is_clock(text) || is_number(text, 1900, 9999);
    let in_words = (is_month(text(0)) && is_day(text(1))) || (is_day(text(0)) && is_month(text(1)));
    if in_words && is_time(text(2)) {
        return Some(3);
    }
    let parts: Vec<_> = text(0).split('-').collect();
    let is_iso = parts.len() == 3
        && is_number(parts[0], 1900, 9999)
        && is_number(parts[1], 1, 12)
        && is_number(parts[2], 1, 31);
    if is_iso && is_clock(text(1)) {
        let zone = text(2);
        let has_zone = zone.len() == 5
            && zone.starts_with(['+', '-'])
            && zone[1..].bytes().all(|b| b.is_ascii_digit());
        return Some(if has_zone { 3 } else { 2 });
    }
    None
}

fn is_number(text: &str, least: u32, most: u32) -> bool {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits && text.parse().is_ok_and(|n: u32| (least..=most).contains(&n))
}

/// `10:30`, `10:30:05` or with a fraction.
fn is_clock(text: &str) -> bool {
    text.split_once(':').is_some_and(|(hour, rest)| {
        is_number(hour, 0, 24)
            && rest.len() >= 2
            && rest
                .bytes()
                .all(|b| b.is_ascii_digit() || matches!(b, b':' | b'.'))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_version_of_this_second_is_waited_for() {
        let now = Timestamp::now();
        let settles = |seconds: i64| {
            let time = now + SignedDuration::from_secs(seconds);
            let time = time.strftime("%Y%m%d%H%M%S").to_string();
            let info = FileInfo {
                version: version(Some(&time), Some(1)),
                ..FileInfo::default()
            };
            settles_in(&info, now)
        };
        assert!(settles(0).unwrap() <= Duration::from_millis(1100));
        assert!(settles(1).unwrap() > Duration::from_secs(1));
        for seconds in [-86400, -2, 60] {
            assert_eq!(settles(seconds), None, "{seconds}");
        }
        assert_eq!(settles_in(&FileInfo::default(), now), None);
    }

    #[test]
    fn a_version_tells_the_size() {
        for told in [Some(0), Some(7), None] {
            let version = version(Some("20240105103000.123"), told).unwrap();
            assert_eq!(size(&version), told);
        }
        assert_eq!(size(&Version("another's".into())), None);
    }

    fn file(name: &str, size: u64) -> Line {
        found(
            name,
            Kind::File(FileInfo {
                size: Some(size),
                ..FileInfo::default()
            }),
        )
    }

    fn found(name: &str, kind: Kind) -> Line {
        let name = name.to_owned();
        Line::Found(Found {
            name,
            kind,
            unique: None,
        })
    }

    fn link(name: &str, target: &str) -> Line {
        found(name, Kind::Link(Some(target.to_owned())))
    }

    #[test]
    fn unix_lines_of_all_sorts_are_read() {
        let directory = |name| found(name, Kind::Directory);
        for (line, expected) in [
            ("-rw-r--r-- 1 u g 5 Jan  5 10:30 a.txt", file("a.txt", 5)),
            (
                "-rw-r--r--   1 ftp-user  ftp-group   1099511627776 Dec 31  2023 big",
                file("big", 1 << 40),
            ),
            (
                "drwxr-sr-t+ 2 1000 domain users 4096 Feb 29 00:00 d d",
                directory("d d"),
            ),
            (
                "-rwsr-Sr-T 1 u g 1 Nov  1  1999   two spaces first",
                file("  two spaces first", 1),
            ),
            ("-rw-r--r-- 1 u 7 Jan 5 10:30 no group", file("no group", 7)),
            (
                "-rw-r--r-- 1 u g 7 5 Jan 2024 day first",
                file("day first", 7),
            ),
            ("-rw-r--r-- 1 u g 7 2024-01-05 10:30 iso", file("iso", 7)),
            (
                "-rw-r--r-- 1 u g 7 2024-01-05 10:30:00.123456 +0100 full iso",
                file("full iso", 7),
            ),
            (
                "-rw-r--r-- 1 u g 7 Jan  5 10:30 x Feb  6 11:31 y",
                file("x Feb  6 11:31 y", 7),
            ),
            ("-rw-r--r-- 1 u g 7 Jan  5 10:30 é ☃", file("é ☃", 7)),
            ("-rw-r--r-- 1 u g 7 Jan  5 10:30 ...", file("...", 7)),
            (
                "lrwxrwxrwx 1 u g 5 Jan  5 10:30 l -> a -> b",
                link("l", "a -> b"),
            ),
            (
                "lrwxrwxrwx 1 u g 5 Jan  5 10:30 l",
                found("l", Kind::Link(None)),
            ),
            ("crw-rw---- 1 u g 5, 0 Jan  5 10:30 tty", Line::Nothing),
            ("total 12", Line::Nothing),
            ("drwxr-xr-x 2 u g 4096 Jan  5 10:30 .", Line::Nothing),
            ("drwxr-xr-x 2 u g 4096 Jan  5 10:30 ..", Line::Nothing),
            ("", Line::Nothing),
            ("-rw-r--r-- 1 u g 5 Jan  5 10:30", Line::Garbage),
            ("-rw-r--r-- 1 u g 5 Jan  5 10:30 ", Line::Garbage),
            ("ls: cannot open directory", Line::Garbage),
        ] {
            assert_eq!(human_readable(line), expected, "{line}");
        }
    }

    #[test]
    fn dos_lines_are_read() {
        for (line, expected) in [
            (
                "01-05-24  10:30AM       <DIR>          a dir",
                found("a dir", Kind::Directory),
            ),
            (
                "01-05-2024  10:30PM            1234567 a file",
                file("a file", 1_234_567),
            ),
            (
                "2024/01/05  10:30         1,234,567 b",
                file("b", 1_234_567),
            ),
            ("01-05-24  10:30 AM            7 c", file("c", 7)),
            (
                "01-05-24  10:30AM  <SYMLINKD>   l [C:\\x y]",
                found("l", Kind::Link(None)),
            ),
            ("01-05-24  10:30AM       <DIR>          ..", Line::Nothing),
            ("01-05-24  10:30AM       many file", Line::Garbage),
        ] {
            assert_eq!(human_readable(line), expected, "{line}");
        }
    }

    #[test]
    fn machine_readable_lines_are_read() {
        let versioned = |name: &str, size, unique: Option<&str>| {
            let info = FileInfo {
                size: Some(size),
                version: version(Some("20240105103000"), Some(size)),
                modified: "2024-01-05T10:30:00Z".parse().ok(),
                ..FileInfo::default()
            };
            Line::Found(Found {
                name: name.to_owned(),
                kind: Kind::File(info),
                unique: unique.map(str::to_owned),
            })
        };
        for (line, expected) in [
            (
                "type=file;size=5;modify=20240105103000; a ; b= c",
                versioned("a ; b= c", 5, None),
            ),
            (
                "Size=5;Modify=20240105103000;Type=FILE;Unique=8U1;UNIX.mode=0644; x",
                versioned("x", 5, Some("8U1")),
            ),
            (
                "type=file;size=5;modify=20240105103000;  x",
                versioned(" x", 5, None),
            ),
            ("type=dir; d", found("d", Kind::Directory)),
            ("type=cdir;unique=U; /a", Line::Itself(Some("U".into()))),
            ("type=pdir; ..", Line::Nothing),
            ("type=dir; ..", Line::Nothing),
            ("type=OS.unix=slink:/A b; l", Line::Garbage),
            ("type=OS.unix=slink:/A; l", link("l", "/A")),
            ("type=OS.unix=symlink; l", found("l", Kind::Link(None))),
            ("type=OS.unix=chr-13/29; dev", Line::Nothing),
            (" plain", found("plain", Kind::Link(None))),
            ("type=file;size=5", Line::Garbage),
            ("-rw-r--r-- 1 u g 5 Jan  5 10:30 a.txt", Line::Garbage),
        ] {
            assert_eq!(machine_readable(line), expected, "{line}");
        }
        // A size that is none is not known.
        assert_eq!(
            machine_readable("type=file;size=-1; x"),
            found("x", Kind::File(FileInfo::default()))
        );
    }

    mod fuzz {
        use super::*;

        proptest! {
            #[test]
            fn no_line_makes_the_reader_panic(line in "\\PC*") {
                human_readable(&line);
                machine_readable(&line);
            }

            #[test]
            fn no_line_that_looks_right_makes_the_reader_panic(
                line in "[-dlc][rwxsStT-]{9} {1,3}[0-9é]{0,3} (u|g|Jan| ){0,4} ?[0-9]{0,25} \
                         (Jan|Feb|2024-01-0[0-9])? {0,2}[0-9]{0,3} ([0-9:]{0,6})? ?[é>\\- ]{0,4}"
            ) {
                human_readable(&line);
            }

            #[test]
            fn any_name_survives_both_forms(name in "[^\\r\\n\0/ ][^\\r\\n\0/]{0,20}") {
                prop_assume!(name != "." && name != "..");
                let line = format!("-rw-r--r--   1 u g   12 Jan  5 10:30 {name}");
                prop_assert_eq!(human_readable(&line), file(&name, 12));
                let line = format!("type=file;size=12; {name}");
                prop_assert_eq!(machine_readable(&line), file(&name, 12));
            }
        }
    }
}
