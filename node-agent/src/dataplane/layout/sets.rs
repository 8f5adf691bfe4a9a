//! Allow sets as kernel sets.
//!
//! One allow set is up to four kernel sets, by family and by what is in it: pods' addresses come and go and are a hash
//! table; prefixes never change (they are a part of the set's identity) and are an interval set.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use moat_nfnetlink::nft::{Element, Value};
use moat_policies::{self as policies, SetKind};

use super::{LayoutConfig, Part};

/// The kernel sets that an allow set is made of.
pub(crate) fn parts(kind: SetKind, pods: bool, prefixes: &[IpNet], config: &LayoutConfig) -> Vec<Part> {
    let v4 = prefixes.iter().any(|p| p.network().is_ipv4());
    let v6 = prefixes.iter().any(|p| p.network().is_ipv6());
    let all = match kind {
        SetKind::Addresses => {
            [(Part::Pods4, pods), (Part::Nets4, v4), (Part::Pods6, pods), (Part::Nets6, v6)].to_vec()
        }
        SetKind::AddressPorts => vec![(Part::Ports4, true), (Part::Ports6, true)],
    };
    all.into_iter()
        .filter(|(part, there)| *there && if part.is_v4() { config.v4 } else { config.v6 })
        .map(|(part, _)| part)
        .collect()
}

/// The element of a pod in an allow set, and the part that it belongs to.
pub(crate) fn element(element: &policies::Element) -> (Part, Element) {
    let address = Value::from(element.address);
    let v4 = element.address.is_ipv4();
    match element.port {
        None => (if v4 { Part::Pods4 } else { Part::Pods6 }, Element::new(address)),
        Some((protocol, port)) => (
            if v4 { Part::Ports4 } else { Part::Ports6 },
            Element::new([address, Value::Proto(protocol.number()), Value::Port(port)]),
        ),
    }
}

/// The elements of an allow set's prefixes in one family.
pub(crate) fn prefixes(prefixes: &[IpNet], v4: bool) -> Vec<Element> {
    let whole = |first: IpAddr, last: IpAddr| {
        Element::range([first.into(), Value::Proto(0)], [last.into(), Value::Proto(u8::MAX)])
    };
    ranges(prefixes, v4).into_iter().map(|(first, last)| whole(first, last)).collect()
}

/// The ranges that prefixes of one family cover: disjoint, in order, each with its first and last address.
pub(crate) fn ranges(prefixes: &[IpNet], v4: bool) -> Vec<(IpAddr, IpAddr)> {
    let mut ranges: Vec<(u128, u128)> = prefixes
        .iter()
        .filter(|p| p.network().is_ipv4() == v4)
        .map(|p| (bits(p.network()), bits(p.broadcast())))
        .collect();
    ranges.sort_unstable();
    // Ranges that touch become one: the fewer elements, the cheaper the lookup.
    let mut joined: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match joined.last_mut() {
            Some((_, end)) if end.checked_add(1).is_none_or(|next| first <= next) => *end = last.max(*end),
            _ => joined.push((first, last)),
        }
    }
    let address = |bits: u128| match v4 {
        true => IpAddr::V4(Ipv4Addr::from_bits(bits as u32)),
        false => IpAddr::V6(Ipv6Addr::from_bits(bits)),
    };
    joined.into_iter().map(|(first, last)| (address(first), address(last))).collect()
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(a.to_bits()),
        IpAddr::V6(a) => a.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(text: &[&str]) -> Vec<IpNet> {
        text.iter().map(|t| t.parse().unwrap()).collect()
    }

    #[test]
    fn prefixes_that_touch_are_one_range() {
        let all = nets(&["10.0.0.0/9", "10.128.0.0/9", "11.0.0.0/8", "13.0.0.0/8", "fd00::/8"]);
        let elements = prefixes(&all, true);
        let text: Vec<_> = elements.iter().map(|e| format!("{}-{}", e.key, e.end.unwrap())).collect();
        assert_eq!(text, ["10.0.0.0 . 0-11.255.255.255 . 255", "13.0.0.0 . 0-13.255.255.255 . 255"]);
        assert_eq!(prefixes(&all, false).len(), 1);
        assert_eq!(prefixes(&nets(&["::/1", "8000::/1"]), false).len(), 1);
        assert_eq!(prefixes(&nets(&["0.0.0.0/0"]), true).len(), 1);
    }

    #[test]
    fn a_set_has_the_parts_that_it_can_have_elements_in() {
        let config = LayoutConfig::default();
        let of = |pods, text: &[&str], config| parts(SetKind::Addresses, pods, &nets(text), config);
        assert_eq!(of(true, &[], &config), [Part::Pods4, Part::Pods6]);
        assert_eq!(of(false, &["10.0.0.0/8"], &config), [Part::Nets4]);
        let v4 = LayoutConfig { v6: false, ..config };
        assert_eq!(of(true, &["10.0.0.0/8", "fd00::/8"], &v4), [Part::Pods4, Part::Nets4]);
        assert_eq!(parts(SetKind::AddressPorts, true, &[], &v4), [Part::Ports4]);
    }
}
