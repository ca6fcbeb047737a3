//! Hears every error of a storage, and looks for secrets in it.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures_util::StreamExt as _;
use tesk_core::storage::{
    ByteRange, Capabilities, Entry, EntryStream, Error, LocalPath, Opened, Result, Source, Storage,
    StorageUrl, Upload, Version, Written,
};

/// Part of every secret that the suite itself makes up.
pub(super) const MARK: &str = "s3cr3t";

/// What no error may show, and those that did.
#[derive(Debug, Default)]
pub(super) struct Secrets {
    secrets: Vec<String>,
    told: Mutex<Vec<String>>,
}

impl Secrets {
    pub(super) fn new(secrets: &[String]) -> Arc<Self> {
        let (secrets, told) = (secrets.to_vec(), Mutex::default());
        Arc::new(Self { secrets, told })
    }

    /// The first error that showed a secret, without it.
    pub(super) fn told(&self) -> Option<String> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.first().cloned()
    }

    fn hear(&self, url: &StorageUrl, error: &Error) {
        let own = [url.password(), Some(MARK)];
        let secrets = self.secrets.iter().map(String::as_str);
        let mut secrets: Vec<_> = secrets.chain(own.into_iter().flatten()).collect();
        secrets.retain(|secret| !secret.is_empty());
        for text in [error.to_string(), format!("{error:?}")] {
            if secrets.iter().any(|secret| holds(&text, secret)) {
                let hidden = |text: String, secret: &&str| text.replace(secret, "(the secret)");
                let told = secrets.iter().fold(text, hidden);
                let mut all = self.told.lock().unwrap_or_else(PoisonError::into_inner);
                all.push(told);
            }
        }
    }

    fn heard<T>(&self, url: &StorageUrl, result: Result<T>) -> Result<T> {
        result.inspect_err(|error| self.hear(url, error))
    }
}

/// Whether a text has this word: `right` is not in `copyright`.
fn holds(text: &str, word: &str) -> bool {
    let is_end = |c: Option<char>| !c.is_some_and(char::is_alphanumeric);
    // What is made up here is found in the middle of anything.
    word == MARK && text.contains(word)
        || text.match_indices(word).any(|(at, _)| {
            is_end(text[..at].chars().next_back()) && is_end(text[at + word.len()..].chars().next())
        })
}

/// A storage whose errors are heard.
#[derive(Debug)]
struct Watched {
    storage: Arc<dyn Storage>,
    secrets: Arc<Secrets>,
}

/// The same storage, whose errors `secrets` hears.
pub(super) fn watched(storage: Arc<dyn Storage>, secrets: &Arc<Secrets>) -> Arc<dyn Storage> {
    let secrets = secrets.clone();
    Arc::new(Watched { storage, secrets })
}

#[async_trait]
impl Storage for Watched {
    fn capabilities(&self) -> Capabilities {
        self.storage.capabilities()
    }

    async fn stat(&self, url: &StorageUrl) -> Result<Option<Entry>> {
        self.secrets.heard(url, self.storage.stat(url).await)
    }

    async fn list(&self, url: &StorageUrl) -> Result<EntryStream> {
        let entries = self.secrets.heard(url, self.storage.list(url).await)?;
        let (secrets, url) = (self.secrets.clone(), url.clone());
        let entries = entries.map(move |entry| secrets.heard(&url, entry));
        Ok(entries.boxed())
    }

    async fn read(
        &self,
        url: &StorageUrl,
        range: ByteRange,
        version: Option<&Version>,
    ) -> Result<Opened> {
        let read = self.storage.read(url, range, version).await;
        let Opened { bytes, checksum } = self.secrets.heard(url, read)?;
        let (secrets, url) = (self.secrets.clone(), url.clone());
        let bytes = bytes.map(move |chunk| secrets.heard(&url, chunk)).boxed();
        Ok(Opened { bytes, checksum })
    }

    async fn write(&self, url: &StorageUrl, source: &Source) -> Result<Written> {
        let written = self.storage.write(url, source).await;
        self.secrets.heard(url, written)
    }

    async fn begin_upload(&self, url: &StorageUrl, size: u64) -> Result<Box<dyn Upload>> {
        let begun = self.storage.begin_upload(url, size).await;
        Ok(Box::new(WatchedUpload {
            upload: self.secrets.heard(url, begun)?,
            url: url.clone(),
            secrets: self.secrets.clone(),
        }))
    }

    async fn make_directory(&self, url: &StorageUrl) -> Result<()> {
        let made = self.storage.make_directory(url).await;
        self.secrets.heard(url, made)
    }

    async fn rename(&self, from: &StorageUrl, to: &StorageUrl) -> Result<()> {
        let renamed = self.storage.rename(from, to).await;
        self.secrets.heard(from, renamed)
    }

    async fn remove(&self, url: &StorageUrl) -> Result<()> {
        self.secrets.heard(url, self.storage.remove(url).await)
    }

    fn local_path(&self, url: &StorageUrl) -> Option<LocalPath> {
        self.storage.local_path(url)
    }
}

#[derive(Debug)]
struct WatchedUpload {
    upload: Box<dyn Upload>,
    url: StorageUrl,
    secrets: Arc<Secrets>,
}

#[async_trait]
impl Upload for WatchedUpload {
    fn part_size(&self) -> u64 {
        self.upload.part_size()
    }

    fn part_memory(&self, source: &Source) -> u64 {
        self.upload.part_memory(source)
    }

    async fn part(&self, index: u64, source: &Source) -> Result<()> {
        let sent = self.upload.part(index, source).await;
        self.secrets.heard(&self.url, sent)
    }

    async fn complete(&self) -> Result<Written> {
        self.secrets.heard(&self.url, self.upload.complete().await)
    }

    async fn abort(&self) -> Result<()> {
        self.secrets.heard(&self.url, self.upload.abort().await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_a_word_of_its_own() {
        assert!(holds("530 bad login me:right@host", "right"));
        assert!(holds("right", "right"));
        assert!(!holds("copyright, all rights reserved", "right"));
        assert!(holds("xs3cr3tx", MARK));
    }
}
