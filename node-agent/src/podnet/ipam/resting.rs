//! Addresses that were released: for how long they rest, and whose answer they wait for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

/// What an address is asked for at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) now: u64,
    /// Up to which number releases are answered.
    pub(crate) answered: u64,
}

/// That an address was released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Release {
    /// When.
    pub(super) at: u64,
    /// By which announcement others are told.
    pub(super) number: u64,
}

impl Release {
    pub(super) fn is_answered(self, moment: Moment) -> bool {
        self.number <= moment.answered
    }

    /// How much of `rest` is left.
    pub(super) fn left(self, rest: Duration, moment: Moment) -> Duration {
        rest.saturating_sub(Duration::from_micros(moment.now.saturating_sub(self.at)))
    }
}

/// The released addresses that nobody has had since.
#[derive(Clone, Debug, Default)]
pub(super) struct Resting {
    released: BTreeMap<IpAddr, Release>,
    /// The same by age.
    by_age: BTreeSet<(u64, IpAddr)>,
}

impl Resting {
    /// The address rests from now on, whatever it did before.
    pub(super) fn add(&mut self, address: IpAddr, release: Release) {
        self.remove(address);
        self.released.insert(address, release);
        self.by_age.insert((release.at, address));
    }

    /// Somebody has the address.
    pub(super) fn remove(&mut self, address: IpAddr) {
        if let Some(release) = self.released.remove(&address) {
            self.by_age.remove(&(release.at, address));
        }
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.released.contains_key(&address)
    }

    /// All of them, the one first that has rested longest.
    pub(super) fn oldest_first(&self) -> impl Iterator<Item = (IpAddr, Release)> + '_ {
        self.by_age.iter().filter_map(|(_, address)| Some((*address, *self.released.get(address)?)))
    }

    /// How many releases are not answered yet.
    pub(super) fn unanswered(&self, answered: u64) -> usize {
        self.released.values().filter(|release| release.number > answered).count()
    }
}
