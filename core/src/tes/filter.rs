//! What a list request asks for.

use super::State;

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
