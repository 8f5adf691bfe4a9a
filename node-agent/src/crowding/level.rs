//! When a table counts as nearly full, and when who fills it is counted. Pure.

use std::time::{Duration, Instant};

use moat_nfnetlink::conntrack::Usage;

/// From so many percent on it is nearly full.
const FULL: u64 = 90;
/// Below so many it is no more.
const ROOM: u64 = 80;
/// While it stays so, entries are counted again after this time: that is a walk through all of them.
const AGAIN: Duration = Duration::from_secs(60);

/// What was found last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Level {
    /// When entries were last counted, while it is nearly full.
    counted: Option<Instant>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing.
    Nothing,
    /// It is nearly full: who has the entries is counted.
    Count,
    /// It was, and has room again.
    Over,
}

impl Level {
    /// The table is as full as this now.
    pub(super) fn turn(&mut self, usage: Usage, now: Instant) -> Turn {
        let Some(limit) = usage.limit.map(u64::from) else { return Turn::Nothing };
        let reaches = |percent| u64::from(usage.entries) * 100 >= limit * percent;
        match self.counted {
            None if reaches(FULL) => {
                self.counted = Some(now);
                Turn::Count
            }
            Some(_) if !reaches(ROOM) => {
                self.counted = None;
                Turn::Over
            }
            Some(counted) if reaches(FULL) && now.saturating_duration_since(counted) >= AGAIN => {
                self.counted = Some(now);
                Turn::Count
            }
            _ => Turn::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_counted_once_a_minute_while_it_is_nearly_full() {
        let mut level = Level::default();
        let start = Instant::now();
        let mut at = |entries, seconds| {
            level.turn(Usage { entries, limit: Some(1_000) }, start + Duration::from_secs(seconds))
        };
        assert_eq!(at(899, 0), Turn::Nothing);
        assert_eq!(at(900, 1), Turn::Count);
        assert_eq!(at(1_000, 60), Turn::Nothing);
        assert_eq!(at(1_000, 61), Turn::Count);
        // Neither full nor with room: nothing new.
        assert_eq!(at(850, 200), Turn::Nothing);
        assert_eq!(at(900, 201), Turn::Count);
        assert_eq!(at(799, 202), Turn::Over);
        assert_eq!(at(850, 203), Turn::Nothing);
        assert_eq!(level.turn(Usage { entries: u32::MAX, limit: None }, start), Turn::Nothing);
    }
}
