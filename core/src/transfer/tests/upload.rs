//! Uploads that core drives part by part.

use std::collections::BTreeMap;

use super::*;
use crate::storage::Upload;

const PART: usize = 1000;

/// A storage of uploads. Parts fail while `failures` lasts, each after half of its bytes.
#[derive(Debug, Default)]
struct Parts {
    failures: Arc<Mutex<u32>>,
    content: Arc<Mutex<BTreeMap<u64, Vec<u8>>>>,
    ended: Arc<Mutex<Vec<&'static str>>>,
}

#[async_trait]
impl Storage for Parts {
    fn capabilities(&self) -> Capabilities {
        let mut claims = Capabilities::read_only();
        claims.write = true;
        claims.atomic_write = true;
        claims.parts = true;
        claims
    }
    async fn stat(&self, _: &StorageUrl) -> Result<Option<Entry>> {
        Ok(None)
    }
    async fn read(&self, url: &StorageUrl, _: ByteRange, _: Option<&Version>) -> Result<Opened> {
        Err(Error::unsupported(url, "reading"))
    }
    async fn begin_upload(&self, url: &StorageUrl, size: u64) -> Result<Box<dyn Upload>> {
        Ok(Box::new(Running {
            url: url.clone(),
            size,
            failures: self.failures.clone(),
            content: self.content.clone(),
            ended: self.ended.clone(),
        }))
    }
}

#[derive(Debug)]
struct Running {
    url: StorageUrl,
    size: u64,
    failures: Arc<Mutex<u32>>,
    content: Arc<Mutex<BTreeMap<u64, Vec<u8>>>>,
    ended: Arc<Mutex<Vec<&'static str>>>,
}

#[async_trait]
impl Upload for Running {
    fn part_size(&self) -> u64 {
        PART as u64
    }
    async fn part(&self, index: u64, source: &Source) -> Result<()> {
        let start = index * PART as u64;
        let end = self.size.min(start + PART as u64);
        let fails = {
            let mut failures = self.failures.lock().unwrap();
            let fails = *failures > 0;
            *failures = failures.saturating_sub(1);
            fails
        };
        let end = if fails { start.midpoint(end) } else { end };
        let mut stream = source.read((start..end).into()).await?;
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.next().await {
            bytes.extend_from_slice(&chunk?);
        }
        if fails {
            return Err(Error::new(
                ErrorKind::Unavailable,
                &self.url,
                "the connection was cut",
            ));
        }
        self.content.lock().unwrap().insert(index, bytes);
        Ok(())
    }
    async fn complete(&self) -> Result<Written> {
        self.ended.lock().unwrap().push("complete");
        Ok(Written {
            size: self.size,
            ..Written::default()
        })
    }
    async fn abort(&self) -> Result<()> {
        self.ended.lock().unwrap().push("abort");
        Ok(())
    }
}

async fn store(failures: u32, size: usize) -> (Result<Moved>, Arc<Parts>, Engine) {
    let parts = Arc::new(Parts {
        failures: Arc::new(Mutex::new(failures)),
        ..Parts::default()
    });
    let dynamic: Arc<dyn Storage> = parts.clone();
    let registry = Registry::default().serving("ftp://", &dynamic).unwrap();
    let engine = Engine::new(Arc::new(registry), &quick());
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f"), content(size)).unwrap();
    let from = LocalPath {
        root: Arc::new(Root::open(dir.path(), Symlinks::InRoot).unwrap()),
        path: RelPath::new("f").unwrap(),
    };
    (engine.store_file(&from, &url()).await, parts, engine)
}

#[tokio::test]
async fn parts_are_sent_again_one_by_one_and_counted_once() {
    for (failures, size) in [(0, 0), (0, 1), (0, 3000), (7, 10_500)] {
        let (moved, storage, engine) = store(failures, size).await;
        assert_eq!(moved.unwrap().size, size as u64);
        let parts = storage.content.lock().unwrap();
        assert_eq!(parts.len(), size.div_ceil(PART).max(1));
        assert_eq!(
            parts.values().flatten().copied().collect::<Vec<_>>(),
            content(size)
        );
        assert_eq!(*storage.ended.lock().unwrap(), ["complete"]);
        let done = engine.counters().bytes_done.load(Ordering::Relaxed);
        assert_eq!(done, size as u64);
    }
}

#[tokio::test]
async fn an_upload_that_fails_is_aborted() {
    let (moved, storage, engine) = store(u32::MAX, 3000).await;
    assert!(
        moved
            .unwrap_err()
            .to_string()
            .contains("gave up after 6 attempts")
    );
    assert_eq!(*storage.ended.lock().unwrap(), ["abort"]);
    assert_eq!(engine.counters().bytes_done.load(Ordering::Relaxed), 0);
}

/// Parts of 100 MiB that are sent only when so many are under way.
#[derive(Debug)]
struct Together {
    memory: Option<u64>,
    under_way: Arc<tokio::sync::Barrier>,
    /// How often it looks at a part before it sends it, each time for 400 ms.
    looks: u32,
}

#[async_trait]
impl Storage for Together {
    fn capabilities(&self) -> Capabilities {
        Parts::default().capabilities()
    }
    async fn stat(&self, _: &StorageUrl) -> Result<Option<Entry>> {
        Ok(None)
    }
    async fn read(&self, url: &StorageUrl, _: ByteRange, _: Option<&Version>) -> Result<Opened> {
        Err(Error::unsupported(url, "reading"))
    }
    async fn begin_upload(&self, _: &StorageUrl, _: u64) -> Result<Box<dyn Upload>> {
        Ok(Box::new(Self {
            memory: self.memory,
            under_way: self.under_way.clone(),
            looks: self.looks,
        }))
    }
}

#[async_trait]
impl Upload for Together {
    fn part_size(&self) -> u64 {
        100 << 20
    }
    fn part_memory(&self, _: &Source) -> u64 {
        self.memory.unwrap_or_else(|| self.part_size())
    }
    async fn part(&self, index: u64, source: &Source) -> Result<()> {
        let start = index * self.part_size();
        for _ in 0..self.looks {
            let bytes = (start..start + 4096).into();
            let mut looked_at = source.inspected().read(bytes).await?;
            looked_at.next().await.unwrap()?;
            tokio::time::sleep(std::time::Duration::from_millis(400)).await;
        }
        self.under_way.wait().await;
        Ok(())
    }
    async fn complete(&self) -> Result<Written> {
        Ok(Written {
            size: 400 << 20,
            ..Written::default()
        })
    }
    async fn abort(&self) -> Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn as_many_parts_are_sent_at_once_as_fit_into_memory() {
    const MIB: u64 = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(dir.path().join("f")).unwrap();
    file.set_len(400 * MIB).unwrap();
    let from = LocalPath {
        root: Arc::new(Root::open(dir.path(), Symlinks::InRoot).unwrap()),
        path: RelPath::new("f").unwrap(),
    };
    let settings = Settings {
        progress_timeout_secs: 1,
        retries: 0,
        ..Settings::default()
    };
    for (memory, together, fits, looks) in [
        (Some(0), 4, true, 0),
        (Some(16 * MIB), 4, true, 0),
        (Some(32 * MIB), 2, true, 0),
        (Some(33 * MIB), 2, false, 0),
        (None, 1, true, 0),
        (None, 2, false, 0),
        // Longer than the progress timeout, but not silent.
        (Some(0), 4, true, 4),
    ] {
        let storage: Arc<dyn Storage> = Arc::new(Together {
            memory,
            under_way: Arc::new(tokio::sync::Barrier::new(together)),
            looks,
        });
        let registry = Registry::default().serving("ftp://", &storage).unwrap();
        let engine = Engine::new(Arc::new(registry), &settings);
        let stored = engine.store_file(&from, &url()).await;
        assert_eq!(stored.is_ok(), fits, "{memory:?} {together}: {stored:?}");
        let done = engine.counters().bytes_done.load(Ordering::Relaxed);
        assert_eq!(done, 0, "what is only looked at does not count");
    }
}

/// A storage that takes a file at the end of its upload, as small ones are, and slowly.
#[derive(Debug, Default)]
struct AtTheEnd {
    running: Arc<Mutex<(usize, usize)>>,
    source: Mutex<Option<Source>>,
}

#[async_trait]
impl Storage for AtTheEnd {
    fn capabilities(&self) -> Capabilities {
        Parts::default().capabilities()
    }
    async fn stat(&self, _: &StorageUrl) -> Result<Option<Entry>> {
        Ok(None)
    }
    async fn read(&self, url: &StorageUrl, _: ByteRange, _: Option<&Version>) -> Result<Opened> {
        Err(Error::unsupported(url, "reading"))
    }
    async fn begin_upload(&self, _: &StorageUrl, _: u64) -> Result<Box<dyn Upload>> {
        Ok(Box::new(Self {
            running: self.running.clone(),
            source: Mutex::default(),
        }))
    }
}

#[async_trait]
impl Upload for AtTheEnd {
    fn part_size(&self) -> u64 {
        5 << 20
    }
    async fn part(&self, _: u64, source: &Source) -> Result<()> {
        *self.source.lock().unwrap() = Some(source.clone());
        Ok(())
    }
    async fn complete(&self) -> Result<Written> {
        {
            let mut running = self.running.lock().unwrap();
            running.0 += 1;
            running.1 = running.1.max(running.0);
        }
        let source = self.source.lock().unwrap().clone().unwrap();
        for at in 0..3 {
            let mut bytes = source.read((at..at + 1).into()).await?;
            bytes.next().await.unwrap()?;
            // Longer than the commit timeout all in all, but not silent.
            tokio::time::sleep(std::time::Duration::from_millis(600)).await;
        }
        self.running.lock().unwrap().0 -= 1;
        Ok(Written {
            size: 3,
            ..Written::default()
        })
    }
    async fn abort(&self) -> Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn what_moves_at_the_end_of_an_upload_is_limited_and_watched_too() {
    let storage = Arc::new(AtTheEnd::default());
    let dynamic: Arc<dyn Storage> = storage.clone();
    let registry = Registry::default().serving("ftp://", &dynamic).unwrap();
    let settings = Settings {
        per_host: 2,
        retries: 0,
        ..quick()
    };
    let engine = Engine::new(Arc::new(registry), &settings);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f"), "abc").unwrap();
    let from = LocalPath {
        root: Arc::new(Root::open(dir.path(), Symlinks::InRoot).unwrap()),
        path: RelPath::new("f").unwrap(),
    };
    let to = url();
    let stored = (0..5).map(|_| engine.store_file(&from, &to));
    for stored in futures_util::future::join_all(stored).await {
        stored.unwrap();
    }
    assert_eq!(storage.running.lock().unwrap().1, 2);
}

#[tokio::test]
async fn parts_of_a_copy_are_compared_with_the_checksum_of_its_source() {
    for (of, fine) in [(content(10_500), true), (content(10_499), false)] {
        let mut from = scripted(10_500, []);
        from.checksum = Some(sha256(&of));
        let setup = setup(from);
        let parts = Arc::new(Parts {
            failures: Arc::new(Mutex::new(3)),
            ..Parts::default()
        });
        let dynamic: Arc<dyn Storage> = parts.clone();
        let registry = setup.engine.registry().as_ref().clone();
        let registry = registry.serving(TO, &dynamic).unwrap();
        let engine = Engine::new(Arc::new(registry), &quick());
        let copied = engine.copy(&url(), &TO.parse().unwrap()).await;
        assert_eq!(copied.is_ok(), fine, "{copied:?}");
        let end = if fine { "complete" } else { "abort" };
        assert_eq!(*parts.ended.lock().unwrap(), [end]);
    }
}
