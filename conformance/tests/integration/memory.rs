//! A storage in memory that keeps every promise, with a line to it that a proxy can cut.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, stream};
use md5::{Digest as _, Md5};
use tesk_core::storage::{
    ByteRange, ByteStream, Capabilities, Checksum, Entry, EntryKind, EntryStream, Error, ErrorKind,
    FileInfo, Opened, Result, Source, Storage, StorageUrl, Upload, Version, Written,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// The size of every part of an upload.
pub(super) const PART: u64 = 1 << 20;

/// The right password, where one is asked for.
pub(super) const PASSWORD: &str = "right";

/// Files by their paths. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    nodes: Arc<Mutex<BTreeMap<String, Node>>>,
    /// Uploads in parts that are under way.
    uploads: Arc<Mutex<BTreeSet<String>>>,
    /// The [other end](echo) of a line over which as many bytes go as are read or written.
    line: Option<SocketAddr>,
    pub(super) asks_for_password: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Node {
    File {
        content: Bytes,
        mode: u32,
        version: u64,
    },
    Directory,
}

impl Node {
    fn kind(&self) -> EntryKind {
        match self {
            Self::Directory => EntryKind::Directory,
            Self::File {
                content,
                mode,
                version,
            } => EntryKind::File(FileInfo {
                size: Some(content.len() as u64),
                version: Some(Version(version.to_string())),
                mode: Some(*mode),
                ..FileInfo::default()
            }),
        }
    }
}

/// The other end of the line. A number asks for so many bytes, all of them 0; a negative one
/// announces so many, of which the arrival is confirmed by a 0.
pub(super) async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let count = stream.read_i64().await?;
                let size = count.unsigned_abs() as usize;
                let mut bytes = vec![0; size];
                if count < 0 {
                    stream.read_exact(&mut bytes).await?;
                    bytes = vec![0];
                }
                stream.write_all(&bytes).await
            });
        }
    });
    address
}

/// The path below the root that a URL names.
pub(super) fn path(url: &StorageUrl) -> String {
    let path = String::from_utf8_lossy(&url.decoded_path()).into_owned();
    path.trim_matches('/').to_owned()
}

fn parent(path: &str) -> Option<&str> {
    path.rsplit_once('/').map(|(parent, _)| parent)
}

impl Memory {
    /// The same storage, reached by way of the echo at `line`.
    pub(super) fn over(&self, line: SocketAddr) -> Self {
        let line = Some(line);
        Self {
            line,
            ..self.clone()
        }
    }

    pub(super) fn nodes(&self) -> MutexGuard<'_, BTreeMap<String, Node>> {
        self.nodes.lock().unwrap()
    }

    pub(super) fn uploads(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.uploads.lock().unwrap()
    }

    /// Puts a file there, whole, whatever is or is not there.
    pub(super) fn put(&self, url: &StorageUrl, content: Bytes, mode: Option<u32>) {
        static VERSIONS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let version = VERSIONS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let file = Node::File {
            content,
            mode: mode.unwrap_or(0o644),
            version,
        };
        self.nodes().insert(path(url), file);
    }

    /// The content of a file that is there.
    pub(super) fn content(&self, url: &StorageUrl) -> Option<Bytes> {
        match self.nodes().get(&path(url)) {
            Some(Node::File { content, .. }) => Some(content.clone()),
            _ => None,
        }
    }

    fn make_directories(&self, url: &StorageUrl, directory: &str) -> Result<()> {
        let mut nodes = self.nodes();
        let ends = directory.match_indices('/').map(|(end, _)| end);
        for end in ends.chain([directory.len()]).filter(|end| *end > 0) {
            let name = directory[..end].to_owned();
            if let Node::File { .. } = nodes.entry(name).or_insert(Node::Directory) {
                let message = "a file is where a directory is needed";
                return Err(Error::new(ErrorKind::Invalid, url, message));
            }
        }
        Ok(())
    }

    /// Gives a whole file its name.
    fn place(&self, url: &StorageUrl, content: Bytes, mode: Option<u32>) -> Result<Written> {
        let name = path(url);
        if let Some(parent) = parent(&name) {
            self.make_directories(url, parent)?;
        }
        if let Some(Node::Directory) = self.nodes().get(&name) {
            return Err(Error::new(ErrorKind::Invalid, url, "is a directory"));
        }
        let size = content.len() as u64;
        self.put(url, content, mode);
        Ok(Written {
            size,
            ..Written::default()
        })
    }

    async fn connect(&self, url: &StorageUrl) -> Result<Option<TcpStream>> {
        let wrong = url.password() != Some(PASSWORD);
        if self.asks_for_password && wrong {
            let message = "the password is wrong";
            return Err(Error::new(ErrorKind::Unauthenticated, url, message));
        }
        let Some(line) = self.line else {
            return Ok(None);
        };
        let connected = TcpStream::connect(line).await;
        connected.map(Some).map_err(|e| broken(url).with_source(e))
    }

    /// Whether the other side answers.
    async fn greet(&self, url: &StorageUrl) -> Result<()> {
        carry(self.connect(url).await?, url, Bytes::from_static(b"?"))
            .next()
            .await
            .unwrap_or_else(|| Err(broken(url)))?;
        Ok(())
    }

    /// What of a source arrives.
    pub(super) async fn receive(
        &self,
        url: &StorageUrl,
        source: &Source,
        range: ByteRange,
    ) -> Result<Bytes> {
        let mut all = BytesMut::new();
        let mut bytes = source.read(range).await?;
        while let Some(chunk) = bytes.next().await {
            all.extend_from_slice(&chunk?);
        }
        let all = all.freeze();
        if let Some(mut line) = self.connect(url).await? {
            let sent = async {
                line.write_i64(-(all.len() as i64)).await?;
                line.write_all(&all).await?;
                if all.is_empty() {
                    return Ok(0);
                }
                line.read_u8().await
            };
            if sent.await.map_err(|e| broken(url).with_source(e))? != 0 {
                return Err(broken(url));
            }
        }
        Ok(all)
    }
}

fn broken(url: &StorageUrl) -> Error {
    Error::new(ErrorKind::Unavailable, url, "the line broke")
}

/// Bytes after their way over the line.
fn carry(line: Option<TcpStream>, url: &StorageUrl, bytes: Bytes) -> ByteStream {
    let Some(line) = line else {
        return stream::iter((!bytes.is_empty()).then_some(Ok(bytes))).boxed();
    };
    let url = url.clone();
    let state = Some((line, bytes, false));
    stream::unfold(state, move |state| {
        let url = url.clone();
        async move {
            let (mut line, mut left, asked) = state.filter(|state| !state.1.is_empty())?;
            if !asked && line.write_i64(left.len() as i64).await.is_err() {
                return Some((Err(broken(&url)), None));
            }
            let mut buffer = vec![0; left.len().min(64 << 10)];
            Some(match line.read(&mut buffer).await {
                Ok(read) if read > 0 && buffer[..read].iter().all(|byte| *byte == 0) => {
                    let arrived = left.split_to(read);
                    (Ok(arrived), Some((line, left, true)))
                }
                _ => (Err(broken(&url)), None),
            })
        }
    })
    .boxed()
}

#[async_trait::async_trait]
impl Storage for Memory {
    fn capabilities(&self) -> Capabilities {
        let mut claims = Capabilities::read_only();
        claims.list = true;
        claims.write = true;
        claims.atomic_write = true;
        claims.ranges = true;
        claims.parts = true;
        claims.directories = true;
        claims.rename = true;
        claims.remove = true;
        claims.modes = true;
        claims
    }

    async fn stat(&self, url: &StorageUrl) -> Result<Option<Entry>> {
        self.greet(url).await?;
        let kind = self.nodes().get(&path(url)).map(Node::kind);
        let path = String::new();
        Ok(kind.map(|kind| Entry { path, kind }))
    }

    async fn list(&self, url: &StorageUrl) -> Result<EntryStream> {
        self.greet(url).await?;
        let directory = path(url);
        let nodes = self.nodes();
        match nodes.get(&directory) {
            Some(Node::Directory) => {}
            Some(_) => return Err(Error::new(ErrorKind::Invalid, url, "is a file")),
            None => return Err(Error::new(ErrorKind::NotFound, url, "is not there")),
        }
        let below = nodes.iter().filter_map(|(path, node)| {
            let path = path.strip_prefix(&directory)?.strip_prefix('/')?.to_owned();
            let kind = node.kind();
            Some(Ok(Entry { path, kind }))
        });
        Ok(stream::iter(below.collect::<Vec<_>>()).boxed())
    }

    async fn read(
        &self,
        url: &StorageUrl,
        range: ByteRange,
        version: Option<&Version>,
    ) -> Result<Opened> {
        let line = self.connect(url).await?;
        let file = self.nodes().get(&path(url)).cloned();
        let (content, present) = match file {
            Some(Node::File {
                content, version, ..
            }) => (content, version.to_string()),
            Some(Node::Directory) => {
                return Err(Error::new(ErrorKind::Invalid, url, "is a directory"));
            }
            None => return Err(Error::new(ErrorKind::NotFound, url, "is not there")),
        };
        if version.is_some_and(|version| version.0 != present) {
            return Err(Error::new(ErrorKind::Corrupt, url, "is another version"));
        }
        let size = content.len() as u64;
        let end = range.end.unwrap_or(size);
        if range.start > end || end > size {
            let message = format!("has {size} bytes only");
            return Err(Error::new(ErrorKind::Corrupt, url, message));
        }
        // In debug builds more would take longer than what is tried.
        let checksum = (size < 64 << 10).then(|| Checksum::Md5(Md5::digest(&content).into()));
        let content = content.slice(range.start as usize..end as usize);
        let bytes = carry(line, url, content);
        Ok(Opened { bytes, checksum })
    }

    async fn write(&self, url: &StorageUrl, source: &Source) -> Result<Written> {
        let content = self.receive(url, source, ByteRange::FULL).await?;
        self.place(url, content, source.mode())
    }

    async fn begin_upload(&self, url: &StorageUrl, size: u64) -> Result<Box<dyn Upload>> {
        self.greet(url).await?;
        let id = format!("{:08x} of {url}", rand::random::<u32>());
        self.uploads().insert(id.clone());
        Ok(Box::new(Parts {
            memory: self.clone(),
            id,
            url: url.clone(),
            size,
            sent: Mutex::default(),
        }))
    }

    async fn make_directory(&self, url: &StorageUrl) -> Result<()> {
        self.greet(url).await?;
        self.make_directories(url, &path(url))
    }

    async fn rename(&self, from: &StorageUrl, to: &StorageUrl) -> Result<()> {
        self.greet(from).await?;
        let mut nodes = self.nodes();
        match nodes.remove(&path(from)) {
            Some(file) => drop(nodes.insert(path(to), file)),
            None => return Err(Error::new(ErrorKind::NotFound, from, "is not there")),
        }
        Ok(())
    }

    async fn remove(&self, url: &StorageUrl) -> Result<()> {
        self.greet(url).await?;
        let (mut nodes, name) = (self.nodes(), path(url));
        if nodes.keys().any(|path| parent(path) == Some(&name)) {
            return Err(Error::new(ErrorKind::Invalid, url, "is not empty"));
        }
        nodes.remove(&name);
        Ok(())
    }
}

#[derive(Debug)]
struct Parts {
    memory: Memory,
    id: String,
    url: StorageUrl,
    size: u64,
    sent: Mutex<BTreeMap<u64, Bytes>>,
}

impl Drop for Parts {
    fn drop(&mut self) {
        self.memory.uploads().remove(&self.id);
    }
}

#[async_trait::async_trait]
impl Upload for Parts {
    fn part_size(&self) -> u64 {
        PART
    }

    async fn part(&self, index: u64, source: &Source) -> Result<()> {
        let start = index * PART;
        let range = start..source.size().min(start + PART);
        let part = self.memory.receive(&self.url, source, range.into()).await?;
        self.sent.lock().unwrap().insert(index, part);
        Ok(())
    }

    async fn complete(&self) -> Result<Written> {
        let parts = self.sent.lock().unwrap();
        let parts = parts.values().map(|part| &part[..]);
        let whole = Bytes::from(parts.collect::<Vec<_>>().concat());
        if whole.len() as u64 != self.size {
            return Err(Error::new(
                ErrorKind::Invalid,
                &self.url,
                "parts are missing",
            ));
        }
        self.memory.place(&self.url, whole, None)
    }

    async fn abort(&self) -> Result<()> {
        self.sent.lock().unwrap().clear();
        Ok(())
    }
}
