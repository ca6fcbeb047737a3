//! What is known of every task, in memory: the answer to heads, counts and pages.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::marks::{Marks, Wanted};
use super::object::Entry;
use crate::scheduler::store::{Position, Query};
use crate::scheduler::{Head, TaskId};
use crate::tes::State;
use crate::time::Timestamp;

/// How long the ids of removed tasks are remembered, so that late news of them is known as such.
const REMEMBER: Duration = Duration::from_mins(10);

/// A task's place in the order of all tasks.
type Place = (Timestamp, TaskId);

/// Tasks in order. A page may have to pass all of them, so what tells most of them off is right
/// there.
type Places = BTreeMap<Place, (Marks, Arc<Entry>)>;

/// Every task, by all that it is looked up by.
#[derive(Debug, Default)]
pub(super) struct Index {
    tasks: HashMap<TaskId, Arc<Entry>>,
    all: Places,
    by_user: HashMap<String, Places>,
    by_state: HashMap<State, Places>,
    /// Terminal tasks by the time of their end.
    ended: BTreeSet<Place>,
    /// Heads that cannot be read, and why.
    broken: HashMap<TaskId, String>,
    removed: HashSet<TaskId>,
    removals: VecDeque<(Instant, TaskId)>,
}

/// What the index knows of an id.
#[derive(Debug)]
pub(super) enum Known {
    Task(Arc<Entry>),
    /// It is there and cannot be read.
    Broken(String),
    /// It was there.
    Removed,
    /// It may be new.
    No,
}

impl Index {
    pub(super) fn get(&self, id: &TaskId) -> Known {
        if let Some(entry) = self.tasks.get(id) {
            Known::Task(Arc::clone(entry))
        } else if let Some(reason) = self.broken.get(id) {
            Known::Broken(reason.clone())
        } else if self.removed.contains(id) {
            Known::Removed
        } else {
            Known::No
        }
    }

    /// Takes a head in; the head if it was news.
    pub(super) fn apply(&mut self, entry: Entry) -> Option<Head> {
        let id = &entry.head.id;
        if self.removed.contains(id) {
            return None;
        }
        match self.tasks.get(id) {
            Some(known) if known.head.version >= entry.head.version => return None,
            _ => self.take(id),
        }
        self.broken.remove(id);
        let entry = Arc::new(entry);
        let head = entry.head.clone();
        let place = (head.created, head.id.clone());
        let marked = (Marks::of(&entry.search), Arc::clone(&entry));
        let user = self.by_user.entry(head.owner.user.clone()).or_default();
        user.insert(place.clone(), marked.clone());
        let state = self.by_state.entry(head.state).or_default();
        state.insert(place.clone(), marked.clone());
        self.all.insert(place, marked);
        if head.state.is_terminal() {
            self.ended.insert((head.changed, head.id.clone()));
        }
        self.tasks.insert(head.id.clone(), entry);
        Some(head)
    }

    /// Takes in that a head cannot be read; whether that is news.
    pub(super) fn broke(&mut self, id: &TaskId, reason: &str) -> bool {
        if self.removed.contains(id) {
            return false;
        }
        self.take(id);
        self.broken.insert(id.clone(), reason.to_owned()).is_none()
    }

    /// Takes in that a task is gone for good.
    pub(super) fn remove(&mut self, id: &TaskId) {
        self.take(id);
        self.broken.remove(id);
        let now = Instant::now();
        while let Some((time, old)) = self.removals.front()
            && now.duration_since(*time) > REMEMBER
        {
            self.removed.remove(old);
            self.removals.pop_front();
        }
        if self.removed.insert(id.clone()) {
            self.removals.push_back((now, id.clone()));
        }
    }

    fn take(&mut self, id: &TaskId) {
        let Some(old) = self.tasks.remove(id) else {
            return;
        };
        let head = &old.head;
        let place = (head.created, head.id.clone());
        if let Some(places) = self.by_user.get_mut(&head.owner.user) {
            places.remove(&place);
            if places.is_empty() {
                self.by_user.remove(&head.owner.user);
            }
        }
        if let Some(places) = self.by_state.get_mut(&head.state) {
            places.remove(&place);
        }
        self.all.remove(&place);
        self.ended.remove(&(head.changed, head.id.clone()));
    }

    /// Removes what is not among `listed`, a list of all tasks at `version`.
    pub(super) fn retain(&mut self, listed: &HashSet<TaskId>, version: u64) {
        let known = self
            .tasks
            .iter()
            .map(|(id, entry)| (id, entry.head.version));
        let broken = self.broken.keys().map(|id| (id, 0));
        let gone: Vec<TaskId> = known
            .chain(broken)
            // What was written after the list was made is news of which the list knows nothing.
            .filter(|(id, newest)| *newest <= version && !listed.contains(*id))
            .map(|(id, _)| id.clone())
            .collect();
        for id in gone {
            self.remove(&id);
        }
    }

    /// Up to `limit` tasks of a page, after a position; and where to go on, unless that was all. The
    /// walk is over all tasks, or those of one user or in one state, whichever are fewer; it ends
    /// after `looks` of them.
    pub(super) fn matching(
        &self,
        query: &Query,
        after: Option<&Position>,
        limit: usize,
        looks: usize,
    ) -> (Vec<Arc<Entry>>, Option<Position>) {
        let mut places = &self.all;
        let of_user = query.user.as_ref().map(|user| self.by_user.get(user));
        let in_state = query.filter.state.map(|state| self.by_state.get(&state));
        for narrower in [of_user, in_state].into_iter().flatten() {
            match narrower {
                None => return (Vec::new(), None),
                Some(narrower) if narrower.len() < places.len() => places = narrower,
                Some(_) => {}
            }
        }
        let end = match after {
            Some(position) => Bound::Excluded((position.created, position.id.clone())),
            None => Bound::Unbounded,
        };
        let wanted = Wanted::by(&query.filter);
        let mut found = Vec::new();
        let walk = places.range((Bound::Unbounded, end)).rev();
        let matches = |entry: &Entry| {
            let Entry { head, search, .. } = entry;
            let user = query.user.as_ref();
            user.is_none_or(|user| *user == head.owner.user)
                && query
                    .filter
                    .matches(search.name.as_deref(), head.state, &search.tags)
        };
        for (looked, ((created, id), (marks, entry))) in (1..).zip(walk) {
            if wanted.may_be(*marks) && matches(entry) {
                found.push(Arc::clone(entry));
            }
            if looked == looks || found.len() == limit {
                let here = Position {
                    created: *created,
                    id: id.clone(),
                };
                return (found, Some(here));
            }
        }
        (found, None)
    }

    /// Tasks that have an attempt and are not terminal.
    pub(super) fn under_way(&self) -> Vec<Arc<Entry>> {
        let states = self.by_state.iter().filter(|(s, _)| !s.is_terminal());
        let tasks = states.flat_map(|(_, places)| places.values());
        let tasks = tasks.map(|(_, entry)| entry);
        let under_way = tasks.filter(|entry| entry.head.current_attempt().is_some());
        under_way.cloned().collect()
    }

    /// Every task that is not terminal, oldest first.
    pub(super) fn active(&self) -> Vec<Head> {
        let states = self.by_state.iter().filter(|(s, _)| !s.is_terminal());
        let mut places: Vec<_> = states.flat_map(|(_, places)| places).collect();
        places.sort_by_key(|(place, _)| *place);
        let heads = places.into_iter().map(|(_, (_, entry))| entry.head.clone());
        heads.collect()
    }

    /// Tasks that ended before a time, oldest first.
    pub(super) fn ended(&self, before: Timestamp, limit: usize) -> Vec<Arc<Entry>> {
        self.ended
            .iter()
            .take_while(|(ended, _)| *ended < before)
            .take(limit)
            .filter_map(|(_, id)| self.tasks.get(id).cloned())
            .collect()
    }

    pub(super) fn counts(&self) -> Vec<(State, u64)> {
        let count = |state| self.by_state.get(&state).map_or(0, BTreeMap::len) as u64;
        State::ALL.map(|state| (state, count(state))).to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::super::object::{Search, TextRef};
    use super::*;
    use crate::scheduler::Owner;
    use crate::tes::Filter;

    fn entry(n: u64, user: &str, state: State, version: u64) -> Entry {
        let text = TextRef {
            hash: String::new(),
            bytes: 0,
            parts: 0,
            write: 0,
        };
        Entry {
            head: Head {
                id: format!("t{n}").parse().unwrap(),
                owner: Owner {
                    user: user.to_owned(),
                    group: None,
                },
                state,
                created: Timestamp::from_millis(n as i64),
                changed: Timestamp::from_millis(n as i64),
                attempt: 0,
                not_before: None,
                version,
            },
            uid: String::new(),
            search: Search::default(),
            document: text.clone(),
            logs: text,
            secret: false,
            key: None,
            write: 0,
        }
    }

    fn id(n: u64) -> TaskId {
        format!("t{n}").parse().unwrap()
    }

    fn candidates(index: &Index, user: Option<&str>, state: Option<State>) -> Vec<String> {
        let query = Query {
            filter: Filter {
                state,
                ..Filter::default()
            },
            user: user.map(str::to_owned),
            after: None,
            limit: 10,
            documents: false,
        };
        let (found, _) = index.matching(&query, None, 10, usize::MAX);
        found.iter().map(|e| e.head.id.to_string()).collect()
    }

    #[test]
    fn a_page_walks_the_fewest_tasks_it_can() {
        let mut index = Index::default();
        for n in 10..1000 {
            index.apply(entry(n, "bob", State::Complete, n));
        }
        index.apply(entry(1, "ann", State::Complete, 1));
        index.apply(entry(2, "bob", State::Running, 2));
        assert_eq!(candidates(&index, Some("ann"), None), ["t1"]);
        assert_eq!(
            candidates(&index, Some("bob"), Some(State::Running)),
            ["t2"]
        );
        assert_eq!(
            candidates(&index, Some("ann"), Some(State::Complete)),
            ["t1"]
        );
        assert!(candidates(&index, Some("eve"), None).is_empty());
        assert!(candidates(&index, None, Some(State::Queued)).is_empty());
        assert_eq!(candidates(&index, None, None)[..2], ["t999", "t998"]);
    }

    #[test]
    fn a_walk_that_was_cut_short_goes_on_where_it_was() {
        let mut index = Index::default();
        for n in 100..200 {
            let mut task = entry(n, "bob", State::Complete, n);
            task.search.name = (n % 10 == 0).then(|| "tenth".to_owned());
            index.apply(task);
        }
        let query = Query {
            filter: Filter {
                name_prefix: Some("ten".to_owned()),
                ..Filter::default()
            },
            user: Some("bob".to_owned()),
            after: None,
            limit: 10,
            documents: false,
        };
        let (mut found, mut after, mut walks) = (Vec::new(), None, 0);
        loop {
            let (some, next) = index.matching(&query, after.as_ref(), 3, 40);
            assert!(some.len() <= 3);
            found.extend(some.iter().map(|entry| entry.head.version));
            walks += 1;
            after = next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(found, [190, 180, 170, 160, 150, 140, 130, 120, 110, 100]);
        assert!((4..=6).contains(&walks), "{walks}");
    }

    #[test]
    fn late_news_change_nothing() {
        let mut index = Index::default();
        assert!(index.apply(entry(1, "", State::Running, 5)).is_some());
        assert!(index.apply(entry(1, "", State::Queued, 4)).is_none());
        assert_eq!(index.active().len(), 1);
        index.remove(&id(1));
        assert!(index.apply(entry(1, "", State::Complete, 6)).is_none());
        assert!(!index.broke(&id(1), "late"));
        assert!(matches!(index.get(&id(1)), Known::Removed));
        assert!(index.counts().iter().all(|(_, count)| *count == 0));
    }

    #[test]
    fn a_list_removes_what_it_should_have_had() {
        let mut index = Index::default();
        index.apply(entry(1, "", State::Queued, 5));
        index.apply(entry(2, "", State::Queued, 6));
        // Written after the list was made.
        index.apply(entry(3, "", State::Queued, 11));
        index.broke(&id(4), "spoilt");
        index.retain(&HashSet::from([id(2)]), 10);
        let left: Vec<_> = index.active().into_iter().map(|head| head.id).collect();
        assert_eq!(left, [id(2), id(3)]);
        assert!(matches!(index.get(&id(4)), Known::Removed));
    }

    #[test]
    fn a_head_that_was_spoilt_and_mended_is_back() {
        let mut index = Index::default();
        index.apply(entry(1, "", State::Queued, 5));
        assert!(index.broke(&id(1), "spoilt"));
        assert!(!index.broke(&id(1), "spoilt"), "told twice");
        assert!(candidates(&index, None, None).is_empty());
        assert!(index.apply(entry(1, "", State::Queued, 7)).is_some());
        assert_eq!(candidates(&index, None, None), ["t1"]);
    }
}
