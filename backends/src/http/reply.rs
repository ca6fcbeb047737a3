//! What a reply says: its failure classified, versions, sizes and checksums.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, DATE, ETAG, HeaderMap, HeaderName, LAST_MODIFIED,
};
use reqwest::{Response, StatusCode};
use tesk_core::storage::{Checksum, Error, ErrorKind, FileInfo, StorageUrl, Version};
use tesk_core::time::Timestamp;

use crate::client::retry_after;

/// A reply that is no success, as an error. The reply's body is not quoted: it is a stranger's.
pub(super) fn refusal(url: &StorageUrl, reply: &Response) -> Error {
    let status = reply.status();
    let message = format!("the server answered {status}");
    Error::new(kind(status), url, message).with_retry_after(retry_after(reply.headers()))
}

pub(super) fn kind(status: StatusCode) -> ErrorKind {
    match status.as_u16() {
        401 | 407 => ErrorKind::Unauthenticated,
        403 | 451 => ErrorKind::Denied,
        404 | 410 => ErrorKind::NotFound,
        405 | 501 => ErrorKind::Unsupported,
        412 => ErrorKind::Corrupt,
        507 => ErrorKind::Full,
        408 | 423 | 425 | 429 | 500..=599 => ErrorKind::Unavailable,
        400..=499 => ErrorKind::Invalid,
        _ => ErrorKind::Other,
    }
}

/// Whether a reply to a GET may be about a directory: some servers answer with a page, some send
/// to the address with a slash, some refuse.
pub(super) fn may_be_directory(reply: &Response) -> bool {
    let status = reply.status();
    if status.is_success() {
        return reply.url().path().ends_with('/') || version(reply.headers()).is_none();
    }
    status.is_client_error() && !matches!(status.as_u16(), 401 | 407 | 408 | 412 | 416 | 429)
        || matches!(status.as_u16(), 500 | 501)
}

/// Seconds, or a date (RFC 9110, 10.2.3).
/// What the headers of a whole file tell.
pub(super) fn file_info(headers: &HeaderMap) -> FileInfo {
    // Without ranges a version is of no use, and would have core ask for ranges.
    let sure = has_ranges(headers) && unsettled(headers).is_none();
    FileInfo {
        size: content_length(headers),
        version: version(headers).filter(|_| sure),
        checksum: checksum(headers),
        mode: None,
        modified: modified(headers),
    }
}

/// The time of the last change.
pub(super) fn modified(headers: &HeaderMap) -> Option<Timestamp> {
    text(headers, &LAST_MODIFIED).and_then(timestamp)
}

/// A time as HTTP writes it (RFC 9110, 5.6.7).
pub(super) fn timestamp(text: &str) -> Option<Timestamp> {
    httpdate::parse_http_date(text)
        .ok()
        .map(Timestamp::from_system)
}

pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    text(headers, &CONTENT_LENGTH)?.parse().ok()
}

pub(super) fn has_ranges(headers: &HeaderMap) -> bool {
    text(headers, &ACCEPT_RANGES).is_some_and(|v| v.eq_ignore_ascii_case("bytes"))
}

/// A strong entity tag, or the time of the last change.
pub(super) fn version(headers: &HeaderMap) -> Option<Version> {
    version_of(text(headers, &ETAG), text(headers, &LAST_MODIFIED))
        .map(|version| Version(version.to_owned()))
}

pub(super) fn version_of<'a>(tag: Option<&'a str>, modified: Option<&'a str>) -> Option<&'a str> {
    tag.filter(|tag| tag.len() >= 2 && tag.starts_with('"') && tag.ends_with('"'))
        .or(modified)
}

/// Whether a reply is about this version. Listings may know the time of one only.
pub(super) fn is_version(headers: &HeaderMap, wanted: &Version) -> bool {
    let wanted = wanted.0.as_str();
    let (tag, modified) = (text(headers, &ETAG), text(headers, &LAST_MODIFIED));
    version_of(tag, modified) == Some(wanted) || modified == Some(wanted)
}

/// The server's clock.
pub(super) fn date(headers: &HeaderMap) -> Option<SystemTime> {
    httpdate::parse_http_date(text(headers, &DATE)?).ok()
}

/// How long the version in these headers may still stay the same while the content changes.
pub(super) fn unsettled(headers: &HeaderMap) -> Option<Duration> {
    let (tag, modified) = (text(headers, &ETAG), text(headers, &LAST_MODIFIED));
    settles_in(tag, modified, date(headers))
}

/// How long another change may still leave the version as it is: times have seconds (RFC 9110,
/// 8.8.2.2), and so have the entity tags that are made of them. `now` is the server's clock.
pub(super) fn settles_in(
    tag: Option<&str>,
    modified: Option<&str>,
    now: Option<SystemTime>,
) -> Option<Duration> {
    let changed = httpdate::parse_http_date(modified?).ok()?;
    let version = version_of(tag, modified)?;
    let seconds = changed.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let tells_second =
        Some(version) == modified || version.contains(&format!("{:x}", seconds.as_secs()));
    // A second more, as clocks and files' times are rounded.
    let settled = changed + Duration::from_secs(2);
    let now = now?;
    let may_be_now = now + Duration::from_secs(1) >= changed && now < settled;
    let left = settled.duration_since(now).ok()?;
    (tells_second && may_be_now).then_some(left)
}

/// `Content-Range: bytes <start>-<last>/<total>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ContentRange {
    pub(super) start: u64,
    /// Exclusive.
    pub(super) end: u64,
    pub(super) total: Option<u64>,
}

pub(super) fn content_range(headers: &HeaderMap) -> Option<ContentRange> {
    let (range, total) = text(headers, &CONTENT_RANGE)?
        .strip_prefix("bytes ")?
        .split_once('/')?;
    let (start, last) = range.trim().split_once('-')?;
    let (start, last): (u64, u64) = (start.parse().ok()?, last.parse().ok()?);
    let total = total.trim().parse().ok();
    let end = last.checked_add(1)?;
    let plausible = start < end && total.is_none_or(|total| end <= total);
    plausible.then_some(ContentRange { start, end, total })
}

/// The size in `Content-Range: bytes */<total>`, which comes with 416.
pub(super) fn unsatisfied_total(headers: &HeaderMap) -> Option<u64> {
    let total = text(headers, &CONTENT_RANGE)?.strip_prefix("bytes */")?;
    total.trim().parse().ok()
}

/// `Repr-Digest` (RFC 9530), the older `Digest` (RFC 3230) and `Content-MD5` (RFC 1864).
pub(super) fn checksum(headers: &HeaderMap) -> Option<Checksum> {
    let sha256 = || digest(headers, "digest", "sha-256")?.try_into().ok();
    if let Some(sum) = repr_digest(headers).or_else(|| sha256().map(Checksum::Sha256)) {
        return Some(sum);
    }
    let md5 = text(headers, &HeaderName::from_static("content-md5"))
        .and_then(|value| STANDARD.decode(value).ok())
        .or_else(|| digest(headers, "digest", "md5"));
    md5.and_then(|sum| sum.try_into().ok()).map(Checksum::Md5)
}

/// `Repr-Digest`, which is of the whole also where a part is sent.
pub(super) fn repr_digest(headers: &HeaderMap) -> Option<Checksum> {
    let sum = digest(headers, "repr-digest", "sha-256")?;
    sum.try_into().ok().map(Checksum::Sha256)
}

fn digest(headers: &HeaderMap, header: &'static str, name: &str) -> Option<Vec<u8>> {
    let value = text(headers, &HeaderName::from_static(header))?;
    value.split(',').find_map(|item| {
        let (key, value) = item.trim().split_once('=')?;
        let value = value.trim().trim_matches(':');
        key.trim()
            .eq_ignore_ascii_case(name)
            .then(|| STANDARD.decode(value).ok())?
    })
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

#[cfg(test)]
mod fuzz {
    use proptest::prelude::*;
    use reqwest::header::HeaderValue;

    use super::*;

    proptest! {
        #[test]
        fn no_headers_make_the_reader_panic(
            number in "[0-9]{0,22}", text in "(bytes )?[0-9*]{0,21}[-/]?[0-9*]{0,21}[/-]?[0-9*]{0,21}",
            digest in "(sha-256|MD5|é| ){0,2}=?:?[A-Za-z0-9+/=]{0,45}:?,?", any in any::<Vec<u8>>()
        ) {
            let mut headers = HeaderMap::new();
            for name in [
                "content-length", "content-range", "retry-after", "etag", "last-modified", "accept-ranges",
                "repr-digest", "digest", "content-md5",
            ] {
                for value in [number.as_bytes(), text.as_bytes(), digest.as_bytes(), &any] {
                    let Ok(value) = HeaderValue::from_bytes(value) else { continue };
                    headers.insert(HeaderName::from_static(name), value);
                    let _ = (file_info(&headers), unsatisfied_total(&headers));
                    if let Some(range) = content_range(&headers) {
                        prop_assert!(range.start < range.end);
                        prop_assert!(range.total.is_none_or(|total| range.end <= total));
                    }
                }
            }
        }

        #[test]
        fn what_is_written_as_the_standards_say_is_read(start in 0..u64::MAX, length in 1..u64::MAX, sum in any::<[u8; 32]>()) {
            let end = start.saturating_add(length);
            let range = format!("bytes {start}-{}/{end}", end - 1);
            let digest = format!("sha-512=:AA==:, sha-256=:{}:", STANDARD.encode(sum));
            let headers = [
                (CONTENT_RANGE, range.parse().unwrap()),
                (HeaderName::from_static("repr-digest"), digest.parse().unwrap()),
            ];
            let headers = HeaderMap::from_iter(headers);
            let total = Some(end);
            prop_assert_eq!(content_range(&headers), Some(ContentRange { start, end, total }));
            prop_assert_eq!(checksum(&headers), Some(Checksum::Sha256(sum)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), value.parse().unwrap())
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn only_what_tells_versions_apart_is_a_version() {
        let version = |pairs: &[_]| version(&headers(pairs)).map(|v| v.0);
        assert_eq!(version(&[("etag", "\"a\"")]).as_deref(), Some("\"a\""));
        assert_eq!(version(&[("etag", "W/\"a\"")]), None);
        let weak = [
            ("etag", "W/\"a\""),
            ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ];
        assert!(version(&weak).unwrap().starts_with("Sun"));
        let modified = modified(&headers(&weak)).unwrap();
        assert_eq!(modified.as_millis(), 784_111_777_000);
        let no_ranges = file_info(&headers(&[("etag", "\"a\"")]));
        assert_eq!(no_ranges.version, None);
    }

    #[test]
    fn a_version_of_this_very_second_is_none() {
        let at = |second: u64| {
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + second);
            httpdate::fmt_http_date(time)
        };
        let version = |tag: &str, changed: u64, now: u64| {
            let pairs = [
                ("accept-ranges", "bytes"),
                ("etag", tag),
                ("last-modified", &at(changed)),
                ("date", &at(now)),
            ];
            file_info(&headers(&pairs)).version
        };
        // As nginx makes them: of the time and the size.
        let nginx = format!("\"{:x}-5\"", 1_700_000_010);
        for tag in [&nginx, "W/\"weak\""] {
            for now in [9, 10, 11] {
                assert_eq!(version(tag, 10, now), None, "{tag} {now}");
            }
            // A time in the future is none of a change just now.
            for now in [1, 12, 1000] {
                assert!(version(tag, 10, now).is_some(), "{tag} {now}");
            }
        }
        assert!(version("\"of the content\"", 10, 10).is_some());
    }

    #[test]
    fn checksums_come_in_three_headers() {
        let sha = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        for (name, value) in [
            ("repr-digest", format!("md5=:AA==:, sha-256=:{sha}:")),
            ("digest", format!("SHA-256={sha}")),
        ] {
            let found = checksum(&headers(&[(name, &value)]));
            assert!(
                matches!(found, Some(Checksum::Sha256([0xe3, 0xb0, ..]))),
                "{value}"
            );
        }
        let found = checksum(&headers(&[("content-md5", "1B2M2Y8AsgTpgAmY7PhCfg==")]));
        assert!(matches!(found, Some(Checksum::Md5([0xd4, 0x1d, ..]))));
        assert_eq!(checksum(&headers(&[("content-md5", "AAAA")])), None);
    }

    #[test]
    fn a_range_that_contradicts_itself_is_none() {
        let range = |value| content_range(&headers(&[("content-range", value)]));
        let expected = ContentRange {
            start: 2,
            end: 5,
            total: Some(9),
        };
        assert_eq!(range("bytes 2-4/9"), Some(expected));
        assert_eq!(range("bytes 2-4/*").unwrap().total, None);
        for odd in [
            "bytes 4-2/9",
            "bytes 2-9/9",
            "2-4/9",
            "bytes 2-/9",
            "bytes */9",
        ] {
            assert_eq!(range(odd), None, "{odd}");
        }
    }
}
