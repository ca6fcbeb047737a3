//! Uploads, driven by core part by part.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream::{StreamExt as _, TryStreamExt as _};
use http::Method;
use http::header::{CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue};
use md5::{Digest as _, Md5};
use sha2::Sha256;
use tesk_core::storage::cleanup::{self, Undo};
use tesk_core::storage::{
    ByteStream, Checksum, Error, ErrorKind, Result, Source, StorageUrl, Upload, Version, Written,
};
use tokio::sync::oneshot;

use super::bucket::{Body, Bucket, Call, header};
use super::options;
use super::reply;

/// The size of a part where it need not be larger, and the largest object that is sent whole: the
/// smallest part that S3 takes. A part whose connection breaks is sent again from its start, so
/// that small ones cost least where lines break often.
const PART: u64 = 5 << 20;
/// The largest part that is read into memory to compute its checksum, where it would otherwise
/// come over a network twice.
const KEPT_PART: u64 = 16 << 20;
/// The largest part. <https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html>
const MAX_PART: u64 = 5 << 30;
/// How many parts an upload has at most.
const MAX_PARTS: u64 = 10_000;
/// The largest object.
pub(super) const MAX_SIZE: u64 = MAX_PART * MAX_PARTS;
/// Up to this size the sum of a chunk takes less time than the way to another thread.
const QUICKLY_SUMMED: usize = 64 << 10;
/// How long the server may take to throw away what a dropped upload has left.
const ABORT: Duration = Duration::from_secs(30);

/// The size of the parts of an object of `size` bytes: as small as the limit of their number
/// allows, in whole MiB.
pub(super) fn part_size(size: u64) -> u64 {
    size.div_ceil(MAX_PARTS).next_multiple_of(1 << 20).max(PART)
}

/// Whether a part of this size, whose checksum goes before it, is kept in memory: a file of this
/// machine is rather read twice.
fn keeps(part: u64, source: &Source) -> bool {
    source.local_file().is_none() && part <= KEPT_PART
}

/// Begins an upload of `size` bytes.
pub(super) async fn begin(
    bucket: Arc<Bucket>,
    url: &StorageUrl,
    key: String,
    size: u64,
) -> Result<Box<dyn Upload>> {
    let target = Target {
        bucket,
        url: url.clone(),
        key,
        size,
    };
    if size <= PART {
        let source = Mutex::default();
        return Ok(Box::new(Whole { target, source }));
    }
    // If nobody waits any longer when the server has made the upload, it is dropped where it was
    // to be sent from, and so thrown away.
    let (begun, parts) = oneshot::channel();
    tokio::spawn(cleanup::track(async move {
        let _ = begun.send(Parts::begin(target).await);
    }));
    let parts = parts.await.unwrap_or_else(|e| {
        let message = "the upload could not begin";
        Err(Error::new(ErrorKind::Other, url, message).with_source(e))
    })?;
    Ok(Box::new(parts))
}

/// What is written where.
#[derive(Clone, Debug)]
struct Target {
    bucket: Arc<Bucket>,
    url: StorageUrl,
    key: String,
    size: u64,
}

impl Target {
    /// Sends `body` to the key; the headers of the reply.
    async fn put(
        &self,
        query: &[(&str, &str)],
        headers: HeaderMap,
        body: Body,
    ) -> Result<HeaderMap> {
        let call = Call {
            method: Method::PUT,
            key: &self.key,
            query,
            headers,
            body,
        };
        self.bucket.call(&self.url, call).await.map(|reply| reply.0)
    }

    fn written(&self, etag: &str, md5: Option<[u8; 16]>) -> Written {
        Written {
            size: self.size,
            version: reply::version(etag),
            checksum: md5.map(Checksum::Md5),
        }
    }

    fn error(&self, kind: ErrorKind, message: &str) -> Error {
        Error::new(kind, &self.url, message)
    }
}

/// The bytes `range` of `source`, all in memory.
async fn collect(source: &Source, range: Range<u64>) -> Result<Bytes> {
    let mut all = Vec::with_capacity((range.end - range.start) as usize);
    let mut stream = source.read(range.into()).await?;
    while let Some(chunk) = stream.try_next().await? {
        all.extend_from_slice(&chunk);
    }
    Ok(all.into())
}

/// The same bytes, and the MD5 of those that have passed. It is computed on another thread: large
/// chunks would hold up whatever else is to be done here.
fn summed(stream: ByteStream) -> (ByteStream, Arc<Mutex<Md5>>) {
    let sum = Arc::<Mutex<Md5>>::default();
    let passed = sum.clone();
    let stream = stream.and_then(move |chunk| {
        let (sum, bytes) = (sum.clone(), chunk.clone());
        let update = move || locked(&sum).update(&bytes);
        async move {
            if chunk.len() <= QUICKLY_SUMMED {
                update();
            } else {
                // Without it the sum is wrong, and the part is sent again.
                let _ = tokio::task::spawn_blocking(update).await;
            }
            Ok(chunk)
        }
    });
    (stream.boxed(), passed)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Computes a checksum that goes with what is sent.
enum Sum {
    Md5(Md5),
    Sha256(Sha256),
}

impl Sum {
    fn new(checksum: options::Checksum) -> Self {
        match checksum {
            options::Checksum::Md5 => Self::Md5(Md5::new()),
            options::Checksum::Sha256 => Self::Sha256(Sha256::new()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Md5(sum) => sum.update(bytes),
            Self::Sha256(sum) => sum.update(bytes),
        }
    }

    /// The header with it, and the form in which the end of an upload in parts repeats it.
    fn header(self) -> (Option<(HeaderName, HeaderValue)>, Option<String>) {
        match self {
            Self::Md5(sum) => {
                let sum = STANDARD.encode(sum.finalize());
                (header("content-md5", &sum), None)
            }
            Self::Sha256(sum) => {
                let sum = STANDARD.encode(sum.finalize());
                (header("x-amz-checksum-sha256", &sum), Some(sum))
            }
        }
    }
}

/// A small object, sent in one request when everything is there.
///
/// It is read first, and its hash is signed: some servers take what has come when a connection
/// breaks for the whole object, if they cannot know better.
#[derive(Debug)]
struct Whole {
    target: Target,
    source: Mutex<Option<Source>>,
}

#[async_trait]
impl Upload for Whole {
    fn part_size(&self) -> u64 {
        PART
    }

    async fn part(&self, index: u64, source: &Source) -> Result<()> {
        if index != 0 || source.size() != self.target.size {
            let message = "the source is not of the size that was said";
            return Err(self.target.error(ErrorKind::Invalid, message));
        }
        *self.source.lock().unwrap_or_else(PoisonError::into_inner) = Some(source.clone());
        Ok(())
    }

    async fn complete(&self) -> Result<Written> {
        let source = self
            .source
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let Some(source) = source else {
            let message = "a part was never sent";
            return Err(self.target.error(ErrorKind::Invalid, message));
        };
        let settings = &self.target.bucket.settings;
        let _room = settings.room(self.target.size).await;
        let bytes = collect(&source, 0..self.target.size).await?;
        let mut headers = settings.object_headers();
        headers.extend(header(
            "x-amz-content-sha256",
            &hex::encode(Sha256::digest(&bytes)),
        ));
        if let Some(checksum) = settings.checksum {
            let mut sum = Sum::new(checksum);
            sum.update(&bytes);
            headers.extend(sum.header().0);
        }
        let reply = self.target.put(&[], headers, Body::Bytes(bytes)).await?;
        let md5 = reply::md5(&reply).filter(|_| settings.customer_key.is_none());
        Ok(self.target.written(etag(&reply), md5))
    }

    async fn abort(&self) -> Result<()> {
        Ok(())
    }
}

fn etag(headers: &HeaderMap) -> &str {
    headers
        .get(ETAG)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default()
}

/// A part that the server has.
#[derive(Clone, Debug)]
struct Sent {
    etag: String,
    checksum: Option<String>,
}

/// An upload in parts.
#[derive(Debug)]
struct Parts {
    target: Target,
    id: String,
    sent: Mutex<BTreeMap<u64, Sent>>,
    /// Throws them away. None when they were completed or thrown away.
    undo: Mutex<Option<Undo>>,
}

impl Parts {
    async fn begin(target: Target) -> Result<Self> {
        let mut headers = target.bucket.settings.object_headers();
        if target.bucket.settings.checksum == Some(options::Checksum::Sha256) {
            headers.extend(header("x-amz-checksum-algorithm", "SHA256"));
        }
        let call = Call {
            method: Method::POST,
            key: &target.key,
            query: &[("uploads", "")],
            headers,
            body: Body::Bytes(Bytes::new()),
        };
        let (_, reply) = target.bucket.call(&target.url, call).await?;
        let id = reply::Body::parse(&reply).upload_id;
        if id.is_empty() {
            let message = "the server began no upload in parts";
            return Err(target.error(ErrorKind::Other, message));
        }
        let undo = Undo::new({
            let (target, id) = (target.clone(), id.clone());
            async move {
                let _ = tokio::time::timeout(ABORT, throw_away(&target, &id)).await;
            }
        });
        Ok(Self {
            target,
            id,
            sent: Mutex::default(),
            undo: Mutex::new(Some(undo)),
        })
    }

    /// The server has none of them any more.
    fn end(&self) {
        let mut undo = self.undo.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(undo) = undo.take() {
            undo.keep();
        }
    }

    fn count(&self) -> u64 {
        self.target.size.div_ceil(self.part_size())
    }

    /// Whether a part is in memory while it is sent.
    fn keeps_parts_of(&self, source: &Source) -> bool {
        self.target.bucket.settings.checksum.is_some() && keeps(self.part_size(), source)
    }

    /// The list of all parts that ends the upload.
    fn list(&self) -> Result<String> {
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        if sent.len() as u64 != self.count() {
            let message = "a part was never sent";
            return Err(self.target.error(ErrorKind::Invalid, message));
        }
        let parts = sent.iter().map(|(index, part)| {
            let number = index + 1;
            let etag = quick_xml::escape::escape(&part.etag);
            let checksum = part.checksum.as_ref().map_or_else(String::new, |sum| {
                format!("<ChecksumSHA256>{sum}</ChecksumSHA256>")
            });
            format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag>{checksum}</Part>")
        });
        let parts = parts.collect::<Vec<_>>().concat();
        Ok(format!(
            "<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>"
        ))
    }

    /// The entity tag that the object has if it is made of these parts, on servers that compute
    /// it as AWS does.
    fn expected_version(&self) -> Option<Version> {
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = Md5::new();
        for part in sent.values() {
            all.update(reply::unhex(part.etag.trim_matches('"'))?);
        }
        let sum = u128::from_be_bytes(all.finalize().into());
        reply::version(&format!("{sum:032x}-{}", sent.len()))
    }

    /// Whether the object is there as this upload makes it: the answer to a request that ended it
    /// may have been lost.
    async fn is_there(&self) -> Option<String> {
        let expected = self.expected_version()?;
        let Target {
            bucket, url, key, ..
        } = &self.target;
        let found = bucket.head(url, key).await.ok()?.version?;
        (found == expected).then_some(found.0)
    }
}

#[async_trait]
impl Upload for Parts {
    fn part_size(&self) -> u64 {
        part_size(self.target.size)
    }

    fn part_memory(&self, source: &Source) -> u64 {
        if self.keeps_parts_of(source) {
            self.part_size()
        } else {
            0
        }
    }

    async fn part(&self, index: u64, source: &Source) -> Result<()> {
        let start = index.saturating_mul(self.part_size());
        if start >= self.target.size || source.size() != self.target.size {
            let message = "the source is not of the size that was said";
            return Err(self.target.error(ErrorKind::Invalid, message));
        }
        let end = self.target.size.min(start + self.part_size());
        let number = (index + 1).to_string();
        let query = [("partNumber", number.as_str()), ("uploadId", &self.id)];
        let settings = &self.target.bucket.settings;
        let mut headers = settings.content_headers();
        let (mut kept, mut checksum) = (None, None);
        if let Some(kind) = settings.checksum {
            let mut sum = Sum::new(kind);
            if self.keeps_parts_of(source) {
                let bytes = collect(source, start..end).await?;
                sum.update(&bytes);
                kept = Some(Body::Bytes(bytes));
            } else {
                // Twice read. What changes in between does not have the checksum that was sent.
                let mut stream = source.inspected().read((start..end).into()).await?;
                while let Some(chunk) = stream.try_next().await? {
                    sum.update(&chunk);
                }
            }
            let (header, repeated) = sum.header();
            headers.extend(header);
            checksum = repeated;
        }
        let mut sum = None;
        let body = if let Some(body) = kept {
            body
        } else {
            // Read as the network takes it, so that core sees progress.
            let mut stream = source.read((start..end).into()).await?;
            if settings.compares_parts() {
                let (same, passed) = summed(stream);
                (stream, sum) = (same, Some(passed));
            }
            Body::Stream(stream, end - start)
        };
        let reply = self.target.put(&query, headers, body).await?;
        if let Some(sum) = sum
            && let Some(found) = reply::md5(&reply)
            && found != <[u8; 16]>::from(locked(&sum).clone().finalize())
        {
            let message = "a part did not arrive as it was sent";
            return Err(self.target.error(ErrorKind::Corrupt, message));
        }
        let etag = etag(&reply).to_owned();
        if etag.is_empty() {
            let message = "the server took a part, but did not tell its entity tag";
            return Err(self.target.error(ErrorKind::Other, message));
        }
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        sent.insert(index, Sent { etag, checksum });
        Ok(())
    }

    async fn complete(&self) -> Result<Written> {
        let mut headers = self.target.bucket.settings.content_headers();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
        let call = Call {
            method: Method::POST,
            key: &self.target.key,
            query: &[("uploadId", &self.id)],
            headers,
            body: Body::Bytes(self.list()?.into()),
        };
        let done = self.target.bucket.call(&self.target.url, call).await;
        let done = done.and_then(|(headers, body)| {
            let reply = reply::Body::parse(&body);
            if reply.etag.is_empty() {
                // The server promises success before it knows, and then takes it back.
                let status = http::StatusCode::INTERNAL_SERVER_ERROR;
                let refusal = reply::Refusal::new(status, &headers, &body);
                return Err(refusal.at(&self.target.url));
            }
            Ok(reply.etag)
        });
        let etag = match done {
            Ok(etag) => etag,
            // It is the one before whose answer was lost, perhaps.
            Err(error) if error.kind() == ErrorKind::Other => self.is_there().await.ok_or(error)?,
            Err(error) => return Err(error),
        };
        self.end();
        Ok(self.target.written(&etag, None))
    }

    async fn abort(&self) -> Result<()> {
        let thrown_away = throw_away(&self.target, &self.id).await;
        self.end();
        thrown_away
    }
}

/// Throws the parts of an upload away. One that is gone already is fine.
async fn throw_away(target: &Target, id: &str) -> Result<()> {
    let call = Call {
        method: Method::DELETE,
        key: &target.key,
        query: &[("uploadId", id)],
        headers: HeaderMap::new(),
        body: Body::Bytes(Bytes::new()),
    };
    match target.bucket.call(&target.url, call).await {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Other) => Ok(()),
        done => done.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many parts of one upload are under way, and how many MiB they take in all.
    fn at_once(part_memory: u64) -> (u64, u64) {
        let settings = tesk_core::transfer::Settings::default();
        let each = part_memory.div_ceil(1 << 20);
        let each = each.max(u64::from(tesk_core::transfer::STREAM_MIB));
        let fit = (u64::from(settings.buffer_mib) / each).max(1);
        let parts = fit.min(settings.parallel_ranges as u64);
        (parts, parts * each)
    }

    #[test]
    fn the_table_of_the_documentation_is_what_is_done() {
        let source = Source::bytes("from elsewhere");
        let row = |(object, size): (&str, u64)| {
            let part = part_size(size);
            let (parts, memory) = at_once(0);
            let kept = if keeps(part, &source) { part } else { 0 };
            let (with_checksum, more) = at_once(kept);
            assert_eq!(parts, with_checksum);
            assert!(memory <= 64 && more <= 64);
            let count = size.div_ceil(part);
            let part = part >> 20;
            format!("| {object} | {part} MiB | {count} | {parts} | {memory} MiB | {more} MiB |\n")
        };
        let (gib, gb, tib) = (1 << 30, 1_000_000_000, 1_u64 << 40);
        let rows = [
            ("1 GiB", gib),
            ("48 GiB", 48 * gib),
            ("100 GB", 100 * gb),
            ("160 GB", 160 * gb),
            ("500 GB", 500 * gb),
            ("1 TiB", tib),
            ("5 TiB", 5 * tib),
        ];
        let table = rows.map(row).concat();
        let documentation = include_str!("../../../docs/backends.md");
        assert!(
            documentation.contains(&table),
            "not in docs/backends.md:\n{table}"
        );
    }

    #[test]
    fn parts_grow_with_the_object_and_never_are_too_many() {
        let (mib, gb, tib) = (1 << 20, 1_000_000_000, 1_u64 << 40);
        for (size, part) in [
            (0, 5),
            (52 * gb, 5),
            (100 * gb, 10),
            (500 * gb, 48),
            (tib, 105),
            (5 * tib, 525),
            (MAX_SIZE, 5120),
        ] {
            assert_eq!(part_size(size), part * mib, "{size}");
            assert!(size.div_ceil(part_size(size)) <= MAX_PARTS);
        }
    }
}
