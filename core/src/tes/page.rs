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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::scheduler::TaskId;

    #[test]
    fn a_token_is_read_back_and_safe_in_a_url() {
        let position = Position {
            created: Timestamp::from_millis(1_700_000_000_123),
            id: TaskId::random(),
        };
        let token = encode(&position);
        assert!(
            token
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-')
        );
        assert_eq!(decode(&token), Some(position));
    }

    #[test]
    fn garbage_is_no_token() {
        for garbage in [
            "",
            ".",
            "x",
            "18bcfe56.",
            ".t1",
            "zz.t1",
            "1.T1",
            "+1.t1",
            "01.t1",
            "-1.t1",
            "1.t1 ",
            "ffffffffffffffffff.t1",
            "7fffffffffffffff.t1",
        ] {
            assert_eq!(decode(garbage), None, "{garbage}");
        }
    }

    mod fuzz {
        use super::*;

        proptest! {
            #[test]
            fn only_what_was_encoded_is_read(token in "[0-9a-f.+ -]{0,12}[.]?[a-z0-9-]{0,8}") {
                if let Some(position) = decode(&token) {
                    prop_assert_eq!(encode(&position), token);
                }
            }
        }
    }
}
