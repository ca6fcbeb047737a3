//! Bytes to be written that can be read again, from any offset, as often as needed.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    ByteRange, ByteStream, Error, ErrorKind, LocalPath, Result, Storage, StorageUrl, Version,
};

/// What a plugin is asked to write: of known size, and reopenable, so that a failed write can
/// be tried again.
#[derive(Clone, Debug)]
pub struct Source {
    size: u64,
    mode: Option<u32>,
    origin: Origin,
}

#[derive(Clone, Debug)]
enum Origin {
    Bytes(Bytes),
    Local(LocalPath),
    Storage {
        storage: Arc<dyn Storage>,
        url: StorageUrl,
        version: Option<Version>,
    },
}

impl Source {
    /// Bytes in memory.
    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self {
            size: bytes.len() as u64,
            mode: None,
            origin: Origin::Bytes(bytes),
        }
    }

    /// A file of this machine, of the size it has now.
    pub fn local(path: LocalPath) -> std::io::Result<Self> {
        let _ = path;
        todo!()
    }

    /// A file in another storage.
    pub fn storage(
        storage: Arc<dyn Storage>,
        url: StorageUrl,
        size: u64,
        version: Option<Version>,
    ) -> Self {
        Self {
            size,
            mode: None,
            origin: Origin::Storage {
                storage,
                url,
                version,
            },
        }
    }

    /// Bytes in all.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Unix permission bits, where they are known.
    pub fn mode(&self) -> Option<u32> {
        self.mode
    }

    /// Opens the local file, if it is one: for copies inside the kernel.
    pub fn open_local(&self) -> Option<std::io::Result<std::fs::File>> {
        todo!()
    }

    /// The bytes `range`, in chunks of bounded size; a file that has become shorter is an error.
    pub async fn read(&self, range: ByteRange) -> Result<ByteStream> {
        let _ = range;
        todo!()
    }
}
