//! Who says that he is somebody else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use moat_policies::Family;

use super::{Draft, Place, Table, Who};
use crate::hostile::cast::Sender;
use crate::hostile::frame::{Eth, Mac};

/// The gateway that moat gives every pod.
pub(super) const GATEWAY4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
pub(super) const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const BROADCAST: Mac = [0xff; 6];
/// Nobody's.
const OTHER_MAC: Mac = [0x02, 0xba, 0xd0, 0, 0, 1];
const ADVERTISEMENT: u8 = 136;

pub(super) fn rows(t: &mut Table<'_>) {
    use Who::{Denied, Far, Limited, Near};
    t.group("spoofed source");
    for victim in [Near, Far] {
        let name = format!("limited's address, to {}", victim.name());
        t.pod(Denied, name, |d| d.allowed(d.of(Limited), d.of(victim)), &[]);
    }
    t.pod(Denied, "limited's address, to its own node", |d| d.allowed(d.of(Limited), d.node(0)), &[]);
    t.pod(Denied, "its node's address, to near", |d| d.allowed(d.node(0), d.of(Near)), &[]);
    t.pod(Denied, "another node's address, to near", |d| d.allowed(d.node(1), d.of(Near)), &[]);
    t.pod(Denied, "another node's address, to its own node", |d| d.allowed(d.node(1), d.node(0)), &[]);
    t.pod(Denied, "the gateway's address, to near", |d| d.allowed(d.gateway(), d.of(Near)), &[]);
    t.pod(Denied, "the gateway's address, to its own node", |d| d.allowed(d.gateway(), d.node(0)), &[]);
    t.pod(Limited, "near's address, to far", |d| d.allowed(d.of(Near), d.of(Far)), &[]);
    for victim in [Near, Far] {
        let name = format!("a second address of the pod, to {}", victim.name());
        t.pod(Limited, name, |d| d.allowed(d.second(), d.of(victim)), &[]);
    }
    t.pod(Limited, "a second address of the pod, to its own node", |d| d.allowed(d.second(), d.node(0)), &[]);
    for from in nobodys(t.family) {
        t.pod(Limited, format!("{from}, to near"), |d| d.allowed(from, d.of(Near)), &[]);
        t.pod(Limited, format!("{from}, to its own node"), |d| d.allowed(from, d.node(0)), &[]);
    }
    for victim in [Limited, Near, Far] {
        let name = format!("limited's address to the world, seen as {}'s answer", victim.name());
        t.uplink(name, |d| d.allowed(d.of(victim), d.of(Near)), &[]);
    }

    t.group("source = destination");
    t.pod(Denied, "its own", |d| d.allowed(d.own(), d.own()), &[Place::Pod(Denied)]);
    t.pod(Denied, "near's", |d| d.allowed(d.of(Near), d.of(Near)), &[]);
    t.pod(Denied, "far's", |d| d.allowed(d.of(Far), d.of(Far)), &[]);
    t.pod(Denied, "its node's", |d| d.allowed(d.node(0), d.node(0)), &[]);
    t.uplink("near's", |d| d.allowed(d.of(Near), d.of(Near)), &[]);
    t.uplink("open's", |d| d.allowed(d.of(Who::Open), d.of(Who::Open)), &[]);

    t.group("another hardware address");
    let limited_mac = |d: &Draft<'_>| d.cast.pod(Limited).mac;
    t.pod(Limited, "nobody's, to near", |d| d.by_mac(OTHER_MAC, d.own(), d.of(Near)), &[]);
    t.pod(Limited, "nobody's, to far", |d| d.by_mac(OTHER_MAC, d.own(), d.of(Far)), &[]);
    t.pod(Limited, "nobody's, to its own node", |d| d.by_mac(OTHER_MAC, d.own(), d.node(0)), &[]);
    let both = "limited's, and its address, to near";
    t.pod(Denied, both, |d| d.by_mac(limited_mac(d), d.of(Limited), d.of(Near)), &[]);
    let both = "limited's, and its address, to its own node";
    t.pod(Denied, both, |d| d.by_mac(limited_mac(d), d.of(Limited), d.node(0)), &[]);

    t.group("who has an address");
    match t.family {
        Family::V4 => arp(t),
        Family::V6 => advertisements(t),
    }
}

/// Addresses that are no host's.
fn nobodys(family: Family) -> Vec<IpAddr> {
    match family {
        Family::V4 => [[0, 0, 0, 0], [127, 0, 0, 1], [169, 254, 7, 7], [224, 0, 0, 1], [255; 4]]
            .map(IpAddr::from)
            .to_vec(),
        Family::V6 => [
            Ipv6Addr::UNSPECIFIED,
            Ipv6Addr::LOCALHOST,
            Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 7),
            ALL_NODES,
        ]
        .map(IpAddr::V6)
        .to_vec(),
    }
}

/// An address that is another's.
type Claim = fn(&Draft<'_>) -> IpAddr;

/// The hardware address to say it with.
type Hardware = fn(&Draft<'_>) -> Mac;

/// What a node believes is compared before and after each row: these are to change nothing.
fn arp(t: &mut Table<'_>) {
    let v4 = |address| match address {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    };
    let own = |d: &Draft<'_>| d.seat().mac;
    // With the hardware address of the pod whose address it is, nothing keeps the two apart but the interface.
    let claims: [(&str, Claim, Hardware); 4] = [
        ("limited's address", |d| d.of(Who::Limited), own),
        (
            "limited's address, and its hardware address",
            |d| d.of(Who::Limited),
            |d| d.cast.pod(Who::Limited).mac,
        ),
        ("the gateway's address", |d| d.gateway(), own),
        ("the other node's address", |d| d.node(1), own),
    ];
    for (whose, claimed, mac) in claims {
        for (kind, operation) in [("asks", 1), ("answers", 2)] {
            let name = format!("ARP that {kind} with {whose}");
            let write = |d: &Draft<'_>| {
                let (mac, claimed) = (mac(d), v4(claimed(d)));
                let eth = Eth::new(mac, BROADCAST);
                let direct = Eth::new(mac, d.seat().next);
                let target = (d.seat().next, v4(d.node(0)));
                vec![
                    eth.arp(operation, (mac, claimed), ([0; 6], claimed)),
                    direct.arp(operation, (mac, claimed), target),
                ]
            };
            t.row(Sender::Pod(Who::Denied), name, write, &[]);
        }
    }
}

fn advertisements(t: &mut Table<'_>) {
    // As RFC 4861 has it: override, the target, and its hardware address.
    let body = |d: &Draft<'_>, target: IpAddr| {
        let mut body = vec![0x20, 0, 0, 0];
        body.extend(octets(target));
        body.extend([2, 1]);
        body.extend(d.seat().mac);
        body.extend(d.option());
        body
    };
    let advertise = |d: &Draft<'_>, from: IpAddr, to: IpAddr, target: IpAddr| {
        d.icmp6(from, to, ADVERTISEMENT, &body(d, target))
    };
    let denied = Who::Denied;
    let own = "its own address advertised to its node";
    t.pod(denied, own, |d| advertise(d, d.own(), d.node(0), d.own()), &[Place::Node(0)]);
    for to_all in [false, true] {
        let whom = if to_all { "all" } else { "its node" };
        let to = move |d: &Draft<'_>| if to_all { ALL_NODES.into() } else { d.node(0) };
        let name = |what: &str| format!("{what} address advertised to {whom}");
        t.pod(denied, name("limited's"), |d| advertise(d, d.own(), to(d), d.of(Who::Limited)), &[]);
        t.pod(denied, name("the gateway's"), |d| advertise(d, d.own(), to(d), d.gateway()), &[]);
        t.pod(denied, name("the other node's"), |d| advertise(d, d.own(), to(d), d.node(1)), &[]);
        let from = |what: &str| format!("{what} address advertised to {whom}, from that address");
        let limited = |d: &Draft<'_>| advertise(d, d.of(Who::Limited), to(d), d.of(Who::Limited));
        t.pod(denied, from("limited's"), limited, &[]);
        t.pod(denied, from("the gateway's"), |d| advertise(d, d.gateway(), to(d), d.gateway()), &[]);
    }
}

/// Of an IPv6 address.
pub(super) fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}
