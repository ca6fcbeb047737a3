//! Reading a remote file: resumed at the byte reached, never mixing two versions of it.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};

use super::Settings;
use super::retry::{Retry, in_time, stalled};
use crate::storage::{
    ByteRange, ByteStream, Capabilities, Entry, EntryKind, Error, ErrorKind, FileInfo, Result,
    Storage, StorageUrl, Version,
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
        }
    }

    /// The next bytes. An error that is still retryable means: from the start, and look first
    /// what is there now.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>> {
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
    }

    pub(super) fn into_stream(self) -> ByteStream {
        stream::try_unfold(self, |mut reader| async move {
            Ok(reader.next().await?.map(|chunk| (chunk, reader)))
        })
        .boxed()
    }

    fn is_whole(&self) -> bool {
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
                none.insert(in_time(&self.settings, url, opening).await?)
            }
        };
        let timeout = self.settings.progress_timeout();
        let chunk = match tokio::time::timeout(timeout, stream.next()).await {
            Err(_) => return Err(stalled(timeout, url)),
            Ok(Some(chunk)) => chunk.map_err(|error| error.scrubbed(url))?,
            Ok(None) => {
                return match self.end {
                    Some(end) if self.at < end => Err(self.wrong_size("ended")),
                    _ => Ok(None),
                };
            }
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

/// A storage whose reads resume: what a copy gives to the plugin that writes.
#[derive(Debug)]
pub(super) struct Resuming {
    pub(super) file: Arc<RemoteFile>,
    pub(super) settings: Arc<Settings>,
}

#[async_trait]
impl Storage for Resuming {
    fn capabilities(&self) -> Capabilities {
        self.file.storage.capabilities()
    }

    async fn stat(&self, url: &StorageUrl) -> Result<Option<Entry>> {
        self.file.storage.stat(url).await
    }

    async fn read(
        &self,
        _: &StorageUrl,
        range: ByteRange,
        _: Option<&Version>,
    ) -> Result<ByteStream> {
        Ok(Reader::new(&self.file, &self.settings, range).into_stream())
    }
}
