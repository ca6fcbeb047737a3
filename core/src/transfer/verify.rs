//! Checksums.

use md5::{Digest as _, Md5};
use sha2::Sha256;

use crate::storage::file::Sink;
use crate::storage::{Checksum, Error, ErrorKind, Result, StorageUrl};

/// Computes a checksum of the kind that is wanted, or nothing at no cost.
#[derive(Clone, Debug)]
pub(super) enum Hasher {
    Nothing,
    Md5(Md5),
    Sha256(Sha256),
}

impl Hasher {
    /// For comparison with `wanted`.
    pub(super) fn like(wanted: Option<&Checksum>) -> Self {
        match wanted {
            None => Self::Nothing,
            Some(Checksum::Md5(_)) => Self::Md5(Md5::new()),
            Some(Checksum::Sha256(_)) => Self::Sha256(Sha256::new()),
        }
    }

    /// Whether what was seen has the checksum `wanted`.
    pub(super) fn check(self, url: &StorageUrl, wanted: Option<&Checksum>) -> Result<()> {
        let computed = match self {
            Self::Nothing => return Ok(()),
            Self::Md5(hasher) => Checksum::Md5(hasher.finalize().into()),
            Self::Sha256(hasher) => Checksum::Sha256(hasher.finalize().into()),
        };
        if wanted.is_none_or(|wanted| *wanted == computed) {
            return Ok(());
        }
        let message = "its content does not have the checksum that its storage tells";
        Err(Error::new(ErrorKind::Corrupt, url, message))
    }
}

impl Sink for Hasher {
    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Nothing => {}
            Self::Md5(hasher) => hasher.update(bytes),
            Self::Sha256(hasher) => hasher.update(bytes),
        }
    }
}
