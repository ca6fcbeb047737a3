//! Whose turn it is.
//!
//! First come, first served for each user; between users the one with the fewest active tasks
//! goes first, and of those with as many the one whose task waits longest. So users get equal
//! shares, however many tasks each has made. The task whose turn it is waits until there is room for it, and the others
//! behind it: so a task that needs the whole machine is not passed by small ones for ever.

use std::collections::{BTreeSet, HashMap};

use super::record::{Head, TaskId};
use super::run::{Capacity, Settings};
use crate::time::Timestamp;

type Place = (Timestamp, TaskId);

/// Tasks that wait for their turn, and what those that had it hold.
#[derive(Debug)]
pub(super) struct Queue {
    capacity: Option<Capacity>,
    max_active: usize,
    max_active_per_user: usize,
    users: HashMap<String, User>,
    /// Users with waiting tasks: those with the fewest active tasks first, then by age.
    turns: BTreeSet<(usize, Place, String)>,
    held: HashMap<TaskId, Held>,
    used: Capacity,
}

#[derive(Debug, Default)]
struct User {
    waiting: BTreeSet<Place>,
    active: usize,
}

#[derive(Debug)]
struct Held {
    user: String,
    needs: Capacity,
}

/// Whether a task of these needs can go.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Room {
    Yes,
    NotNow,
    Never(String),
}

/// Why a task waits for its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// So many tasks are active as may be in all.
    All,
    /// So many tasks of its user are active as may be.
    User,
    /// Others are before it.
    Turn,
    /// It is its turn, and what it asks for is not free.
    Room(Capacity),
}

impl Queue {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            capacity: settings.capacity,
            max_active: settings.max_active,
            max_active_per_user: settings.max_active_per_user.unwrap_or(usize::MAX),
            users: HashMap::new(),
            turns: BTreeSet::new(),
            held: HashMap::new(),
            used: Capacity::default(),
        }
    }

    /// Adds a task; fine if it is there.
    pub(super) fn push(&mut self, head: &Head) {
        self.change(&head.owner.user, |user| {
            user.waiting.insert((head.created, head.id.clone()));
        });
    }

    /// Takes a task out; fine if it is not there.
    pub(super) fn remove(&mut self, head: &Head) {
        self.change(&head.owner.user, |user| {
            user.waiting.remove(&(head.created, head.id.clone()));
        });
    }

    /// The task whose turn it is, unless the limits on active tasks forbid any.
    pub(super) fn next(&self) -> Option<&TaskId> {
        if self.held.len() >= self.max_active {
            return None;
        }
        let (active, (_, id), _) = self.turns.first()?;
        // The others have as many or more.
        (*active < self.max_active_per_user).then_some(id)
    }

    /// Why a task waits; `None` if it does not.
    pub(super) fn why(&self, head: &Head, needs: Option<Capacity>) -> Option<Why> {
        let user = self.users.get(&head.owner.user)?;
        if !user.waiting.contains(&(head.created, head.id.clone())) {
            return None;
        }
        Some(if user.active >= self.max_active_per_user {
            Why::User
        } else if self.held.len() >= self.max_active {
            Why::All
        } else if let (Some(needs), Some(first)) = (needs, self.next())
            && *first == head.id
        {
            Why::Room(needs)
        } else {
            Why::Turn
        })
    }

    /// A reason in words.
    pub(super) fn say(&self, why: Why) -> String {
        match why {
            Why::All if self.max_active == 0 => {
                "no task is started at present (limits.max_active is 0)".to_owned()
            }
            Why::All => format!(
                "as many tasks are active as may be in all (limits.max_active is {})",
                self.max_active
            ),
            Why::User => format!(
                "as many tasks of its user are active as may be (limits.max_active_per_user is {})",
                self.max_active_per_user
            ),
            Why::Turn => "other tasks are before it".to_owned(),
            Why::Room(needs) => format!(
                "it is the next, when {} CPU cores and {} of memory are free",
                needs.cores,
                gib(needs.memory)
            ),
        }
    }

    /// Whether a task is counted as active.
    pub(super) fn holds(&self, id: &TaskId) -> bool {
        self.held.contains_key(id)
    }

    pub(super) fn room(&self, needs: Capacity) -> Room {
        let Some(capacity) = self.capacity else {
            return Room::Yes;
        };
        if needs.cores > capacity.cores {
            return Room::Never(format!(
                "the task asks for {} CPU cores; this machine has {}",
                needs.cores, capacity.cores
            ));
        }
        if needs.memory > capacity.memory {
            return Room::Never(format!(
                "the task asks for {} of memory; this machine has {}",
                gib(needs.memory),
                gib(capacity.memory)
            ));
        }
        let fits = self.used.cores + needs.cores <= capacity.cores
            && self.used.memory.saturating_add(needs.memory) <= capacity.memory;
        if fits { Room::Yes } else { Room::NotNow }
    }

    /// Gives a task its share of the machine; it no longer waits.
    pub(super) fn hold(&mut self, head: &Head, needs: Capacity) {
        self.remove(head);
        let user = head.owner.user.clone();
        let before = self.held.insert(
            head.id.clone(),
            Held {
                user: user.clone(),
                needs,
            },
        );
        if before.is_none() {
            self.change(&user, |user| user.active += 1);
            self.used.cores += needs.cores;
            self.used.memory = self.used.memory.saturating_add(needs.memory);
        }
    }

    /// Takes a task's share back; `false` if it had none.
    pub(super) fn release(&mut self, id: &TaskId) -> bool {
        let Some(Held { user, needs }) = self.held.remove(id) else {
            return false;
        };
        self.change(&user, |user| user.active -= 1);
        self.used.cores -= needs.cores;
        self.used.memory = self.used.memory.saturating_sub(needs.memory);
        true
    }

    /// Changes a user and keeps its place among the others right.
    fn change(&mut self, name: &str, change: impl FnOnce(&mut User)) {
        let user = self.users.entry(name.to_owned()).or_default();
        if let Some(first) = user.waiting.first() {
            self.turns
                .remove(&(user.active, first.clone(), name.to_owned()));
        }
        change(user);
        if let Some(first) = user.waiting.first() {
            self.turns
                .insert((user.active, first.clone(), name.to_owned()));
        } else if user.active == 0 {
            self.users.remove(name);
        }
    }
}

/// Bytes in the unit of `ram_gb`.
fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / 1_073_741_824.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::Owner;
    use crate::tes::State;

    fn head(id: &str, user: &str, created: i64) -> Head {
        Head {
            id: id.parse().unwrap(),
            owner: Owner {
                user: user.to_owned(),
                group: None,
            },
            state: State::Queued,
            created: Timestamp::from_millis(created),
            changed: Timestamp::from_millis(created),
            attempt: 0,
            not_before: None,
            version: 1,
        }
    }

    fn cores(cores: u32) -> Capacity {
        Capacity { cores, memory: 0 }
    }

    fn queue(capacity: u32) -> Queue {
        Queue::new(&Settings {
            capacity: Some(Capacity {
                cores: capacity,
                memory: 100,
            }),
            max_active: 10,
            max_active_per_user: Some(3),
            ..Settings::default()
        })
    }

    fn next(queue: &Queue) -> Option<&str> {
        queue.next().map(TaskId::as_str)
    }

    #[test]
    fn the_oldest_goes_first_and_users_take_turns() {
        let mut queue = queue(10);
        let tasks = [
            head("a1", "ann", 1),
            head("a2", "ann", 2),
            head("a3", "ann", 3),
            head("b1", "bob", 9),
        ];
        for task in tasks.iter().rev() {
            queue.push(task);
        }
        let mut order = Vec::new();
        while let Some(id) = queue.next().cloned() {
            let task = tasks.iter().find(|t| t.id == id).unwrap();
            queue.hold(task, cores(1));
            order.push(id.to_string());
        }
        assert_eq!(order, ["a1", "b1", "a2", "a3"]);
    }

    #[test]
    fn a_user_at_the_limit_waits_for_one_of_its_own_to_end() {
        let mut queue = queue(10);
        for i in 1..=4 {
            let task = head(&format!("a{i}"), "ann", i);
            queue.push(&task);
            if i < 4 {
                queue.hold(&task, cores(1));
            }
        }
        assert_eq!(next(&queue), None);
        queue.release(&"a2".parse().unwrap());
        assert_eq!(next(&queue), Some("a4"));
    }

    #[test]
    fn room_is_what_the_machine_has_less_what_is_held() {
        let mut queue = queue(4);
        queue.hold(&head("a", "ann", 1), cores(3));
        assert_eq!(queue.room(cores(1)), Room::Yes);
        assert_eq!(queue.room(cores(2)), Room::NotNow);
        assert!(matches!(queue.room(cores(5)), Room::Never(why) if why.contains('5')));
        let memory = Capacity {
            cores: 0,
            memory: 101,
        };
        assert!(matches!(queue.room(memory), Room::Never(_)));
        queue.release(&"a".parse().unwrap());
        assert_eq!(queue.room(cores(4)), Room::Yes);
    }

    #[test]
    fn a_task_that_was_removed_has_no_turn() {
        let mut queue = queue(4);
        let task = head("a", "ann", 1);
        queue.push(&task);
        queue.remove(&task);
        assert_eq!(next(&queue), None);
        assert!(queue.users.is_empty() && queue.turns.is_empty());
    }
}
