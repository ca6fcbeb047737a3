//! What a reply says: its failure classified, versions, sizes and checksums.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, LAST_MODIFIED,
    RETRY_AFTER,
};
use reqwest::{Response, StatusCode};
use tesk_core::storage::{Checksum, Error, ErrorKind, FileInfo, StorageUrl, Version};
use tesk_core::time::Timestamp;

/// A reply that is no success, as an error. The reply's body is not quoted: it is a stranger's.
pub(super) fn refusal(url: &StorageUrl, reply: &Response) -> Error {
    let status = reply.status();
    let message = format!("the server answered {status}");
    Error::new(kind(status), url, message).with_retry_after(retry_after(reply.headers()))
}

fn kind(status: StatusCode) -> ErrorKind {
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

/// Seconds, or a date (RFC 9110, 10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = text(headers, &RETRY_AFTER)?;
    match value.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(value)
            .ok()
            .map(|date| date.duration_since(SystemTime::now()).unwrap_or_default()),
    }
}

/// What the headers of a whole file tell.
pub(super) fn file_info(headers: &HeaderMap) -> FileInfo {
    // Without ranges a version is of no use, and would have core ask for ranges.
    let ranges = text(headers, &ACCEPT_RANGES).is_some_and(|v| v.eq_ignore_ascii_case("bytes"));
    FileInfo {
        size: content_length(headers),
        version: version(headers).filter(|_| ranges),
        checksum: checksum(headers),
        mode: None,
        modified: modified(headers),
    }
}

/// The time of the last change.
pub(super) fn modified(headers: &HeaderMap) -> Option<Timestamp> {
    let date = httpdate::parse_http_date(text(headers, &LAST_MODIFIED)?).ok()?;
    Some(Timestamp::from_system(date))
}

pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    text(headers, &CONTENT_LENGTH)?.parse().ok()
}

/// A strong entity tag, or the time of the last change.
pub(super) fn version(headers: &HeaderMap) -> Option<Version> {
    text(headers, &ETAG)
        .filter(|tag| tag.len() >= 2 && tag.starts_with('"') && tag.ends_with('"'))
        .or_else(|| text(headers, &LAST_MODIFIED))
        .map(|version| Version(version.to_owned()))
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
fn checksum(headers: &HeaderMap) -> Option<Checksum> {
    let named = |header: &'static str, name: &str| -> Option<Vec<u8>> {
        let value = text(headers, &HeaderName::from_static(header))?;
        value.split(',').find_map(|item| {
            let (key, value) = item.trim().split_once('=')?;
            let value = value.trim().trim_matches(':');
            key.trim()
                .eq_ignore_ascii_case(name)
                .then(|| STANDARD.decode(value).ok())?
        })
    };
    let sha256 = named("repr-digest", "sha-256").or_else(|| named("digest", "sha-256"));
    if let Some(sum) = sha256.and_then(|sum| sum.try_into().ok()) {
        return Some(Checksum::Sha256(sum));
    }
    let md5 = text(headers, &HeaderName::from_static("content-md5"))
        .and_then(|value| STANDARD.decode(value).ok())
        .or_else(|| named("digest", "md5"));
    md5.and_then(|sum| sum.try_into().ok()).map(Checksum::Md5)
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
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

    #[test]
    fn a_wait_is_asked_for_in_seconds_or_by_a_date() {
        let wait = |value: &str| retry_after(&headers(&[("retry-after", value)]));
        assert_eq!(wait("7"), Some(Duration::from_secs(7)));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_mins(1));
        assert!(wait(&soon).unwrap() > Duration::from_secs(50));
        assert_eq!(wait("soon"), None);
    }
}
