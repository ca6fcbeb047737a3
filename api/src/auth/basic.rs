//! Passwords (RFC 7617) against argon2 hashes, without letting argon2 be used to burn the CPU.
//!
//! Verdicts are remembered for a short time under a keyed digest, so that a client that polls
//! costs one hash a minute; wrong passwords are remembered too. Requests with the same credentials
//! wait for the same hash. Only a few are computed at once, and credentials beyond a short queue are
//! turned away.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use axum::http::{HeaderValue, StatusCode, header};
use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use sha2::{Digest, Sha256};
use tokio::sync::{OnceCell, Semaphore};

use crate::service::ApiError;

const REMEMBER_RIGHT: Duration = Duration::from_mins(1);
const REMEMBER_WRONG: Duration = Duration::from_secs(5);
/// Verdicts remembered; beyond it all are forgotten.
const REMEMBERED: usize = 10_000;
/// Hashes computed at once: each takes some 20 MiB and tens of milliseconds.
const AT_ONCE: usize = 2;
/// Credentials that may wait for one.
const WAITING: usize = 64;
/// Checked for names that do not exist, so that time does not tell which do.
const NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$c29tZSBvdGhlciBzYWx0$R8PDqk0VCgB2kLm3KBPGcMYVZkTUPkhOdKb5JYh3Xyk";

/// Some clients leave the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Credentials, as a keyed digest.
type Key = [u8; 32];

/// Checks passwords.
#[derive(Debug)]
pub(super) struct PasswordChecker {
    key: [u8; 32],
    verdicts: Mutex<HashMap<Key, (Instant, bool)>>,
    /// What is being checked for whoever has these.
    asked: Mutex<HashMap<Key, Weak<OnceCell<bool>>>>,
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
            asked: Mutex::default(),
            at_once: Semaphore::new(AT_ONCE),
            waiting: Semaphore::new(WAITING),
        }
    }

    /// Forgets all verdicts.
    pub(super) fn forget(&self) {
        lock(&self.verdicts).clear();
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
        let key: Key = digest.finalize().into();
        if let Some(verdict) = self.remembered(&key) {
            return Ok(verdict);
        }
        let asked = self.asked(key);
        let verdict = asked.get_or_try_init(|| self.compute(key, password, phc));
        verdict.await.copied()
    }

    /// The check of these credentials that is under way, or a new one.
    fn asked(&self, key: Key) -> Arc<OnceCell<bool>> {
        let mut asked = lock(&self.asked);
        if let Some(there) = asked.get(&key).and_then(Weak::upgrade) {
            return there;
        }
        asked.retain(|_, check| check.strong_count() > 0);
        let new = Arc::default();
        asked.insert(key, Arc::downgrade(&new));
        new
    }

    async fn compute(
        &self,
        key: Key,
        password: String,
        phc: Option<String>,
    ) -> Result<bool, ApiError> {
        let too_many = || {
            ApiError::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too many passwords are being checked; use a token, or try again later",
            )
            .with_header(header::RETRY_AFTER, HeaderValue::from_static("2"))
        };
        let _waiting = self.waiting.try_acquire().map_err(|_| too_many())?;
        let _turn = self.at_once.acquire().await.map_err(ApiError::internal)?;
        // Another request with the same credentials may just have ended.
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
        let mut verdicts = lock(&self.verdicts);
        if verdicts.len() >= REMEMBERED {
            verdicts.clear();
        }
        verdicts.insert(key, (Instant::now(), verdict));
        Ok(verdict)
    }

    fn remembered(&self, key: &Key) -> Option<bool> {
        let (since, verdict) = *lock(&self.verdicts).get(key)?;
        let ttl = if verdict {
            REMEMBER_RIGHT
        } else {
            REMEMBER_WRONG
        };
        (since.elapsed() < ttl).then_some(verdict)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
    async fn a_burst_of_requests_of_one_user_costs_one_hash() {
        let checker = PasswordChecker::new();
        let phc = hash("secret").unwrap();
        let check = || checker.check("ada", "secret".into(), Some(phc.clone()));
        let burst = (0..2 * WAITING).map(|_| check());
        for verdict in futures_util::future::join_all(burst).await {
            assert!(verdict.unwrap());
        }
        // Whoever comes later finds nothing of it but the verdict.
        checker.at_once.close();
        assert!(check().await.unwrap());
        assert_eq!(
            lock(&checker.asked)
                .values()
                .filter(|c| c.strong_count() > 0)
                .count(),
            0
        );
    }

    #[tokio::test]
    async fn many_different_passwords_at_once_are_turned_away() {
        let checker = PasswordChecker::new();
        let _none_ends = checker.at_once.acquire_many(AT_ONCE as u32).await.unwrap();
        let mut waiting: Vec<_> = (0..WAITING)
            .map(|n| Box::pin(checker.check("ada", n.to_string(), None)))
            .collect();
        for check in &mut waiting {
            assert!(futures_util::poll!(check).is_pending());
        }
        assert!(checker.check("ada", "one more".into(), None).await.is_err());
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
