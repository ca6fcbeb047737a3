//! Replies in JSON: the large ones share a budget of memory until they are sent.

use std::sync::Arc;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;

/// Replies below this size, which sockets take at once, do not count.
const SMALL: usize = 64 << 10;
/// One permit of the budget.
const UNIT: usize = 4 << 10;

/// The memory for large replies. A client that asks for one and does not read it keeps its
/// share until it is sent or the connection ends.
#[derive(Debug)]
pub(crate) struct Replies {
    total: usize,
    budget: Arc<Semaphore>,
}

/// A share of the budget.
#[derive(Debug)]
pub(crate) struct Room(Option<OwnedSemaphorePermit>);

/// A reply that gives its share back with its last byte.
struct Large {
    json: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Large {
    fn as_ref(&self) -> &[u8] {
        &self.json
    }
}

impl Replies {
    /// A budget of about `bytes`.
    pub(crate) fn new(bytes: usize) -> Self {
        let total = bytes.div_ceil(UNIT);
        Self {
            total,
            budget: Arc::new(Semaphore::new(total)),
        }
    }

    /// Room for a reply of about `size` bytes; one larger than the budget takes all of it.
    pub(crate) fn room(&self, size: usize) -> Result<Room, ApiError> {
        if size < SMALL {
            return Ok(Room(None));
        }
        let permits = size.div_ceil(UNIT).min(self.total);
        let permits = u32::try_from(permits).unwrap_or(u32::MAX);
        match self.budget.clone().try_acquire_many_owned(permits) {
            Ok(permit) => Ok(Room(Some(permit))),
            Err(_) => Err(ApiError::unavailable(
                "too many large replies are on their way at present",
            )),
        }
    }
}

impl Room {
    /// The reply.
    pub(crate) fn reply(self, json: Vec<u8>) -> Response {
        let body = match self.0 {
            None => json.into(),
            Some(room) => Bytes::from_owner(Large { json, _room: room }),
        };
        ([(header::CONTENT_TYPE, "application/json")], body).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_reply_keeps_its_room_until_it_is_gone_and_small_ones_need_none() {
        let replies = Replies::new(4 * SMALL);
        let unread = replies.room(3 * SMALL).unwrap().reply(vec![b' '; SMALL]);
        let refused = replies.room(2 * SMALL).unwrap_err().into_response();
        assert_eq!(refused.status().as_u16(), 503);
        assert!(refused.headers().contains_key(header::RETRY_AFTER));
        replies.room(SMALL).unwrap();
        replies.room(10).unwrap().reply(b"{}".to_vec());
        drop(unread);
        replies.room(usize::MAX).unwrap();
    }
}
