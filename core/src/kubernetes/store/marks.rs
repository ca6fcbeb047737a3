//! A few bits of a task's name and tags that tell nearly always that a filter does not match.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::object::Search;
use crate::tes::Filter;

/// Bits that each key and each tag set. Of tasks with three tags one in thirty is looked at for nothing,
/// with five one in fourteen.
const BITS: u32 = 2;

/// The marks of a task, which stand in the index beside its place: passing it by touches no other
/// memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Marks {
    tags: u64,
    name: u64,
}

/// What the marks of a task must have for a filter to match.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    tags: u64,
    name: u64,
    /// The bytes of the name that are asked for.
    mask: u64,
}

impl Marks {
    pub(super) fn of(search: &Search) -> Self {
        let tags = search.tags.iter();
        let bits = tags.map(|(key, value)| bits(key, None) | bits(key, Some(value)));
        Self {
            tags: bits.fold(0, |all, bits| all | bits),
            name: beginning(search.name.as_deref().unwrap_or_default()),
        }
    }
}

impl Wanted {
    pub(super) fn by(filter: &Filter) -> Self {
        let tags = filter.tags.iter();
        let bits = tags.map(|(key, value)| bits(key, value.as_deref()));
        let prefix = filter.name_prefix.as_deref().unwrap_or_default();
        let left = size_of::<u64>().saturating_sub(prefix.len());
        Self {
            tags: bits.fold(0, |all, bits| all | bits),
            name: beginning(prefix),
            mask: u64::MAX.checked_shl(8 * left as u32).unwrap_or(0),
        }
    }

    /// `false` only if the filter does not match.
    pub(super) fn may_be(&self, marks: Marks) -> bool {
        marks.tags & self.tags == self.tags && (marks.name ^ self.name) & self.mask == 0
    }
}

fn bits(key: &str, value: Option<&str>) -> u64 {
    let mut hasher = DefaultHasher::new();
    (key, value).hash(&mut hasher);
    let hash = hasher.finish();
    (0..BITS).fold(0, |bits, n| bits | 1 << ((hash >> (6 * n)) & 63))
}

/// The first bytes of a text.
fn beginning(text: &str) -> u64 {
    let mut bytes = [0; size_of::<u64>()];
    for (byte, of_text) in bytes.iter_mut().zip(text.bytes()) {
        *byte = of_text;
    }
    u64::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tes::State;

    fn search(name: Option<&str>, tags: &[(&str, &str)]) -> Search {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        Search {
            name: name.map(str::to_owned),
            tags: tags.iter().map(owned).collect(),
        }
    }

    #[test]
    fn what_matches_is_never_passed_by() {
        let names = [
            None,
            Some(""),
            Some("a"),
            Some("aä"),
            Some("abcdefgh"),
            Some("abcdefghij"),
        ];
        let tags = [
            &[][..],
            &[("a", "")],
            &[("a", "1"), ("b", "2")],
            &[("b", "2"), ("ä", "a")],
        ];
        let prefixes = [
            None,
            Some("a"),
            Some("aä"),
            Some("abcdefg"),
            Some("abcdefgh"),
            Some("abcdefghi"),
        ];
        let wanted_tags = [
            &[][..],
            &[("a", None)],
            &[("a", Some("1"))],
            &[("b", Some("2")), ("ä", None)],
        ];
        let mut passed = 0;
        for (name, tags) in names.iter().flat_map(|n| tags.iter().map(move |t| (n, t))) {
            let search = search(*name, tags);
            for prefix in prefixes {
                for wanted in wanted_tags {
                    let owned = |(key, value): &(&str, Option<&str>)| {
                        ((*key).to_owned(), value.map(str::to_owned))
                    };
                    let filter = Filter {
                        name_prefix: prefix.map(str::to_owned),
                        state: None,
                        tags: wanted.iter().map(owned).collect(),
                    };
                    let matches = filter.matches(*name, State::Queued, &search.tags);
                    let may_be = Wanted::by(&filter).may_be(Marks::of(&search));
                    assert!(may_be || !matches, "{search:?} {filter:?}");
                    passed += usize::from(!may_be);
                }
            }
        }
        assert!(passed > 400, "{passed} of 576 passed by");
    }

    #[test]
    fn few_tasks_are_looked_at_for_nothing() {
        let filter = Filter {
            tags: vec![("run".to_owned(), Some("rare".to_owned()))],
            ..Filter::default()
        };
        let wanted = Wanted::by(&filter);
        let looked = (0..10_000).filter(|n| {
            let value = n.to_string();
            let tags = [("run", value.as_str()), ("project", "p"), ("step", "align")];
            wanted.may_be(Marks::of(&search(None, &tags)))
        });
        let looked = looked.count();
        assert!(looked < 600, "{looked} of 10000");
    }
}
