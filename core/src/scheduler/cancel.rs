//! What a client's cancel does to a record.

use super::record::{Head, TaskId};
use super::store::{StoreError, TaskStore, Update};
use crate::crash;
use crate::tes::{Event, State};

/// Cancels a task: at once if nothing of it exists on a worker, else it becomes CANCELING and
/// the scheduler ends what runs. A task that is terminal or being canceled stays as it is.
/// Answers the head after that; [`StoreError::NotFound`] for an unknown task.
pub async fn cancel(store: &dyn TaskStore, id: &TaskId) -> Result<Head, StoreError> {
    loop {
        // Not the record, which may be large, or damaged.
        let head = store.head(id).await?.ok_or(StoreError::NotFound)?;
        let idle = head.state == State::Queued && head.current_attempt().is_none();
        let event = if idle {
            Event::CancelledIdle
        } else {
            Event::CancelRequested
        };
        let Ok(state) = head.state.after(event) else {
            return Ok(head);
        };
        let logs = if idle {
            let mut logs = store.get(id).await?.ok_or(StoreError::NotFound)?.logs;
            if let Some(last) = logs.last_mut() {
                let lines = last.system_logs.get_or_insert_default();
                lines.push("canceled before it was started".to_owned());
            }
            Some(logs)
        } else {
            None
        };
        let update = Update {
            state: Some(state),
            logs,
            ..Update::default()
        };
        match store.update(id, head.version, update).await {
            // Another was faster; each turn of the loop means that the task has moved on.
            Err(StoreError::Conflict) => {}
            Ok(head) => {
                crash::point("cancel.requested");
                return Ok(head);
            }
            other => return other,
        }
    }
}
