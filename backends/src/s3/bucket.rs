//! One bucket: OpenDAL's operator for it, and the requests that OpenDAL's interface lacks.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::stream::StreamExt as _;
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Uri};
use opendal::services::S3 as Builder;
use opendal::{HttpTransporter, OperationContext, Operator};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqsign_aws_v4::{Credential, RequestSigner};
use reqsign_core::{ProvideCredentialChain, Signer};
use tesk_core::storage::{ByteStream, Error, ErrorKind, FileInfo, Result, StorageUrl};

use super::address::is_label;
use super::credentials::{Identity, context};
use super::reply::{self, MAX_REFUSAL, Refusal};
use super::settings::Settings;
use super::transport::{Transport, unsigned};
use crate::client::disconnected;

/// Operators that are kept ready. Tasks name buckets as they like; a client behind each is cheap,
/// but not free.
const KEPT: usize = 64;

/// What stays as it is in the path of a request, as OpenDAL has it.
const IN_PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');
const IN_QUERY: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// The buckets of an entry that were used last.
#[derive(Debug, Default)]
pub(super) struct Buckets(Mutex<VecDeque<Arc<Bucket>>>);

impl Buckets {
    /// The bucket `name`, made ready if it is not.
    pub(super) fn get(
        &self,
        settings: &Arc<Settings>,
        name: &str,
        url: &StorageUrl,
    ) -> Result<Arc<Bucket>> {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = buckets.iter().position(|bucket| bucket.name == name);
        let bucket = match known.and_then(|index| buckets.remove(index)) {
            Some(bucket) => bucket,
            None => Arc::new(Bucket::new(settings.clone(), name, url)?),
        };
        buckets.push_front(bucket.clone());
        buckets.truncate(KEPT);
        Ok(bucket)
    }
}

/// A bucket.
pub(super) struct Bucket {
    name: String,
    pub(super) operator: Operator,
    pub(super) settings: Arc<Settings>,
    /// Of requests, up to the key.
    base: String,
    signer: Option<Signer<Credential>>,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Bucket").field(&self.base).finish()
    }
}

/// A request that OpenDAL does not make.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) key: &'a str,
    pub(super) query: &'a [(&'a str, &'a str)],
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
}

/// What a request carries.
pub(super) enum Body {
    Bytes(Bytes),
    /// So many bytes of a stream.
    Stream(ByteStream, u64),
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.size())
    }
}

impl Body {
    fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Stream(_, size) => *size,
        }
    }
}

impl Bucket {
    fn new(settings: Arc<Settings>, name: &str, url: &StorageUrl) -> Result<Self> {
        let invalid = |message: &str| Error::new(ErrorKind::Invalid, url, message);
        if name.ends_with("--x-s3") && settings.is_aws() {
            return Err(invalid("directory buckets (S3 Express) are not served"));
        }
        // In a path any bucket is one; in a host's name a dot would make it another host, and
        // one that no certificate covers.
        let in_path = settings.path_style || name.contains('.');
        if !in_path && !is_label(name) {
            return Err(invalid(
                "a bucket of that name needs `path_style = true` in its storage entry",
            ));
        }
        let base = settings.base(name, in_path);
        let checked = settings.check_host(&base);
        checked.map_err(|why| Error::new(ErrorKind::Denied, url, why.to_string()))?;
        let authority = base
            .parse::<Uri>()
            .ok()
            .and_then(|uri| uri.authority().map(ToString::to_string))
            .ok_or_else(|| invalid("there can be no bucket of that name"))?;
        let transport = Transport::new(&settings, authority);
        let transport = HttpTransporter::new(transport);

        let mut builder = Builder::default()
            .bucket(name)
            .region(&settings.region)
            // OpenDAL cuts a bucket's name from an endpoint that begins with it, and would send
            // what is for the bucket `minio` of `https://minio.example.org` to `example.org`. It
            // does not recognise it behind an empty user name, which is dropped afterwards.
            .endpoint(&settings.endpoint.replacen("://", "://@", 1))
            .disable_config_load();
        if !in_path {
            builder = builder.enable_virtual_host_style();
        }
        if settings.list_v1 {
            builder = builder.disable_list_objects_v2();
        }
        if settings.request_payer {
            builder = builder.enable_request_payer();
        }
        if let Some(key) = &settings.customer_key {
            builder = builder.server_side_encryption_with_customer_key("AES256", key);
        }
        let mut signer = None;
        match &settings.identity {
            Identity::Anonymous => builder = builder.skip_signature(),
            Identity::Known(chain) => {
                let own = RequestSigner::new("s3", &settings.region);
                signer = Some(Signer::new(context(transport.clone()), chain.clone(), own));
                let chain = ProvideCredentialChain::new().push(chain.clone());
                builder = builder.credential_provider_chain(chain);
            }
        }
        let operator = Operator::new(builder)
            .map_err(|_| invalid("the settings of its storage entry do not fit this bucket"))?
            .with_context(OperationContext::new().with_http_transport(transport));
        Ok(Self {
            name: name.to_owned(),
            operator,
            settings,
            base,
            signer,
        })
    }

    /// Sends a request and gives the headers and body of the reply, if it is a success.
    ///
    /// OpenDAL signs with the same crate; only its interface has no single parts.
    pub(super) async fn call(
        &self,
        url: &StorageUrl,
        call: Call<'_>,
    ) -> Result<(HeaderMap, Vec<u8>)> {
        let size = call.body.size();
        let mut request = http::Request::builder()
            .method(call.method)
            .uri(self.uri(call.key, call.query))
            .body(())
            .map_err(|_| Error::new(ErrorKind::Invalid, url, "no request can be made of it"))?
            .into_parts()
            .0;
        request.headers = call.headers;
        request.headers.extend(self.settings.request_headers());
        request.headers.insert(CONTENT_LENGTH, size.into());
        if let Some(signer) = &self.signer {
            let signed = signer.sign(&mut request, None).await;
            signed.map_err(|_| unsigned(url))?;
        }
        let failed = Arc::new(Mutex::new(None));
        let body = match call.body {
            Body::Bytes(bytes) => bytes.into(),
            Body::Stream(stream, _) => {
                let failed = failed.clone();
                let stream = stream.map(move |chunk| {
                    chunk.map_err(|error| {
                        let mut slot = failed.lock().unwrap_or_else(PoisonError::into_inner);
                        *slot = Some(error);
                        std::io::Error::other("the source failed")
                    })
                });
                reqwest::Body::wrap_stream(stream)
            }
        };
        let sent = self
            .settings
            .client
            .request(request.method, request.uri.to_string())
            .headers(request.headers)
            .body(body)
            .send()
            .await;
        let mut reply = sent.map_err(|error| {
            // A source that failed is the cause of the request's failure, not the reverse.
            let source = failed.lock().unwrap_or_else(PoisonError::into_inner).take();
            source.unwrap_or_else(|| disconnected(url, &error))
        })?;
        let mut text = Vec::new();
        while text.len() < MAX_REFUSAL {
            match reply.chunk().await {
                Ok(Some(chunk)) => text.extend_from_slice(&chunk),
                Ok(None) => break,
                Err(error) => return Err(disconnected(url, &error)),
            }
        }
        if reply.status().is_success() {
            return Ok((std::mem::take(reply.headers_mut()), text));
        }
        Err(Refusal::new(reply.status(), reply.headers(), &text).at(url))
    }

    /// What is known of an object.
    pub(super) async fn head(&self, url: &StorageUrl, key: &str) -> Result<FileInfo> {
        let ask = async |checksum| {
            let mut headers = self.settings.content_headers();
            headers.extend(checksum);
            let call = Call {
                method: Method::HEAD,
                key,
                query: &[],
                headers,
                body: Body::Bytes(Bytes::new()),
            };
            self.call(url, call).await
        };
        let found = match ask(header("x-amz-checksum-mode", "ENABLED")).await {
            // It takes the right to decrypt as well, where the key is of a key service.
            Err(error) if error.kind() == ErrorKind::Denied => ask(None).await?,
            found => found?,
        };
        let info = reply::file_info(&found.0);
        // An early end would look like the end.
        if info.size.is_none() {
            let message = "the server does not tell the size";
            return Err(Error::new(ErrorKind::Unsupported, url, message));
        }
        Ok(info)
    }

    fn uri(&self, key: &str, query: &[(&str, &str)]) -> String {
        let mut uri = format!("{}/{}", self.base, utf8_percent_encode(key, IN_PATH));
        for (index, (name, value)) in query.iter().enumerate() {
            uri.push(if index == 0 { '?' } else { '&' });
            uri.push_str(name);
            uri.push('=');
            uri.extend(utf8_percent_encode(value, IN_QUERY));
        }
        uri
    }
}

/// A header whose value is known to be one.
pub(super) fn header(name: &'static str, value: &str) -> Option<(HeaderName, HeaderValue)> {
    let mut value = HeaderValue::try_from(value).ok()?;
    value.set_sensitive(true);
    Some((HeaderName::from_static(name), value))
}
