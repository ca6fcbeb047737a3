//! The users file: who may use the service, by token or by password.
//!
//! ```toml
//! [[user]]
//! name = "ada"
//! group = "engines"               # optional, recorded with the user's tasks
//! admin = false                   # sees and cancels everybody's tasks
//! tokens = ["<SHA-256 in hex>"]   # made by `tesk auth token`
//! password = "$argon2id$…"        # made by `tesk auth hash`
//! ```
//!
//! A user may have several entries, as `tesk auth token ada >> users.toml` makes one each time.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tesk_core::scheduler::Owner;

use super::Caller;
use super::basic::{self, PasswordChecker};
use crate::service::ApiError;

/// The users file as it is now, re-read when it changes.
#[derive(Debug)]
pub struct UsersFile {
    path: PathBuf,
    current: RwLock<Arc<Users>>,
    passwords: PasswordChecker,
}

#[derive(Debug)]
struct Users {
    mark: Option<Mark>,
    /// By the SHA-256 of a token: its time tells of a digest, never of the token.
    tokens: HashMap<[u8; 32], Caller>,
    /// By user name: the PHC string and who it is.
    passwords: HashMap<String, (String, Caller)>,
}

/// What changes when the file does.
type Mark = (SystemTime, u64);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    user: Vec<User>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct User {
    name: String,
    group: Option<String>,
    admin: Option<bool>,
    #[serde(default)]
    tokens: Vec<String>,
    password: Option<String>,
}

/// What a users file holds of a token, as bytes.
pub fn token_digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

impl UsersFile {
    /// Reads the file.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, String> {
        let path = path.into();
        let users = Users::read(&path)?;
        Ok(Self {
            path,
            current: RwLock::new(Arc::new(users)),
            passwords: PasswordChecker::new(),
        })
    }

    /// Looks at the file again every two seconds, for ever. A file that cannot be read leaves
    /// the users as they were.
    pub async fn follow(&self) {
        let mut seen = self.users().mark;
        loop {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let now = mark(&self.path);
            // One that cannot be read is said once.
            if now != seen {
                seen = now;
                self.reload();
            }
        }
    }

    /// Reads the file again now.
    pub fn reload(&self) {
        match Users::read(&self.path) {
            Ok(users) => {
                let count = users.passwords.len() + users.tokens.len();
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(users);
                self.passwords.forget();
                tracing::info!(credentials = count, "read the users file again");
            }
            Err(error) => tracing::error!(error, "kept the users as they were"),
        }
    }

    fn users(&self) -> Arc<Users> {
        self.current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn by_token(&self, token: &str) -> Option<Caller> {
        let digest = token_digest(token);
        let users = self.users();
        let (known, caller) = users.tokens.get_key_value(&digest)?;
        bool::from(known.ct_eq(&digest)).then(|| caller.clone())
    }

    pub(super) async fn by_password(&self, encoded: &str) -> Result<Option<Caller>, ApiError> {
        let Some((name, password)) = basic::decode(encoded) else {
            return Ok(None);
        };
        let users = self.users();
        let known = users.passwords.get(&name);
        let valid = self
            .passwords
            .check(&name, password, known.map(|(phc, _)| phc.clone()))
            .await?;
        Ok(known.filter(|_| valid).map(|(_, caller)| caller.clone()))
    }
}

fn mark(path: &Path) -> Option<Mark> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

impl Users {
    fn read(path: &Path) -> Result<Self, String> {
        // The mark is taken first: a change during the read is then seen as one.
        let mark = mark(path);
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("cannot read the users file {}: {error}", path.display()))?;
        let origin = path.display().to_string();
        let file: File = tesk_core::config::parse(&origin, &text)?;
        Self::from_entries(mark, file.user).map_err(|error| format!("{origin}: {error}"))
    }

    fn from_entries(mark: Option<Mark>, entries: Vec<User>) -> Result<Self, String> {
        let mut users = Self {
            mark,
            tokens: HashMap::new(),
            passwords: HashMap::new(),
        };
        for user in merge(entries)? {
            let name = user.name;
            let caller = Caller {
                owner: Owner {
                    user: name.clone(),
                    group: user.group,
                },
                sees_all: user.admin.unwrap_or_default(),
            };
            for token in user.tokens {
                let mut digest = [0; 32];
                hex::decode_to_slice(&token, &mut digest).map_err(|_| {
                    format!(
                        "user `{name}`: a token is not 64 hex digits; `tesk auth token` makes one"
                    )
                })?;
                if users.tokens.insert(digest, caller.clone()).is_some() {
                    return Err(format!("user `{name}`: a token is there twice"));
                }
            }
            if let Some(phc) = user.password {
                if !basic::is_hash(&phc) {
                    return Err(format!(
                        "user `{name}`: the password is not an argon2 hash; `tesk auth hash` makes one"
                    ));
                }
                users.passwords.insert(name, (phc, caller));
            }
        }
        Ok(users)
    }
}

/// One entry for each user. Of several all tokens count; what one leaves out another may say, but
/// none the opposite.
fn merge(entries: Vec<User>) -> Result<impl Iterator<Item = User>, String> {
    fn join<T: PartialEq>(
        name: &str,
        key: &str,
        a: &mut Option<T>,
        b: Option<T>,
    ) -> Result<(), String> {
        if a.is_some() && b.is_some() && *a != b {
            return Err(format!(
                "user `{name}` is there more than once, with another {key}: keep one"
            ));
        }
        *a = a.take().or(b);
        Ok(())
    }
    let mut users = BTreeMap::<String, User>::new();
    for entry in entries {
        check_name(&entry.name)?;
        let Some(user) = users.get_mut(&entry.name) else {
            users.insert(entry.name.clone(), entry);
            continue;
        };
        let name = &entry.name;
        join(name, "group", &mut user.group, entry.group)?;
        join(name, "admin", &mut user.admin, entry.admin)?;
        join(name, "password", &mut user.password, entry.password)?;
        user.tokens.extend(entry.tokens);
    }
    Ok(users.into_values())
}

/// Whether a user can have this name: what HTTP's Basic scheme can carry (RFC 7617).
pub fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.contains(':') || name.chars().any(char::is_control) {
        return Err(format!(
            "user name {name:?}: must not be empty, nor hold a colon or control characters"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(text: &str) -> Result<Users, String> {
        let file: File = tesk_core::config::parse("users.toml", text)?;
        Users::from_entries(None, file.user)
    }

    #[test]
    fn entries_of_one_user_add_up_unless_they_say_the_opposite() {
        let token = |token| hex::encode(token_digest(token));
        let ada = |more: &str| format!("[[user]]\nname = \"ada\"\n{more}\n");
        let (one, two) = (token("one"), token("two"));
        let first = ada(&format!(
            "admin = true\ngroup = \"g\"\ntokens = [\"{one}\"]"
        ));
        let second = ada(&format!("tokens = [\"{two}\"]"));
        for text in [first.clone() + &second, second + &first] {
            let users = users(&text).unwrap();
            assert_eq!(users.tokens.len(), 2);
            for caller in users.tokens.values() {
                assert!(caller.sees_all);
                assert_eq!(caller.owner.group.as_deref(), Some("g"));
            }
        }
        let password = |salt: char| {
            let salt = String::from(salt).repeat(16);
            ada(&format!(
                "password = \"$argon2id$v=19$m=8,t=1,p=1${salt}$aaaaaaaaaaaaaaaaaaaaaa\""
            ))
        };
        for (more, key) in [
            (ada("admin = false"), "admin"),
            (ada("group = \"h\""), "group"),
            (password('a') + &password('b'), "password"),
        ] {
            let error = users(&(first.clone() + &more)).unwrap_err();
            assert!(error.contains("`ada`") && error.contains(key), "{error}");
        }
        users(&(first.clone() + &first)).unwrap_err();
    }
}
