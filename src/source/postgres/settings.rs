//! The settings of a database: parameters, comment, privileges, limits, owner, locale. A dump that
//! is restored into a database that is there brings none of them.
//!
//! Values may be secrets: nothing here has a `Debug` that prints one, and only the statements that
//! a restore leaves to its operator have them.

mod apply;
mod facts;
mod statements;

pub use self::apply::LeftStatement;
pub(super) use self::apply::{Applied, apply, rehearse};
pub(super) use self::facts::Settings;
