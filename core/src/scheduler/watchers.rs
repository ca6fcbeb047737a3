//! Who wants to know of changes: the `watch` of every store.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use futures_util::Stream;
use tokio::sync::Notify;

use super::record::{Head, TaskId};

/// Everyone who watches.
#[derive(Debug, Default)]
pub(crate) struct Watchers(Mutex<Vec<Weak<Mailbox>>>);

/// One who watches.
#[derive(Debug)]
pub(crate) struct Watcher(Arc<Mailbox>);

/// What one watcher has not read yet: at most one head, the newest, for each task. A slow
/// reader costs memory for each task that changed, not for each change.
#[derive(Debug, Default)]
struct Mailbox {
    unread: Mutex<Unread>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Unread {
    order: VecDeque<TaskId>,
    newest: HashMap<TaskId, Head>,
}

impl Watchers {
    /// From now on every published head reaches the new watcher.
    pub(crate) fn register(&self) -> Watcher {
        let mailbox = Arc::new(Mailbox::default());
        let mut all = lock(&self.0);
        all.retain(|other| other.strong_count() > 0);
        all.push(Arc::downgrade(&mailbox));
        Watcher(mailbox)
    }

    pub(crate) fn publish(&self, heads: &[Head]) {
        for mailbox in lock(&self.0).iter().filter_map(Weak::upgrade) {
            mailbox.put(heads.iter().cloned());
        }
    }
}

impl Watcher {
    /// Adds what was there at the beginning, except where something newer arrived already.
    pub(crate) fn merge(&self, heads: Vec<Head>) {
        self.0.put(heads.into_iter());
    }

    pub(crate) fn into_stream(self) -> impl Stream<Item = Head> + Send + 'static {
        futures_util::stream::unfold(self.0, |mailbox| async move {
            let head = mailbox.next().await;
            Some((head, mailbox))
        })
    }
}

impl Mailbox {
    fn put(&self, heads: impl Iterator<Item = Head>) {
        {
            let Unread { order, newest } = &mut *lock(&self.unread);
            for head in heads {
                match newest.get_mut(&head.id) {
                    Some(known) if known.version >= head.version => {}
                    Some(known) => *known = head,
                    None => {
                        order.push_back(head.id.clone());
                        newest.insert(head.id.clone(), head);
                    }
                }
            }
        }
        self.arrived.notify_one();
    }

    async fn next(&self) -> Head {
        loop {
            {
                let Unread { order, newest } = &mut *lock(&self.unread);
                while let Some(id) = order.pop_front() {
                    if let Some(head) = newest.remove(&id) {
                        return head;
                    }
                }
            }
            self.arrived.notified().await;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
