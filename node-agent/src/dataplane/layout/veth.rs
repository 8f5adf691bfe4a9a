//! The chain of one veth: what its pod may send at all.

use moat_nfnetlink::nft::{Chain, Cmp, Hook, IfName, Operand, PayloadBase, Policy, Rule, Source, Verdict};

use super::drops::DropReason;
use super::fixed::ROUTING_HEADER;
use super::names::{self, Table};
use super::{ChainRules, LocalPod};

/// Before everything else that looks at packets from a device.
const PRIORITY: i32 = -500;

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const ICMP6: u8 = 58;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// The sender's hardware address and what the frame carries: eight bytes that are read and compared at once.
const SENDER_AND_TYPE: Source = Source::Payload { base: PayloadBase::Link, offset: 6, len: 8 };
/// An IPv4 header from its first byte to the end of the source address.
const IP_TO_SADDR: Source = Source::Payload { base: PayloadBase::Network, offset: 0, len: 16 };
/// The sender in an ARP packet: hardware address and IPv4 address.
const ARP_SENDER: Source = Source::Payload { base: PayloadBase::Network, offset: 8, len: 10 };

/// The anti-spoofing chain of a pod's host end. It may be made before the device is there.
///
/// Every packet that a pod sends comes through here, so the first rule of each family is as short as it can be made:
/// few loads, each compared at once. What they do not accept is looked at closer, and at last dropped.
pub(crate) fn chain(ifname: IfName, pod: &LocalPod) -> ChainRules {
    let mut rules = Vec::new();
    if let Some(address) = pod.v4 {
        // Version 4, a header of five words (no options), and the source address.
        let (mut mask, mut plain) = ([0; 16], [0; 16]);
        (mask[0], plain[0]) = (0xff, 0x45);
        mask[12..].fill(0xff);
        plain[12..].copy_from_slice(&address.octets());
        rules.push(
            frame(pod, IPV4)
                .masked(IP_TO_SADDR, Operand::bytes(mask), Cmp::Eq, Operand::bytes(plain))
                .verdict(Verdict::Accept),
        );
        rules.push(
            frame(pod, IPV4)
                .eq(Source::IP_SADDR, Operand::bytes(address.octets()))
                .verdict(Verdict::goto(names::OPTIONS)),
        );
    }
    if let Some(address) = pod.v6 {
        let own = || frame(pod, IPV6).eq(Source::IP6_SADDR, Operand::bytes(address.octets()));
        rules.push(own().neq(Source::L4PROTO, ICMP6).eq(ROUTING_HEADER, 0).verdict(Verdict::Accept));
        rules.push(
            own()
                .eq(Source::L4PROTO, ICMP6)
                .eq(Source::ICMP_TYPE, NEIGHBOUR_ADVERTISEMENT)
                .neq(Source::ND_TARGET, Operand::bytes(address.octets()))
                .verdict(DropReason::Spoofed.goto()),
        );
        rules.push(own().eq(Source::L4PROTO, ICMP6).verdict(Verdict::goto(names::ICMP6)));
    }
    if let Some(address) = pod.v4 {
        let mut sender = [0; 10];
        sender[..6].copy_from_slice(&pod.pod_mac);
        sender[6..].copy_from_slice(&address.octets());
        rules.push(frame(pod, ARP).eq(ARP_SENDER, Operand::bytes(sender)).verdict(Verdict::Accept));
    }
    rules.push(Rule::new().verdict(Verdict::goto(names::ODD)));
    ChainRules {
        table: Table::Netdev,
        // The policy drops too, for the moment in which the chain is there and its rules are not in force.
        chain: Chain::filter(ifname.as_str(), Hook::Ingress(ifname), PRIORITY, Policy::Drop),
        rules,
    }
}

fn frame(pod: &LocalPod, ether_type: u16) -> Rule {
    let mut head = [0; 8];
    head[..6].copy_from_slice(&pod.pod_mac);
    head[6..].copy_from_slice(&ether_type.to_be_bytes());
    Rule::new().eq(SENDER_AND_TYPE, Operand::bytes(head))
}
