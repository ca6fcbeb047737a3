//! MINIMAL, BASIC and FULL.

/// How much of a task a reply shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum View {
    /// `id` and `state`.
    #[default]
    Minimal,
    /// All but contents, captured output and system logs.
    Basic,
    /// All.
    Full,
}
