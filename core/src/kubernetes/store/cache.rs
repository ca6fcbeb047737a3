//! Documents and logs that were read or written a short time ago.
//!
//! A text is known by its task and its hash, so what is here is never out of date.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::object::TextRef;
use crate::scheduler::TaskId;

/// Bytes that an entry costs beside its text, about.
const OVERHEAD: usize = 200;

type Key = (TaskId, String);

/// The texts used last, up to a number of bytes.
#[derive(Debug, Default)]
pub(super) struct Cache {
    limit: usize,
    bytes: usize,
    /// When a text was used last, as a count of uses.
    clock: u64,
    texts: HashMap<Key, (u64, Arc<str>)>,
    by_use: BTreeMap<u64, Key>,
}

impl Cache {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            ..Self::default()
        }
    }

    pub(super) fn get(&mut self, id: &TaskId, text: &TextRef) -> Option<Arc<str>> {
        let key = (id.clone(), text.hash.clone());
        let (used, text) = self.texts.get_mut(&key)?;
        self.by_use.remove(used);
        self.clock += 1;
        *used = self.clock;
        self.by_use.insert(self.clock, key);
        Some(Arc::clone(text))
    }

    /// Whether a text is here. That is not a use of it.
    pub(super) fn has(&self, id: &TaskId, text: &TextRef) -> bool {
        self.texts.contains_key(&(id.clone(), text.hash.clone()))
    }

    pub(super) fn put(&mut self, id: &TaskId, text: &TextRef, value: &Arc<str>) {
        // One text must not drive out all others.
        if value.len() > self.limit / 4 || self.get(id, text).is_some() {
            return;
        }
        let key = (id.clone(), text.hash.clone());
        self.clock += 1;
        self.bytes += value.len() + OVERHEAD;
        self.by_use.insert(self.clock, key.clone());
        self.texts.insert(key, (self.clock, Arc::clone(value)));
        while self.bytes > self.limit
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            if let Some((_, text)) = self.texts.remove(&oldest) {
                self.bytes -= text.len() + OVERHEAD;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_texts_used_last_stay_within_the_limit() {
        let mut cache = Cache::new(10 * (100 + OVERHEAD));
        let id: TaskId = "t1".parse().unwrap();
        let text = |n: usize| TextRef {
            hash: n.to_string(),
            bytes: 100,
            parts: 0,
            write: 0,
        };
        let value: Arc<str> = "x".repeat(100).into();
        for n in 0..1000 {
            cache.put(&id, &text(n), &value);
            assert!(cache.get(&id, &text(0)).is_some());
            assert!(cache.bytes <= cache.limit && cache.texts.len() == cache.by_use.len());
        }
        assert!(cache.get(&id, &text(999)).is_some());
        assert!(cache.get(&id, &text(500)).is_none());
        let large: Arc<str> = "x".repeat(cache.limit).into();
        cache.put(&id, &text(1001), &large);
        assert!(cache.get(&id, &text(999)).is_some());
    }
}
