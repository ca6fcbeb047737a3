//! What a list request asks for.

use super::rejection::Faults;
use super::{Rejection, State, View, page};
use crate::scheduler::store::Position;

/// The filters of a list request; all must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The name begins with this, case-sensitively.
    pub name_prefix: Option<String>,
    /// The task is in this state.
    pub state: Option<State>,
    /// Each key exists; with a value, the tag has that value.
    pub tags: Vec<(String, Option<String>)>,
}

impl Filter {
    /// Whether a task with this name, state and these tags is asked for.
    pub fn matches(&self, name: Option<&str>, state: State, tags: &[(String, String)]) -> bool {
        let has = |key: &str, value: Option<&str>| {
            tags.iter()
                .any(|(k, v)| k == key && value.is_none_or(|value| v == value))
        };
        self.state.is_none_or(|wanted| wanted == state)
            && self
                .name_prefix
                .as_deref()
                .is_none_or(|prefix| name.unwrap_or_default().starts_with(prefix))
            && self
                .tags
                .iter()
                .all(|(key, value)| has(key, value.as_deref()))
    }
}

/// A whole list request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListRequest {
    /// Which tasks.
    pub filter: Filter,
    /// How many at most, 1 to 2047.
    pub page_size: usize,
    /// Where the page begins; `None` is the newest task.
    pub after: Option<Position>,
    /// How much of each.
    pub view: View,
}

impl ListRequest {
    /// Tasks on a page when the client does not say.
    pub const DEFAULT_PAGE_SIZE: usize = 256;
    /// The most tasks on a page: TES wants fewer than 2048.
    pub const MAX_PAGE_SIZE: usize = 2047;
    /// The most tags that are asked for at once: a store compares each with each task.
    pub const MAX_TAGS: usize = 32;

    /// Reads decoded query parameters, in the order they came. Unknown ones are ignored, an
    /// empty one is as good as none, and of a repeated one (other than of tags) the last
    /// counts. `tag_key` and `tag_value` are paired by their positions among their own kind.
    pub fn parse(query: &[(String, String)]) -> Result<Self, Rejection> {
        let mut faults = Faults::default();
        let mut request = Self {
            filter: Filter::default(),
            page_size: Self::DEFAULT_PAGE_SIZE,
            after: None,
            view: View::default(),
        };
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for (name, value) in query {
            match name.as_str() {
                "tag_key" => keys.push(value.clone()),
                "tag_value" => values.push(value.clone()),
                _ if value.is_empty() => {}
                "name_prefix" => request.filter.name_prefix = Some(value.clone()),
                "state" => match value.parse() {
                    Ok(state) => request.filter.state = Some(state),
                    Err(()) => faults.add("state", "is not a state of TES 1.1"),
                },
                "page_size" => match value.parse() {
                    Ok(size @ 1..=Self::MAX_PAGE_SIZE) => request.page_size = size,
                    _ => faults.add(
                        "page_size",
                        format!("must be a number from 1 to {}", Self::MAX_PAGE_SIZE),
                    ),
                },
                "page_token" => match page::decode(value) {
                    Some(position) => request.after = Some(position),
                    None => faults.add("page_token", "is not a token of this server"),
                },
                "view" => match value.parse() {
                    Ok(view) => request.view = view,
                    Err(super::FieldError { field, msg }) => faults.add(field, msg),
                },
                _ => {}
            }
        }
        if values.len() > keys.len() {
            faults.add("tag_value", "there are more values than keys");
        }
        if keys.iter().any(String::is_empty) {
            faults.add("tag_key", "must not be empty");
        }
        let mut values = values.into_iter();
        let tags = &mut request.filter.tags;
        for key in keys {
            let tag = (key, values.next().filter(|value| !value.is_empty()));
            if tags.contains(&tag) {
                continue;
            }
            if tags.len() == Self::MAX_TAGS {
                let most = Self::MAX_TAGS;
                faults.add(
                    "tag_key",
                    format!("at most {most} different tags can be asked for"),
                );
                break;
            }
            tags.push(tag);
        }
        faults.into_result().map(|()| request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &[(&str, &str)]) -> Result<ListRequest, Rejection> {
        let pairs: Vec<_> = query
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        ListRequest::parse(&pairs)
    }

    #[track_caller]
    fn breach(query: &[(&str, &str)]) -> String {
        parse(query).unwrap_err().to_string()
    }

    #[test]
    fn absent_and_empty_parameters_are_the_same() {
        let absent = parse(&[]).unwrap();
        let empty = ["name_prefix", "state", "page_size", "page_token", "view"].map(|n| (n, ""));
        assert_eq!(parse(&empty).unwrap(), absent);
        assert_eq!(absent.page_size, 256);
        assert_eq!(absent.view, View::Minimal);
        assert_eq!(absent.filter, Filter::default());
    }

    #[test]
    fn parameters_are_read_and_unknown_ones_ignored() {
        let token = page::encode(&Position {
            created: crate::time::Timestamp::from_millis(5),
            id: "t1".parse().unwrap(),
        });
        let request = parse(&[
            ("name_prefix", "a B"),
            ("state", "running"),
            ("page_size", "2047"),
            ("page_token", &token),
            ("view", "full"),
            ("vendor", "x"),
        ])
        .unwrap();
        assert_eq!(request.filter.name_prefix.as_deref(), Some("a B"));
        assert_eq!(request.filter.state, Some(State::Running));
        assert_eq!(request.page_size, 2047);
        assert_eq!(request.after.unwrap().id.as_str(), "t1");
        assert_eq!(request.view, View::Full);
        assert_eq!(parse(&[("page_size", "1")]).unwrap().page_size, 1);
        // Can be asked for, though it matches nothing.
        assert_eq!(
            parse(&[("state", "PAUSED")]).unwrap().filter.state,
            Some(State::Paused)
        );
    }

    #[test]
    fn bad_values_are_refused_together() {
        for size in [
            "0",
            "-1",
            "2048",
            "abc",
            "1.5",
            " 1",
            "99999999999999999999",
        ] {
            assert_eq!(
                breach(&[("page_size", size)]),
                "page_size: must be a number from 1 to 2047"
            );
        }
        assert_eq!(
            breach(&[("state", "x"), ("view", "x"), ("page_token", "x")]),
            "state: is not a state of TES 1.1; view: must be MINIMAL, BASIC or FULL; \
             page_token: is not a token of this server"
        );
    }

    #[test]
    fn tags_are_paired_by_position_however_interleaved() {
        let wanted = [
            ("a".to_owned(), Some("1".to_owned())),
            ("b".to_owned(), None),
            ("a".to_owned(), Some("2".to_owned())),
            ("c".to_owned(), None),
        ];
        let (a, b, c) = (("tag_key", "a"), ("tag_key", "b"), ("tag_key", "c"));
        let (one, none, two) = (("tag_value", "1"), ("tag_value", ""), ("tag_value", "2"));
        for query in [
            [a, one, b, none, a, two, c],
            [a, b, a, c, one, none, two],
            [one, none, two, a, b, a, c],
        ] {
            assert_eq!(parse(&query).unwrap().filter.tags, wanted);
        }
        assert_eq!(
            breach(&[a, one, none]),
            "tag_value: there are more values than keys"
        );
        assert_eq!(
            breach(&[("tag_key", ""), one]),
            "tag_key: must not be empty"
        );
    }

    #[test]
    fn a_tag_that_is_asked_for_again_counts_once_and_too_many_are_refused() {
        let keys: Vec<String> = (0..33).map(|index| format!("k{index}")).collect();
        let all: Vec<_> = keys.iter().map(|key| ("tag_key", key.as_str())).collect();
        let most = &all[..32];
        let again = parse(&[most, most].concat()).unwrap();
        assert_eq!(again, parse(most).unwrap());
        assert_eq!(again.filter.tags.len(), 32);
        assert_eq!(
            breach(&all),
            "tag_key: at most 32 different tags can be asked for"
        );
    }

    #[test]
    fn all_filters_must_hold() {
        let tags = [
            ("k".to_owned(), "v".to_owned()),
            ("e".to_owned(), String::new()),
        ];
        let matches = |query: &[(&str, &str)]| {
            let filter = parse(query).unwrap().filter;
            filter.matches(Some("Name"), State::Running, &tags)
        };
        assert!(matches(&[]));
        assert!(matches(&[
            ("name_prefix", "Na"),
            ("state", "RUNNING"),
            ("tag_key", "k")
        ]));
        assert!(matches(&[("tag_key", "e")]));
        assert!(matches(&[
            ("tag_key", "k"),
            ("tag_key", "k"),
            ("tag_value", "v")
        ]));
        assert!(!matches(&[("name_prefix", "na")]));
        assert!(!matches(&[("state", "QUEUED")]));
        assert!(!matches(&[("tag_key", "x")]));
        assert!(!matches(&[("tag_key", "k"), ("tag_value", "V")]));
        assert!(!matches(&[
            ("tag_key", "k"),
            ("tag_key", "k"),
            ("tag_value", "v"),
            ("tag_value", "w")
        ]));
        let named = parse(&[("name_prefix", "N")]).unwrap().filter;
        assert!(!named.matches(None, State::Running, &[]));
        let any = Filter {
            name_prefix: Some(String::new()),
            ..Filter::default()
        };
        assert!(any.matches(None, State::Running, &[]));
    }
}
