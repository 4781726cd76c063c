//! The only place that reads the wall clock.

use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, SubsecRound, Utc};

/// Where the program gets the time from. Everything that dates something is handed one, so that a
/// test can say what time it is.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>);

impl Clock {
    /// The machine's wall clock.
    #[expect(clippy::disallowed_methods, reason = "this is the door to the wall clock")]
    pub fn system() -> Self {
        Self(Arc::new(Utc::now))
    }

    /// A clock that stands still at `at`.
    pub fn fixed(at: DateTime<Utc>) -> Self {
        Self(Arc::new(move || at))
    }

    /// The present instant, in UTC.
    pub fn now(&self) -> DateTime<Utc> {
        (self.0)()
    }

    /// The present instant cut to whole seconds: what is stored of a time.
    pub fn now_seconds(&self) -> DateTime<Utc> {
        self.now().trunc_subsecs(0)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({})", self.now())
    }
}
