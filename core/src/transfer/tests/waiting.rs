//! Waiting for other transfers, which is no silence.

use std::time::Duration;

use futures_util::TryStreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::*;
use crate::storage::{Upload, wait_for_turn};

/// How long the one before takes: longer than the progress timeout.
const LONG: Duration = Duration::from_secs(10);

/// A storage that answers at once, but sends the bytes of a file one by one, in [`LONG`] all in
/// all.
#[derive(Debug)]
struct Slow;

#[async_trait]
impl Storage for Slow {
    fn capabilities(&self) -> Capabilities {
        let mut claims = Capabilities::read_only();
        claims.write = true;
        claims.atomic_write = true;
        claims.directories = true;
        claims.parts = true;
        claims
    }
    async fn stat(&self, _: &StorageUrl) -> Result<Option<Entry>> {
        let info = FileInfo {
            size: Some(100),
            ..FileInfo::default()
        };
        let (path, kind) = (String::new(), EntryKind::File(info));
        Ok(Some(Entry { path, kind }))
    }
    async fn read(&self, _: &StorageUrl, _: ByteRange, _: Option<&Version>) -> Result<Opened> {
        let bytes = stream::iter(0..100).then(async |_| {
            tokio::time::sleep(LONG / 100).await;
            Ok(Bytes::from_static(b"x"))
        });
        Ok(bytes.boxed().into())
    }
    async fn make_directory(&self, _: &StorageUrl) -> Result<()> {
        Ok(())
    }
    async fn begin_upload(&self, _: &StorageUrl, _: u64) -> Result<Box<dyn Upload>> {
        Ok(Box::new(Self))
    }
}

#[async_trait]
impl Upload for Slow {
    fn part_size(&self) -> u64 {
        100
    }
    async fn part(&self, _: u64, _: &Source) -> Result<()> {
        Ok(())
    }
    async fn complete(&self) -> Result<Written> {
        Ok(Written {
            size: 3,
            ..Written::default()
        })
    }
    async fn abort(&self) -> Result<()> {
        Ok(())
    }
}

fn one_at_a_time() -> Settings {
    Settings {
        per_host: 1,
        progress_timeout_secs: 1,
        commit_timeout_secs: 1,
        retries: 0,
        ..Settings::default()
    }
}

fn bench(storage: impl Storage, settings: &Settings) -> (Engine, tempfile::TempDir) {
    let storage: Arc<dyn Storage> = Arc::new(storage);
    let registry = Registry::default().serving("ftp://", &storage).unwrap();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("out"), "out").unwrap();
    (Engine::new(Arc::new(registry), settings), directory)
}

fn local(directory: &tempfile::TempDir, name: &str) -> LocalPath {
    LocalPath {
        root: Arc::new(Root::open(directory.path(), Symlinks::InRoot).unwrap()),
        path: RelPath::new(name).unwrap(),
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_its_turn_at_a_host_is_not_given_up() {
    let (engine, directory) = bench(Slow, &one_at_a_time());
    let (url, here, out) = (url(), local(&directory, "a"), local(&directory, "out"));
    let before = engine.fetch_file(&url, &here, false);
    let behind = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        tokio::join!(
            engine.stat(&url),
            engine.make_directory(&url),
            engine.store_file(&out, &url),
        )
    };
    let (before, (found, made, stored)) = tokio::join!(before, behind);
    before.unwrap();
    assert!(found.unwrap().is_some());
    made.unwrap();
    stored.unwrap();
}

/// A storage with one connection, for which its operations wait. To read takes [`LONG`].
#[derive(Debug)]
struct Narrow {
    connection: Arc<Semaphore>,
}

impl Narrow {
    fn claims() -> Capabilities {
        let mut claims = Capabilities::read_only();
        claims.list = true;
        claims.write = true;
        claims.atomic_write = true;
        claims
    }

    async fn connection(&self) -> OwnedSemaphorePermit {
        let connection = self.connection.clone();
        wait_for_turn(connection.acquire_owned()).await.unwrap()
    }
}

#[async_trait]
impl Storage for Narrow {
    fn capabilities(&self) -> Capabilities {
        Self::claims()
    }
    async fn stat(&self, url: &StorageUrl) -> Result<Option<Entry>> {
        Slow.stat(url).await
    }
    async fn list(&self, _: &StorageUrl) -> Result<EntryStream> {
        let connection = self.connection.clone();
        let entries = stream::once(async move {
            let _connection = wait_for_turn(connection.acquire_owned()).await.unwrap();
            Ok(listed("empty", None))
        });
        Ok(entries.boxed())
    }
    async fn read(
        &self,
        url: &StorageUrl,
        range: ByteRange,
        version: Option<&Version>,
    ) -> Result<Opened> {
        let connection = self.connection().await;
        let bytes = Slow.read(url, range, version).await?.bytes;
        let bytes = bytes.inspect(move |_| assert_eq!(connection.num_permits(), 1));
        Ok(bytes.boxed().into())
    }
    async fn write(&self, _: &StorageUrl, source: &Source) -> Result<Written> {
        let _connection = self.connection().await;
        let size = source.size();
        let mut bytes = source.read(ByteRange::FULL).await?;
        while let Some(chunk) = bytes.next().await {
            chunk?;
        }
        Ok(Written {
            size,
            ..Written::default()
        })
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_connection_of_the_plugin_is_not_given_up() {
    let narrow = || Narrow {
        connection: Arc::new(Semaphore::new(1)),
    };
    let settings = Settings {
        per_host: 16,
        ..one_at_a_time()
    };
    let (engine, directory) = bench(narrow(), &settings);
    let elsewhere: Arc<dyn Storage> = Arc::new(narrow());
    let registry = engine.registry().as_ref().clone();
    let registry = registry.serving(TO, &elsewhere).unwrap();
    let engine = Engine::new(Arc::new(registry), &settings);
    let (url, out, to) = (url(), local(&directory, "out"), TO.parse().unwrap());
    let (first, second) = (local(&directory, "1"), local(&directory, "2"));
    let tree = local(&directory, "tree");
    let (one, two, listed, stored, copied) = tokio::join!(
        engine.fetch_file(&url, &first, false),
        engine.fetch_file(&url, &second, false),
        engine.fetch_directory(&url, &tree),
        engine.store_file(&out, &url),
        // Holds a connection of the one, and waits for one of the other.
        engine.copy(&url, &to),
    );
    for done in [one, two, stored, copied] {
        done.unwrap();
    }
    listed.unwrap();
    // Silence is still found.
    let dead: Arc<dyn Storage> = Arc::new(Dead);
    let registry = Registry::default().serving("ftp://", &dead).unwrap();
    let engine = Engine::new(Arc::new(registry), &settings);
    let error = engine.stat(&url).await.unwrap_err();
    assert!(error.to_string().contains("nothing moved"), "{error}");
}

/// A storage that asks to be left alone for a while by the first who reads.
#[derive(Debug, Default)]
struct Busy(Mutex<Vec<Instant>>);

/// How long: longer than the progress timeout.
const ASKED: Duration = Duration::from_secs(3);

#[async_trait]
impl Storage for Busy {
    fn capabilities(&self) -> Capabilities {
        Narrow::claims()
    }
    async fn stat(&self, url: &StorageUrl) -> Result<Option<Entry>> {
        Slow.stat(url).await
    }
    async fn read(&self, url: &StorageUrl, _: ByteRange, _: Option<&Version>) -> Result<Opened> {
        self.0.lock().unwrap().push(Instant::now());
        if self.0.lock().unwrap().len() == 1 {
            let error = Error::new(ErrorKind::Unavailable, url, "is busy");
            return Err(error.with_retry_after(Some(ASKED)));
        }
        let bytes = Bytes::from_static(&[0; 100]);
        Ok(stream::iter([Ok(bytes)]).boxed().into())
    }
    async fn write(&self, _: &StorageUrl, source: &Source) -> Result<Written> {
        let bytes = source.read(ByteRange::FULL).await?;
        let read: Vec<Bytes> = bytes.try_collect().await?;
        let size = read.concat().len() as u64;
        Ok(Written {
            size,
            ..Written::default()
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_waits_as_long_as_its_source_asks_for() {
    let settings = Settings {
        per_host: 4,
        retries: 1,
        ..one_at_a_time()
    };
    let busy: Arc<Busy> = Arc::default();
    let storage: Arc<dyn Storage> = busy.clone();
    let registry = Registry::default().serving("ftp://", &storage).unwrap();
    let engine = Engine::new(Arc::new(registry), &settings);
    engine.copy(&url(), &TO.parse().unwrap()).await.unwrap();
    let reads = busy.0.lock().unwrap().clone();
    assert_eq!(reads.len(), 2);
    assert!(reads[1] - reads[0] >= ASKED);
}

/// A storage that waits for its turn, has it, and then is silent.
#[derive(Debug)]
struct Dead;

#[async_trait]
impl Storage for Dead {
    fn capabilities(&self) -> Capabilities {
        Capabilities::read_only()
    }
    async fn stat(&self, _: &StorageUrl) -> Result<Option<Entry>> {
        wait_for_turn(tokio::time::sleep(LONG)).await;
        std::future::pending().await
    }
    async fn read(&self, url: &StorageUrl, _: ByteRange, _: Option<&Version>) -> Result<Opened> {
        Err(Error::unsupported(url, "reading"))
    }
}
