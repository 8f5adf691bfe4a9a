//! Sets of addresses as prefixes: disjoint, sorted, as few as possible.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, LazyLock};

use ipnet::{IpNet, IpSubnets, Ipv4Subnets, Ipv6Subnets};

use crate::Block;
use crate::hash::ContentHash;

/// A canonical list of prefixes, named by its content: lists of thousands are read once, and then compared by name.
#[derive(Clone, Debug)]
pub(crate) struct Prefixes {
    list: Arc<[IpNet]>,
    id: [u8; 16],
}

impl Prefixes {
    /// No addresses.
    pub(crate) fn none() -> Self {
        static NONE: LazyLock<Prefixes> = LazyLock::new(|| Prefixes::of([].into()));
        NONE.clone()
    }

    fn of(list: Arc<[IpNet]>) -> Self {
        let mut hash = ContentHash::new("prefixes");
        for prefix in &*list {
            match prefix.addr() {
                IpAddr::V4(a) => hash.bytes(&a.octets()),
                IpAddr::V6(a) => hash.bytes(&a.octets()),
            };
            hash.number(prefix.prefix_len().into());
        }
        let id = hash.finish();
        Self { list, id }
    }

    /// All of them.
    pub(crate) fn list(&self) -> &Arc<[IpNet]> {
        &self.list
    }

    /// What they are called, in every process.
    pub(crate) fn id(&self) -> &[u8; 16] {
        &self.id
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether an address is in one of them.
    pub(crate) fn contain(&self, address: IpAddr) -> bool {
        contain(&self.list, address)
    }
}

impl PartialEq for Prefixes {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Prefixes {}

impl Hash for Prefixes {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.id.hash(state);
    }
}

impl PartialOrd for Prefixes {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Prefixes {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.id.cmp(&other.id)
    }
}

/// The addresses of a block as prefixes.
pub(crate) fn of_block(block: &Block) -> Prefixes {
    if block.except().is_empty() {
        return Prefixes::of([block.cidr()].into());
    }
    let (start, end) = bounds(&block.cidr());
    let mut ranges = Vec::with_capacity(block.except().len() + 1);
    let mut next = Some(start);
    // Excepts are sorted and disjoint, so what lies between two of them stays.
    for except in block.except() {
        let (first, last) = bounds(except);
        if let Some(from) = next.filter(|from| *from < first) {
            ranges.push((from, first - 1));
        }
        next = last.checked_add(1);
    }
    if let Some(from) = next.filter(|from| *from <= end) {
        ranges.push((from, end));
    }
    let v4 = block.cidr().addr().is_ipv4();
    Prefixes::of(ranges.into_iter().flat_map(|(first, last)| subnets(v4, first, last)).collect())
}

/// Everything that is in any of the lists, each of them canonical itself.
pub(crate) fn union(lists: &[Prefixes]) -> Prefixes {
    match lists {
        [] => Prefixes::none(),
        [one] => one.clone(),
        many => {
            let together: Vec<IpNet> = many.iter().flat_map(|l| l.list.iter().copied()).collect();
            let mut all = IpNet::aggregate(&together);
            all.sort_unstable();
            Prefixes::of(all.into())
        }
    }
}

fn bounds(net: &IpNet) -> (u128, u128) {
    match net {
        IpNet::V4(net) => (u32::from(net.network()).into(), u32::from(net.broadcast()).into()),
        IpNet::V6(net) => (net.network().into(), net.broadcast().into()),
    }
}

fn subnets(v4: bool, first: u128, last: u128) -> IpSubnets {
    if v4 {
        let v4 = |n: u128| Ipv4Addr::from(n as u32);
        IpSubnets::V4(Ipv4Subnets::new(v4(first), v4(last), 0))
    } else {
        IpSubnets::V6(Ipv6Subnets::new(Ipv6Addr::from(first), Ipv6Addr::from(last), 0))
    }
}

/// Whether an address is in a canonical list.
fn contain(prefixes: &[IpNet], address: IpAddr) -> bool {
    let host = IpNet::from(address);
    let after = prefixes.partition_point(|p| *p <= host);
    // Disjoint and sorted: only the one that starts last before the address can hold it.
    after > 0 && prefixes[after - 1].contains(&address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn texts(prefixes: &[IpNet]) -> Vec<String> {
        prefixes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_block_is_what_its_excepts_leave() {
        let block = |cidr: &str, except: &[&str]| {
            texts(of_block(&Block::new(net(cidr), except.iter().map(|e| net(e))).unwrap()).list())
        };
        assert_eq!(block("10.0.0.0/8", &[]), ["10.0.0.0/8"]);
        assert_eq!(block("10.0.0.0/30", &["10.0.0.1/32"]), ["10.0.0.0/32", "10.0.0.2/31"]);
        assert_eq!(block("0.0.0.0/0", &["0.0.0.0/1"]), ["128.0.0.0/1"]);
        assert_eq!(block("0.0.0.0/0", &["128.0.0.0/1"]), ["0.0.0.0/1"]);
        assert_eq!(block("::/0", &["8000::/1"]), ["::/1"]);
        assert_eq!(block("10.0.0.0/31", &["10.0.0.0/32", "10.0.0.1/32"]), Vec::<String>::new());
    }

    #[test]
    fn a_union_is_the_same_however_it_was_split() {
        let lists = [
            Prefixes::of([net("10.128.0.0/9"), net("fd00::/8")].into()),
            Prefixes::of([net("10.0.0.0/9")].into()),
            Prefixes::of([net("10.3.0.0/16")].into()),
        ];
        assert_eq!(texts(union(&lists).list()), ["10.0.0.0/8", "fd00::/8"]);
        assert_eq!(union(&lists), Prefixes::of([net("10.0.0.0/8"), net("fd00::/8")].into()));
    }

    fn small_net() -> impl Strategy<Value = IpNet> {
        (any::<u8>(), 24u8..=32).prop_map(|(host, length)| {
            IpNet::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, host)), length).unwrap().trunc()
        })
    }

    proptest! {
        #[test]
        fn prefixes_hold_what_the_blocks_hold(
            blocks in prop::collection::vec((small_net(), prop::collection::vec(small_net(), 0..4)), 0..4)
        ) {
            let blocks: Vec<Block> = blocks.into_iter().map(|(cidr, except)| {
                Block::new(cidr, except.into_iter().filter(|e| cidr.contains(e) && *e != cidr)).unwrap()
            }).collect();
            let all = union(&blocks.iter().map(of_block).collect::<Vec<_>>());
            for host in 0..=255 {
                let address = IpAddr::V4(Ipv4Addr::new(192, 0, 2, host));
                prop_assert_eq!(all.contain(address), blocks.iter().any(|b| b.contains(address)), "{}", address);
            }
            for pair in all.list().windows(2) {
                prop_assert!(pair[0] < pair[1] && !pair[0].contains(&pair[1]));
            }
        }
    }
}
