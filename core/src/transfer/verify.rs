//! Checksums.

use crc_fast::{CrcAlgorithm, Digest as Crc};
use futures_util::TryStreamExt as _;
use md5::{Digest as _, Md5};
use sha2::Sha256;

use crate::storage::file::{Sink, Writer};
use crate::storage::{ByteStream, Checksum, Error, ErrorKind, Result, StorageUrl};

/// Computes a checksum of the kind that is wanted, or nothing at no cost.
#[derive(Clone, Debug)]
pub(super) enum Hasher {
    Nothing,
    Md5(Md5),
    Sha256(Sha256),
    Crc(Crc, fn(u64) -> Checksum),
}

impl Hasher {
    /// For comparison with `wanted`.
    pub(super) fn like(wanted: Option<&Checksum>) -> Self {
        match wanted {
            None => Self::Nothing,
            Some(Checksum::Md5(_)) => Self::Md5(Md5::new()),
            Some(Checksum::Sha256(_)) => Self::Sha256(Sha256::new()),
            Some(Checksum::Crc64Nvme(_)) => {
                Self::Crc(Crc::new(CrcAlgorithm::Crc64Nvme), Checksum::Crc64Nvme)
            }
            Some(Checksum::Crc32c(_)) => Self::Crc(Crc::new(CrcAlgorithm::Crc32Iscsi), |sum| {
                Checksum::Crc32c(sum as u32)
            }),
            Some(Checksum::Crc32(_)) => Self::Crc(Crc::new(CrcAlgorithm::Crc32IsoHdlc), |sum| {
                Checksum::Crc32(sum as u32)
            }),
        }
    }

    /// Of what was seen; `None` if nothing was computed.
    fn checksum(self) -> Option<Checksum> {
        Some(match self {
            Self::Nothing => return None,
            Self::Md5(hasher) => Checksum::Md5(hasher.finalize().into()),
            Self::Sha256(hasher) => Checksum::Sha256(hasher.finalize().into()),
            Self::Crc(hasher, checksum) => checksum(hasher.finalize()),
        })
    }

    /// Whether what was seen has the checksum `wanted`.
    pub(super) fn check(self, url: &StorageUrl, wanted: Option<&Checksum>) -> Result<()> {
        let Some((computed, wanted)) = self.checksum().zip(wanted) else {
            return Ok(());
        };
        if computed == *wanted {
            return Ok(());
        }
        let message = "its content does not have the checksum that its storage tells";
        Err(Error::new(ErrorKind::Corrupt, url, message))
    }
}

impl Checksum {
    /// Whether `content` has this checksum.
    pub fn is_of(&self, content: &[u8]) -> bool {
        let mut hasher = Hasher::like(Some(self));
        hasher.update(content);
        hasher.checksum().as_ref() == Some(self)
    }
}

/// Computes on another thread what [`Hasher::check`] compares of the whole of `stream`.
pub(super) async fn check(
    url: &StorageUrl,
    mut stream: ByteStream,
    wanted: Option<&Checksum>,
) -> Result<()> {
    let cannot = |error| Error::io(url, "cannot be verified", error);
    let mut hashing = Writer::nowhere(Hasher::like(wanted));
    while let Some(chunk) = stream.try_next().await? {
        hashing.push(chunk).await.map_err(cannot)?;
    }
    hashing.finish().await.map_err(cannot)?.check(url, wanted)
}

impl Sink for Hasher {
    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Nothing => {}
            Self::Md5(hasher) => hasher.update(bytes),
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Crc(hasher, _) => hasher.update(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check values of the catalogue of parametrised CRC algorithms, and of RFC 1321 and FIPS 180.
    #[test]
    fn each_kind_of_checksum_is_that_of_the_standards() {
        let url = "s3://bucket/key".parse().unwrap();
        let md5 = 0x25f9_e794_323b_4538_85f5_181f_1b62_4d0b_u128;
        let mut sha256 = [0; 32];
        let digits = "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225";
        for (i, byte) in sha256.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).unwrap();
        }
        for sum in [
            Checksum::Md5(md5.to_be_bytes()),
            Checksum::Sha256(sha256),
            Checksum::Crc64Nvme(0xae8b_1486_0a79_9888),
            Checksum::Crc32c(0xe306_9283),
            Checksum::Crc32(0xcbf4_3926),
        ] {
            for (content, fine) in [("123456789", true), ("123456780", false)] {
                let mut hasher = Hasher::like(Some(&sum));
                let (one, two) = content.split_at(4);
                hasher.update(one.as_bytes());
                hasher.update(two.as_bytes());
                let checked = hasher.check(&url, Some(&sum));
                assert_eq!(checked.is_ok(), fine, "{sum:?}: {content}");
            }
        }
    }
}
