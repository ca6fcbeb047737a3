//! Reading records and pages of them.

use std::fmt::Write as _;
use std::sync::Arc;

use rusqlite::types::Value;
use rusqlite::{Connection, Row, params_from_iter};

use super::{corrupt, failed, schema};
use crate::scheduler::store::{Page, Position, Query, RawRecord, StoreError};
use crate::scheduler::{Head, Owner, TaskId};
use crate::tes::State;
use crate::time::Timestamp;

macro_rules! head_columns {
    () => {
        "h.id, h.user, h.grp, h.state, h.created, h.changed, h.attempt, h.not_before, h.version"
    };
}

/// The columns that [`head`] reads, and where they come from.
pub(super) const HEADS: &str = concat!(head_columns!(), " FROM heads h");
/// The columns that [`raw_record`] reads, and where they come from.
pub(super) const WITH_DOCUMENTS: &str = concat!(
    head_columns!(),
    ", d.document, l.logs FROM heads h",
    " JOIN documents d ON d.key = h.key JOIN logs l ON l.key = h.key"
);
/// The same with passwords.
pub(super) const WITH_SECRETS: &str = concat!(
    head_columns!(),
    ", d.document, l.logs, s.secrets FROM heads h",
    " JOIN documents d ON d.key = h.key JOIN logs l ON l.key = h.key",
    " LEFT JOIN secrets s ON s.key = h.key"
);

/// Bytes of documents and logs in one page, about: a page of very large tasks ends early rather
/// than fill the memory.
const PAGE_BYTES: usize = 32 << 20;

pub(super) fn head(row: &Row<'_>) -> Result<Head, StoreError> {
    let text = |index| {
        row.get_ref(index)
            .map_err(failed)?
            .as_str()
            .map_err(corrupt)
    };
    let time = |index| row.get(index).map(Timestamp::from_millis).map_err(failed);
    let code: u8 = row.get(3).map_err(failed)?;
    Ok(Head {
        id: text(0)?.parse::<TaskId>().map_err(corrupt)?,
        owner: Owner {
            user: text(1)?.to_owned(),
            group: row.get(2).map_err(failed)?,
        },
        state: schema::state(code).ok_or_else(|| corrupt(format!("state {code}")))?,
        created: time(4)?,
        changed: time(5)?,
        attempt: row.get(6).map_err(failed)?,
        not_before: row
            .get::<_, Option<i64>>(7)
            .map_err(failed)?
            .map(Timestamp::from_millis),
        version: row.get(8).map_err(failed)?,
    })
}

pub(super) fn raw_record(row: &Row<'_>) -> Result<RawRecord, StoreError> {
    let text = |index| -> Result<Arc<str>, StoreError> {
        Ok(row
            .get_ref(index)
            .map_err(failed)?
            .as_str()
            .map_err(corrupt)?
            .into())
    };
    Ok(RawRecord {
        head: head(row)?,
        document: text(9)?,
        logs: text(10)?,
    })
}

/// Every task that is not terminal, oldest first.
pub(super) fn active(connection: &Connection) -> Result<Vec<Head>, StoreError> {
    let states: Vec<_> = State::ALL
        .into_iter()
        .filter(|state| !state.is_terminal())
        .map(|state| schema::code(state).to_string())
        .collect();
    let mut statement = connection
        .prepare_cached(&format!(
            "SELECT {HEADS} WHERE h.state IN ({}) ORDER BY h.created, h.id",
            states.join(", ")
        ))
        .map_err(failed)?;
    let mut rows = statement.query([]).map_err(failed)?;
    let mut heads = Vec::new();
    while let Some(row) = rows.next().map_err(failed)? {
        heads.push(head(row)?);
    }
    Ok(heads)
}

/// One page, newest first.
pub(super) fn page(connection: &Connection, query: &Query) -> Result<Page, StoreError> {
    let (sql, values) = select(query);
    let mut statement = connection.prepare_cached(&sql).map_err(failed)?;
    let mut rows = statement.query(params_from_iter(values)).map_err(failed)?;
    let empty: Arc<str> = "".into();
    let mut page = Page::default();
    let mut bytes = 0;
    while let Some(row) = rows.next().map_err(failed)? {
        if page.tasks.len() == query.limit || bytes > PAGE_BYTES {
            page.next = page.tasks.last().map(|last| Position {
                created: last.head.created,
                id: last.head.id.clone(),
            });
            break;
        }
        let task = if query.documents {
            raw_record(row)?
        } else {
            RawRecord {
                head: head(row)?,
                document: Arc::clone(&empty),
                logs: Arc::clone(&empty),
            }
        };
        bytes += task.document.len() + task.logs.len();
        page.tasks.push(task);
    }
    Ok(page)
}

/// What a page is read by: the index that is walked in the order of the page.
enum Walk {
    All,
    State,
    User,
    Tag,
}

/// The statement of a page. Which index is walked is decided here and not left to SQLite,
/// which has no statistics: few tasks are in a state that is not terminal; next, tags are taken
/// to be the most selective.
fn select(query: &Query) -> (String, Vec<Value>) {
    let filter = &query.filter;
    let walk = if filter.state.is_some_and(|state| !state.is_terminal()) {
        Walk::State
    } else if !filter.tags.is_empty() {
        Walk::Tag
    } else if query.user.is_some() {
        Walk::User
    } else if filter.state.is_some() {
        Walk::State
    } else {
        Walk::All
    };

    let mut values = Vec::new();
    let mut bind = |value: Value| {
        values.push(value);
        format!("?{}", values.len())
    };
    let mut tags = filter.tags.iter();
    let columns = if query.documents {
        WITH_DOCUMENTS
    } else {
        HEADS
    };
    let (columns, joined) = columns.split_once(" FROM heads h").unwrap_or((columns, ""));
    let mut sql = format!("SELECT {columns} FROM ");
    // CROSS JOIN keeps the order of the tables.
    let place = match walk {
        Walk::All => {
            sql.push_str("heads h");
            "h"
        }
        Walk::State => {
            sql.push_str("heads h INDEXED BY heads_by_state");
            "h"
        }
        Walk::User => {
            sql.push_str("heads h INDEXED BY heads_by_user");
            "h"
        }
        Walk::Tag => {
            let valued = matches!(tags.as_slice().first(), Some((_, Some(_))));
            let index = if valued {
                "tags_by_value"
            } else {
                "tags_by_tag"
            };
            let _ = write!(
                sql,
                "tags t INDEXED BY {index} CROSS JOIN heads h ON h.created = t.created AND h.id = t.id"
            );
            "t"
        }
    };
    // In the place of plain joins, so that they follow the walked table too.
    sql.push_str(&joined.replace(" JOIN ", " CROSS JOIN "));
    sql.push_str(" WHERE 1");
    if let Walk::Tag = walk
        && let Some((tag, value)) = tags.next()
    {
        let _ = write!(sql, " AND t.tag = {}", bind(tag.clone().into()));
        if let Some(value) = value {
            let _ = write!(sql, " AND t.value = {}", bind(value.clone().into()));
        }
    }
    for (tag, value) in tags {
        let _ = write!(
            sql,
            " AND EXISTS (SELECT 1 FROM tags o WHERE o.created = h.created AND o.id = h.id AND o.tag = {}",
            bind(tag.clone().into())
        );
        if let Some(value) = value {
            let _ = write!(sql, " AND o.value = {}", bind(value.clone().into()));
        }
        sql.push(')');
    }
    if let Some(state) = filter.state {
        let state = i64::from(schema::code(state));
        let _ = write!(sql, " AND h.state = {}", bind(state.into()));
    }
    if let Some(user) = &query.user {
        let _ = write!(sql, " AND h.user = {}", bind(user.clone().into()));
    }
    if let Some(prefix) = filter.name_prefix.as_ref().filter(|p| !p.is_empty()) {
        let length = bind((prefix.chars().count() as i64).into());
        let prefix = bind(prefix.clone().into());
        let _ = write!(sql, " AND substr(h.name, 1, {length}) = {prefix}");
    }
    if let Some(after) = &query.after {
        let created = bind(after.created.as_millis().into());
        let id = bind(after.id.as_str().to_owned().into());
        let _ = write!(
            sql,
            " AND ({place}.created, {place}.id) < ({created}, {id})"
        );
    }
    // One more than asked for tells whether another page follows.
    let limit = bind((query.limit as i64).saturating_add(1).into());
    let _ = write!(
        sql,
        " ORDER BY {place}.created DESC, {place}.id DESC LIMIT {limit}"
    );
    (sql, values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tes::Filter;

    fn plan(query: &Query) -> String {
        let mut connection = Connection::open_in_memory().unwrap();
        schema::migrate(&mut connection, std::path::Path::new("memory")).unwrap();
        let (sql, values) = select(query);
        let mut statement = connection
            .prepare(&format!("EXPLAIN QUERY PLAN {sql}"))
            .unwrap();
        let rows = statement
            .query_map(params_from_iter(values), |row| row.get::<_, String>(3))
            .unwrap();
        rows.map(Result::unwrap).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn no_page_is_sorted_or_scanned_from_the_start() {
        let states = [None, Some(State::Running), Some(State::Complete)];
        let tags = [
            vec![],
            vec![("a".to_owned(), None)],
            vec![
                ("a".to_owned(), Some("b".to_owned())),
                ("c".to_owned(), None),
            ],
        ];
        let after = Position {
            created: Timestamp::from_millis(5),
            id: "t5".parse().unwrap(),
        };
        for state in states {
            for tags in &tags {
                for user in [None, Some("u".to_owned())] {
                    for documents in [false, true] {
                        let query = Query {
                            filter: Filter {
                                name_prefix: None,
                                state,
                                tags: tags.clone(),
                            },
                            user: user.clone(),
                            after: Some(after.clone()),
                            limit: 10,
                            documents,
                        };
                        let plan = plan(&query);
                        assert!(!plan.contains("TEMP B-TREE"), "{query:?}: {plan}");
                        assert!(!plan.contains("SCAN"), "{query:?}: {plan}");
                        // The page begins at its position, not at the newest task.
                        let walked = plan.lines().next().unwrap();
                        assert!(walked.contains('<'), "{query:?}: {plan}");
                    }
                }
            }
        }
    }
}
