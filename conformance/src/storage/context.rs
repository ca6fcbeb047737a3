//! What a case works with.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use tesk_core::rooted::{RelPath, Root, Symlinks};
use tesk_core::storage::{
    ByteRange, Capabilities, Entry, EntryKind, Error, ErrorKind, FileInfo, LocalPath, Registry,
    Source, Storage, StorageUrl, Version, Written,
};
use tesk_core::transfer::{Engine, Settings};

use super::Subject;
use super::watched::{Secrets, watched};
use crate::proxy::Proxy;

/// A storage and a directory in it that is the case's own.
#[derive(Clone, Debug)]
pub struct Context {
    subject: Subject,
    directory: StorageUrl,
    secrets: Arc<Secrets>,
}

impl Context {
    /// What is secret of the errors that the case causes is heard by `secrets`.
    pub(super) fn new(subject: &Subject, case: &str, secrets: &Arc<Secrets>) -> Self {
        // Runs must not meet the files of earlier ones: many storages cannot remove any.
        let name = format!("{case}-{:08x}", rand::random::<u32>());
        let mut subject = subject.clone();
        subject.storage = watched(subject.storage, secrets);
        if let Some((storage, _)) = &mut subject.locked_out {
            *storage = watched(storage.clone(), secrets);
        }
        Self {
            directory: subject.scratch.join(&name),
            subject,
            secrets: secrets.clone(),
        }
    }

    /// The storage.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.subject.storage
    }

    /// What it claims.
    pub fn claims(&self) -> Capabilities {
        self.subject.storage.capabilities()
    }

    /// What it must claim.
    pub fn at_least(&self) -> Capabilities {
        self.subject.at_least
    }

    /// The case's directory. It does not exist yet.
    pub fn directory(&self) -> &StorageUrl {
        &self.directory
    }

    /// The URL of a file or directory in it.
    pub fn url(&self, name: &str) -> StorageUrl {
        self.directory.join(name)
    }

    /// A storage that has the wrong credentials, and a file that needs the right ones.
    pub fn locked_out(&self) -> anyhow::Result<&(Arc<dyn Storage>, StorageUrl)> {
        self.subject.locked_out.as_ref().context("no such storage")
    }

    /// The same storage by way of a proxy; its URLs are those of the returned context.
    pub async fn through_proxy(&self) -> anyhow::Result<(Proxy, Self)> {
        let (server, through) = self.subject.network.as_ref().context("no server")?;
        let proxy = Proxy::start(*server).await?;
        let (storage, scratch) = through(proxy.address())?;
        let path = self.directory.path().rsplit('/').next().unwrap_or_default();
        let subject = Subject {
            storage: watched(storage, &self.secrets),
            ..self.subject.clone()
        };
        let far = Self {
            subject,
            directory: scratch.join(path),
            secrets: self.secrets.clone(),
        };
        Ok((proxy, far))
    }

    /// A size that goes in parts, of which some are sent while others are not read yet. A storage
    /// may keep what is smaller, and send it as one at the end.
    pub async fn size_in_parts(&self) -> anyhow::Result<usize> {
        if !self.claims().parts {
            // Of 8 MiB at most, where a plugin makes parts by itself.
            return Ok((16 << 20) + 3);
        }
        let (storage, url) = (self.storage(), self.url("probe"));
        let probe = storage.begin_upload(&url, 100_000_000).await?;
        let size = probe.part_size() as usize * 2 + 3;
        probe.abort().await?;
        Ok(size)
    }

    /// Puts a file there, by the storage itself or as the subject says.
    pub async fn put(&self, name: &str, content: impl Into<Bytes>) -> anyhow::Result<StorageUrl> {
        let (url, content) = (self.url(name), content.into());
        if self.claims().write {
            self.write(&url, &Source::bytes(content)).await?;
        } else {
            let seed = self.subject.seed.as_ref().context("no seed")?;
            seed(url.clone(), content).await.context("seeding")?;
        }
        Ok(url)
    }

    /// Writes, as core would: other errors than of the storage are those of the case.
    pub async fn write(&self, url: &StorageUrl, source: &Source) -> anyhow::Result<Written> {
        let written = self.storage().write(url, source).await;
        let written = written.with_context(|| format!("writing {} bytes", source.size()))?;
        ensure!(
            written.size == source.size(),
            "it counted {} bytes",
            written.size
        );
        Ok(written)
    }

    /// Reads a range to its end.
    pub async fn read(
        &self,
        url: &StorageUrl,
        range: impl Into<ByteRange>,
    ) -> Result<Vec<u8>, Error> {
        let range = range.into();
        read_all(self.storage().read(url, range, None).await?.bytes).await
    }

    /// Whether a file is there with exactly this content, to `stat` and to `read`.
    pub async fn expect(&self, url: &StorageUrl, content: &[u8]) -> anyhow::Result<()> {
        let info = self.file_info(url).await?;
        if let Some(size) = info.size {
            let expected = content.len() as u64;
            ensure!(
                size == expected,
                "{url}: stat says {size} bytes, not {expected}"
            );
        }
        let read = self.read(url, ByteRange::FULL).await.context("reading")?;
        ensure!(
            read.len() == content.len(),
            "{url}: {} bytes were read",
            read.len()
        );
        ensure!(read == content, "{url}: other bytes were read than written");
        Ok(())
    }

    /// What `stat` tells of a file that is there.
    pub async fn file_info(&self, url: &StorageUrl) -> anyhow::Result<FileInfo> {
        match self.stat(url).await? {
            Some(EntryKind::File(info)) => Ok(info),
            found => bail!("{url}: stat finds {found:?}, not a file"),
        }
    }

    /// The version of a file that is there, if it has one: where versions are times, a file that
    /// was written just now has none yet.
    pub async fn version(&self, url: &StorageUrl) -> anyhow::Result<Option<Version>> {
        for _ in 0..30 {
            let version = self.file_info(url).await?.version;
            if version.is_some() {
                return Ok(version);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(None)
    }

    /// What `stat` tells.
    pub async fn stat(&self, url: &StorageUrl) -> anyhow::Result<Option<EntryKind>> {
        let entry = self.storage().stat(url).await.context("stat")?;
        if let Some(entry) = &entry {
            ensure!(
                entry.path.is_empty(),
                "stat gives the path {:?}",
                entry.path
            );
        }
        Ok(entry.map(|entry| entry.kind))
    }

    /// Everything below a directory, sorted by path.
    pub async fn list(&self, url: &StorageUrl) -> Result<Vec<Entry>, Error> {
        let entries = self.storage().list(url).await?;
        let mut entries = entries.try_collect::<Vec<_>>().await?;
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(entries)
    }

    /// An engine over the storage that waits long neither between retries nor in silence.
    pub fn engine(&self) -> anyhow::Result<Engine> {
        self.engine_with(1, 2)
    }

    /// The same that reads large files in ranges of so many MiB, and bears silence.
    pub fn engine_with_ranges(&self, range_mib: u64) -> anyhow::Result<Engine> {
        self.engine_with(range_mib, 30)
    }

    fn engine_with(&self, range_mib: u64, progress_timeout_secs: u64) -> anyhow::Result<Engine> {
        let prefix = format!("{}://{}", self.directory.scheme(), self.directory.host());
        let registry = Registry::default().serving(&prefix, self.storage())?;
        let settings = Settings {
            retry_base_ms: 10,
            progress_timeout_secs,
            // A server that never had the data connection may never answer for it.
            commit_timeout_secs: 20,
            range_mib,
            ..Settings::default()
        };
        Ok(Engine::new(Arc::new(registry), &settings))
    }
}

/// All bytes of a stream.
pub(super) async fn read_all(mut stream: tesk_core::storage::ByteStream) -> Result<Vec<u8>, Error> {
    let mut all = Vec::new();
    while let Some(chunk) = stream.next().await {
        all.extend_from_slice(&chunk?);
    }
    Ok(all)
}

/// A directory of this machine, gone when it is dropped.
pub(super) struct Local {
    _directory: tempfile::TempDir,
    root: Arc<Root>,
}

impl Local {
    pub(super) fn new() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let root = Arc::new(Root::open(directory.path(), Symlinks::InRoot)?);
        Ok(Self {
            _directory: directory,
            root,
        })
    }

    pub(super) fn path(&self, name: &str) -> anyhow::Result<LocalPath> {
        let path = RelPath::new(name).context("no path")?;
        let root = self.root.clone();
        Ok(LocalPath { root, path })
    }

    pub(super) fn write(&self, name: &str, content: &[u8]) -> anyhow::Result<LocalPath> {
        std::fs::write(self.root.path().join(name), content)?;
        self.path(name)
    }

    pub(super) fn read(&self, name: &str) -> anyhow::Result<Vec<u8>> {
        Ok(std::fs::read(self.root.path().join(name))?)
    }
}

/// Bytes that differ from place to place.
pub(super) fn content(size: usize) -> Vec<u8> {
    (0..size)
        .map(|i| (i % 251) as u8 ^ (i >> 12) as u8)
        .collect()
}

/// The error of something that must fail in one of these ways.
pub(super) fn refused<T>(
    result: Result<T, Error>,
    what: &str,
    kinds: &[ErrorKind],
) -> anyhow::Result<Error> {
    match result {
        Ok(_) => bail!("{what} succeeded"),
        Err(error) if kinds.contains(&error.kind()) => Ok(error),
        Err(error) => bail!(
            "{what} failed as {:?}, not as {kinds:?}: {error}",
            error.kind()
        ),
    }
}
