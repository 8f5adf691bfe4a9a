//! How long to wait between two tries to reach a controller.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

/// How long after a connection that was lost, or did not come, the next is tried: at first, and at most. A controller that is back
/// is found within the longest; a thousand agents that wait for one ask seven hundred times a second, which a host that nobody
/// listens on refuses without waking anybody.
const FIRST: Duration = Duration::from_millis(50);
const LAST: Duration = Duration::from_secs(2);

/// Pauses, each twice as long as the one before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Pause {
    /// The next one; shortened by up to a half, since a thousand agents that lost their controller at once are not to come back at
    /// once.
    pub(super) fn next(&mut self) -> Duration {
        let jitter = 0.5 + (RandomState::new().hash_one(self.0) % 1024) as f64 / 2048.0;
        let pause = self.0.mul_f64(jitter);
        self.0 = (self.0 * 2).min(LAST);
        pause
    }
}
