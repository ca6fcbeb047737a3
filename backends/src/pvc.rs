//! A directory of this machine or a mounted volume, addressed by `file:` URLs.
//!
//! ```toml
//! [[storage]]
//! type = "pvc"
//! prefix = "file:///data"    # how clients name it
//! path = "/mnt/transfer"     # where it is mounted here; default: the path of the prefix
//! ```
//!
//! Nothing outside `path` is reached: symlinks are followed as long as they stay below it, others
//! are [`Denied`](ErrorKind::Denied). Pipes, sockets and devices are refused. A listing follows
//! symlinks too, and fails at one that dangles, leads out, or loops, rather than deliver less
//! than is there.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use futures_util::StreamExt as _;
use futures_util::stream;
use serde::Deserialize;
use tesk_core::rooted::{self, Found, RelPath, Root, Symlinks, TempFile, WalkError};
use tesk_core::storage::file::{blocking, read_file};
use tesk_core::storage::{
    ByteRange, Capabilities, ConfigEntry, ConfigError, Entry, EntryKind, EntryStream, Error,
    ErrorKind, Factory, FileInfo, LocalPath, Opened, Result, Source, Storage, StorageUrl, Version,
    Written,
};
use tesk_core::time::Timestamp;

/// The mode of new directories, and of files whose mode is not known.
const DIRECTORY_MODE: u32 = 0o775;
const FILE_MODE: u32 = 0o664;

/// Builds [`Pvc`]s: `type = "pvc"`.
#[derive(Clone, Copy, Debug)]
pub struct PvcFactory;

/// The options of an entry.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Where the directory is mounted here. Default: the path of the prefix.
    path: Option<PathBuf>,
    /// Refuse writing. Default false.
    #[serde(default)]
    read_only: bool,
    /// Wait until a file has reached the disk before it counts as written. Default false: the
    /// kernel writes it soon.
    #[serde(default)]
    durable: bool,
}

/// Where on this machine the files of an entry of this type are.
pub fn directory(entry: &ConfigEntry) -> Result<PathBuf, ConfigError> {
    served(entry, &entry.options()?).map(|(_, path)| path)
}

/// The prefix of an entry, and the directory that it serves.
fn served(entry: &ConfigEntry, options: &Options) -> Result<(RelPath, PathBuf), ConfigError> {
    let [prefix] = entry.prefixes() else {
        let message = "one `path` serves one prefix; give each directory its own entry";
        return Err(ConfigError(message.into()));
    };
    let prefix = prefix
        .parse::<StorageUrl>()
        .ok()
        .and_then(|url| url.file_path())
        .ok_or_else(|| ConfigError(format!("the prefix `{prefix}` is no path")))?;
    let path = match &options.path {
        Some(path) => path.clone(),
        None => PathBuf::from("/").join(prefix.as_path()),
    };
    if !path.is_absolute() {
        let message = format!("path: `{}` must be absolute", path.display());
        return Err(ConfigError(message));
    }
    Ok((prefix, path))
}

impl Factory for PvcFactory {
    fn schemes(&self) -> &[&str] {
        &["file"]
    }

    fn create(&self, entry: &ConfigEntry) -> Result<Arc<dyn Storage>, ConfigError> {
        let options: Options = entry.options()?;
        let (prefix, path) = served(entry, &options)?;
        // A server reads the same configuration as its filers, and need not have their volumes.
        if !path.is_dir() {
            tracing::warn!(path = %path.display(), "no directory of this machine");
        }
        Ok(Arc::new(Pvc {
            root: OnceLock::new(),
            mounted_at: path,
            prefix,
            read_only: options.read_only,
            durable: options.durable,
        }))
    }
}

/// One mounted directory.
#[derive(Debug)]
pub struct Pvc {
    /// Opened when it is first needed.
    root: OnceLock<Arc<Root>>,
    mounted_at: PathBuf,
    /// The path of the URLs that mean the root.
    prefix: RelPath,
    read_only: bool,
    durable: bool,
}

impl Pvc {
    fn root(&self) -> io::Result<Arc<Root>> {
        if let Some(root) = self.root.get() {
            return Ok(root.clone());
        }
        // Below `/` no symlink leaves the root, and absolute ones mean what they say.
        let symlinks = if self.mounted_at == Path::new("/") {
            Symlinks::InRoot
        } else {
            Symlinks::Beneath
        };
        let root = Root::open(&self.mounted_at, symlinks).map_err(|error| {
            let path = self.mounted_at.display();
            io::Error::new(error.kind(), format!("cannot open `{path}`: {error}"))
        })?;
        Ok(self.root.get_or_init(|| Arc::new(root)).clone())
    }

    fn path(&self, url: &StorageUrl) -> Result<RelPath> {
        let path = url.file_path();
        path.and_then(|path| path.strip_prefix(&self.prefix))
            .ok_or_else(|| {
                let message = format!("lies outside /{}", self.prefix);
                Error::new(ErrorKind::Denied, url, message)
            })
    }

    fn writable_path(&self, url: &StorageUrl, operation: &str) -> Result<RelPath> {
        if self.read_only {
            return Err(Error::unsupported(url, operation));
        }
        self.path(url)
    }

    /// Runs file system calls where they may wait for a disk or a network.
    async fn run<T: Send + 'static>(
        &self,
        url: &StorageUrl,
        message: &str,
        work: impl FnOnce(&Arc<Root>) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        // Of a volume that is not there, everything would be "not found".
        let root = self.root().map_err(|e| {
            Error::new(ErrorKind::Unavailable, url, "its volume is not there").with_source(e)
        })?;
        blocking(move || work(&root))
            .await
            .map_err(|e| Error::io(url, message, e))
    }
}

#[async_trait]
impl Storage for Pvc {
    fn capabilities(&self) -> Capabilities {
        let write = !self.read_only;
        let mut claims = Capabilities::read_only();
        claims.list = true;
        claims.ranges = true;
        claims.write = write;
        claims.atomic_write = write;
        claims.directories = write;
        claims.rename = write;
        claims.remove = write;
        claims.modes = write;
        claims
    }

    async fn stat(&self, url: &StorageUrl) -> Result<Option<Entry>> {
        let path = self.path(url)?;
        let found = self
            .run(url, "cannot be looked at", move |root| {
                match root.metadata(&path) {
                    Err(e) if is_nothing(&e) => Ok(None),
                    found => found.map(Some),
                }
            })
            .await?;
        let Some(found) = found else { return Ok(None) };
        let path = String::new();
        Ok(Some(Entry {
            path,
            kind: kind_of(url, &found)?,
        }))
    }

    async fn list(&self, url: &StorageUrl) -> Result<EntryStream> {
        let path = self.path(url)?;
        let walk = self
            .run(url, "cannot be listed", move |root| root.walk(&path))
            .await?;
        let (sender, receiver) = tokio::sync::mpsc::channel(256);
        let url = url.clone();
        tokio::task::spawn_blocking(move || {
            for found in walk {
                let entry = listed(&url, found).transpose();
                // The receiver is gone when nobody wants to know the rest.
                if entry.is_some_and(|entry| sender.blocking_send(entry).is_err()) {
                    break;
                }
            }
        });
        let entries = stream::unfold(receiver, |mut receiver| async {
            receiver.recv().await.map(|entry| (entry, receiver))
        });
        Ok(entries.boxed())
    }

    async fn read(
        &self,
        url: &StorageUrl,
        range: ByteRange,
        version: Option<&Version>,
    ) -> Result<Opened> {
        let path = self.path(url)?;
        let (file, found) = self
            .run(url, "cannot be read", move |root| {
                let file = root.open_file(&path)?;
                let found = file.metadata()?;
                Ok((file, found))
            })
            .await?;
        if version.is_some_and(|wanted| *wanted != version_of(&found)) {
            let message = "another version has taken its place";
            return Err(Error::new(ErrorKind::Corrupt, url, message));
        }
        let end = range.end.unwrap_or(found.len());
        if end > found.len() || range.start > end {
            let message = format!("bytes {}..{end} of {}", range.start, found.len());
            return Err(Error::new(ErrorKind::Corrupt, url, message));
        }
        Ok(read_file(url, Arc::new(file), range.start..end).into())
    }

    async fn write(&self, url: &StorageUrl, source: &Source) -> Result<Written> {
        let path = self.writable_path(url, "writing")?;
        // What a task made must not become a program that runs as its owner.
        let mode = source.mode().unwrap_or(FILE_MODE) & 0o777;
        let durable = self.durable;
        let found = if let Some(content) = source.content() {
            self.run(url, "cannot be written", move |root| {
                let temp = root.create_replacement(&path, mode, DIRECTORY_MODE)?;
                temp.file().write_all_at(&content, 0)?;
                place(root, temp, &path, durable)
            })
            .await?
        } else {
            let target = path.clone();
            let temp = self
                .run(url, "cannot be written", move |root| {
                    root.create_replacement(&target, mode, DIRECTORY_MODE)
                })
                .await?;
            source.copy_to(temp.file(), url).await?;
            self.run(url, "cannot be written", move |root| {
                place(root, temp, &path, durable)
            })
            .await?
        };
        Ok(Written {
            size: found.len(),
            version: Some(version_of(&found)),
            checksum: None,
        })
    }

    async fn make_directory(&self, url: &StorageUrl) -> Result<()> {
        let path = self.writable_path(url, "making directories")?;
        self.run(url, "cannot be made", move |root| {
            root.create_dir_all(&path, DIRECTORY_MODE)
        })
        .await
    }

    async fn rename(&self, from: &StorageUrl, to: &StorageUrl) -> Result<()> {
        let source = self.writable_path(from, "renaming")?;
        let target = self.writable_path(to, "renaming")?;
        self.run(from, "cannot be renamed", move |root| {
            if let Some(parent) = target.parent() {
                root.create_dir_all(&parent, DIRECTORY_MODE)?;
            }
            root.rename(&source, &target)
        })
        .await
    }

    async fn remove(&self, url: &StorageUrl) -> Result<()> {
        let path = self.writable_path(url, "removing")?;
        self.run(url, "cannot be removed", move |root| {
            match root.remove(&path) {
                Err(e) if is_nothing(&e) => Ok(()),
                done => done,
            }
        })
        .await
    }

    fn local_path(&self, url: &StorageUrl) -> Option<LocalPath> {
        let path = self.path(url).ok()?;
        let root = self.root().ok()?;
        Some(LocalPath { root, path })
    }
}

/// Gives a file that is whole its name.
fn place(root: &Root, temp: TempFile, path: &RelPath, durable: bool) -> io::Result<Metadata> {
    if durable {
        temp.file().sync_all()?;
    }
    let file = temp.keep()?;
    if durable {
        root.sync_dir(&path.parent().unwrap_or_default())?;
    }
    file.metadata()
}

/// Nothing is there, or what should be a directory on the way is a file.
fn is_nothing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn kind_of(url: &StorageUrl, found: &Metadata) -> Result<EntryKind> {
    if found.is_dir() {
        Ok(EntryKind::Directory)
    } else if found.is_file() {
        Ok(EntryKind::File(FileInfo {
            size: Some(found.len()),
            version: Some(version_of(found)),
            checksum: None,
            mode: Some(found.mode() & 0o7777),
            modified: found.modified().ok().map(Timestamp::from_system),
        }))
    } else {
        let message = "is a pipe, a socket or a device, not a regular file";
        Err(Error::new(ErrorKind::Invalid, url, message))
    }
}

/// A file that was replaced has another inode; one that was changed, another time or size.
fn version_of(found: &Metadata) -> Version {
    Version(format!(
        "{:x}-{}.{:09}-{}",
        found.ino(),
        found.mtime(),
        found.mtime_nsec(),
        found.len()
    ))
}

fn listed(url: &StorageUrl, found: Result<Found, WalkError>) -> Result<Option<Entry>> {
    let found = found.map_err(|WalkError { path, error }| {
        Error::io(url, format!("`{path}` cannot be listed"), error)
    })?;
    if found.path.file_name().is_some_and(rooted::is_temp_name) {
        return Ok(None);
    }
    let Some(path) = found.path.as_path().to_str() else {
        let message = format!("`{}` cannot be listed: its name is not UTF-8", found.path);
        return Err(Error::new(ErrorKind::Invalid, url, message));
    };
    Ok(Some(Entry {
        path: path.to_owned(),
        kind: kind_of(&url.join(path), &found.metadata)?,
    }))
}
