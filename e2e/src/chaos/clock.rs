//! One clock for all events of a run.

use std::ops::{Add, Sub};
use std::time::{Duration, Instant, SystemTime};

/// A moment of a run: nanoseconds since it began. Before that there is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Moment(pub(crate) u64);

impl Moment {
    /// Later than everything.
    pub(crate) const NEVER: Moment = Moment(u64::MAX);

    /// How long after an earlier moment; zero where it is not.
    pub(crate) fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Since the beginning.
    pub(crate) fn offset(self) -> Duration {
        Duration::from_nanos(self.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;
    fn add(self, later: Duration) -> Moment {
        Moment(self.0.saturating_add(nanos(later)))
    }
}

impl Sub<Duration> for Moment {
    type Output = Moment;
    fn sub(self, earlier: Duration) -> Moment {
        Moment(self.0.saturating_sub(nanos(earlier)))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The monotonic clock, from the beginning of the run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    /// The run begins.
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Now.
    pub(crate) fn now(self) -> Moment {
        self.of(Instant::now())
    }

    /// Some other moment of the same clock.
    pub(crate) fn of(self, instant: Instant) -> Moment {
        Moment(nanos(instant.saturating_duration_since(self.0)))
    }

    /// A moment that the kernel stamped with the time of day, not long ago.
    pub(crate) fn of_stamp(self, stamp: SystemTime) -> Moment {
        let age = SystemTime::now().duration_since(stamp).unwrap_or_default();
        self.now() - age
    }
}
