//! The chain of one veth: what its pod may send at all.

use std::net::Ipv6Addr;

use moat_nfnetlink::nft::{Chain, Cmp, Hook, IfName, Operand, PayloadBase, Policy, Rule, Source, Verdict};
use moat_policies::Direction;

use super::drops::DropReason;
use super::fixed::ROUTING_HEADER;
use super::names::{self, Table};
use super::{ChainRules, LocalPod};

/// Before everything else that looks at packets from a device.
const PRIORITY: i32 = -500;

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP6: u8 = 58;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// The sender's hardware address and what the frame carries: eight bytes that are read and compared at once.
const SENDER_AND_TYPE: Source = Source::Payload { base: PayloadBase::Link, offset: 6, len: 8 };
/// Four bytes of the network header from an offset: what the kernel reads fastest.
const fn word(offset: u16) -> Source {
    Source::Payload { base: PayloadBase::Network, offset, len: 4 }
}

/// Version and length of an IPv4 header.
const IP_FIRST_BYTE: Source = Source::Payload { base: PayloadBase::Network, offset: 0, len: 1 };
/// What follows the IPv6 header.
const IP6_NEXT_HEADER: Source = Source::Payload { base: PayloadBase::Network, offset: 6, len: 1 };
/// The sender in an ARP packet: hardware address and IPv4 address.
const ARP_SENDER: Source = Source::Payload { base: PayloadBase::Network, offset: 8, len: 10 };

/// The anti-spoofing chain of a pod's host end. It may be made before the device is there.
///
/// Every packet that a pod sends comes through here, so the first rule of each family is as cheap as it can be made. The
/// kernel reads up to four bytes of the network header in a few nanoseconds, and everything else, the Ethernet header
/// too, in some fifty. So addresses are compared in words of four bytes, and the version in the first byte tells what
/// the frame carries: the kernel itself refuses IPv4 without a 4 there, IPv6 without a 6, and ARP with either. The
/// hardware address is asked for where a connection opens. What these rules do not accept is looked at closer,
/// and at last dropped.
pub(crate) fn chain(ifname: IfName, pod: &LocalPod) -> ChainRules {
    let mut rules = Vec::new();
    if let Some(address) = pod.v4 {
        let own = || Rule::new().eq(Source::IP_SADDR, Operand::bytes(address.octets()));
        // Version 4, and a header of five words: no options.
        rules.push(own().eq(IP_FIRST_BYTE, 0x45).verdict(Verdict::Accept));
        rules.push(frame(own(), pod, IPV4).verdict(Verdict::goto(names::OPTIONS)));
    }
    if let Some(address) = pod.v6 {
        // From TCP's number to UDP's there is no extension header's: nothing stands between that could be a source route.
        rules.push(
            in_words(Rule::new(), address)
                .masked(word(0), Operand::be32(0xf000_0000), Cmp::Eq, Operand::be32(0x6000_0000))
                .range(IP6_NEXT_HEADER, TCP, UDP)
                .verdict(Verdict::Accept),
        );
        let own = |rule: Rule| frame(in_words(rule, address), pod, IPV6);
        let other = Rule::new().neq(Source::L4PROTO, ICMP6).eq(ROUTING_HEADER, 0);
        rules.push(own(other).verdict(Verdict::Accept));
        let own = || own(Rule::new());
        rules.push(
            own()
                .eq(Source::L4PROTO, ICMP6)
                .eq(Source::ICMP_TYPE, NEIGHBOUR_ADVERTISEMENT)
                .neq(Source::ND_TARGET, Operand::bytes(address.octets()))
                .verdict(DropReason::Spoofed.on(Direction::Egress).goto()),
        );
        rules.push(own().eq(Source::L4PROTO, ICMP6).verdict(Verdict::goto(names::ICMP6)));
    }
    if let Some(address) = pod.v4 {
        let mut sender = [0; 10];
        sender[..6].copy_from_slice(&pod.pod_mac);
        sender[6..].copy_from_slice(&address.octets());
        rules.push(
            frame(Rule::new(), pod, ARP).eq(ARP_SENDER, Operand::bytes(sender)).verdict(Verdict::Accept),
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

/// Goes on if the frame is from the pod's hardware address and carries this.
fn frame(rule: Rule, pod: &LocalPod, ether_type: u16) -> Rule {
    let mut head = [0; 8];
    head[..6].copy_from_slice(&pod.pod_mac);
    head[6..].copy_from_slice(&ether_type.to_be_bytes());
    rule.eq(SENDER_AND_TYPE, Operand::bytes(head))
}

/// Goes on if the IPv6 source address is this one. The last word first: it tells pods apart.
fn in_words(rule: Rule, address: Ipv6Addr) -> Rule {
    let octets = address.octets();
    [3_usize, 0, 1, 2].into_iter().fold(rule, |rule, n| {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&octets[4 * n..4 * n + 4]);
        rule.eq(word(8 + 4 * n as u16), Operand::bytes(bytes))
    })
}
