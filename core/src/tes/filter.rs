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
                .is_none_or(|prefix| name.is_some_and(|name| name.starts_with(prefix)))
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
        request.filter.tags = keys
            .into_iter()
            .map(|key| (key, values.next().filter(|value| !value.is_empty())))
            .collect();
        faults.into_result().map(|()| request)
    }
}
