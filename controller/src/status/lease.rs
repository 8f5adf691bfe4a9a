//! Who of the replicas writes: whoever holds the Lease. Pure.
//!
//! What a Lease says of time is another machine's clock, and is not looked at: a replica takes it when it has *seen* the same renewal
//! for a whole duration by a clock of its own that cannot be set, and the holder stops before that can have happened.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;

/// How long a renewal counts for the others, from when they see it.
pub(crate) const DURATION: Duration = Duration::from_secs(15);
/// How long it counts for the holder, from before it asks for it.
const HOLDS: Duration = Duration::from_secs(10);
/// How often the holder renews, and the others look.
const PACE: Duration = Duration::from_secs(4);

/// The Lease as the API server has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// `metadata.resourceVersion`: another one with each renewal.
    pub(crate) version: String,
    /// `spec.holderIdentity`; `None`: it was given up.
    pub(crate) holder: Option<String>,
}

impl From<&Lease> for Found {
    fn from(lease: &Lease) -> Self {
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone());
        Self {
            version: lease.metadata.resource_version.clone().unwrap_or_default(),
            holder: holder.filter(|holder| !holder.is_empty()),
        }
    }
}

/// What to do about a Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Write it in one's own name: new, renewed or taken from whoever does not renew it any more.
    Write,
    /// Somebody else holds it.
    Leave,
}

/// What one replica knows of the Lease.
#[derive(Debug)]
pub(crate) struct Election {
    me: String,
    /// What was found last, and since when it is so.
    seen: Option<(Found, Instant)>,
    /// Until when it is ours.
    until: Option<Instant>,
}

impl Election {
    /// Of the replica with this name, which no other has.
    pub(crate) fn new(me: String) -> Self {
        Self { me, seen: None, until: None }
    }

    /// Whether it is ours, and nobody else can have it.
    pub(crate) fn holds(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// It was found like this.
    pub(crate) fn look(&mut self, found: Option<Found>, now: Instant) -> Step {
        let Some(found) = found else {
            self.seen = None;
            return Step::Write;
        };
        let since = match &self.seen {
            Some((before, since)) if *before == found => *since,
            _ => now,
        };
        let ours = found.holder.as_deref() == Some(&*self.me);
        let free = found.holder.is_none();
        if !ours {
            self.until = None;
        }
        self.seen = Some((found, since));
        if ours || free || now.saturating_duration_since(since) >= DURATION {
            Step::Write
        } else {
            Step::Leave
        }
    }

    /// It was written in our name; that was begun at `asked`.
    pub(crate) fn written(&mut self, asked: Instant) {
        self.until = Some(asked + HOLDS);
    }

    /// When to look the next time.
    pub(crate) fn pace(&self) -> Duration {
        PACE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(version: u32, holder: &str) -> Option<Found> {
        let holder = Some(holder.to_owned()).filter(|holder| !holder.is_empty());
        Some(Found { version: version.to_string(), holder })
    }

    #[test]
    fn who_finds_none_or_one_that_was_given_up_takes_it() {
        let now = Instant::now();
        let mut one = Election::new("one".to_owned());
        assert!(!one.holds(now));
        assert_eq!(one.look(None, now), Step::Write);
        assert!(!one.holds(now), "not before the API server has said so");
        one.written(now);
        assert!(one.holds(now + HOLDS - Duration::from_millis(1)));
        assert!(!one.holds(now + HOLDS));
        assert_eq!(Election::new("two".to_owned()).look(found(1, ""), now), Step::Write);
    }

    #[test]
    fn one_that_is_not_renewed_any_more_is_taken_after_its_holder_has_stopped() {
        let start = Instant::now();
        let (mut one, mut two) = (Election::new("one".to_owned()), Election::new("two".to_owned()));
        one.written(start);
        // Seen at once, which is the soonest that it can be.
        assert_eq!(two.look(found(1, "one"), start), Step::Leave);
        let mut now = start;
        while two.look(found(1, "one"), now) == Step::Leave {
            now += PACE;
        }
        assert!(now >= start + DURATION && !one.holds(now));
        two.written(now);
        assert_eq!(one.look(found(2, "two"), now), Step::Leave);
        assert!(!one.holds(now) && two.holds(now));
    }

    #[test]
    fn whatever_the_holders_clock_says_is_not_looked_at() {
        let start = Instant::now();
        let lease = |version: u32, renewed: &str| -> Option<Found> {
            let spec = serde_json::json!({
                "holderIdentity": "one", "leaseDurationSeconds": 15, "acquireTime": renewed, "renewTime": renewed,
            });
            let metadata = serde_json::json!({ "resourceVersion": version.to_string() });
            let lease = serde_json::json!({ "metadata": metadata, "spec": spec });
            Some(Found::from(&serde_json::from_value::<Lease>(lease).unwrap()))
        };
        let (past, future) = ("1990-01-01T00:00:00.000000Z", "2090-01-01T00:00:00.000000Z");
        let mut two = Election::new("two".to_owned());
        // A clock that jumps to and fro, and renewals that come as they should: nobody takes it.
        let mut now = start;
        for (version, renewed) in (0..).zip([past, future, past, past, future, past]) {
            assert_eq!(two.look(lease(version, renewed), now), Step::Leave);
            now += DURATION - Duration::from_secs(1);
        }
        // None of either time comes any more: it is taken as soon as any other, and no sooner.
        for (version, renewed) in [(100, future), (101, past)] {
            assert_eq!(two.look(lease(version, renewed), now), Step::Leave);
            assert_eq!(two.look(lease(version, renewed), now + DURATION - PACE), Step::Leave);
            assert_eq!(two.look(lease(version, renewed), now + DURATION), Step::Write);
            now += 2 * DURATION;
        }
    }

    #[test]
    fn renewals_keep_it_however_long() {
        let mut now = Instant::now();
        let (mut one, mut two) = (Election::new("one".to_owned()), Election::new("two".to_owned()));
        for version in 0..100 {
            assert_eq!(one.look(found(version, "one"), now), Step::Write);
            one.written(now);
            assert_eq!(two.look(found(version + 1, "one"), now), Step::Leave);
            now += PACE;
            assert!(one.holds(now));
        }
    }

    #[test]
    fn a_holder_that_slept_finds_out_before_it_writes() {
        let start = Instant::now();
        let mut one = Election::new("one".to_owned());
        one.written(start);
        let woken = start + Duration::from_secs(3600);
        assert!(!one.holds(woken));
        assert_eq!(one.look(found(9, "two"), woken), Step::Leave);
        assert_eq!(one.look(found(9, "two"), woken + DURATION - PACE), Step::Leave);
    }

    #[test]
    fn one_that_somebody_else_took_is_not_ours_at_once() {
        let now = Instant::now();
        let mut one = Election::new("one".to_owned());
        one.written(now);
        assert_eq!(one.look(found(2, "two"), now), Step::Leave);
        assert!(!one.holds(now));
    }
}
