//! Why a request is refused: every breach at once, each with the name of its field.

use std::collections::HashSet;
use std::fmt;

/// One breach, with the field it is in.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FieldError {
    /// The field, with indices as in the client's document: `executors[0].image`.
    pub field: String,
    /// What is wrong with it.
    pub msg: String,
}

/// Why a document is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// It is not JSON; the text has line and column.
    #[error("{0}")]
    Syntax(String),
    /// It breaks rules: all of them are here.
    #[error("{}", .0.iter().map(|e| format!("{}: {}", e.field, e.msg)).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<FieldError>),
}

/// Collects breaches: one for each field, the first that was found.
#[derive(Debug, Default)]
pub(super) struct Faults {
    found: Vec<FieldError>,
    fields: HashSet<String>,
    unlisted: usize,
}

impl Faults {
    /// As many are listed; a hostile document could have millions.
    const MOST: usize = 500;

    /// Notes that something is wrong at `field`.
    pub(super) fn add(&mut self, field: impl fmt::Display, msg: impl Into<String>) {
        if self.found.len() == Self::MOST {
            self.unlisted += 1;
            return;
        }
        let field = field.to_string();
        if self.fields.insert(field.clone()) {
            let msg = msg.into();
            self.found.push(FieldError { field, msg });
        }
    }

    /// Adds `hint` to what is wrong at `field`, if something is.
    pub(super) fn hint(&mut self, field: &str, hint: &str) {
        if let Some(error) = self.found.iter_mut().find(|error| error.field == field) {
            error.msg.push_str(hint);
        }
    }

    /// Whether nothing was wrong.
    pub(super) fn into_result(mut self) -> Result<(), Rejection> {
        if self.unlisted > 0 {
            self.found.push(FieldError {
                field: "task".into(),
                msg: format!("{} more errors are not listed", self.unlisted),
            });
        }
        if self.found.is_empty() {
            Ok(())
        } else {
            Err(Rejection::Invalid(self.found))
        }
    }
}

/// A place in a document, shown as `inputs[0].url`. Only the faulty ones are ever made text.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place<'a> {
    /// The document itself.
    Task,
    /// A member of an object.
    Member(&'a Place<'a>, &'a str),
    /// An element of a list.
    Item(&'a Place<'a>, usize),
}

impl<'a> Place<'a> {
    /// The member `name` of what is here.
    pub(super) fn member(&'a self, name: &'a str) -> Self {
        Self::Member(self, name)
    }

    /// The element `index` of what is here.
    pub(super) fn item(&'a self, index: usize) -> Self {
        Self::Item(self, index)
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Task => f.write_str("task"),
            Self::Member(Self::Task, name) => f.write_str(shortened(name)),
            Self::Member(of, name) => write!(f, "{of}.{}", shortened(name)),
            Self::Item(of, index) => write!(f, "{of}[{index}]"),
        }
    }
}

/// The beginning of a client's text, short enough for a message.
pub(super) fn shortened(text: &str) -> &str {
    text.char_indices()
        .nth(100)
        .map_or(text, |(end, _)| &text[..end])
}
