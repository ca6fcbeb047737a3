//! Page tokens: a place in the list of all tasks, opaque to clients.
//!
//! A token names the last task of the page before, so it stays valid while tasks are added and
//! removed, and across restarts.

use crate::scheduler::store::Position;
use crate::time::Timestamp;

/// The token for `position`; letters, digits, `-` and `.` only.
pub fn encode(position: &Position) -> String {
    format!("{:x}.{}", position.created.as_millis(), position.id)
}

/// The position that `token` stands for, if it is one that [`encode`] makes.
pub fn decode(token: &str) -> Option<Position> {
    let (millis, id) = token.split_once('.')?;
    let millis = i64::from_str_radix(millis, 16).ok()?;
    let position = Position {
        created: Timestamp::from_millis(millis),
        id: id.parse().ok()?,
    };
    (encode(&position) == token).then_some(position)
}
