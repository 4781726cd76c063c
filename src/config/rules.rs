//! What of a strategy's snapshots is kept on a storage, and what this configuration may do about
//! the others.

use super::{Instance, Strategy};
use crate::model::Name;
use crate::retention::Policy;

/// What holds for one strategy on one storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules<'a> {
    /// What is kept: what the storage says, else what the strategy says; everything, where neither
    /// says anything.
    pub policy: Option<&'a Policy>,
    /// Whether this configuration may delete snapshots there. Where it may not, its policy is not
    /// carried out by it.
    pub prune: bool,
    /// The most of the strategy's snapshots there, in percent, that one pruning deletes without
    /// being told twice: 1 to 100, and 100 is without limit.
    pub max_delete_percent: u8,
}

impl Rules<'_> {
    /// Whether deleting `going` of `all` snapshots is more than is done without being told twice. A
    /// single one never is: of three snapshots it would be a third, and it is what goes every
    /// night.
    pub fn is_too_much(&self, going: usize, all: usize) -> bool {
        // Of few, one or two are soon a large part.
        let least = if all < 10 { 2 } else { 1 };
        // In 128 bits no count overflows.
        going > least && going as u128 * 100 > all as u128 * u128::from(self.max_delete_percent)
    }
}

impl Instance {
    /// The rules for `strategy` on `storage`. Those of a storage that is not configured are the
    /// strategy's.
    pub fn rules<'a>(&'a self, strategy: &'a Strategy, storage: &Name) -> Rules<'a> {
        let own = self.storage_rules.get(storage);
        Rules {
            policy: own.and_then(|own| own.retention.as_ref()).or(strategy.retention.as_ref()),
            prune: own.is_none_or(|own| own.prune),
            max_delete_percent: own
                .and_then(|own| own.max_delete_percent)
                .unwrap_or(strategy.max_delete_percent),
        }
    }
}
