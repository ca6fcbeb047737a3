//! Passwords (RFC 7617) against argon2 hashes, without letting argon2 be used to burn the CPU.
//!
//! Verdicts are remembered for a short time under a keyed digest, so that a client that polls
//! costs one hash a minute; wrong passwords are remembered too. Only a few hashes are computed
//! at once, and callers beyond a short queue are turned away.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use axum::http::{HeaderValue, StatusCode, header};
use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use crate::service::ApiError;

const REMEMBER_RIGHT: Duration = Duration::from_mins(1);
const REMEMBER_WRONG: Duration = Duration::from_secs(5);
/// Verdicts remembered; beyond it all are forgotten.
const REMEMBERED: usize = 10_000;
/// Hashes computed at once: each takes some 20 MiB and tens of milliseconds.
const AT_ONCE: usize = 2;
/// Callers that may wait for one.
const WAITING: usize = 64;
/// Checked for names that do not exist, so that time does not tell which do.
const NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$c29tZSBvdGhlciBzYWx0$R8PDqk0VCgB2kLm3KBPGcMYVZkTUPkhOdKb5JYh3Xyk";

/// Some clients leave the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Checks passwords.
#[derive(Debug)]
pub(super) struct PasswordChecker {
    key: [u8; 32],
    verdicts: Mutex<HashMap<[u8; 32], (Instant, bool)>>,
    at_once: Semaphore,
    waiting: Semaphore,
}

/// Splits the `user:password` of a Basic header.
pub(super) fn decode(encoded: &str) -> Option<(String, String)> {
    let text = String::from_utf8(BASE64.decode(encoded).ok()?).ok()?;
    let (name, password) = text.split_once(':')?;
    Some((name.to_owned(), password.to_owned()))
}

/// The argon2id hash of a password, for a users file.
pub fn hash(password: &str) -> Result<String, String> {
    Argon2::default()
        .hash_password(password.as_bytes())
        .map(|hash| hash.to_string())
        .map_err(|error| format!("cannot hash the password: {error}"))
}

/// Whether `text` is a hash that [`PasswordChecker`] can check.
pub(super) fn is_hash(text: &str) -> bool {
    PasswordHash::new(text).is_ok_and(|hash| hash.algorithm.as_str().starts_with("argon2"))
}

impl PasswordChecker {
    pub(super) fn new() -> Self {
        Self {
            key: rand::random(),
            verdicts: Mutex::default(),
            at_once: Semaphore::new(AT_ONCE),
            waiting: Semaphore::new(WAITING),
        }
    }

    /// Forgets all verdicts.
    pub(super) fn forget(&self) {
        self.lock().clear();
    }

    /// Whether `password` is the one that `phc` is the hash of. 429 if too many ask at once.
    pub(super) async fn check(
        &self,
        name: &str,
        password: String,
        phc: Option<String>,
    ) -> Result<bool, ApiError> {
        let mut digest = Sha256::new();
        digest.update(self.key);
        // The length keeps name and password apart, the hash keeps a changed password out.
        digest.update((name.len() as u64).to_le_bytes());
        digest.update(name);
        digest.update(phc.as_deref().unwrap_or_default());
        digest.update([0]);
        digest.update(&password);
        let key: [u8; 32] = digest.finalize().into();
        if let Some(verdict) = self.remembered(&key) {
            return Ok(verdict);
        }
        let too_many = || {
            ApiError::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too many passwords are being checked; use a token, or try again later",
            )
            .with_header(header::RETRY_AFTER, HeaderValue::from_static("2"))
        };
        let _waiting = self.waiting.try_acquire().map_err(|_| too_many())?;
        let _turn = self.at_once.acquire().await.map_err(ApiError::internal)?;
        // Another request with the same credentials may have been first.
        if let Some(verdict) = self.remembered(&key) {
            return Ok(verdict);
        }
        let verdict = tokio::task::spawn_blocking(move || {
            let known = phc.is_some();
            let phc = phc.as_deref().unwrap_or(NOBODY);
            let right = PasswordHash::new(phc).is_ok_and(|hash| {
                Argon2::default()
                    .verify_password(password.as_bytes(), &hash)
                    .is_ok()
            });
            known && right
        })
        .await
        .map_err(ApiError::internal)?;
        let mut verdicts = self.lock();
        if verdicts.len() >= REMEMBERED {
            verdicts.clear();
        }
        verdicts.insert(key, (Instant::now(), verdict));
        Ok(verdict)
    }

    fn remembered(&self, key: &[u8; 32]) -> Option<bool> {
        let (since, verdict) = *self.lock().get(key)?;
        let ttl = if verdict {
            REMEMBER_RIGHT
        } else {
            REMEMBER_WRONG
        };
        (since.elapsed() < ttl).then_some(verdict)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<[u8; 32], (Instant, bool)>> {
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn basic_credentials_split_at_the_first_colon() {
        // "ada:a:b" and "None:None"
        assert_eq!(decode("YWRhOmE6Yg=="), Some(("ada".into(), "a:b".into())));
        assert_eq!(decode("Tm9uZTpOb25l"), Some(("None".into(), "None".into())));
        assert_eq!(decode("!!"), None);
        assert_eq!(decode("YWRh"), None);
    }

    #[test]
    fn the_hash_of_nobody_can_be_checked() {
        assert!(is_hash(NOBODY));
        assert!(!is_hash("secret"));
    }

    #[tokio::test]
    async fn a_password_is_hashed_once_and_then_remembered() {
        let checker = PasswordChecker::new();
        let phc = hash("secret").unwrap();
        let check = |password: &str| checker.check("ada", password.into(), Some(phc.clone()));
        assert!(check("secret").await.unwrap());
        assert!(!check("wrong").await.unwrap());
        // Nothing can be computed any more: only what is remembered is answered.
        checker.at_once.close();
        assert!(check("secret").await.unwrap());
        assert!(!check("wrong").await.unwrap());
        assert!(check("other").await.is_err());
        checker.forget();
        assert!(check("secret").await.is_err());
    }
}
