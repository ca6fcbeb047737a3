//! A client's JSON to a task, forgiving what real clients send.

/// One breach, with the field it is in.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
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
