//! Nothing of its own: see `tests/client.rs`.
