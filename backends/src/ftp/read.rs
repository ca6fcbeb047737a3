//! Reading a file, or a part of it.

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, StreamExt as _};
use tesk_core::storage::{ByteRange, ByteStream, Error, ErrorKind, Result, StorageUrl, Version};
use tokio::io::AsyncReadExt as _;

use super::connection::Data;
use super::listing::{self, Kind};
use super::pool::Lease;
use super::reply::Failure;

/// What one read of a data connection takes at most.
const CHUNK: usize = 256 << 10;
const MESSAGE: &str = "cannot be read";

/// Begins to read `range` of the file `path`. What the server refuses only after it has opened
/// the data connection is an error of this call all the same.
pub(super) async fn read(
    mut lease: Lease,
    url: &StorageUrl,
    path: String,
    range: ByteRange,
    version: Option<&Version>,
) -> Result<ByteStream> {
    // A version is never that of an earlier time again: the look after a reading says what was read.
    // That before it tells the size; of a whole file it is in the version.
    let mut size = version.and_then(listing::size);
    if !range.is_full() {
        size = check(&mut lease, url, &path, range, version).await?;
        if size == Some(range.start) || range.end == Some(range.start) {
            return Ok(stream::empty().boxed());
        }
    }
    let command = format!("RETR {path}");
    let mut skip = 0;
    let data = match lease.open_data(&command, range.start).await {
        // Without `REST` there are still the bytes before to be read and thrown away.
        Err(Failure::Reply(reply)) if range.start > 0 && reply.is_unknown_command() => {
            skip = range.start;
            lease.open_data(&command, 0).await
        }
        opened => opened,
    };
    let mut reading = Reading {
        url: url.clone(),
        path,
        range,
        size,
        version: version.cloned(),
        at: range.start - skip,
        data: None,
        held: None,
        failed: None,
        lease,
    };
    match data {
        Ok(data) => reading.data = Some(data),
        Err(failure) => return Err(reading.why(failure).await),
    }
    match reading.next().await? {
        None => Ok(stream::empty().boxed()),
        Some(first) => {
            let rest = stream::try_unfold(reading, |mut reading| async move {
                Ok(reading.next().await?.map(|chunk| (chunk, reading)))
            });
            Ok(stream::iter([Ok(first)]).chain(rest).boxed())
        }
    }
}

/// Compares what is there with what is wanted of it; its size.
async fn check(
    lease: &mut Lease,
    url: &StorageUrl,
    path: &str,
    range: ByteRange,
    version: Option<&Version>,
) -> Result<Option<u64>> {
    let found = lease.stat(path).await;
    let info = match found.map_err(|failure| lease.error(failure, url, MESSAGE))? {
        Some(Kind::File(info)) => info,
        other => return Err(no_file(url, other.as_ref())),
    };
    let corrupt = |message: String| Err(Error::new(ErrorKind::Corrupt, url, message));
    if version.is_some() && version != info.version.as_ref() {
        return corrupt("another version has taken its place".into());
    }
    match info.size {
        Some(size) if range.start > size || range.end.is_some_and(|end| end > size) => corrupt(
            format!("it has {size} bytes, less than what is wanted of it"),
        ),
        size => Ok(size),
    }
}

fn no_file(url: &StorageUrl, found: Option<&Kind>) -> Error {
    match found {
        None => Error::new(ErrorKind::NotFound, url, "there is no such file"),
        Some(_) => Error::new(ErrorKind::Invalid, url, "is a directory, not a file"),
    }
}

struct Reading {
    url: StorageUrl,
    path: String,
    range: ByteRange,
    /// Of the whole file, where it is known.
    size: Option<u64>,
    version: Option<Version>,
    /// The place in the file of the next byte.
    at: u64,
    /// Dropped before the lease, which then drops the connection.
    data: Option<Data>,
    /// What was read last.
    held: Option<Bytes>,
    /// What went wrong after that, before the end.
    failed: Option<Error>,
    lease: Lease,
}

impl Reading {
    /// The last bytes are held back until the second look: who knows how many there are asks for
    /// no more, and would not hear of it.
    async fn next(&mut self) -> Result<Option<Bytes>> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        loop {
            let received = self.receive().await;
            let held = self.held.take();
            match received {
                Ok(Some(chunk)) => self.held = Some(chunk),
                Ok(None) => return Ok(held),
                Err(error) => {
                    let end = self.range.end.or(self.size);
                    if held.is_none() || end.is_none_or(|end| end <= self.at) {
                        return Err(error);
                    }
                    self.failed = Some(error);
                }
            }
            if held.is_some() {
                return Ok(held);
            }
        }
    }

    async fn receive(&mut self) -> Result<Option<Bytes>> {
        loop {
            let Some(data) = &mut self.data else {
                return Ok(None);
            };
            // The end of the file is read to the end of the stream, to hear that it was all.
            let end = self.range.end.filter(|end| self.size != Some(*end));
            let left = end.map_or(u64::MAX, |end| end - self.at);
            if left == 0 {
                self.stop().await?;
                return Ok(None);
            }
            let mut chunk = BytesMut::with_capacity(CHUNK);
            let count = match data.read_buf(&mut chunk).await {
                Ok(count) => count,
                // Not every server ends an encrypted stream as it should. With all bytes here
                // it does no harm; else it may have been cut by anybody.
                Err(error)
                    if error.kind() == std::io::ErrorKind::UnexpectedEof
                        && self.size == Some(self.at) =>
                {
                    0
                }
                Err(error) => return Err(self.broken(error).await),
            };
            if count == 0 {
                self.finish().await?;
                return Ok(None);
            }
            let mut chunk = chunk.freeze();
            if left < chunk.len() as u64 {
                chunk.truncate(left as usize);
            }
            let before = self
                .range
                .start
                .saturating_sub(self.at)
                .min(chunk.len() as u64);
            self.at += chunk.len() as u64;
            let chunk = chunk.split_off(before as usize);
            if !chunk.is_empty() {
                return Ok(Some(chunk));
            }
        }
    }

    /// At the end of the file: was it all, and is it still the same file?
    async fn finish(&mut self) -> Result<()> {
        let Some(data) = self.data.take() else {
            return Ok(());
        };
        let limit = Some(self.lease.patience());
        if let Err(failure) = self.lease.finish(data, limit).await {
            return Err(self.why(failure).await);
        }
        // An end of the stream is all that is seen of a connection that was cut, and a server that
        // had everything on its way by then says that it is done.
        if self.range.end.or(self.size).is_none() {
            self.size = match self.lease.size(&self.path).await {
                Ok(size) => size,
                Err(failure) => return Err(self.lease.error(failure, &self.url, MESSAGE)),
            };
        }
        if let Some(end) = self.range.end.or(self.size).filter(|end| *end != self.at) {
            let message = format!("it ended at byte {}, but should end at byte {end}", self.at);
            return Err(Error::new(ErrorKind::Corrupt, &self.url, message));
        }
        self.look_again().await
    }

    /// Before the end of the file.
    async fn stop(&mut self) -> Result<()> {
        if let Some(data) = self.data.take() {
            self.lease.interrupt(data).await;
        }
        self.look_again().await
    }

    async fn look_again(&mut self) -> Result<()> {
        if self.version.is_none() {
            return Ok(());
        }
        if self.lease.suspect && !(self.lease.is_in_step() && self.lease.check().await) {
            // Another connection sees as well, where the server has room for it.
            self.lease.end().await;
            let site = self.lease.site.clone();
            self.lease = site.lease(super::pool::Use::Commands, &self.url).await?;
        }
        let range = ByteRange::FULL;
        check(
            &mut self.lease,
            &self.url,
            &self.path,
            range,
            self.version.as_ref(),
        )
        .await
        .map(drop)
    }

    /// What stands behind a data connection that broke: the server may say it.
    async fn broken(&mut self, error: std::io::Error) -> Error {
        let limit = Some(self.lease.patience());
        let failure = match self.data.take() {
            Some(data) => match self.lease.finish(data, limit).await {
                Err(failure @ Failure::Reply(_)) => failure,
                _ => error.into(),
            },
            None => error.into(),
        };
        self.why(failure).await
    }

    /// Finds out what a refusal means: there is one code for everything.
    async fn why(&mut self, failure: Failure) -> Error {
        if let Failure::Reply(reply) = &failure
            && matches!(reply.code, 450 | 451 | 501 | 550 | 553)
            && self.lease.is_in_step()
            && let Ok(found) = self.lease.stat(&self.path).await
            && !matches!(found, Some(Kind::File(_)))
        {
            return no_file(&self.url, found.as_ref());
        }
        self.lease.error(failure, &self.url, MESSAGE)
    }
}
