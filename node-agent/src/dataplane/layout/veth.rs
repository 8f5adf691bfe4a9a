//! The chain of one veth: what its pod may send at all.

use std::net::Ipv6Addr;

use moat_nfnetlink::nft::{
    Chain, Cmp, Element, Hook, IfName, Operand, PayloadBase, Policy, Rule, Source, Value, Verdict,
};

use super::names::{self, OwnSet, Table};
use super::{ChainRules, LocalPod};

/// Before everything else that looks at packets from a device.
const PRIORITY: i32 = -500;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Four bytes of the network header from an offset: what the kernel reads fastest.
const fn word(offset: u16) -> Source {
    Source::Payload { base: PayloadBase::Network, offset, len: 4 }
}

/// Version and length of an IPv4 header.
const IP_FIRST_BYTE: Source = Source::Payload { base: PayloadBase::Network, offset: 0, len: 1 };
/// What follows the IPv6 header.
const IP6_NEXT_HEADER: Source = Source::Payload { base: PayloadBase::Network, offset: 6, len: 1 };

/// The anti-spoofing chain of a pod's host end. It may be made before the device is there.
///
/// Every packet that a pod sends comes through here, so the rule of each family is as cheap as it can be made. The
/// kernel reads up to four bytes of the network header in a few nanoseconds, and everything else, the Ethernet header
/// too, in some fifty. So addresses are compared in words of four bytes, and the version in the first byte tells what
/// the frame carries: the kernel itself refuses IPv4 without a 4 there, IPv6 without a 6, and ARP with either. The
/// hardware address is asked for where a connection opens.
///
/// What these rules do not accept is looked at closer in a chain of all pods, by what [`own`] says of this one. It could be done
/// here with no set. But with each pod that comes the kernel goes through all rules of all veths' chains once more, a third of a
/// microsecond a rule: so there are as few as can be.
pub(crate) fn chain(ifname: IfName, pod: &LocalPod) -> ChainRules {
    let mut rules = Vec::new();
    if let Some(address) = pod.v4 {
        // Version 4, and a header of five words: no options.
        let own = Rule::new().eq(Source::IP_SADDR, Operand::bytes(address.octets()));
        rules.push(own.eq(IP_FIRST_BYTE, 0x45).verdict(Verdict::Accept));
    }
    if let Some(address) = pod.v6 {
        // From TCP's number to UDP's there is no extension header's: nothing stands between that could be a source route.
        rules.push(
            in_words(address)
                .masked(word(0), Operand::be32(0xf000_0000), Cmp::Eq, Operand::be32(0x6000_0000))
                .range(IP6_NEXT_HEADER, TCP, UDP)
                .verdict(Verdict::Accept),
        );
    }
    rules.push(Rule::new().verdict(Verdict::goto(names::ODD)));
    ChainRules {
        table: Table::Netdev,
        // The policy drops too, for the moment in which the chain is there and its rules are not in force.
        chain: Chain::filter(ifname.as_str(), Hook::Ingress(ifname), PRIORITY, Policy::Drop),
        rules,
    }
}

/// What [`names::ODD`] knows of a pod: the element that it has in each set.
pub(crate) fn own(ifname: IfName, pod: &LocalPod) -> impl Iterator<Item = (OwnSet, Element)> + use<> {
    let mac = Value::Ether(pod.pod_mac);
    pod.addresses().map(move |address| {
        let set = if address.is_ipv4() { OwnSet::V4 } else { OwnSet::V6 };
        (set, Element::new([Value::IfName(ifname), mac, Value::from(address)]))
    })
}

/// Goes on if the IPv6 source address is this one. The last word first: it tells pods apart.
fn in_words(address: Ipv6Addr) -> Rule {
    let octets = address.octets();
    [3_usize, 0, 1, 2].into_iter().fold(Rule::new(), |rule, n| {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&octets[4 * n..4 * n + 4]);
        rule.eq(word(8 + 4 * n as u16), Operand::bytes(bytes))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_has_one_rule_a_family_and_one_for_the_rest() {
        let (v4, v6) = ("10.1.0.5".parse().ok(), "fd00:1::5".parse().ok());
        for (v4, v6, rules) in [(v4, None, 2), (None, v6, 2), (v4, v6, 3)] {
            let pod = LocalPod { ifname: "moat0".into(), pod_mac: [2, 0, 0, 0, 0, 1], v4, v6 };
            let ifname = IfName::new("moat0").unwrap();
            assert_eq!(chain(ifname, &pod).rules.len(), rules);
            assert_eq!(own(ifname, &pod).count(), rules - 1);
        }
    }
}
