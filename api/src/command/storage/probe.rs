//! Probes: can a storage be used, and if not, why?
//!
//! A probe looks at one address and begins to list or read it, which changes nothing. With
//! [`Options::write`] it also writes a small file of a unique name there, reads it back, and
//! removes it; never where it could not remove it again.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::{self, Stream};
use tesk_core::storage::{
    ByteRange, EntryKind, Error, ErrorKind, Registry, Result, Source, Storage, StorageUrl,
};

use super::super::{Outcome, say, show};

/// Storages probed at the same time.
const AT_ONCE: usize = 8;
/// How long looking, writing and removing may each take unless the caller says.
pub(in super::super) const LIMIT: Duration = Duration::from_secs(20);
/// What is written.
const CONTENT: &[u8] = b"tesk storage check: this file can be removed\n";

/// What a probe may do.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Options {
    /// Write, read back and remove a small file.
    pub(in super::super) write: bool,
    /// How long looking, writing and removing may each take.
    pub(in super::super) limit: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            write: false,
            limit: LIMIT,
        }
    }
}

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// It answers as it should: what was seen.
    Works(String),
    /// There was nothing to probe, or the answer proves nothing: why.
    Open(String),
    /// It cannot be used: why.
    Fails(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, text) = match self {
            Self::Works(text) => ("works", text),
            Self::Open(text) => ("not known", text),
            Self::Fails(text) => ("fails", text),
        };
        // Some of it can be the words of a server.
        write!(f, "{word}: {}", show::one_line(text))
    }
}

/// One probed address.
#[derive(Clone, Debug)]
pub(in super::super) struct Probe {
    /// The prefix as the configuration has it, or the URL without credentials.
    place: String,
    verdict: Verdict,
}

/// Prints what the probes find, as they end; fails if one of the storages cannot be used.
pub(in super::super) async fn report(probes: impl Stream<Item = Probe>) -> Outcome {
    let mut probes = std::pin::pin!(probes);
    let mut failed = 0;
    while let Some(Probe { place, verdict }) = probes.next().await {
        failed += usize::from(matches!(verdict, Verdict::Fails(_)));
        say(&format!("{place:<32}  {verdict}\n"))?;
    }
    match failed {
        0 => Ok(()),
        1 => Err("one storage cannot be used".to_owned().into()),
        n => Err(format!("{n} storages cannot be used").into()),
    }
}

/// Probes every prefix of a registry; in its order.
pub(in super::super) fn prefixes(
    registry: &Arc<Registry>,
    options: Options,
) -> impl Stream<Item = Probe> + use<> {
    let registry = registry.clone();
    stream::iter(registry.prefixes())
        .map(move |(prefix, _)| {
            let registry = registry.clone();
            async move {
                let verdict = match prefix.parse::<StorageUrl>() {
                    Ok(url) if url.host().is_empty() && url.scheme() != "file" => every_host(&url),
                    Ok(url) => probe(&registry, url, Asked::Prefix, options).await,
                    Err(error) => Verdict::Fails(format!("the prefix {error}")),
                };
                let place = prefix;
                Probe { place, verdict }
            }
        })
        .buffered(AT_ONCE)
}

/// Probes these addresses; in their order.
pub(in super::super) fn urls(
    registry: &Arc<Registry>,
    urls: Vec<StorageUrl>,
    options: Options,
) -> impl Stream<Item = Probe> + use<> {
    let registry = registry.clone();
    stream::iter(urls)
        .map(move |url| {
            let registry = registry.clone();
            async move {
                let place = url.to_string();
                let verdict = probe(&registry, url, Asked::Url, options).await;
                Probe { place, verdict }
            }
        })
        .buffered(AT_ONCE)
}

fn every_host(prefix: &StorageUrl) -> Verdict {
    let scheme = prefix.scheme();
    let (every, name) = if has_directories(scheme) {
        ("host", "HOST")
    } else {
        ("bucket", "BUCKET")
    };
    Verdict::Open(format!(
        "it serves every {every}; probe one by: tesk storage check {scheme}://{name}/PATH"
    ))
}

/// Whether a directory can be missing where a scheme leads. In object stores one is there as long
/// as something is in it.
fn has_directories(scheme: &str) -> bool {
    !matches!(
        scheme,
        "azblob" | "b2" | "cos" | "gs" | "memory" | "obs" | "oss" | "s3" | "swift"
    )
}

/// Who named the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// The configuration: it need not be the address of anything.
    Prefix,
    /// A person: something must be there.
    Url,
}

async fn probe(registry: &Registry, url: StorageUrl, asked: Asked, options: Options) -> Verdict {
    let storage = match registry.route(&url) {
        Ok(storage) => storage,
        Err(error) => return Verdict::Fails(reason(&url, &error)),
    };
    let claims = storage.capabilities();
    let looked = look(storage.clone(), url.clone(), asked);
    let seen = match in_time(&url, options.limit, looked).await {
        Ok(seen) => seen,
        // Many web servers show their files, but no directory (RFC 9110, 15.5.4).
        Err(error) if asked == Asked::Prefix && !claims.list && says_403(&error) => {
            let why = reason(&url, &error);
            let what = "which may be as it should for a directory; probe the url of a file in it";
            return Verdict::Open(format!("{why}, {what}"));
        }
        Err(error) => return Verdict::Fails(reason(&url, &error)),
    };
    if !options.write {
        return Verdict::Works(seen.to_string());
    }
    if !claims.write {
        return Verdict::Works(format!("{seen}; not written to, as it is read-only"));
    }
    let why_not = match seen {
        Seen::File(_) => "it is a file; probe its directory",
        _ if !claims.remove => "nothing can be removed there",
        _ => "",
    };
    if !why_not.is_empty() {
        let why_not = format!("{seen}, but writing was not tried: {why_not}");
        return Verdict::Open(why_not);
    }
    match write(storage, &url, options.limit).await {
        Ok(()) => Verdict::Works(format!("{seen}; a file was written, read and removed")),
        Err(text) => Verdict::Fails(text),
    }
}

/// The refusal of a web server, not one of this machine that reaches no such network.
fn says_403(error: &Error) -> bool {
    error.kind() == ErrorKind::Denied && error.to_string().contains("403")
}

/// What is at the address.
#[derive(Debug)]
enum Seen {
    /// A directory that can be listed.
    Listed,
    /// A directory of a storage that lists none.
    Directory,
    /// A file that can be read.
    File(Option<u64>),
    /// Nothing, which is as it may be.
    Nothing(&'static str),
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listed => f.write_str("its directory can be listed"),
            Self::Directory => f.write_str("its directory is there"),
            Self::File(Some(size)) => write!(f, "a file of {} can be read", show::bytes(*size)),
            Self::File(None) => f.write_str("a file can be read"),
            Self::Nothing(text) => f.write_str(text),
        }
    }
}

async fn look(storage: Arc<dyn Storage>, url: StorageUrl, asked: Asked) -> Result<Seen> {
    let claims = storage.capabilities();
    let missing = |message: &str| Err(Error::new(ErrorKind::NotFound, &url, message));
    let Some(entry) = storage.stat(&url).await? else {
        return match asked {
            Asked::Url => missing("nothing is there"),
            Asked::Prefix if !claims.list => Ok(Seen::Nothing(
                "the server answers; there is nothing at the prefix itself",
            )),
            Asked::Prefix if !has_directories(url.scheme()) => Ok(Seen::Nothing(
                "the bucket can be listed; there is nothing at the prefix yet",
            )),
            Asked::Prefix => missing("the directory is missing; make it, or correct the prefix"),
        };
    };
    match entry.kind {
        EntryKind::Directory if claims.list => {
            let mut entries = storage.list(&url).await?;
            entries.next().await.transpose()?;
            Ok(Seen::Listed)
        }
        EntryKind::Directory => Ok(Seen::Directory),
        EntryKind::File(info) => {
            // Not all of it, where that can be said.
            let end = info.size.filter(|_| claims.ranges).map(|size| size.min(1));
            let mut opened = storage
                .read(&url, ByteRange { start: 0, end }, None)
                .await?;
            opened.bytes.next().await.transpose()?;
            Ok(Seen::File(info.size))
        }
    }
}

/// Writes a file, reads it back, and removes it whatever happened.
async fn write(storage: Arc<dyn Storage>, url: &StorageUrl, limit: Duration) -> Result<(), String> {
    let name = format!(".tesk-check-{:016x}", rand::random::<u64>());
    let file = url.join(&name);
    let (to, at) = (storage.clone(), file.clone());
    let written = in_time(&file, limit, async move {
        to.write(&at, &Source::bytes(CONTENT)).await?;
        let mut bytes = to.read(&at, ByteRange::FULL, None).await?.bytes;
        let mut read = Vec::new();
        while let Some(chunk) = bytes.next().await {
            read.extend_from_slice(&chunk?);
            if read.len() > CONTENT.len() {
                break;
            }
        }
        if read == CONTENT {
            Ok(())
        } else {
            let message = "what is read is not what was written";
            Err(Error::new(ErrorKind::Corrupt, &at, message))
        }
    });
    let written = written.await;
    let at = file.clone();
    let removed = in_time(&file, limit, async move { storage.remove(&at).await }).await;
    written.map_err(|error| format!("{file} cannot be written: {}", reason(&file, &error)))?;
    removed.map_err(|error| {
        let why = reason(&file, &error);
        format!("{file} was written, but cannot be removed, so do that by hand: {why}")
    })
}

/// Runs in a task of its own: a file system that hangs must not stop the clock.
async fn in_time<T: Send + 'static>(
    url: &StorageUrl,
    limit: Duration,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let mut task = tokio::spawn(work);
    match tokio::time::timeout(limit, &mut task).await {
        Ok(Ok(done)) => done.map_err(|error| error.scrubbed(url)),
        Ok(Err(_)) => Err(Error::new(ErrorKind::Other, url, "the probe broke down")),
        Err(_) => {
            task.abort();
            let message = format!("no answer within {}", show::duration(limit));
            Err(Error::new(ErrorKind::Unavailable, url, message))
        }
    }
}

/// The error in words, and what a person can do about it.
fn reason(url: &StorageUrl, error: &Error) -> String {
    let text = error.to_string();
    // The address stands before it already.
    let text = text.strip_prefix(&format!("{url}: ")).unwrap_or(&text);
    match advice(error.kind(), text) {
        Some(advice) => format!("{text}; {advice}"),
        None => text.to_owned(),
    }
}

/// What to do about an error, by its kind and by the words that libraries and kernels have for
/// the usual troubles.
fn advice(kind: ErrorKind, text: &str) -> Option<&'static str> {
    const WORDS: [(&[&str], &str); 9] = [
        (
            &["unknownissuer", "badsignature"],
            "name the authority that signed it by `ca_file`",
        ),
        (
            &["causedasendentity"],
            "it is that of an authority, and no server may use it as its own",
        ),
        (
            &["notvalidforname", "not valid for name"],
            "use the host name that the certificate is for",
        ),
        (
            &["certificate expired", "expired(", "notvalidyet"],
            "the certificate must be renewed, or a clock is wrong",
        ),
        (
            &[
                "invalidcontenttype",
                "corrupt message",
                "wrongversionnumber",
            ],
            "no TLS is spoken at this port",
        ),
        (
            &["dns error", "lookup address", "name or service not known"],
            "the host name cannot be resolved here",
        ),
        (
            &["connection refused"],
            "nothing listens at this address and port",
        ),
        (
            &["no route to host", "network is unreachable"],
            "no network of this machine leads there",
        ),
        (
            &["timed out", "timeout", "no answer within", "did not answer"],
            "is the address right, and does a firewall let it through?",
        ),
    ];
    let text = text.to_lowercase();
    let says = |words: &&[&str]| words.iter().any(|word| text.contains(word));
    if let Some((_, advice)) = WORDS.iter().find(|(words, _)| says(words)) {
        return Some(advice);
    }
    (kind == ErrorKind::Unauthenticated).then_some("check the credentials of the entry")
}
