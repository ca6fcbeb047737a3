//! The pure decision of what to do next for one task.
