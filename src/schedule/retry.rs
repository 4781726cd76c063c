//! When a run that failed is tried again.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::Span;

/// How often a run is tried that fails for a reason that may pass, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// How many runs there are at most for one time of the schedule; 1 is none again.
    #[schemars(range(min = 1, max = 100))]
    pub attempts: u32,
    /// The wait before the second; twice as long before each one after.
    #[schemars(extend("x-minimum" = "1s", "x-maximum" = "1d"))]
    pub backoff: Span,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 3, backoff: Duration::from_secs(60).into() }
    }
}

impl Retry {
    /// How long to wait after so many attempts that failed, before the next; none when there is no
    /// other.
    pub fn wait_after(&self, attempts: u32) -> Option<Duration> {
        let factor = 2_u32.checked_pow(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
        (attempts < self.attempts).then(|| self.backoff.duration().saturating_mul(factor))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_until_no_attempt_is_left() {
        let retry = Retry { attempts: 4, backoff: Duration::from_secs(10).into() };
        let waits: Vec<Option<u64>> =
            (1..=5).map(|done| retry.wait_after(done).map(|wait| wait.as_secs())).collect();
        assert_eq!(waits, [Some(10), Some(20), Some(40), None, None]);
        assert_eq!(Retry { attempts: 1, ..retry }.wait_after(1), None);
        let long = Retry { attempts: 100, ..retry };
        assert!(long.wait_after(99).is_some(), "no overflow");
    }
}
