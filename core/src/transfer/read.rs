//! Reading a remote file: resumed at the byte reached, never mixing two versions of it.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};

use super::Settings;
use super::retry::{Retry, in_time};
use super::verify::Hasher;
use crate::storage::file::Writer;
use crate::storage::turns::Turns;
use crate::storage::{
    ByteRange, ByteStream, Capabilities, Checksum, Entry, EntryKind, Error, ErrorKind, FileInfo,
    Opened, Result, Storage, StorageUrl, Version,
};

/// A stream that got on by this many bytes has earned its retries anew.
const PROGRESS: u64 = 1 << 20;

/// A file in a storage, in the version that was found there.
#[derive(Clone, Debug)]
pub(super) struct RemoteFile {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) url: StorageUrl,
    pub(super) info: FileInfo,
}

impl RemoteFile {
    /// Whether a reading can go on in the middle: the storage reads ranges, and tells versions
    /// apart, so that the second half is of the same file as the first.
    pub(super) fn is_resumable(&self) -> bool {
        self.storage.capabilities().ranges && self.info.version.is_some()
    }

    /// The checksum to compare it with, as it was told with the rest.
    pub(super) fn wanted(&self, settings: &Settings) -> Option<&Checksum> {
        self.info.checksum.as_ref().filter(|_| settings.verify)
    }

    /// Whether another version has taken its place.
    async fn has_changed(&self, settings: &Settings) -> bool {
        match in_time(settings, &self.url, self.storage.stat(&self.url)).await {
            Ok(Some(Entry {
                kind: EntryKind::File(now),
                ..
            })) => now.version != self.info.version || now.size != self.info.size,
            Ok(_) => true,
            Err(_) => false,
        }
    }
}

/// One reading of a range of a file.
pub(super) struct Reader {
    file: Arc<RemoteFile>,
    settings: Arc<Settings>,
    retry: Retry,
    start: u64,
    at: u64,
    /// `None` is the end of a file of unknown size.
    end: Option<u64>,
    failed_at: u64,
    stream: Option<ByteStream>,
    /// The checksum that the reply with the first bytes told.
    told: Option<Checksum>,
    /// Of the operation that this was begun in. A client may read it in another task.
    turns: Arc<Turns>,
}

impl Reader {
    pub(super) fn new(file: &Arc<RemoteFile>, settings: &Arc<Settings>, range: ByteRange) -> Self {
        Self {
            file: file.clone(),
            settings: settings.clone(),
            retry: Retry::new(settings),
            start: range.start,
            at: range.start,
            end: range.end.or(file.info.size),
            failed_at: range.start,
            stream: None,
            told: None,
            turns: Turns::current(),
        }
    }

    /// The next bytes. An error that is still retryable means: from the start, and look first
    /// what is there now.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>> {
        let turns = self.turns.clone();
        let next = async {
            loop {
                // Nothing to ask for. With an open stream its end is still to be seen: more bytes
                // than there should be are an error, and a connection is reusable only at its end.
                if self.end == Some(self.at) && self.stream.is_none() {
                    return Ok(None);
                }
                match self.try_next().await {
                    Ok(chunk) => return Ok(chunk),
                    Err(error) => self.recover(error).await?,
                }
            }
        };
        turns.of(next).await
    }

    pub(super) fn url(&self) -> &StorageUrl {
        &self.file.url
    }

    /// The checksum of the whole file to compare it with, as far as it is known: the first bytes
    /// may bring one.
    pub(super) fn wanted(&self) -> Option<&Checksum> {
        let told = self.told.as_ref().filter(|_| self.settings.verify);
        self.file.wanted(&self.settings).or(told)
    }

    pub(super) fn is_whole(&self) -> bool {
        self.start == 0 && self.end == self.file.info.size
    }

    async fn try_next(&mut self) -> Result<Option<Bytes>> {
        let url = &self.file.url;
        let whole = self.is_whole();
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let range = ByteRange {
                    start: self.at,
                    end: if whole { None } else { self.end },
                };
                let version = self.file.info.version.as_ref();
                let opening = self.file.storage.read(url, range, version);
                let opened = in_time(&self.settings, url, opening).await?;
                if self.at == self.start {
                    self.told = opened.checksum;
                }
                none.insert(opened.bytes)
            }
        };
        let Some(chunk) = in_time(&self.settings, url, stream.try_next()).await? else {
            return match self.end {
                Some(end) if self.at < end => Err(self.wrong_size("ended")),
                _ => Ok(None),
            };
        };
        let after = self.at + chunk.len() as u64;
        if self.end.is_some_and(|end| after > end) {
            return Err(self.wrong_size("goes on").exhausted_after(1));
        }
        self.at = after;
        Ok(Some(chunk))
    }

    fn wrong_size(&self, what: &str) -> Error {
        let (at, end) = (self.at, self.end.unwrap_or_default());
        let message = format!("{what} at byte {at}, but should end at byte {end}");
        Error::new(ErrorKind::Corrupt, &self.file.url, message)
    }

    async fn recover(&mut self, error: Error) -> Result<()> {
        self.stream = None;
        if error.kind() == ErrorKind::Corrupt
            && error.is_retryable()
            && self.file.info.version.is_some()
            && self.file.has_changed(&self.settings).await
        {
            let message = "changed while it was read";
            return Err(Error::new(ErrorKind::Corrupt, &self.file.url, message));
        }
        if self.at > self.start && !self.file.is_resumable() {
            return Err(error);
        }
        if self.at - self.failed_at >= PROGRESS {
            self.retry.progressed();
        }
        self.failed_at = self.at;
        self.retry.after(error).await
    }
}

/// A storage whose reads resume, and end only if the whole has the checksum that is told of it:
/// what a copy gives to the plugin that writes.
#[derive(Debug)]
pub(super) struct Resuming {
    file: Arc<RemoteFile>,
    settings: Arc<Settings>,
    /// What was computed up to a byte, in readings one after another.
    up_to: Arc<Mutex<BTreeMap<u64, Hasher>>>,
}

impl Resuming {
    pub(super) fn new(file: RemoteFile, settings: &Arc<Settings>) -> Self {
        Self {
            file: Arc::new(file),
            settings: settings.clone(),
            up_to: Arc::default(),
        }
    }

    pub(super) fn url(&self) -> &StorageUrl {
        &self.file.url
    }

    /// Whether parts must be read one after another, because a checksum can be computed only so.
    pub(super) fn is_in_order(&self) -> bool {
        self.file.wanted(&self.settings).is_some()
    }
}

#[async_trait]
impl Storage for Resuming {
    fn capabilities(&self) -> Capabilities {
        self.file.storage.capabilities()
    }

    async fn stat(&self, url: &StorageUrl) -> Result<Option<Entry>> {
        self.file.storage.stat(url).await
    }

    async fn read(&self, _: &StorageUrl, range: ByteRange, _: Option<&Version>) -> Result<Opened> {
        let compared = Compared {
            reader: Reader::new(&self.file, &self.settings, range),
            up_to: self.up_to.clone(),
            hashing: None,
            held: None,
            is_over: false,
        };
        let bytes = stream::try_unfold(compared, |mut compared| async move {
            Ok(compared.next().await?.map(|chunk| (chunk, compared)))
        });
        Ok(bytes.boxed().into())
    }
}

/// A reading that gives its last bytes only if they are the right ones: with them a file that is
/// written elsewhere would be whole.
struct Compared {
    reader: Reader,
    up_to: Arc<Mutex<BTreeMap<u64, Hasher>>>,
    hashing: Option<Writer<Hasher>>,
    held: Option<Bytes>,
    is_over: bool,
}

impl Compared {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        while !self.is_over {
            let Some(chunk) = self.reader.next().await? else {
                self.is_over = true;
                self.compare().await?;
                break;
            };
            let is_first = self.held.is_none();
            if is_first {
                self.hashing = self.hasher().map(Writer::nowhere);
            }
            if let Some(hashing) = &mut self.hashing {
                let pushed = hashing.push(chunk.clone()).await;
                pushed.map_err(|error| self.failed(error))?;
            }
            let before = self.held.replace(chunk);
            if before.is_some() {
                return Ok(before);
            }
        }
        Ok(self.held.take())
    }

    /// What goes on with these bytes, if all before them were seen.
    fn hasher(&self) -> Option<Hasher> {
        let wanted = self.reader.wanted()?;
        match self.reader.start {
            0 => Some(Hasher::like(Some(wanted))),
            start => self.known().get(&start).cloned(),
        }
    }

    async fn compare(&mut self) -> Result<()> {
        let Some(hashing) = self.hashing.take() else {
            return Ok(());
        };
        let hasher = hashing.finish().await;
        let hasher = hasher.map_err(|error| self.failed(error))?;
        let (start, at) = (self.reader.start, self.reader.at);
        if self.reader.file.info.size == Some(at) {
            return hasher.check(self.reader.url(), self.reader.wanted());
        }
        let mut known = self.known();
        // The start is kept: a part may be read again.
        known.retain(|before, _| *before >= start);
        known.insert(at, hasher);
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<u64, Hasher>> {
        self.up_to.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::io(self.reader.url(), "cannot be verified", error)
    }
}
