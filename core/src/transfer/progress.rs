//! Counting what moves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::Counters;
use crate::storage::source::Meter;

/// The bytes of one try at one file. What a failed try counted and expected is taken back when
/// its last holder is dropped.
#[derive(Debug)]
pub(super) struct Progress {
    counters: Arc<Counters>,
    /// Of the file that this is a part of.
    whole: Option<Arc<Self>>,
    expected: AtomicU64,
    moved: AtomicU64,
    /// What was looked at before it is moved: it only shows life.
    inspected: AtomicU64,
    kept: AtomicBool,
}

impl Progress {
    pub(super) fn new(counters: &Arc<Counters>) -> Arc<Self> {
        Arc::new(Self {
            counters: counters.clone(),
            whole: None,
            expected: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            inspected: AtomicU64::new(0),
            kept: AtomicBool::new(false),
        })
    }

    /// One try at a part of this file.
    pub(super) fn part(self: &Arc<Self>) -> Arc<Self> {
        Arc::new(Self {
            counters: self.counters.clone(),
            whole: Some(self.clone()),
            expected: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            inspected: AtomicU64::new(0),
            kept: AtomicBool::new(false),
        })
    }

    /// So many bytes are to be moved.
    pub(super) fn expect(&self, bytes: u64) {
        self.expected.fetch_add(bytes, Ordering::Relaxed);
        self.counters
            .bytes_total
            .fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn so_far(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Grows whenever anything goes on.
    pub(super) fn life(&self) -> u64 {
        self.so_far() + self.inspected.load(Ordering::Relaxed)
    }

    /// The try succeeded.
    pub(super) fn keep(&self) {
        self.kept.store(true, Ordering::Relaxed);
    }
}

impl Meter for Progress {
    fn moved(&self, bytes: u64) {
        self.moved.fetch_add(bytes, Ordering::Relaxed);
        if let Some(whole) = &self.whole {
            whole.moved.fetch_add(bytes, Ordering::Relaxed);
        }
        self.counters.bytes_done.fetch_add(bytes, Ordering::Relaxed);
    }

    fn inspected(&self, bytes: u64) {
        self.inspected.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if !*self.kept.get_mut() {
            let (moved, expected) = (*self.moved.get_mut(), *self.expected.get_mut());
            let Counters {
                bytes_done,
                bytes_total,
                ..
            } = &*self.counters;
            bytes_done.fetch_sub(moved, Ordering::Relaxed);
            if let Some(whole) = &self.whole {
                whole.moved.fetch_sub(moved, Ordering::Relaxed);
            }
            bytes_total.fetch_sub(expected, Ordering::Relaxed);
        }
    }
}
