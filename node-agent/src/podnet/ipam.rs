//! Which address a pod gets: pure, without files or clocks.
//!
//! An address is *held* by a pod, or *resting* since its last pod released it, or *fresh*: never handed out.
//! Fresh ones go first, in their order, then the one that has rested longest: others on the network may
//! know an address as its last owner's for a while. None goes out before it has rested for the configured time, and before its
//! release has been answered by those who are told of it: other nodes may let packets through to it until then.
//!
//! Time is microseconds since some moment that all calls agree on. A release is known by the number of the announcement that
//! tells of it; all up to some number are answered.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;

/// How many addresses of a block are used. An IPv6 block has more than could ever be remembered as resting.
const WINDOW: u128 = 1 << 16;

/// The addresses of one pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) v4: Option<Ipv4Addr>,
    pub(crate) v6: Option<Ipv6Addr>,
}

/// Why no address can be handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    /// The node has no podCIDR.
    #[error("the node has no podCIDR to take an address from")]
    NoBlock,
    /// All addresses of a block are held, or rest.
    #[error("{0}")]
    Full(Full),
}

/// Where the addresses of a block are when there is none to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// The block.
    pub block: IpNet,
    /// How many addresses of it are used at all.
    pub usable: u128,
    /// How many are held by pods.
    pub held: usize,
    /// How many are the nodes' own.
    pub reserved: usize,
    /// How many have been released, and not all controllers have answered that yet.
    pub unanswered: usize,
    /// How long an address rests between two pods.
    pub rest: Duration,
    /// When the first that rests, and for which no answer is missing, may go out; `None` where none does.
    pub next: Option<Duration>,
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { block, usable, held, reserved, unanswered, .. } = self;
        write!(f, "all {usable} addresses of {block} are taken: {held} by pods")?;
        if *reserved > 0 {
            write!(f, ", {reserved} by nodes")?;
        }
        let resting = [*held as u128, *reserved as u128, *unanswered as u128]
            .into_iter()
            .fold(*usable, u128::saturating_sub);
        if let Some(next) = self.next {
            let rest = self.rest.as_secs_f32();
            let next = next.as_secs_f32();
            write!(
                f,
                ", and {resting} rest for {rest} s after their last pod; the next is free in {next:.1} s"
            )?;
        }
        match unanswered {
            0 if self.next.is_some() => Ok(()),
            0 => write!(f, "; remove pods, or give the node a larger podCIDR"),
            _ => write!(
                f,
                "; {unanswered} addresses wait for the controller's answer: it comes when the agents of all nodes follow that \
                 their last pods are gone (see moat-controller's /readyz)"
            ),
        }
    }
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
    resting: BTreeMap<IpAddr, Release>,
    /// `resting` by age.
    by_age: BTreeSet<(u64, IpAddr)>,
    /// Since when addresses rest that are in none of these: who had them before is not known.
    forgotten: Option<Release>,
}

/// That an address was released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Release {
    /// When.
    at: u64,
    /// By which announcement others are told.
    number: u64,
}

/// What an address is asked for at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) now: u64,
    /// Up to which number releases are answered.
    pub(crate) answered: u64,
}

/// The usable addresses of a podCIDR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    net: IpNet,
    first: u128,
    last: u128,
    /// No address before this one is fresh.
    next: u128,
}

impl Block {
    fn new(net: IpNet) -> Self {
        let net = net.trunc();
        let first = number(net.network());
        let last = number(net.broadcast());
        // The first and last addresses have a meaning of their own for whoever takes the block for a link's
        // (network and broadcast, subnet routers). A block of one or two addresses has none to spare.
        let spare = u128::from(last - first >= 3);
        let (first, last) = (first + spare, last - spare);
        Self { net, first, last: last.min(first.saturating_add(WINDOW - 1)), next: first }
    }

    fn size(&self) -> u128 {
        self.last - self.first + 1
    }

    fn contains(&self, address: IpAddr) -> bool {
        self.net.addr().is_ipv4() == address.is_ipv4() && (self.first..=self.last).contains(&number(address))
    }

    fn address(&self, number: u128) -> IpAddr {
        match self.net {
            // A number of an IPv4 block is one of its addresses, so it fits.
            IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from_bits(number as u32)),
            IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(number)),
        }
    }
}

impl Moment {
    fn is_answered(self, release: Option<Release>) -> bool {
        release.is_none_or(|release| release.number <= self.answered)
    }
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
            resting: BTreeMap::new(),
            by_age: BTreeSet::new(),
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
            new.map(|net| old.filter(|old| old.net == net.trunc()).unwrap_or_else(|| Block::new(net)))
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
        self.wake(address);
        self.held.insert(address);
    }

    /// Takes an address back from its pod. The announcement of this number tells others.
    pub(crate) fn release(&mut self, address: IpAddr, at: u64, number: u64) {
        self.held.remove(&address);
        self.wake(address);
        self.resting.insert(address, Release { at, number });
        self.by_age.insert((at, address));
    }

    /// How many addresses have been released, and it is not answered yet.
    pub(crate) fn unanswered(&self, answered: u64) -> usize {
        self.resting.values().filter(|release| release.number > answered).count()
    }

    /// Hands out one address of each family that the node has a block of.
    pub(crate) fn allocate(&mut self, moment: Moment) -> Result<Addresses, IpamError> {
        let (v4, v6) = self.pick_both(moment)?;
        for (address, block) in [(v4, &mut self.v4), (v6, &mut self.v6)] {
            if let (Some(address), Some(block)) = (address, block) {
                block.next =
                    block.next.max(number(address).saturating_add(1)).min(block.last.saturating_add(1));
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
        let fresh = (block.next..=block.last).map(|number| block.address(number)).find(|address| {
            !self.held.contains(address)
                && !self.resting.contains_key(address)
                && !self.reserved.contains(address)
        });
        let fresh = fresh.map(|address| (self.forgotten, address));
        let rested =
            self.by_age.iter().filter_map(|(_, address)| Some((Some(*self.resting.get(address)?), *address)));
        let mut rested = rested.filter(|(release, address)| {
            block.contains(*address) && !self.reserved.contains(address) && moment.is_answered(*release)
        });
        let left = |(release, address): (Option<Release>, IpAddr)| {
            let rest = |release: Release| {
                self.rest.saturating_sub(Duration::from_micros(moment.now.saturating_sub(release.at)))
            };
            (release.map_or(Duration::ZERO, rest), address)
        };
        // The fresh first; else the one that has rested longest.
        let fresh = fresh.filter(|(release, _)| moment.is_answered(*release));
        match [fresh, rested.next()].into_iter().flatten().map(left).min_by_key(|(left, _)| *left) {
            Some((Duration::ZERO, address)) => Ok(address),
            next => Err(IpamError::Full(self.full(block, moment, next.map(|(left, _)| left)))),
        }
    }

    fn full(&self, block: &Block, moment: Moment, next: Option<Duration>) -> Full {
        let count = |set: &BTreeSet<IpAddr>| set.iter().filter(|address| block.contains(**address)).count();
        let (usable, held, reserved) = (block.size(), count(&self.held), count(&self.reserved));
        let resting = |answered: bool| {
            let counts = |(address, release): &(&IpAddr, &Release)| {
                block.contains(**address)
                    && !self.reserved.contains(*address)
                    && moment.is_answered(Some(**release)) == answered
            };
            self.resting.iter().filter(counts).count()
        };
        let unanswered = match moment.is_answered(self.forgotten) {
            true => resting(false),
            // All but those that somebody knows something of; there are no more than the window has.
            false => (usable as usize).saturating_sub(held + reserved + resting(true)),
        };
        Full { block: block.net, usable, held, reserved, unanswered, rest: self.rest, next }
    }

    fn wake(&mut self, address: IpAddr) {
        if let Some(release) = self.resting.remove(&address) {
            self.by_age.remove(&(release.at, address));
        }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ipam(v4: Option<&str>, v6: Option<&str>, rest: Duration) -> Ipam {
        let mut ipam = Ipam::new(rest);
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        ipam.set_blocks(v4.map(net), v6.map(net), BTreeSet::new());
        ipam
    }

    /// Where nobody is to be told of releases.
    fn at(now: u64) -> Moment {
        Moment { now, answered: u64::MAX }
    }

    fn v4(ipam: &mut Ipam, now: u64) -> Result<String, IpamError> {
        ipam.allocate(at(now)).map(|a| a.v4.unwrap().to_string())
    }

    #[test]
    fn first_and_last_are_left_out() {
        let mut small = ipam(Some("10.1.0.0/30"), None, Duration::ZERO);
        assert_eq!(v4(&mut small, 0).unwrap(), "10.1.0.1");
        assert_eq!(v4(&mut small, 0).unwrap(), "10.1.0.2");
        let full = v4(&mut small, 0).unwrap_err();
        assert_eq!(
            full.to_string(),
            "all 2 addresses of 10.1.0.0/30 are taken: 2 by pods; remove pods, or give the node a larger podCIDR"
        );
        // Two addresses or one: nothing to leave out.
        let mut two = ipam(Some("10.1.0.6/31"), None, Duration::ZERO);
        assert_eq!(v4(&mut two, 0).unwrap(), "10.1.0.6");
        assert_eq!(v4(&mut two, 0).unwrap(), "10.1.0.7");
        let mut one = ipam(None, Some("fd00::9/128"), Duration::ZERO);
        assert_eq!(one.allocate(at(0)).unwrap().v6.unwrap().to_string(), "fd00::9");
        let mut last = ipam(Some("255.255.255.252/30"), None, Duration::ZERO);
        assert_eq!(v4(&mut last, 0).unwrap(), "255.255.255.253");
        let mut top = ipam(None, Some("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127"), Duration::ZERO);
        assert!(top.allocate(at(0)).is_ok() && top.allocate(at(0)).is_ok() && top.allocate(at(0)).is_err());
    }

    #[test]
    fn a_wide_block_is_used_from_its_start() {
        let mut wide = ipam(None, Some("fd00:1::/64"), Duration::ZERO);
        assert_eq!(wide.allocate(at(0)).unwrap().v6.unwrap().to_string(), "fd00:1::1");
        for _ in 1..WINDOW {
            wide.allocate(at(0)).unwrap();
        }
        assert!(matches!(
            wide.allocate(at(0)),
            Err(IpamError::Full(Full { usable: WINDOW, next: None, .. }))
        ));
    }

    #[test]
    fn both_families_or_none() {
        let mut dual = ipam(Some("10.1.0.0/24"), Some("fd00::/127"), Duration::ZERO);
        let first = dual.allocate(at(0)).unwrap();
        assert!(first.v4.is_some() && first.v6.is_some());
        dual.allocate(at(0)).unwrap();
        let before = dual.held.clone();
        assert!(matches!(dual.allocate(at(0)), Err(IpamError::Full(Full { usable: 2, held: 2, .. }))));
        assert_eq!(dual.held, before, "a refusal must hold nothing");
        assert_eq!(Ipam::new(Duration::ZERO).allocate(at(0)), Err(IpamError::NoBlock));
    }

    #[test]
    fn the_longest_rested_goes_first_and_never_too_early() {
        let rest = Duration::from_micros(100);
        let mut ipam = ipam(Some("10.1.0.0/29"), None, rest);
        let all: Vec<IpAddr> =
            (0..6).map(|_| IpAddr::V4(ipam.allocate(at(0)).unwrap().v4.unwrap())).collect();
        ipam.release(all[3], 10, 0);
        ipam.release(all[0], 20, 0);
        ipam.release(all[5], 30, 0);
        let refused = ipam.allocate(at(109)).unwrap_err();
        let IpamError::Full(full) = refused else { panic!("{refused}") };
        assert_eq!((full.held, full.next), (3, Some(Duration::from_micros(1))));
        assert_eq!(IpAddr::V4(ipam.allocate(at(110)).unwrap().v4.unwrap()), all[3]);
        assert!(ipam.allocate(at(110)).is_err());
        assert_eq!(IpAddr::V4(ipam.allocate(at(200)).unwrap().v4.unwrap()), all[0]);
        assert_eq!(IpAddr::V4(ipam.allocate(at(200)).unwrap().v4.unwrap()), all[5]);
    }

    #[test]
    fn fresh_addresses_go_before_rested_ones() {
        let mut ipam = ipam(Some("10.1.0.0/24"), None, Duration::ZERO);
        let first = v4(&mut ipam, 0).unwrap();
        ipam.release(first.parse().unwrap(), 1, 0);
        assert_eq!(v4(&mut ipam, 2).unwrap(), "10.1.0.2");
    }

    #[test]
    fn a_full_block_says_who_has_its_addresses_and_when_the_next_is_free() {
        let mut ipam = Ipam::new(Duration::from_secs(60));
        let node = ["10.1.0.1".parse().unwrap(), "192.0.2.1".parse().unwrap()];
        ipam.set_blocks(Some("10.1.0.0/29".parse().unwrap()), None, node.into_iter().collect());
        let all: Vec<IpAddr> =
            (0..5).map(|_| IpAddr::V4(ipam.allocate(at(0)).unwrap().v4.unwrap())).collect();
        ipam.release(all[0], 0, 0);
        ipam.release(all[1], 1, 0);
        assert_eq!(
            ipam.allocate(at(17_600_000)).unwrap_err().to_string(),
            "all 6 addresses of 10.1.0.0/29 are taken: 3 by pods, 1 by nodes, and 2 rest for 60 s after their last \
             pod; the next is free in 42.4 s"
        );
    }

    #[test]
    fn where_the_past_is_forgotten_even_fresh_addresses_rest() {
        let mut ipam = ipam(Some("10.1.0.0/29"), None, Duration::from_micros(100));
        ipam.forget_before(50, 0);
        ipam.hold("10.1.0.1".parse().unwrap());
        ipam.release("10.1.0.2".parse().unwrap(), 60, 0);
        let IpamError::Full(full) = ipam.allocate(at(149)).unwrap_err() else { panic!() };
        assert_eq!((full.held, full.next), (1, Some(Duration::from_micros(1))));
        assert_eq!(v4(&mut ipam, 150).unwrap(), "10.1.0.3");
    }

    #[test]
    fn an_address_waits_for_the_answer_to_its_release_besides_its_rest() {
        let mut ipam = ipam(Some("10.1.0.0/30"), None, Duration::from_micros(100));
        let both: Vec<IpAddr> =
            (0..2).map(|_| IpAddr::V4(ipam.allocate(at(0)).unwrap().v4.unwrap())).collect();
        ipam.release(both[0], 0, 7);
        ipam.release(both[1], 50, 8);
        let moment = |now, answered| Moment { now, answered };
        assert_eq!((ipam.unanswered(6), ipam.unanswered(7), ipam.unanswered(8)), (2, 1, 0));
        assert_eq!(
            ipam.allocate(moment(1_000_000, 6)).unwrap_err().to_string(),
            "all 2 addresses of 10.1.0.0/30 are taken: 0 by pods; 2 addresses wait for the controller's answer: it comes when the \
             agents of all nodes follow that their last pods are gone (see moat-controller's /readyz)"
        );
        assert!(ipam.available(moment(99, 8)).is_err(), "it rests, whatever was answered");
        // The one that was answered goes, though another has rested longer.
        let mut later = ipam.clone();
        later.release(both[0], 0, 9);
        assert_eq!(IpAddr::V4(later.allocate(moment(150, 8)).unwrap().v4.unwrap()), both[1]);
        let IpamError::Full(full) = later.allocate(moment(150, 8)).unwrap_err() else { panic!() };
        assert_eq!((full.held, full.unanswered, full.next), (1, 1, None));
        assert_eq!(IpAddr::V4(ipam.allocate(moment(100, 7)).unwrap().v4.unwrap()), both[0]);
    }

    #[test]
    fn where_the_past_is_forgotten_nothing_goes_out_unanswered() {
        let mut ipam = ipam(Some("10.1.0.0/29"), None, Duration::ZERO);
        ipam.forget_before(0, 1);
        ipam.hold("10.1.0.1".parse().unwrap());
        ipam.release("10.1.0.2".parse().unwrap(), 0, 1);
        let IpamError::Full(full) = ipam.allocate(Moment { now: 9, answered: 0 }).unwrap_err() else {
            panic!()
        };
        assert_eq!((full.held, full.unanswered, full.next), (1, 5, None));
        assert!(ipam.allocate(Moment { now: 9, answered: 1 }).is_ok());
    }

    #[test]
    fn what_is_somebody_elses_is_left_out() {
        let mut ipam = Ipam::new(Duration::ZERO);
        let node = ["10.1.0.1".parse().unwrap()];
        ipam.set_blocks(Some("10.1.0.0/24".parse().unwrap()), None, node.into_iter().collect());
        ipam.hold("10.1.0.2".parse().unwrap());
        assert_eq!(v4(&mut ipam, 0).unwrap(), "10.1.0.3");
    }

    #[test]
    fn another_block_leaves_what_is_held() {
        let mut ipam = ipam(Some("10.1.0.0/30"), None, Duration::ZERO);
        let old = v4(&mut ipam, 0).unwrap();
        ipam.set_blocks(Some("10.2.0.0/30".parse().unwrap()), None, BTreeSet::new());
        assert_eq!(v4(&mut ipam, 0).unwrap(), "10.2.0.1");
        ipam.set_blocks(Some("10.1.0.0/30".parse().unwrap()), None, BTreeSet::new());
        assert_ne!(v4(&mut ipam, 0).unwrap(), old);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Allocate,
        Release(usize),
        Wait(u64),
        Answer(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => Just(Step::Allocate),
            2 => any::<usize>().prop_map(Step::Release),
            1 => (0..80u64).prop_map(Step::Wait),
            1 => (0..4u64).prop_map(Step::Answer),
        ]
    }

    proptest! {
        /// Whatever happens, an address has one owner at a time, and rests in between.
        #[test]
        fn one_owner_at_a_time(steps in prop::collection::vec(step(), 0..200)) {
            let rest = Duration::from_micros(50);
            let mut ipam = ipam(Some("10.1.0.0/28"), Some("fd00::/125"), rest);
            let mut owned: Vec<Addresses> = Vec::new();
            let mut released: BTreeMap<IpAddr, (u64, u64)> = BTreeMap::new();
            let (mut now, mut newest, mut answered) = (0, 0, 0);
            for step in steps {
                now += 1;
                match step {
                    Step::Wait(time) => now += time,
                    Step::Answer(more) => answered = newest.min(answered + more),
                    Step::Release(which) if !owned.is_empty() => {
                        let gone = owned.remove(which % owned.len());
                        newest += 1;
                        for address in [gone.v4.map(IpAddr::V4), gone.v6.map(IpAddr::V6)].into_iter().flatten() {
                            ipam.release(address, now, newest);
                            released.insert(address, (now, newest));
                        }
                    }
                    Step::Release(_) => {}
                    Step::Allocate => {
                        if let Ok(new) = ipam.allocate(Moment { now, answered }) {
                            prop_assert!(owned.iter().all(|o| o.v4 != new.v4 && o.v6 != new.v6));
                            for address in [new.v4.map(IpAddr::V4), new.v6.map(IpAddr::V6)].into_iter().flatten() {
                                if let Some((since, number)) = released.get(&address) {
                                    prop_assert!(now - since >= 50, "{address} rested {} only", now - since);
                                    prop_assert!(*number <= answered, "{address} was not answered");
                                }
                            }
                            owned.push(new);
                        }
                    }
                }
            }
        }
    }
}
