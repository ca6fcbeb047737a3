//! The cases.

mod directories;
mod faults;
mod files;
mod optional;
mod ranges;
mod refusals;

use futures_util::future::BoxFuture;
use tesk_core::storage::Capabilities;

use super::Context;

/// One promise.
#[derive(Clone, Copy)]
pub struct Case {
    /// The promise, in snake case.
    pub name: &'static str,
    /// Without all of these it cannot be judged.
    pub needs: &'static [Need],
    /// Judges it.
    pub run: fn(Context) -> BoxFuture<'static, anyhow::Result<()>>,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Case").field(&self.name).finish()
    }
}

/// What a case needs.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// A capability, by its name.
    Claim(&'static str, fn(&Capabilities) -> bool),
    /// The lack of one.
    NoClaim(&'static str, fn(&Capabilities) -> bool),
    /// That files come there somehow: written or seeded.
    Files,
    /// A server, and another way to it.
    Network,
    /// A storage with wrong credentials.
    LockedOut,
}

/// All cases, by subject.
pub const CASES: &[&[Case]] = &[
    files::CASES,
    ranges::CASES,
    directories::CASES,
    optional::CASES,
    refusals::CASES,
    faults::CASES,
];

/// `case!(function: needs…)`: a case named after the function that judges it.
macro_rules! case {
    ($function:ident $(: $($need:expr),+)?) => {
        $crate::storage::Case {
            name: stringify!($function),
            needs: &[$($($need),+)?],
            run: |context| Box::pin($function(context)),
        }
    };
}
use case;

/// The capabilities as needs.
mod needs {
    use super::Need::{self, Claim, NoClaim};
    pub(super) use super::Need::{Files, LockedOut, Network};

    pub(super) const LIST: Need = Claim("list", |c| c.list);
    pub(super) const WRITE: Need = Claim("write", |c| c.write);
    pub(super) const ATOMIC_WRITE: Need = Claim("atomic_write", |c| c.atomic_write);
    pub(super) const RANGES: Need = Claim("ranges", |c| c.ranges);
    pub(super) const PARTS: Need = Claim("parts", |c| c.parts);
    pub(super) const DIRECTORIES: Need = Claim("directories", |c| c.directories);
    pub(super) const RENAME: Need = Claim("rename", |c| c.rename);
    pub(super) const REMOVE: Need = Claim("remove", |c| c.remove);
    pub(super) const MODES: Need = Claim("modes", |c| c.modes);

    pub(super) const NO_LIST: Need = NoClaim("list", |c| c.list);
    pub(super) const NO_WRITE: Need = NoClaim("write", |c| c.write);
    pub(super) const NO_RANGES: Need = NoClaim("ranges", |c| c.ranges);
    pub(super) const NO_PARTS: Need = NoClaim("parts", |c| c.parts);
    pub(super) const NO_DIRECTORIES: Need = NoClaim("directories", |c| c.directories);
    pub(super) const NO_RENAME: Need = NoClaim("rename", |c| c.rename);
    pub(super) const NO_REMOVE: Need = NoClaim("remove", |c| c.remove);
}
