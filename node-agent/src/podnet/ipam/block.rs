//! A block of addresses, in the order in which they are given first.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// How many addresses of a block are used. An IPv6 block has more than could ever be remembered as resting.
pub(super) const WINDOW: u128 = 1 << 16;

/// The usable addresses of a podCIDR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    net: IpNet,
    first: u128,
    last: u128,
    /// No address before this one is fresh.
    next: u128,
}

impl Block {
    pub(super) fn new(net: IpNet) -> Self {
        let net = net.trunc();
        let first = number(net.network());
        let last = number(net.broadcast());
        // The first and last addresses have a meaning of their own for whoever takes the block for a link's
        // (network and broadcast, subnet routers). A block of one or two addresses has none to spare.
        let spare = u128::from(last - first >= 3);
        let (first, last) = (first + spare, last - spare);
        Self { net, first, last: last.min(first.saturating_add(WINDOW - 1)), next: first }
    }

    pub(super) fn net(&self) -> IpNet {
        self.net
    }

    /// Whether it is the block of this podCIDR.
    pub(super) fn is_of(&self, net: IpNet) -> bool {
        self.net == net.trunc()
    }

    /// Those that may be fresh, in the order in which they are given.
    pub(super) fn fresh(&self) -> impl Iterator<Item = IpAddr> + '_ {
        (self.next..=self.last).map(|number| self.address(number))
    }

    /// An address of it is given: this one and none before it is fresh from now on.
    pub(super) fn give(&mut self, address: IpAddr) {
        self.next = self.next.max(number(address).saturating_add(1)).min(self.last.saturating_add(1));
    }

    /// How many addresses of it are used at all.
    pub(super) fn size(&self) -> u128 {
        self.last - self.first + 1
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
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

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}
