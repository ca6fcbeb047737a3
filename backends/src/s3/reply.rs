//! What a server's reply says: its refusals classified, its entity tags understood.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONTENT_LENGTH, ETAG, HeaderMap, LAST_MODIFIED};
use http::{HeaderName, HeaderValue, StatusCode};
use serde::Deserialize;
use tesk_core::storage::{Checksum, Error, ErrorKind, FileInfo, StorageUrl, Version};
use tesk_core::time::Timestamp;

use crate::client::retry_after;

/// How much of a refusal is read.
pub(super) const MAX_REFUSAL: usize = 64 << 10;

/// A reply that is no success.
///
/// The server's own words are not kept: they quote access keys, signatures and whatever else was
/// sent. What is kept has nothing but letters, digits and a few marks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server answered {status}{}", shown(.code, .request_id))]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// Such as `NoSuchKey`; empty for replies without a body.
    pub(super) code: String,
    request_id: String,
    region: String,
    retry_after: Option<Duration>,
}

/// The elements of replies that are of use, of refusals and others.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Body {
    pub(super) code: String,
    pub(super) request_id: String,
    pub(super) upload_id: String,
    #[serde(rename = "ETag")]
    pub(super) etag: String,
}

impl Body {
    pub(super) fn parse(xml: &[u8]) -> Self {
        quick_xml::de::from_reader(xml).unwrap_or_default()
    }
}

impl Refusal {
    pub(super) fn new(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Self {
        let body = Body::parse(body);
        let header = |name: &'static str| {
            let value = headers.get(HeaderName::from_static(name));
            harmless(value.and_then(|v| v.to_str().ok()).unwrap_or_default())
        };
        let request_id = match harmless(&body.request_id) {
            id if id.is_empty() => header("x-amz-request-id"),
            id => id,
        };
        Self {
            status,
            code: harmless(&body.code),
            request_id,
            region: header("x-amz-bucket-region"),
            retry_after: retry_after(headers),
        }
    }

    /// As the error of an operation at `url`.
    pub(super) fn at(&self, url: &StorageUrl) -> Error {
        let kind = self.kind();
        let message = format!("{}{self}", self.explanation(kind));
        Error::new(kind, url, message).with_retry_after(self.retry_after)
    }

    fn kind(&self) -> ErrorKind {
        match self.code.as_str() {
            "NoSuchBucket" | "NoSuchKey" => ErrorKind::NotFound,
            "InvalidAccessKeyId"
            | "SignatureDoesNotMatch"
            | "ExpiredToken"
            | "InvalidToken"
            | "TokenRefreshRequired"
            | "InvalidSecurity"
            | "MissingSecurityHeader"
            | "RequestTimeTooSkewed"
            | "NotSignedUp" => ErrorKind::Unauthenticated,
            "AccessDenied" | "AllAccessDisabled" | "AccountProblem" | "InvalidObjectState" => {
                ErrorKind::Denied
            }
            "SlowDown"
            | "RequestTimeout"
            | "InternalError"
            | "ServiceUnavailable"
            | "OperationAborted"
            | "TooManyRequests"
            | "ConditionalRequestConflict" => ErrorKind::Unavailable,
            "BadDigest"
            | "IncompleteBody"
            | "XAmzContentSHA256Mismatch"
            | "XAmzContentChecksumMismatch"
            | "PreconditionFailed"
            | "InvalidRange" => ErrorKind::Corrupt,
            "QuotaExceeded" | "XMinioStorageFull" | "XMinioAdminBucketQuotaExceeded" => {
                ErrorKind::Full
            }
            "NotImplemented" | "MethodNotAllowed" => ErrorKind::Unsupported,
            _ => match self.status.as_u16() {
                401 | 407 => ErrorKind::Unauthenticated,
                403 => ErrorKind::Denied,
                // An upload that the server no longer knows is not a missing file.
                404 if self.code.is_empty() => ErrorKind::NotFound,
                405 | 501 => ErrorKind::Unsupported,
                412 | 416 => ErrorKind::Corrupt,
                507 => ErrorKind::Full,
                408 | 425 | 429 | 499 | 500..=599 => ErrorKind::Unavailable,
                300..=499 if self.code != "NoSuchUpload" => ErrorKind::Invalid,
                _ => ErrorKind::Other,
            },
        }
    }

    /// What a person can do about it, as far as that is known.
    fn explanation(&self, kind: ErrorKind) -> String {
        let elsewhere = self.status.is_redirection()
            || matches!(
                self.code.as_str(),
                "AuthorizationHeaderMalformed"
                    | "PermanentRedirect"
                    | "TemporaryRedirect"
                    | "IllegalLocationConstraintException"
            );
        let known = match self.code.as_str() {
            _ if elsewhere && !self.region.is_empty() => {
                return format!(
                    "the bucket is in the region {}, which `region` must say: ",
                    self.region
                );
            }
            _ if elsewhere => "the bucket is elsewhere; check `region` and `endpoint`",
            "NoSuchBucket" => "there is no such bucket",
            "NoSuchUpload" => "the server no longer knows this upload",
            "RequestTimeTooSkewed" => "the clock of this machine or the server is wrong",
            "InvalidObjectState" => "the object is archived and must be restored first",
            "ExpiredToken" | "TokenRefreshRequired" => "the credentials have expired",
            _ => match kind {
                ErrorKind::Unauthenticated => "the credentials are wrong",
                ErrorKind::NotFound => "there is no such object",
                ErrorKind::Corrupt if self.status == StatusCode::PRECONDITION_FAILED => {
                    "another version has taken its place"
                }
                ErrorKind::Denied => {
                    "access is denied (S3 says so of missing objects too, unless the bucket may be \
                     listed)"
                }
                _ => return String::new(),
            },
        };
        format!("{known}: ")
    }
}

fn shown(code: &str, request_id: &str) -> String {
    let mut shown = String::new();
    if !code.is_empty() {
        shown.push(' ');
        shown.push_str(code);
    }
    if !request_id.is_empty() {
        shown.push_str(" (request ");
        shown.push_str(request_id);
        shown.push(')');
    }
    shown
}

/// A short word of a stranger, fit to be shown; empty if it is none.
fn harmless(word: &str) -> String {
    let ordinary = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if word.len() <= 64 && word.chars().all(ordinary) {
        word.to_owned()
    } else {
        String::new()
    }
}

/// Seconds, or a date (RFC 9110, 10.2.3).
/// An entity tag as the mark of a version, in the one form that is compared: some servers leave
/// out the quotes. A weak one marks none.
pub(super) fn version(etag: &str) -> Option<Version> {
    let bare = etag.trim_matches('"');
    (!bare.is_empty() && !bare.starts_with("W/")).then(|| Version(format!("\"{bare}\"")))
}

/// The MD5 of an object, where its entity tag is one: not of uploads in parts, and not where it
/// was encrypted with a key that the service does not own.
/// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html>
pub(super) fn md5(headers: &HeaderMap) -> Option<[u8; 16]> {
    let etag = headers.get(ETAG)?.to_str().ok()?;
    let header = |name: &'static str| headers.get(HeaderName::from_static(name));
    let by_service = header("x-amz-server-side-encryption")
        .is_none_or(|by| by == HeaderValue::from_static("AES256"));
    if !by_service || header("x-amz-server-side-encryption-customer-algorithm").is_some() {
        return None;
    }
    unhex(etag.trim_matches('"'))
}

/// What the headers of an object tell of it.
pub(super) fn file_info(headers: &HeaderMap) -> FileInfo {
    let text = |name: HeaderName| headers.get(name)?.to_str().ok();
    let modified = text(LAST_MODIFIED).and_then(|time| httpdate::parse_http_date(time).ok());
    FileInfo {
        size: text(CONTENT_LENGTH).and_then(|size| size.parse().ok()),
        version: text(ETAG).and_then(version),
        checksum: checksum(headers),
        mode: None,
        modified: modified.map(Timestamp::from_system),
    }
}

/// The strongest checksum of a whole object that is told. Those of an upload in parts can be made
/// of those of the parts, and end with their number then.
/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html>
fn checksum(headers: &HeaderMap) -> Option<Checksum> {
    let header = |name: &'static str| headers.get(HeaderName::from_static(name));
    let is_of_parts = header("x-amz-checksum-type").is_some_and(|kind| kind == "COMPOSITE");
    let kept = |name| {
        let sum = header(name).filter(|_| !is_of_parts)?;
        STANDARD.decode(sum).ok()
    };
    let sha256 = || kept("x-amz-checksum-sha256")?.try_into().ok();
    let crc64 = || kept("x-amz-checksum-crc64nvme")?.try_into().ok();
    let crc32 = |name| kept(name)?.try_into().ok().map(u32::from_be_bytes);
    let crc64 = || crc64().map(u64::from_be_bytes).map(Checksum::Crc64Nvme);
    (sha256().map(Checksum::Sha256))
        .or_else(|| md5(headers).map(Checksum::Md5))
        .or_else(crc64)
        .or_else(|| crc32("x-amz-checksum-crc32c").map(Checksum::Crc32c))
        .or_else(|| crc32("x-amz-checksum-crc32").map(Checksum::Crc32))
}

/// 32 hexadecimal digits as bytes.
pub(super) fn unhex(text: &str) -> Option<[u8; 16]> {
    hex::decode(text).ok()?.try_into().ok()
}

/// An MD5 as `Content-MD5` (RFC 1864) has it.
pub(super) fn content_md5(md5: [u8; 16]) -> String {
    STANDARD.encode(md5)
}

/// The reverse.
pub(super) fn md5_of_content_md5(text: &str) -> Option<[u8; 16]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod fuzz {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_reply_makes_the_reader_panic_or_is_quoted(
            parts in proptest::collection::vec(
                "(<Error>|</Error>|<Code>|</Code>|<RequestId>|<ETag/>|<!\\[CDATA\\[|\\]\\]>|&amp;|&x;|&#0;|<!DOCTYPE a|<\\?xml \\?>|s3 cr3t!|é|\u{0})",
                0..16
            ),
            status in 100_u16..1000, any in any::<Vec<u8>>()
        ) {
            let url = "s3://bucket/a".parse().unwrap();
            let status = StatusCode::from_u16(status).unwrap();
            for body in [parts.concat().as_bytes(), &any] {
                let error = Refusal::new(status, &HeaderMap::new(), body).at(&url).to_string();
                prop_assert!(!error.contains("s3 cr3t!") && !error.contains(char::is_control), "{}", error);
            }
        }

        #[test]
        fn an_md5_is_read_as_it_is_written(md5 in any::<[u8; 16]>(), text in "[0-9a-zA-Z+=-]{30,34}") {
            prop_assert_eq!(md5_of_content_md5(&content_md5(md5)), Some(md5));
            prop_assert_eq!(unhex(&hex::encode(md5)), Some(md5));
            let _ = (unhex(&text), md5_of_content_md5(&text));
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

    fn error(status: u16, pairs: &[(&'static str, &str)], body: &str) -> Error {
        let status = StatusCode::from_u16(status).unwrap();
        Refusal::new(status, &headers(pairs), body.as_bytes()).at(&"s3://bucket/a".parse().unwrap())
    }

    #[test]
    fn a_refusal_is_classified_by_its_code_first() {
        for (status, code, kind) in [
            (404, "NoSuchKey", ErrorKind::NotFound),
            (404, "NoSuchUpload", ErrorKind::Other),
            (403, "AccessDenied", ErrorKind::Denied),
            (403, "SignatureDoesNotMatch", ErrorKind::Unauthenticated),
            (400, "ExpiredToken", ErrorKind::Unauthenticated),
            (400, "RequestTimeout", ErrorKind::Unavailable),
            (503, "SlowDown", ErrorKind::Unavailable),
            (400, "BadDigest", ErrorKind::Corrupt),
            (400, "EntityTooLarge", ErrorKind::Invalid),
            (301, "PermanentRedirect", ErrorKind::Invalid),
            (500, "", ErrorKind::Unavailable),
            (404, "", ErrorKind::NotFound),
            (412, "", ErrorKind::Corrupt),
        ] {
            let body = format!("<Error><Code>{code}</Code></Error>");
            assert_eq!(error(status, &[], &body).kind(), kind, "{status} {code}");
        }
    }

    #[test]
    fn nothing_that_a_server_quotes_is_shown_but_its_code() {
        let body = "<?xml version=\"1.0\"?><Error><Code>SignatureDoesNotMatch</Code>\
            <Message>secret words</Message><AWSAccessKeyId>AKIASECRET</AWSAccessKeyId>\
            <StringToSign>secret</StringToSign><RequestId>4442587FB7D0A2F9</RequestId></Error>";
        let text = error(403, &[], body).to_string();
        assert!(!text.to_lowercase().contains("secret"), "{text}");
        assert!(text.contains("the credentials are wrong"), "{text}");
        assert!(text.contains("4442587FB7D0A2F9"), "{text}");
        let odd = error(400, &[], "<Error><Code>a secret</Code></Error>").to_string();
        assert!(!odd.contains("secret"), "{odd}");
    }

    #[test]
    fn a_wait_and_a_region_that_the_server_tells_are_passed_on() {
        let busy = error(503, &[("retry-after", "7")], "");
        assert_eq!(busy.retry_after(), Some(Duration::from_secs(7)));
        let elsewhere = error(301, &[("x-amz-bucket-region", "eu-west-1")], "").to_string();
        assert!(elsewhere.contains("eu-west-1"), "{elsewhere}");
    }

    #[test]
    fn the_strongest_checksum_of_the_whole_counts() {
        let tag = ("etag", "\"d41d8cd98f00b204e9800998ecf8427e\"");
        let sum = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        let found = |pairs: &[_]| file_info(&headers(pairs)).checksum;
        let sha = |text| ("x-amz-checksum-sha256", text);
        let is_sha =
            |sum: Option<Checksum>| matches!(sum, Some(Checksum::Sha256([0xe3, 0xb0, ..])));
        assert!(is_sha(found(&[tag, sha(sum)])));
        assert!(is_sha(found(&[
            sha(sum),
            ("x-amz-checksum-type", "FULL_OBJECT")
        ])));
        let of_parts = format!("{sum}-2");
        for other in [
            &[tag, sha(&of_parts)][..],
            &[tag, sha("AAAA")],
            &[tag, sha(sum), ("x-amz-checksum-type", "COMPOSITE")],
        ] {
            assert!(matches!(found(other), Some(Checksum::Md5(_))), "{other:?}");
        }
        assert_eq!(found(&[]), None);
        // Of an upload in parts.
        let tag = ("etag", "\"d41d8cd98f00b204e9800998ecf8427e-2\"");
        let crc64 = ("x-amz-checksum-crc64nvme", "rosUhgp5mIg=");
        let crc32c = ("x-amz-checksum-crc32c", "4waSgw==");
        let crc32 = ("x-amz-checksum-crc32", "y/Q5Jg==");
        let all = found(&[tag, crc32, crc32c, crc64]);
        assert_eq!(all, Some(Checksum::Crc64Nvme(0xae8b_1486_0a79_9888)));
        let two = found(&[tag, crc32, crc32c]);
        assert_eq!(two, Some(Checksum::Crc32c(0xe306_9283)));
        assert_eq!(found(&[tag, crc32]), Some(Checksum::Crc32(0xcbf4_3926)));
        let of_parts = ("x-amz-checksum-type", "COMPOSITE");
        assert_eq!(found(&[tag, crc32, of_parts]), None);
    }

    #[test]
    fn an_entity_tag_is_an_md5_only_where_it_says_so() {
        let tag = "\"d41d8cd98f00b204e9800998ecf8427e\"";
        assert!(md5(&headers(&[("etag", tag)])).is_some());
        let encrypted = |by| {
            md5(&headers(&[
                ("etag", tag),
                ("x-amz-server-side-encryption", by),
            ]))
        };
        assert!(encrypted("AES256").is_some());
        assert_eq!(encrypted("aws:kms"), None);
        let own = ("x-amz-server-side-encryption-customer-algorithm", "AES256");
        assert_eq!(md5(&headers(&[("etag", tag), own])), None);
        let parts = "\"d41d8cd98f00b204e9800998ecf8427e-2\"";
        assert_eq!(md5(&headers(&[("etag", parts)])), None);
    }
}
