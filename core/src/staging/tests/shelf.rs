//! A storage in memory, `mem://`: everything is there at once, two names are trouble.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures_util::{StreamExt, stream};

use crate::storage::registry::Prefixes;
use crate::storage::{
    ByteRange, Capabilities, ConfigEntry, ConfigError, Entry, EntryKind, EntryStream, Error,
    ErrorKind, Factory, FileInfo, Opened, RegistryBuilder, Result, Source, Storage, StorageUrl,
    Version, Written,
};
use crate::transfer::{Engine, Settings};

#[derive(Debug, Default)]
pub(super) struct Shelf {
    files: Mutex<BTreeMap<String, Vec<u8>>>,
    directories: Mutex<Vec<String>>,
}

impl Shelf {
    pub(super) fn put(&self, path: &str, content: &str) {
        self.files
            .lock()
            .unwrap()
            .insert(path.into(), content.into());
    }

    pub(super) fn get(&self, path: &str) -> Option<Vec<u8>> {
        self.files.lock().unwrap().get(path).cloned()
    }

    pub(super) fn directories(&self) -> Vec<String> {
        self.directories.lock().unwrap().clone()
    }

    pub(super) fn holds(&self, text: &str) -> bool {
        let files = self.files.lock().unwrap();
        files
            .values()
            .any(|f| String::from_utf8_lossy(f).contains(text))
    }

    pub(super) fn engine(self: &Arc<Self>) -> Engine {
        let entry = ConfigEntry {
            kind: "shelf".into(),
            prefix: Prefixes::One("mem://".into()),
            options: toml::Table::new(),
        };
        let builder = RegistryBuilder::default().with("shelf", ShelfFactory(self.clone()));
        let settings = Settings {
            retries: 0,
            ..Settings::default()
        };
        Engine::new(Arc::new(builder.build(&[entry]).unwrap()), &settings)
    }

    fn entry(&self, path: &str) -> Option<EntryKind> {
        let files = self.files.lock().unwrap();
        let below = format!("{path}/");
        if let Some(content) = files.get(path) {
            let size = Some(content.len() as u64);
            return Some(EntryKind::File(FileInfo {
                size,
                ..FileInfo::default()
            }));
        }
        let directory = files.keys().any(|name| name.starts_with(&below));
        directory.then_some(EntryKind::Directory)
    }

    fn trouble(url: &StorageUrl) -> Result<()> {
        match url.path() {
            "/later" => Err(Error::new(ErrorKind::Unavailable, url, "come back later")),
            "/denied" => Err(Error::new(ErrorKind::Denied, url, "not for you")),
            _ => Ok(()),
        }
    }
}

#[derive(Debug)]
struct ShelfFactory(Arc<Shelf>);

impl Factory for ShelfFactory {
    fn schemes(&self) -> &[&str] {
        &["mem"]
    }

    fn create(&self, _: &ConfigEntry) -> Result<Arc<dyn Storage>, ConfigError> {
        Ok(Arc::new(Handle(self.0.clone())))
    }
}

#[derive(Debug)]
struct Handle(Arc<Shelf>);

#[async_trait]
impl Storage for Handle {
    fn capabilities(&self) -> Capabilities {
        let mut claims = Capabilities::read_only();
        claims.list = true;
        claims.write = true;
        claims.atomic_write = true;
        claims.directories = true;
        claims
    }

    async fn stat(&self, url: &StorageUrl) -> Result<Option<Entry>> {
        Shelf::trouble(url)?;
        let entry = self.0.entry(url.path());
        Ok(entry.map(|kind| Entry {
            path: String::new(),
            kind,
        }))
    }

    async fn list(&self, url: &StorageUrl) -> Result<EntryStream> {
        match self.0.entry(url.path()) {
            None => return Err(Error::new(ErrorKind::NotFound, url, "nothing is there")),
            Some(EntryKind::File(_)) => {
                return Err(Error::new(ErrorKind::Invalid, url, "it is a file"));
            }
            Some(EntryKind::Directory) => {}
        }
        let start = format!("{}/", url.path());
        let files = self.0.files.lock().unwrap();
        let entries: Vec<_> = files
            .iter()
            .filter_map(|(name, content)| {
                let path = name.strip_prefix(&start)?.to_owned();
                let size = Some(content.len() as u64);
                let kind = EntryKind::File(FileInfo {
                    size,
                    ..FileInfo::default()
                });
                Some(Ok(Entry { path, kind }))
            })
            .collect();
        Ok(stream::iter(entries).boxed())
    }

    async fn read(&self, url: &StorageUrl, _: ByteRange, _: Option<&Version>) -> Result<Opened> {
        let content = self.0.get(url.path());
        let missing = || Error::new(ErrorKind::NotFound, url, "nothing is there");
        let content = content.ok_or_else(missing)?;
        Ok(stream::iter([Ok(content.into())]).boxed().into())
    }

    async fn write(&self, url: &StorageUrl, source: &Source) -> Result<Written> {
        Shelf::trouble(url)?;
        let mut content = Vec::new();
        let mut chunks = source.read(ByteRange::FULL).await?;
        while let Some(chunk) = chunks.next().await {
            content.extend_from_slice(&chunk?);
        }
        let size = content.len() as u64;
        self.0
            .files
            .lock()
            .unwrap()
            .insert(url.path().into(), content);
        Ok(Written {
            size,
            ..Written::default()
        })
    }

    async fn make_directory(&self, url: &StorageUrl) -> Result<()> {
        self.0.directories.lock().unwrap().push(url.path().into());
        Ok(())
    }
}
