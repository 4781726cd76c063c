//! Reading artifacts: fetched, checked against their digests, decoded, as streams.
//!
//! A stream that is assembled from several objects implements `Streams` here, beside
//! [`streams`], so that nothing above learns of it.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

pub(in crate::engine) mod by_hand;
pub(in crate::engine) mod copies;
pub(in crate::engine) mod damage;
pub(in crate::engine) mod databases;
pub(in crate::engine) mod fault;
pub(in crate::engine) mod fetch;
pub(in crate::engine) mod files;
pub(in crate::engine) mod identities;
pub(in crate::engine) mod missing;
pub(in crate::engine) mod streams;
pub(in crate::engine) mod whole;
