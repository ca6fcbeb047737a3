//! Who is calling.
//!
//! [`Authenticator`] is the one question the service asks. Without a users file it is
//! [`Authenticator::Open`]: whatever `Authorization` a client sends is ignored and everybody
//! sees all tasks. Other ways to know a caller (`OpenID` Connect) become further variants.

pub mod basic;
pub mod users;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use tesk_core::scheduler::Owner;

pub use users::UsersFile;

use crate::service::ApiError;

/// Who a request is from, and what it may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The owner of the tasks it makes.
    pub owner: Owner,
    /// Whether it sees the tasks of others.
    pub sees_all: bool,
}

impl Caller {
    /// Whether a task of `owner` exists as far as this caller is concerned.
    pub fn may_see(&self, owner: &Owner) -> bool {
        self.sees_all || self.owner.user == owner.user
    }

    /// The user whose tasks a list shows; `None` is everybody's.
    pub fn scope(&self) -> Option<String> {
        (!self.sees_all).then(|| self.owner.user.clone())
    }
}

/// How callers are known.
#[derive(Debug)]
pub enum Authenticator {
    /// Everybody is the same nameless user.
    Open,
    /// Tokens and passwords of a users file.
    Users(Box<UsersFile>),
}

impl Authenticator {
    /// The caller that `headers` prove, or the refusal.
    pub async fn authenticate(&self, headers: &HeaderMap) -> Result<Caller, ApiError> {
        let users = match self {
            Self::Open => {
                return Ok(Caller {
                    owner: Owner::default(),
                    sees_all: true,
                });
            }
            Self::Users(users) => users,
        };
        let credentials = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .ok_or_else(|| unauthorized("this server wants a token or a user name and password"))?;
        let found = match credentials {
            (scheme, token) if scheme.eq_ignore_ascii_case("bearer") => {
                users.by_token(token.trim())
            }
            (scheme, encoded) if scheme.eq_ignore_ascii_case("basic") => {
                users.by_password(encoded.trim()).await?
            }
            _ => None,
        };
        found.ok_or_else(|| unauthorized("these credentials are not valid here"))
    }
}

fn unauthorized(msg: &str) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, msg)
        .with_header(
            header::WWW_AUTHENTICATE,
            HeaderValue::from_static("Bearer realm=\"tesk\""),
        )
        .with_header(
            header::WWW_AUTHENTICATE,
            HeaderValue::from_static("Basic realm=\"tesk\", charset=\"UTF-8\""),
        )
}
