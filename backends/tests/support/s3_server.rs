//! An S3 server in this process: `s3s` speaks the protocol and checks signatures, and what it
//! serves is a map. Keys are what they are in S3: flat, and any text.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Bound;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use hyper_util::rt::TokioIo;
use md5::{Digest as _, Md5};
use s3s::auth::SimpleAuth;
#[allow(clippy::wildcard_imports)]
use s3s::dto::*;
use s3s::host::{S3Host, VirtualHost};
use s3s::service::S3ServiceBuilder;
use s3s::{S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};
use sha2::Sha256;

pub(crate) const ID: &str = "AKIDTESK";
pub(crate) const SECRET: &str = "s3cr3t/key";
/// The bucket that is there.
pub(crate) const BUCKET: &str = "bucket";
/// Below it, the name of a bucket is the name of a host.
pub(crate) const DOMAIN: &str = "s3.example.test";

/// A running server; dropped, it takes no new connections.
#[derive(Clone)]
pub(crate) struct S3Server {
    pub(crate) address: SocketAddr,
    state: State,
}

#[derive(Clone, Default)]
struct State(Arc<Shared>);

#[derive(Default)]
struct Shared {
    objects: Mutex<BTreeMap<(String, String), Object>>,
    uploads: Mutex<BTreeMap<String, BTreeMap<i32, Object>>>,
    ids: AtomicUsize,
    /// Bytes of parts that came, lost ones not counted.
    part_bytes: AtomicUsize,
    /// How many of the next parts are not kept as they came.
    damages: AtomicUsize,
    /// The headers of the last request that wrote.
    headers: Mutex<hyper::HeaderMap>,
    /// What the next requests of these operations fail with.
    faults: Mutex<Vec<(&'static str, S3ErrorCode)>>,
    faith: Mutex<Faith>,
}

/// How good a server it is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faith {
    /// Conditions of reads are not known.
    pub(crate) ignores_if_match: bool,
    /// Ranges are not known.
    pub(crate) ignores_ranges: bool,
    /// What has come when a connection breaks is taken for the whole, unless its hash is signed.
    pub(crate) keeps_what_came: bool,
    /// Objects are encrypted with keys of a key service, and entity tags are no checksums.
    pub(crate) kms: bool,
    /// Who asks for checksums needs the right to decrypt, and nobody has it.
    pub(crate) denies_checksums: bool,
}

#[derive(Clone)]
struct Object {
    content: Bytes,
    etag: String,
    /// Of what came in one piece.
    sha256: Option<String>,
}

impl Object {
    fn new(content: Bytes) -> Self {
        Self {
            etag: hex::encode(Md5::digest(&content)),
            sha256: Some(STANDARD.encode(Sha256::digest(&content))),
            content,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl S3Server {
    pub(crate) async fn start() -> Self {
        let state = State::default();
        let mut builder = S3ServiceBuilder::new(state.clone());
        builder.set_auth(SimpleAuth::from_single(ID, SECRET));
        builder.set_access(Access);
        builder.set_host(Hosts);
        let service = builder.build();
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(socket), service)
                        .await;
                });
            }
        });
        Self { address, state }
    }

    pub(crate) fn put(&self, key: &str, content: impl Into<Bytes>) {
        self.put_in(BUCKET, key, content);
    }

    /// Changes a byte of an object, behind the back of the server's own checksum.
    pub(crate) fn spoil(&self, key: &str) {
        let mut objects = lock(&self.state.0.objects);
        let object = objects.get_mut(&(BUCKET.into(), key.into())).unwrap();
        let mut content = object.content.to_vec();
        content[0] ^= 1;
        object.content = content.into();
    }

    pub(crate) fn put_in(&self, bucket: &str, key: &str, content: impl Into<Bytes>) {
        let object = Object::new(content.into());
        lock(&self.state.0.objects).insert((bucket.into(), key.into()), object);
    }

    pub(crate) fn content(&self, key: &str) -> Option<Bytes> {
        let objects = lock(&self.state.0.objects);
        let object = objects.get(&(BUCKET.into(), key.into()))?;
        Some(object.content.clone())
    }

    /// Every key of every bucket.
    pub(crate) fn keys(&self) -> Vec<String> {
        let objects = lock(&self.state.0.objects);
        objects.keys().map(|(b, k)| format!("{b}/{k}")).collect()
    }

    /// Uploads that were begun, and neither completed nor aborted.
    pub(crate) fn uploads(&self) -> usize {
        self.upload_ids().len()
    }

    /// Their names, which end in their keys.
    pub(crate) fn upload_ids(&self) -> Vec<String> {
        lock(&self.state.0.uploads).keys().cloned().collect()
    }

    pub(crate) fn part_bytes(&self) -> usize {
        self.state.0.part_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let headers = lock(&self.state.0.headers);
        Some(headers.get(name)?.to_str().ok()?.to_owned())
    }

    pub(crate) fn fails(&self, faults: impl IntoIterator<Item = (&'static str, S3ErrorCode)>) {
        *lock(&self.state.0.faults) = faults.into_iter().collect();
    }

    /// The next `parts` are not kept as they came.
    pub(crate) fn damages(&self, parts: usize) {
        self.state.0.damages.store(parts, Ordering::Relaxed);
    }

    pub(crate) fn is(&self, faith: Faith) {
        *lock(&self.state.0.faith) = faith;
    }
}

struct Hosts;

impl S3Host for Hosts {
    fn parse_host_header<'a>(&'a self, host: &'a str) -> S3Result<VirtualHost<'a>> {
        let bucket = host.strip_suffix(DOMAIN);
        Ok(match bucket.and_then(|name| name.strip_suffix('.')) {
            Some(bucket) => VirtualHost::new(DOMAIN).with_bucket(bucket),
            None => VirtualHost::new(host),
        })
    }
}

/// Everybody may read the bucket `public`.
struct Access;

#[async_trait::async_trait]
impl s3s::access::S3Access for Access {
    async fn check(&self, request: &mut s3s::access::S3AccessContext<'_>) -> S3Result<()> {
        let public = request.s3_path().get_bucket_name() == Some("public");
        if public || request.credentials().is_some() {
            return Ok(());
        }
        Err(s3_error!(AccessDenied))
    }
}

impl State {
    fn fault(&self, operation: &str) -> S3Result<()> {
        let mut faults = lock(&self.0.faults);
        match faults.iter().position(|(name, _)| *name == operation) {
            Some(index) => Err(S3Error::new(faults.remove(index).1)),
            None => Ok(()),
        }
    }

    fn find(&self, bucket: &str, key: &str) -> S3Result<Object> {
        if ![BUCKET, "public", "127"].contains(&bucket) {
            return Err(s3_error!(NoSuchBucket));
        }
        let objects = lock(&self.0.objects);
        let object = objects.get(&(bucket.to_owned(), key.to_owned()));
        object.cloned().ok_or_else(|| s3_error!(NoSuchKey))
    }

    fn encryption(&self) -> Option<ServerSideEncryption> {
        let kms = lock(&self.0.faith).kms;
        kms.then(|| ServerSideEncryption::from_static(ServerSideEncryption::AWS_KMS))
    }
}

/// What came of a body, and whether that is all of it.
async fn collect(body: Option<StreamingBlob>) -> (Bytes, bool) {
    let mut all = Vec::new();
    if let Some(mut body) = body {
        loop {
            match body.try_next().await {
                Ok(Some(chunk)) => all.extend_from_slice(&chunk),
                Ok(None) => break,
                Err(_) => return (all.into(), false),
            }
        }
    }
    (all.into(), true)
}

#[async_trait::async_trait]
impl S3 for State {
    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        self.fault("head")?;
        let object = self.find(&request.input.bucket, &request.input.key)?;
        let asked = request.input.checksum_mode.is_some();
        if asked && lock(&self.0.faith).denies_checksums {
            return Err(s3_error!(AccessDenied));
        }
        Ok(S3Response::new(HeadObjectOutput {
            content_length: Some(object.content.len() as i64),
            e_tag: Some(ETag::Strong(object.etag)),
            server_side_encryption: self.encryption(),
            checksum_sha256: object.sha256.filter(|_| asked),
            ..HeadObjectOutput::default()
        }))
    }

    async fn get_object(
        &self,
        request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        self.fault("get")?;
        let input = request.input;
        let object = self.find(&input.bucket, &input.key)?;
        let faith = *lock(&self.0.faith);
        let tag = ETag::Strong(object.etag.clone());
        if let Some(ETagCondition::ETag(wanted)) = input.if_match
            && !faith.ignores_if_match
            && !wanted.strong_cmp(&tag)
        {
            return Err(s3_error!(PreconditionFailed));
        }
        let size = object.content.len() as u64;
        let range = input.range.filter(|_| !faith.ignores_ranges);
        let (content, content_range) = match range {
            None => (object.content, None),
            Some(range) => {
                let range = range.check(size)?;
                let shown = format!("bytes {}-{}/{size}", range.start, range.end - 1);
                let slice = object
                    .content
                    .slice(range.start as usize..range.end as usize);
                (slice, Some(shown))
            }
        };
        let size = content.len() as i64;
        // In pieces, as a network would.
        let pieces: Vec<_> = content
            .chunks(64 << 10)
            .map(Bytes::copy_from_slice)
            .collect();
        let pieces = futures_util::stream::iter(pieces.into_iter().map(Ok::<_, std::io::Error>));
        Ok(S3Response::new(GetObjectOutput {
            body: Some(StreamingBlob::wrap(pieces)),
            content_length: Some(size),
            content_range,
            e_tag: Some(tag),
            ..GetObjectOutput::default()
        }))
    }

    async fn put_object(
        &self,
        request: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        self.fault("put")?;
        let signed = request.headers.get("x-amz-content-sha256");
        let signed = signed.is_some_and(|hash| hash != "UNSIGNED-PAYLOAD");
        *lock(&self.0.headers) = request.headers;
        let input = request.input;
        let (content, whole) = collect(input.body).await;
        if !whole && (signed || !lock(&self.0.faith).keeps_what_came) {
            return Err(s3_error!(IncompleteBody));
        }
        let object = Object::new(content);
        let e_tag = Some(ETag::Strong(object.etag.clone()));
        lock(&self.0.objects).insert((input.bucket, input.key), object);
        Ok(S3Response::new(PutObjectOutput {
            e_tag,
            server_side_encryption: self.encryption(),
            ..PutObjectOutput::default()
        }))
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        let input = request.input;
        lock(&self.0.objects).remove(&(input.bucket, input.key));
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.fault("list")?;
        let input = request.input;
        match self.find(&input.bucket, "") {
            Err(error) if *error.code() == S3ErrorCode::NoSuchBucket => return Err(error),
            _ => {}
        }
        let prefix = input.prefix.unwrap_or_default();
        let most = input.max_keys.unwrap_or(1000).clamp(0, 1000) as usize;
        let after = input.continuation_token.or(input.start_after);
        let start = match after {
            Some(after) => Bound::Excluded((input.bucket.clone(), after)),
            None => Bound::Included((input.bucket.clone(), prefix.clone())),
        };
        let objects = lock(&self.0.objects);
        let mut found = objects
            .range((start, Bound::Unbounded))
            .take_while(|((bucket, key), _)| *bucket == input.bucket && key.starts_with(&prefix))
            .map(|((_, key), object)| s3s::dto::Object {
                key: Some(key.clone()),
                size: Some(object.content.len() as i64),
                e_tag: Some(ETag::Strong(object.etag.clone())),
                last_modified: Some(std::time::SystemTime::now().into()),
                ..s3s::dto::Object::default()
            });
        let contents: Vec<_> = found.by_ref().take(most).collect();
        let truncated = found.next().is_some();
        let last = contents.last().and_then(|object| object.key.clone());
        Ok(S3Response::new(ListObjectsV2Output {
            key_count: Some(contents.len() as i32),
            is_truncated: Some(truncated),
            next_continuation_token: last.filter(|_| truncated),
            contents: Some(contents),
            ..ListObjectsV2Output::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        self.fault("create")?;
        *lock(&self.0.headers) = request.headers;
        let number = self.0.ids.fetch_add(1, Ordering::Relaxed);
        let id = format!("upload/{number}/{}", request.input.key);
        lock(&self.0.uploads).insert(id.clone(), BTreeMap::new());
        Ok(S3Response::new(CreateMultipartUploadOutput {
            upload_id: Some(id),
            ..CreateMultipartUploadOutput::default()
        }))
    }

    async fn upload_part(
        &self,
        request: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        *lock(&self.0.headers) = request.headers;
        let input = request.input;
        let (content, whole) = collect(input.body).await;
        // A refusal before that may be lost with a connection on which more is sent.
        self.fault("part")?;
        if !whole && !lock(&self.0.faith).keeps_what_came {
            return Err(s3_error!(IncompleteBody));
        }
        let (left, one) = (&self.0.damages, Ordering::Relaxed);
        let damaged = left.fetch_update(one, one, |left| left.checked_sub(1));
        let mut part = Object::new(if damaged.is_ok() {
            content.iter().rev().copied().collect()
        } else {
            content
        });
        if self.encryption().is_some() {
            part.etag = hex::encode(Md5::digest(&part.etag));
        }
        self.0
            .part_bytes
            .fetch_add(part.content.len(), Ordering::Relaxed);
        let e_tag = Some(ETag::Strong(part.etag.clone()));
        let mut uploads = lock(&self.0.uploads);
        let upload = uploads.get_mut(&input.upload_id);
        let upload = upload.ok_or_else(|| s3_error!(NoSuchUpload))?;
        upload.insert(input.part_number, part);
        Ok(S3Response::new(UploadPartOutput {
            e_tag,
            server_side_encryption: self.encryption(),
            ..UploadPartOutput::default()
        }))
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        self.fault("complete")?;
        let input = request.input;
        let parts = lock(&self.0.uploads).remove(&input.upload_id);
        let parts = parts.ok_or_else(|| s3_error!(NoSuchUpload))?;
        let listed = input.multipart_upload.and_then(|m| m.parts);
        let listed = listed.unwrap_or_default();
        let (mut content, mut sums) = (Vec::new(), Md5::new());
        for (index, part) in listed.iter().enumerate() {
            let sent = parts.get(&part.part_number.unwrap_or_default());
            let sent = sent.ok_or_else(|| s3_error!(InvalidPart))?;
            let tag = part.e_tag.as_ref().map(ETag::value);
            if tag != Some(sent.etag.as_str()) {
                return Err(s3_error!(InvalidPart));
            }
            if index + 1 < listed.len() && sent.content.len() < 5 << 20 {
                return Err(s3_error!(EntityTooSmall));
            }
            content.extend_from_slice(&sent.content);
            sums.update(Md5::digest(&sent.content));
        }
        let etag = format!("{}-{}", hex::encode(sums.finalize()), listed.len());
        let object = Object {
            content: content.into(),
            etag: etag.clone(),
            sha256: None,
        };
        lock(&self.0.objects).insert((input.bucket, input.key), object);
        // Done, but nobody hears of it.
        self.fault("lost")?;
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            e_tag: Some(ETag::Strong(etag)),
            ..CompleteMultipartUploadOutput::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let gone = lock(&self.0.uploads).remove(&request.input.upload_id);
        gone.ok_or_else(|| s3_error!(NoSuchUpload))?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }
}
