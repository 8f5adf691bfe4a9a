//! Whom a change is about, among the connections that are there already. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

/// More addresses than this are not named one by one: whoever looks for their connections looks at all.
const NAMED: usize = 64;

/// The addresses whose connections a change may have made allowed or denied, at either end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Concern {
    /// Every address there is.
    all: bool,
    /// These.
    addresses: BTreeSet<IpAddr>,
    /// Addresses that somebody else has now, or nobody: no connection of theirs may be carried on.
    moved: BTreeSet<IpAddr>,
}

impl Concern {
    /// Every connection there is.
    pub fn all() -> Self {
        Self { all: true, ..Self::default() }
    }

    /// Nobody's connections but those of addresses that have moved.
    pub fn moved(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        Self { moved: addresses.into_iter().collect(), ..Self::default() }
    }

    /// Whether it is about nobody.
    pub fn is_empty(&self) -> bool {
        !self.all && self.addresses.is_empty() && self.moved.is_empty()
    }

    /// Whether it is about anybody but those who have moved.
    pub(crate) fn is_about_others(&self) -> bool {
        self.all || !self.addresses.is_empty()
    }

    /// Whether it is about every address.
    pub fn is_all(&self) -> bool {
        self.all
    }

    /// The addresses that it names, those that have moved too.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.union(&self.moved).copied()
    }

    /// Whether it is about a connection between these two.
    pub fn covers(&self, source: IpAddr, destination: IpAddr) -> bool {
        self.all || [source, destination].iter().any(|a| self.addresses.contains(a) || self.moved.contains(a))
    }

    /// Whether one of these two has moved.
    pub fn has_moved(&self, source: IpAddr, destination: IpAddr) -> bool {
        self.moved.contains(&source) || self.moved.contains(&destination)
    }

    /// Those of it who have moved.
    pub(crate) fn the_moved(&self) -> Self {
        Self::moved(self.moved.iter().copied())
    }

    /// The same, without those who have moved.
    pub fn others(mut self) -> Self {
        self.moved.clear();
        self
    }

    /// Leaves addresses out.
    pub(crate) fn forgo(&mut self, addresses: &BTreeSet<IpAddr>) {
        self.addresses.retain(|a| !addresses.contains(a));
    }

    /// Adds what another change is about.
    pub fn merge(&mut self, other: Concern) {
        self.all |= other.all;
        self.moved.extend(other.moved);
        self.add(other.addresses);
    }

    pub(crate) fn add(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        if !self.all {
            self.addresses.extend(addresses);
            self.bound();
        }
    }

    fn bound(&mut self) {
        self.all |= self.addresses.len() > NAMED;
        if self.all {
            self.addresses.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    #[test]
    fn many_addresses_are_all_addresses() {
        let mut concern = Concern::default();
        assert!(concern.is_empty());
        concern.add((0..NAMED as u8).map(address));
        assert!(!concern.is_all() && concern.covers(address(0), address(200)));
        assert!(!concern.covers(address(201), address(200)));
        concern.merge(Concern { addresses: [address(70)].into(), ..Concern::default() });
        assert!(concern.is_all() && concern.covers(address(201), address(200)));
    }

    #[test]
    fn who_has_moved_is_remembered_among_all() {
        let mut concern = Concern::moved([address(1)]);
        concern.merge(Concern::all());
        assert!(concern.has_moved(address(9), address(1)) && !concern.has_moved(address(9), address(2)));
        assert!(concern.the_moved() == Concern::moved([address(1)]));
        assert!(!concern.others().has_moved(address(9), address(1)));
    }
}
