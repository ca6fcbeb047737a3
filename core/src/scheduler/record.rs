//! A task as it is stored.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::compute::AttemptId;
use crate::tes::{State, TaskLog, UrlSecrets};
use crate::time::Timestamp;

/// The id of a task: a DNS-1123 label that begins with a letter, at most 40 characters, opaque
/// to clients. The ones made here carry 95 random bits.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TaskId(Arc<str>);

/// A text that cannot be the id of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a task id")]
pub struct NotATaskId;

impl TaskId {
    const MAX: usize = 40;

    /// A new random id: `t` and 19 characters of `0-9a-v`.
    pub fn random() -> Self {
        const ALPHABET: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";
        let mut bits: u128 = rand::random();
        let mut id = String::with_capacity(20);
        id.push('t');
        for _ in 0..19 {
            id.push(char::from(ALPHABET[(bits & 31) as usize]));
            bits >>= 5;
        }
        Self(id.into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TaskId {
    type Err = NotATaskId;

    fn from_str(s: &str) -> Result<Self, NotATaskId> {
        let ok = s.len() <= Self::MAX
            && s.starts_with(|c: char| c.is_ascii_lowercase())
            && s.ends_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && s.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if ok {
            Ok(Self(s.into()))
        } else {
            Err(NotATaskId)
        }
    }
}

impl TryFrom<String> for TaskId {
    type Error = NotATaskId;

    fn try_from(s: String) -> Result<Self, NotATaskId> {
        s.parse()
    }
}

impl From<TaskId> for String {
    fn from(id: TaskId) -> Self {
        id.0.as_ref().to_owned()
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whose task it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Owner {
    /// The user's name; empty in open mode.
    pub user: String,
    /// The group the task was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
}

/// The small, changing part of a record. All that MINIMAL views, lists and the scheduler's
/// index need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The task's id.
    pub id: TaskId,
    /// Whose it is.
    pub owner: Owner,
    /// Where it is in its life.
    pub state: State,
    /// When it was stored.
    pub created: Timestamp,
    /// When `state` last changed.
    pub changed: Timestamp,
    /// Attempts reserved so far; the current one is `attempt - 1` in the logs. 0 before the
    /// first is reserved.
    pub attempt: u32,
    /// Not before this time is another attempt made (back-off after an infrastructure failure).
    pub not_before: Option<Timestamp>,
    /// Grows with each change of the task. An update compares it for equality; of two heads of
    /// one task, the greater is the newer.
    pub version: u64,
}

impl Head {
    /// Of a task that is stored now, in its first version.
    pub fn queued(id: TaskId, owner: Owner, now: Timestamp) -> Self {
        Self {
            id,
            owner,
            state: State::Queued,
            created: now,
            changed: now,
            attempt: 0,
            not_before: None,
            version: 1,
        }
    }

    /// The attempt that was reserved and is not concluded; `None` while the task waits for one.
    ///
    /// A back-off, even one that is over, is set when an attempt is given up and cleared when
    /// the next is reserved: that is what tells the two apart.
    pub fn current_attempt(&self) -> Option<AttemptId> {
        (self.attempt > 0 && self.not_before.is_none()).then(|| AttemptId {
            task: self.id.clone(),
            number: self.attempt,
        })
    }
}

/// A whole record.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The changing part.
    pub head: Head,
    /// The client's document as strict JSON (a serialised [`Task`](crate::tes::Task)), with
    /// passwords in URLs already masked. Never changes.
    pub document: Arc<str>,
    /// One log for each attempt; the first exists from the beginning.
    pub logs: Vec<TaskLog>,
    /// The passwords cut from the document's URLs; gone once the task is terminal. Filled only
    /// by [`TaskStore::get_with_secrets`](super::TaskStore::get_with_secrets).
    pub secrets: UrlSecrets,
}
