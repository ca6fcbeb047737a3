//! Conformance suites for the traits of `tesk-core`.

pub mod store;
