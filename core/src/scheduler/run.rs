//! The loop around [`reconcile`](super::reconcile).

/// The scheduler of one engine.
#[derive(Debug)]
pub struct Scheduler {}

/// How the scheduler decides.
#[derive(Clone, Debug)]
pub struct Settings {}
