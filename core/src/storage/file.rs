//! Bytes from and to open files, without blocking the runtime.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{ByteStream, Error, StorageUrl};

thread_local! {
    /// Whether what waits for a disk keeps nobody else waiting on this thread.
    static MAY_WAIT: Cell<bool> = const { Cell::new(false) };
}

/// Runs what waits for a disk where it keeps nobody else waiting: on another thread, unless this
/// is such a one.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    if MAY_WAIT.get() {
        return work();
    }
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}

/// Drives `work` on one thread on which it may wait for a disk: for a small file, going to
/// another thread and back takes longer than any step of the work. When this is dropped, it is
/// stopped at its next await that waits.
pub(crate) async fn on_one_thread<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> io::Result<T> {
    let runtime = tokio::runtime::Handle::current();
    let dropped = CancellationToken::new();
    let _stops = dropped.clone().drop_guard();
    let driving = tokio::task::spawn_blocking(move || {
        MAY_WAIT.set(true);
        let done = runtime.block_on(dropped.run_until_cancelled(work));
        MAY_WAIT.set(false);
        done
    });
    let done = driving.await.map_err(io::Error::other)?;
    done.ok_or_else(|| io::ErrorKind::Interrupted.into())
}

/// How long something short may take before another thread is there for what waits behind it.
const PATIENCE: Duration = Duration::from_millis(5);

/// Runs what is short on as few threads as keep up with it: one that is awake takes what waits at
/// less cost than that of waking another.
#[derive(Debug, Default)]
pub(crate) struct Short(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Box<dyn FnOnce() + Send>>,
    threads: usize,
}

impl Short {
    /// The same as [`blocking`].
    pub(crate) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        if MAY_WAIT.get() {
            return work();
        }
        let (sender, mut done) = oneshot::channel();
        let are_few = {
            let mut queue = self.lock();
            queue.waiting.push_back(Box::new(move || {
                let _ = sender.send(work());
            }));
            queue.waiting.len() > queue.threads
        };
        if are_few {
            self.add_thread();
        }
        let in_time = tokio::time::timeout(PATIENCE, &mut done).await;
        let done = if let Ok(done) = in_time {
            done
        } else {
            // It may wait behind what turned out to be long.
            self.add_thread();
            done.await
        };
        done.map_err(io::Error::other)?
    }

    fn add_thread(self: &Arc<Self>) {
        self.lock().threads += 1;
        let worker = Worker {
            short: self.clone(),
            has_left: false,
        };
        tokio::task::spawn_blocking(move || worker.run());
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue")
            .field("waiting", &self.waiting.len())
            .field("threads", &self.threads)
            .finish()
    }
}

/// One of the threads of a queue.
struct Worker {
    short: Arc<Short>,
    has_left: bool,
}

impl Worker {
    fn run(mut self) {
        loop {
            let mut queue = self.short.lock();
            let Some(work) = queue.waiting.pop_front() else {
                queue.threads -= 1;
                drop(queue);
                self.has_left = true;
                return;
            };
            drop(queue);
            // Who waits for it hears of it; the rest need not.
            let _ = catch_unwind(AssertUnwindSafe(work));
        }
    }
}

impl Drop for Worker {
    /// It never ran: nobody may wait for it for ever.
    fn drop(&mut self) {
        if self.has_left {
            return;
        }
        let mut queue = self.short.lock();
        queue.threads -= 1;
        if queue.threads == 0 {
            queue.waiting.clear();
        }
    }
}

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
        ahead: Option<JoinHandle<io::Result<Bytes>>>,
    }
    impl Reading {
        fn read_ahead(&mut self) {
            let size = (self.left.end.saturating_sub(self.left.start)).min(CHUNK as u64) as usize;
            if size > 0 {
                let (file, at) = (self.file.clone(), self.left.start);
                self.ahead = Some(tokio::task::spawn_blocking(move || {
                    let mut chunk = Pages::new(size);
                    file.read_exact_at(chunk.first(size), at)?;
                    Ok(chunk.into_bytes(size))
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
                    (Ok(chunk), Some(reading))
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

/// Memory that begins with a page. Some processors copy several times slower between a page and
/// bytes that begin a little behind the start of one, which is where allocators put large blocks.
#[derive(Debug)]
struct Pages {
    memory: Vec<u8>,
    start: usize,
}

impl Pages {
    const SIZE: usize = 4096;

    /// Room for `size` bytes. Costs nothing until it is used.
    fn new(size: usize) -> Self {
        let memory = vec![0; size + Self::SIZE];
        let start = memory.as_ptr().addr().wrapping_neg() % Self::SIZE;
        Self { memory, start }
    }

    fn first(&mut self, size: usize) -> &mut [u8] {
        &mut self.memory[self.start..self.start + size]
    }

    fn into_bytes(self, size: usize) -> Bytes {
        Bytes::from(self.memory).slice(self.start..self.start + size)
    }
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
    /// `None` is for bytes that only the sink is to see.
    to: Option<Arc<Shared>>,
}

/// A file that one or several [`Writer`]s write to.
#[derive(Debug)]
pub(crate) struct Shared {
    file: Arc<File>,
    /// File systems let one write at a time into a file. Those that wait for it in the kernel do
    /// so on a processor.
    turn: Mutex<()>,
}

impl Shared {
    pub(crate) fn new(file: &Arc<File>) -> Arc<Self> {
        Arc::new(Self {
            file: file.clone(),
            turn: Mutex::default(),
        })
    }

    fn write(&self, batch: &[Bytes], mut at: u64) -> io::Result<()> {
        let _mine = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        for chunk in batch {
            self.file.write_all_at(chunk, at)?;
            at += chunk.len() as u64;
        }
        Ok(())
    }
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
    pub(crate) fn new(to: Arc<Shared>, at: u64, sink: S) -> Self {
        Self::with(Some(to), at, sink)
    }

    /// One that writes nowhere: `sink` sees the bytes on another thread.
    pub(crate) fn nowhere(sink: S) -> Self {
        Self::with(None, 0, sink)
    }

    fn with(to: Option<Arc<Shared>>, at: u64, sink: S) -> Self {
        Self {
            at,
            batch: Vec::new(),
            batched: 0,
            running: None,
            idle: Some(sink),
            to,
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
        if self.batched > 0 {
            self.flush().await?;
        }
        self.wait().await?;
        self.idle
            .ok_or_else(|| io::Error::other("a write was cancelled"))
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.wait().await?;
        let Some(mut sink) = self.idle.take() else {
            return Err(io::Error::other("a write failed before"));
        };
        let (to, at) = (self.to.clone(), self.at);
        let batch = std::mem::take(&mut self.batch);
        self.at += std::mem::take(&mut self.batched) as u64;
        self.running = Some(tokio::task::spawn_blocking(move || {
            let done = to.map_or(Ok(()), |to| to.write(&batch, at));
            if done.is_ok() {
                for chunk in &batch {
                    sink.update(chunk);
                }
            }
            (sink, done)
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn short_work_does_not_wait_behind_what_turns_out_to_be_long() {
        let short = Arc::new(Short::default());
        let (release, released) = mpsc::channel::<()>();
        let long = short.blocking(move || released.recv().map_err(io::Error::other));
        let behind = async {
            // On the thread of the first, and then on another one.
            let done = short.blocking(|| Ok(7)).await;
            release.send(()).unwrap();
            done
        };
        let (first, second) = tokio::join!(long, behind);
        first.unwrap();
        assert_eq!(second.unwrap(), 7);
        while short.lock().threads > 0 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn short_work_that_panics_keeps_nobody_waiting() {
        let short = Arc::new(Short::default());
        let panics = short.blocking(|| -> io::Result<()> { panic!("on purpose") });
        let (panicked, behind) = tokio::join!(panics, short.blocking(|| Ok(7)));
        assert!(panicked.is_err());
        assert_eq!(behind.unwrap(), 7);
    }

    #[tokio::test]
    async fn what_runs_on_one_thread_stops_when_nobody_waits_for_it() {
        struct Dropped(Option<oneshot::Sender<()>>);
        impl Drop for Dropped {
            fn drop(&mut self) {
                let _ = self.0.take().map(|sender| sender.send(()));
            }
        }
        let (sender, dropped) = oneshot::channel();
        let guard = Dropped(Some(sender));
        let endless = on_one_thread(async move {
            let _guard = guard;
            loop {
                tokio::task::yield_now().await;
            }
        });
        let begun = tokio::time::timeout(Duration::from_millis(20), endless).await;
        assert!(begun.is_err());
        dropped.await.unwrap();
    }
}
