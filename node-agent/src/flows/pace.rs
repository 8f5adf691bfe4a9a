//! How often to look. Pure.

use std::time::{Duration, Instant};

/// Where change follows change, somebody looks for at most one part in so many of the time.
const SHARE: u32 = 5;

/// A look keeps the next one waiting no longer than this, however long it took: what is enforced is told behind it.
const LONGEST: Duration = Duration::from_secs(2);

/// So much of that time may be taken in advance: a change now and then is looked at as soon as it can be.
const ADVANCE: Duration = Duration::from_millis(500);

/// Keeps looks apart, the further the longer they take.
#[derive(Debug)]
pub(super) struct Pace {
    /// When all looks so far will have taken their share of the time, and no more.
    even: Instant,
}

impl Pace {
    /// Nobody has looked before.
    pub(super) fn new(now: Instant) -> Self {
        Self { even: now }
    }

    /// When the next look may begin.
    pub(super) fn next(&self) -> Instant {
        self.even.checked_sub(ADVANCE).unwrap_or(self.even)
    }

    /// A look has begun then and taken so long.
    pub(super) fn looked(&mut self, begin: Instant, took: Duration) {
        self.even = self.even.max(begin) + took + (took * (SHARE - 1)).min(LONGEST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_now_and_then_waits_for_nothing() {
        let start = Instant::now() + ADVANCE;
        let mut pace = Pace::new(start);
        for n in 0..10 {
            let now = start + Duration::from_secs(n);
            assert!(pace.next() <= now);
            pace.looked(now, Duration::from_millis(150));
        }
    }

    #[test]
    fn nobody_waits_for_long_behind_a_look_that_took_long() {
        let start = Instant::now() + ADVANCE;
        let mut pace = Pace::new(start);
        pace.looked(start, Duration::from_secs(10));
        assert!(pace.next() <= start + Duration::from_secs(10) + LONGEST);
    }

    #[test]
    fn looks_one_after_the_other_take_their_share() {
        let start = Instant::now() + ADVANCE;
        let mut pace = Pace::new(start);
        let (mut now, mut looking) = (start, Duration::ZERO);
        for took in [1, 40, 3, 400, 120].into_iter().cycle().take(1_000).map(Duration::from_millis) {
            now = now.max(pace.next());
            pace.looked(now, took);
            now += took;
            looking += took;
        }
        let share = (now - start).as_secs_f64() / looking.as_secs_f64();
        assert!((4.9..=5.1).contains(&share), "{share}");
    }
}
