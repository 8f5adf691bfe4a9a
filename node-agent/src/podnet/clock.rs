//! A clock that nobody can set: how long addresses rest must not depend on what is done to the time of day.
//!
//! Moments are microseconds since the machine was started (`CLOCK_BOOTTIME`, which runs on while the machine is suspended). They
//! mean something in one boot only, so whoever writes one down writes down the boot as well.

use std::collections::BTreeMap;
use std::net::IpAddr;

use moat_cni::note;
use rustix::time::{ClockId, clock_gettime};

/// The time since the machine was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Clock {
    boot: String,
}

impl Clock {
    /// The clock of the boot that we are in.
    pub(crate) fn of_this_boot() -> Self {
        Self { boot: note::boot_id() }
    }

    /// A clock of another boot, for tests.
    #[cfg(test)]
    pub(crate) fn of_boot(boot: &str) -> Self {
        Self { boot: boot.to_owned() }
    }

    /// Which boot it is of; empty where the kernel does not say.
    pub(crate) fn boot(&self) -> &str {
        &self.boot
    }

    /// Now, in microseconds.
    pub(crate) fn now(&self) -> u64 {
        let now = clock_gettime(ClockId::Boottime);
        // Neither part is negative.
        u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1000
    }

    /// Whether what was written down in the boot `boot` can be compared with [`Clock::now`].
    pub(crate) fn knows(&self, boot: Option<&str>) -> bool {
        boot.is_some_and(|boot| !boot.is_empty() && boot == self.boot)
    }
}

/// Moments of releases that somebody wrote down, as moments of the boot that we are in, in which it is `now`. Their order stays.
///
/// Of another boot nothing is known but the order: how long the machine was off cannot be told without the time of
/// day. So their rest begins anew; no address rests too short, and after a machine's start there are fresh ones.
pub(crate) fn rebase(resting: BTreeMap<IpAddr, u64>, comparable: bool, now: u64) -> BTreeMap<IpAddr, u64> {
    if comparable {
        // A moment to come can only be damage, or another clock: it must not make an address rest for years.
        return resting.into_iter().map(|(address, at)| (address, at.min(now))).collect();
    }
    let mut by_age: Vec<(u64, IpAddr)> = resting.into_iter().map(|(address, at)| (at, address)).collect();
    by_age.sort_unstable();
    (now..).zip(by_age).map(|(at, (_, address))| (address, at)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resting(pairs: &[(&str, u64)]) -> BTreeMap<IpAddr, u64> {
        pairs.iter().map(|(address, at)| (address.parse().unwrap(), *at)).collect()
    }

    #[test]
    fn time_goes_on_and_knows_its_boot() {
        let clock = Clock::of_this_boot();
        let before = clock.now();
        assert!(before > 0 && clock.now() >= before);
        assert!(clock.knows(Some(clock.boot())));
        assert!(!clock.knows(Some("another")) && !clock.knows(None));
        assert!(!Clock::of_boot("").knows(Some("")), "a boot without a name is never the same");
    }

    #[test]
    fn in_one_boot_moments_stay_and_none_is_to_come() {
        let then = resting(&[("10.1.0.1", 5), ("10.1.0.2", 500)]);
        assert_eq!(rebase(then, true, 100), resting(&[("10.1.0.1", 5), ("10.1.0.2", 100)]));
    }

    /// However the time of day or the machine's uptime jumped between two starts, no rest is cut short and the order stays.
    #[test]
    fn after_another_boot_every_rest_begins_anew() {
        let then = resting(&[("10.1.0.1", u64::MAX), ("10.1.0.2", 7), ("10.1.0.3", 1_700_000_000_000_000)]);
        let now = rebase(then, false, 100);
        assert_eq!(now, resting(&[("10.1.0.2", 100), ("10.1.0.3", 101), ("10.1.0.1", 102)]));
    }
}
