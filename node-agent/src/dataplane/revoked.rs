//! Whose connections are revoked, as far as anybody has looked. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::concern::Concern;

/// More ends than this are not named one by one.
const NAMED: usize = 4096;

/// The ends of revoked connections. A change that only allows an address more is about connections that are there if they are
/// revoked, and about no others: so with this it is known without looking whether there are any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoked {
    /// They may be anybody's.
    all: bool,
    ends: BTreeSet<IpAddr>,
}

impl Default for Revoked {
    /// Nobody has looked yet.
    fn default() -> Self {
        Self { all: true, ends: BTreeSet::new() }
    }
}

impl Revoked {
    /// Whether a connection with this end may be revoked.
    pub(crate) fn may_be_of(&self, address: IpAddr) -> bool {
        self.all || self.ends.contains(&address)
    }

    /// The connections of those concerned have been looked at, all of them, and the revoked ones among them have these ends.
    pub(crate) fn looked(&mut self, concern: &Concern, found: BTreeSet<IpAddr>) {
        if concern.is_all() {
            *self = Self { all: false, ends: BTreeSet::new() };
        }
        for address in concern.addresses() {
            self.ends.remove(&address);
        }
        self.ends.extend(found);
        self.all |= self.ends.len() > NAMED;
        if self.all {
            self.ends.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u16) -> IpAddr {
        let [high, low] = n.to_be_bytes();
        IpAddr::from([10, 0, high, low])
    }

    fn concern(addresses: impl IntoIterator<Item = u16>) -> Concern {
        let mut concern = Concern::default();
        concern.add(addresses.into_iter().map(address));
        concern
    }

    #[test]
    fn what_a_look_has_not_seen_stays_as_it_was_known() {
        let mut revoked = Revoked::default();
        assert!(revoked.may_be_of(address(1)), "nobody has looked");
        revoked.looked(&concern([1]), BTreeSet::new());
        assert!(revoked.may_be_of(address(1)), "the others have not been looked at");
        revoked.looked(&Concern::all(), [address(1), address(2)].into());
        assert!(revoked.may_be_of(address(2)) && !revoked.may_be_of(address(3)));
        revoked.looked(&concern([1]), [address(1), address(3)].into());
        assert!([1, 2, 3].into_iter().all(|n| revoked.may_be_of(address(n))));
        revoked.looked(&Concern::moved([address(1), address(2)]), BTreeSet::new());
        assert!(!revoked.may_be_of(address(1)) && revoked.may_be_of(address(3)));
    }

    #[test]
    fn too_many_to_name_are_everybody_until_all_are_looked_at() {
        let mut revoked = Revoked::default();
        revoked.looked(&Concern::all(), (0..=NAMED as u16).map(address).collect());
        assert!(revoked.may_be_of(address(u16::MAX)));
        revoked.looked(&concern([1]), BTreeSet::new());
        assert!(revoked.may_be_of(address(1)));
        revoked.looked(&Concern::all(), BTreeSet::new());
        assert!(!revoked.may_be_of(address(1)));
    }
}
