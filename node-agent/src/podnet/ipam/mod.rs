//! Which address a pod gets: pure, without files or clocks.
//!
//! An address is *held* by a pod, or *resting* since its last pod released it, or *fresh*: never handed out.
//! Fresh ones go first, in their order, then the one that has rested longest: others on the network may
//! know an address as its last owner's for a while. None goes out before it has rested for the configured time, and before its
//! release has been answered by those who are told of it: other nodes may let packets through to it until then.
//!
//! Time is microseconds since some moment that all calls agree on. A release is known by the number of the announcement that
//! tells of it; all up to some number are answered.

mod block;
mod full;
mod resting;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;

use block::Block;
pub use full::{Full, IpamError};
pub(crate) use resting::Moment;
use resting::{Release, Resting};

/// The addresses of one pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) v4: Option<Ipv4Addr>,
    pub(crate) v6: Option<Ipv6Addr>,
}

/// What is known about every address that was ever handed out.
#[derive(Clone, Debug)]
pub(crate) struct Ipam {
    rest: Duration,
    v4: Option<Block>,
    v6: Option<Block>,
    /// Addresses of the blocks that belong to somebody else.
    reserved: BTreeSet<IpAddr>,
    held: BTreeSet<IpAddr>,
    resting: Resting,
    /// Since when addresses rest that are in none of these: who had them before is not known.
    forgotten: Option<Release>,
}

impl Ipam {
    /// An allocator that has handed nothing out; addresses rest for `rest`.
    pub(crate) fn new(rest: Duration) -> Self {
        Self {
            rest,
            v4: None,
            v6: None,
            reserved: BTreeSet::new(),
            held: BTreeSet::new(),
            resting: Resting::default(),
            forgotten: None,
        }
    }

    /// Who had which address before `at` is not known: every address rests since then, also one that looks fresh, and until the
    /// announcement of this number is answered.
    pub(crate) fn forget_before(&mut self, at: u64, number: u64) {
        self.forgotten = Some(Release { at, number });
    }

    /// From now on, addresses come from these blocks, and `reserved` are left out. What is held stays held.
    pub(crate) fn set_blocks(&mut self, v4: Option<IpNet>, v6: Option<IpNet>, reserved: BTreeSet<IpAddr>) {
        let keep = |old: Option<Block>, new: Option<IpNet>| {
            new.map(|net| old.filter(|old| old.is_of(net)).unwrap_or_else(|| Block::new(net)))
        };
        self.v4 = keep(self.v4, v4);
        self.v6 = keep(self.v6, v6);
        self.reserved = reserved;
    }

    /// Whether there are blocks to take addresses from.
    pub(crate) fn has_blocks(&self) -> bool {
        self.v4.is_some() || self.v6.is_some()
    }

    /// Whether there are IPv4 (or else IPv6) addresses to give.
    pub(crate) fn gives(&self, ipv4: bool) -> bool {
        if ipv4 { self.v4.is_some() } else { self.v6.is_some() }
    }

    /// Marks an address as held: what a state file says.
    pub(crate) fn hold(&mut self, address: IpAddr) {
        self.resting.remove(address);
        self.held.insert(address);
    }

    /// Takes an address back from its pod. The announcement of this number tells others.
    pub(crate) fn release(&mut self, address: IpAddr, at: u64, number: u64) {
        self.held.remove(&address);
        self.resting.add(address, Release { at, number });
    }

    /// How many addresses have been released, and it is not answered yet.
    pub(crate) fn unanswered(&self, answered: u64) -> usize {
        self.resting.unanswered(answered)
    }

    /// Hands out one address of each family that the node has a block of.
    pub(crate) fn allocate(&mut self, moment: Moment) -> Result<Addresses, IpamError> {
        let (v4, v6) = self.pick_both(moment)?;
        for (address, block) in [(v4, &mut self.v4), (v6, &mut self.v6)] {
            if let (Some(address), Some(block)) = (address, block) {
                block.give(address);
            }
        }
        let mut addresses = Addresses::default();
        for address in [v4, v6].into_iter().flatten() {
            self.hold(address);
            match address {
                IpAddr::V4(address) => addresses.v4 = Some(address),
                IpAddr::V6(address) => addresses.v6 = Some(address),
            }
        }
        Ok(addresses)
    }

    /// Whether [`Ipam::allocate`] would succeed.
    pub(crate) fn available(&self, moment: Moment) -> Result<(), IpamError> {
        self.pick_both(moment).map(|_| ())
    }

    fn pick_both(&self, moment: Moment) -> Result<(Option<IpAddr>, Option<IpAddr>), IpamError> {
        if !self.has_blocks() {
            return Err(IpamError::NoBlock);
        }
        let pick = |block: &Option<Block>| block.as_ref().map(|block| self.pick(block, moment)).transpose();
        Ok((pick(&self.v4)?, pick(&self.v6)?))
    }

    fn pick(&self, block: &Block, moment: Moment) -> Result<IpAddr, IpamError> {
        let taken = |address: &IpAddr| {
            self.held.contains(address) || self.resting.contains(*address) || self.reserved.contains(address)
        };
        let answered = |release: Option<Release>| release.is_none_or(|release| release.is_answered(moment));
        let fresh = block.fresh().find(|address| !taken(address));
        let fresh = fresh.map(|address| (address, self.forgotten)).filter(|(_, release)| answered(*release));
        let rested = self.resting.oldest_first().find(|(address, release)| {
            block.contains(*address) && !self.reserved.contains(address) && release.is_answered(moment)
        });
        let rested = rested.map(|(address, release)| (address, Some(release)));
        let left = |(address, release): (IpAddr, Option<Release>)| {
            (release.map_or(Duration::ZERO, |release| release.left(self.rest, moment)), address)
        };
        // The fresh first; else the one that has rested longest.
        match [fresh, rested].into_iter().flatten().map(left).min_by_key(|(left, _)| *left) {
            Some((Duration::ZERO, address)) => Ok(address),
            next => Err(IpamError::Full(self.full(block, moment, next.map(|(left, _)| left)))),
        }
    }

    fn full(&self, block: &Block, moment: Moment, next: Option<Duration>) -> Full {
        let count = |set: &BTreeSet<IpAddr>| set.iter().filter(|address| block.contains(**address)).count();
        let (usable, held, reserved) = (block.size(), count(&self.held), count(&self.reserved));
        let resting = |answered: bool| {
            let counts = |(address, release): &(IpAddr, Release)| {
                block.contains(*address)
                    && !self.reserved.contains(address)
                    && release.is_answered(moment) == answered
            };
            self.resting.oldest_first().filter(counts).count()
        };
        let unanswered = match self.forgotten.is_none_or(|release| release.is_answered(moment)) {
            true => resting(false),
            // All but those that somebody knows something of; there are no more than the window has.
            false => (usable as usize).saturating_sub(held + reserved + resting(true)),
        };
        Full { block: block.net(), usable, held, reserved, unanswered, rest: self.rest, next }
    }
}
