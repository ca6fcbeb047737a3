//! Bytes from and to open files, without blocking the runtime.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use tokio::task::JoinHandle;

use super::{ByteStream, Error, StorageUrl};

/// Bytes that one read or write of a file moves.
pub(crate) const CHUNK: usize = 1 << 20;

/// The bytes `range` of an open file, 1 MiB at a time; the next chunk is read while one is
/// used. A file that ends before the range does is [`ErrorKind::Corrupt`](super::ErrorKind).
///
/// `url` is for messages.
pub fn read_file(url: &StorageUrl, file: Arc<File>, range: Range<u64>) -> ByteStream {
    struct Reading {
        file: Arc<File>,
        left: Range<u64>,
        ahead: Option<JoinHandle<io::Result<Vec<u8>>>>,
    }
    impl Reading {
        fn read_ahead(&mut self) {
            let size = (self.left.end.saturating_sub(self.left.start)).min(CHUNK as u64) as usize;
            if size > 0 {
                let (file, at) = (self.file.clone(), self.left.start);
                self.ahead = Some(tokio::task::spawn_blocking(move || {
                    let mut chunk = vec![0; size];
                    file.read_exact_at(&mut chunk, at)?;
                    Ok(chunk)
                }));
                self.left.start += size as u64;
            }
        }
    }
    let url = url.clone();
    let mut reading = Reading {
        file,
        left: range,
        ahead: None,
    };
    reading.read_ahead();
    stream::unfold(Some(reading), move |reading| {
        let url = url.clone();
        async move {
            let mut reading = reading?;
            let chunk = joined(reading.ahead.take()?).await;
            Some(match chunk {
                Ok(chunk) => {
                    reading.read_ahead();
                    (Ok(Bytes::from(chunk)), Some(reading))
                }
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                    let e = io::Error::new(e.kind(), "it became shorter meanwhile");
                    (Err(Error::io(&url, "cannot be read whole", e)), None)
                }
                Err(e) => (Err(Error::io(&url, "cannot be read", e)), None),
            })
        }
    })
    .boxed()
}

/// Writes chunks to an open file at an offset, some 1 MiB at a time, while the next ones arrive.
/// At most two such batches are in memory.
#[derive(Debug)]
pub(crate) struct Writer<S> {
    at: u64,
    batch: Vec<Bytes>,
    batched: usize,
    running: Option<JoinHandle<(S, io::Result<()>)>>,
    idle: Option<S>,
    file: Arc<File>,
}

/// Sees all bytes of a [`Writer`] in order, on the thread that writes.
pub(crate) trait Sink: Send + 'static {
    /// More bytes.
    fn update(&mut self, bytes: &[u8]);
}

impl Sink for () {
    fn update(&mut self, _: &[u8]) {}
}

impl<S: Sink> Writer<S> {
    pub(crate) fn new(file: Arc<File>, at: u64, sink: S) -> Self {
        Self {
            at,
            batch: Vec::new(),
            batched: 0,
            running: None,
            idle: Some(sink),
            file,
        }
    }

    /// Takes a chunk; waits while two batches are full.
    pub(crate) async fn push(&mut self, chunk: Bytes) -> io::Result<()> {
        self.batched += chunk.len();
        self.batch.push(chunk);
        if self.batched >= CHUNK {
            self.flush().await?;
        }
        Ok(())
    }

    /// Waits until everything is written.
    pub(crate) async fn finish(mut self) -> io::Result<S> {
        self.flush().await?;
        self.wait().await?;
        self.idle
            .ok_or_else(|| io::Error::other("a write was cancelled"))
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.wait().await?;
        let Some(mut sink) = self.idle.take() else {
            return Err(io::Error::other("a write failed before"));
        };
        let (file, mut at) = (self.file.clone(), self.at);
        let batch = std::mem::take(&mut self.batch);
        self.at += std::mem::take(&mut self.batched) as u64;
        self.running = Some(tokio::task::spawn_blocking(move || {
            for chunk in batch {
                if let Err(error) = file.write_all_at(&chunk, at) {
                    return (sink, Err(error));
                }
                sink.update(&chunk);
                at += chunk.len() as u64;
            }
            (sink, Ok(()))
        }));
        Ok(())
    }

    async fn wait(&mut self) -> io::Result<()> {
        if let Some(running) = &mut self.running {
            let (sink, done) = running.await.map_err(io::Error::other)?;
            self.running = None;
            done?;
            self.idle = Some(sink);
        }
        Ok(())
    }
}

async fn joined<T>(task: JoinHandle<io::Result<T>>) -> io::Result<T> {
    task.await.map_err(io::Error::other)?
}
