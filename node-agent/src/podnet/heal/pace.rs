//! How fast somebody is contradicted: at once, and more slowly where it goes on. Pure.
//!
//! Two programs that undo each other as fast as they can would keep the kernel from everything else: parameters and links
//! are changed under one lock.

use std::time::{Duration, Instant};

/// Within this time, it goes on.
const WITHIN: Duration = Duration::from_secs(10);
/// So often it is contradicted at once.
const OFTEN: u32 = 30;
/// Then there is at least so much time between two times.
const SLOW: Duration = Duration::from_millis(900);

/// How often something was made again lately.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pace {
    times: u32,
    last: Option<Instant>,
}

impl Pace {
    /// It was made again. Whether that is from now on done slowly.
    pub(crate) fn mended(&mut self, now: Instant) -> bool {
        self.times = if self.is_over(now) { 1 } else { self.times + 1 };
        self.last = Some(now);
        self.times == OFTEN
    }

    /// How long to wait before it is made again once more.
    pub(crate) fn wait(&self, now: Instant) -> Duration {
        match self.last {
            Some(last) if self.times >= OFTEN => (last + SLOW).saturating_duration_since(now),
            _ => Duration::ZERO,
        }
    }

    /// Whether it was long ago.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.last.is_none_or(|last| now.saturating_duration_since(last) > WITHIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_goes_on_is_contradicted_slowly() {
        let mut now = Instant::now();
        let mut pace = Pace::default();
        for _ in 1..OFTEN {
            assert_eq!(pace.wait(now), Duration::ZERO);
            assert!(!pace.mended(now));
            now += Duration::from_millis(100);
        }
        assert!(pace.mended(now), "said once");
        assert_eq!(pace.wait(now), SLOW);
        now += SLOW;
        assert_eq!(pace.wait(now), Duration::ZERO);
        assert!(!pace.mended(now));
        now += WITHIN + Duration::from_secs(1);
        assert!(pace.is_over(now));
        pace.mended(now);
        assert_eq!(pace.wait(now), Duration::ZERO, "forgotten");
    }
}
