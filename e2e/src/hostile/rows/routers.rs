//! What only a router says, and to whom a pod may say anything at all.

use std::net::{IpAddr, Ipv6Addr};

use moat_policies::Family;

use super::spoofed::octets;
use super::{Draft, Place, Sender, Table, Who};
use crate::hostile::frame::{Ends, UDP};

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

pub(super) fn rows(t: &mut Table<'_>) {
    t.group("routers' messages");
    match t.family {
        Family::V4 => redirects4(t),
        Family::V6 => routers6(t),
    }
    destinations(t);
}

fn redirects4(t: &mut Table<'_>) {
    use Who::{Denied, Far, Limited};
    // "To reach far, come to me": about a packet that the node might have sent.
    let redirect = |d: &Draft<'_>, from: IpAddr| {
        let quoted = d.quote(d.node(0), d.of(Far), 1234, 5678);
        let mut body = match d.own() {
            IpAddr::V4(own) => own.octets().to_vec(),
            IpAddr::V6(_) => Vec::new(),
        };
        body.extend(quoted);
        d.icmp(from, d.node(0), 5, 1, &body)
    };
    for from in [Denied, Limited, Who::Open] {
        t.pod(from, "a redirect for its node", |d| redirect(d, d.own()), &[]);
        t.pod(from, "a redirect for its node, from the gateway", |d| redirect(d, d.gateway()), &[]);
        t.pod(from, "a redirect for its node, from the other node", |d| redirect(d, d.node(1)), &[]);
    }
    // RFC 1256: one router, two words for each, half an hour; its address, and how gladly it is one.
    let body = [1, 2, 7, 8, 10, 0, 0, 1, 0, 0, 0, 0];
    let advertise = |d: &Draft<'_>, from, to| d.icmp(from, to, 9, 0, &body);
    let all = IpAddr::from([224, 0, 0, 1]);
    for from in [Denied, Who::Open] {
        t.pod(from, "a router advertisement to all", |d| advertise(d, d.own(), all), &[]);
        t.pod(
            from,
            "a router advertisement to all, from the gateway",
            |d| advertise(d, d.gateway(), all),
            &[],
        );
        t.pod(from, "a router advertisement to its node", |d| advertise(d, d.own(), d.node(0)), &[]);
        t.pod(from, "a router advertisement to another node", |d| advertise(d, d.own(), d.node(1)), &[]);
        t.pod(from, "a router advertisement to near", |d| advertise(d, d.own(), d.of(Who::Near)), &[]);
    }
}

fn routers6(t: &mut Table<'_>) {
    use Who::{Denied, Far, Open};
    let link_local: IpAddr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x77).into();
    // A lifetime of half an hour, and a prefix to take addresses from.
    let advertisement = |d: &Draft<'_>, from: IpAddr, to: IpAddr| {
        let mut body = vec![64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0, 3, 4, 64, 0xc0];
        body.extend([0, 0, 7, 8, 0, 0, 7, 8, 0, 0, 0, 0]);
        body.extend(Ipv6Addr::new(0x2001, 0xdb8, 0xbad, 0, 0, 0, 0, 0).octets());
        body.extend(d.option());
        d.icmp6(from, to, 134, &body)
    };
    let redirect = |d: &Draft<'_>, from: IpAddr| {
        let mut body = vec![0; 4];
        body.extend(octets(d.own()));
        body.extend(octets(d.of(Far)));
        body.extend(d.option());
        d.icmp6(from, d.node(0), 137, &body)
    };
    for from in [Denied, Open] {
        let all = ALL_NODES.into();
        t.pod(from, "a router advertisement to all", |d| advertisement(d, d.own(), all), &[]);
        t.pod(from, "a router advertisement to all, link-local", |d| advertisement(d, link_local, all), &[]);
        t.pod(
            from,
            "a router advertisement to all, from the gateway",
            |d| advertisement(d, d.gateway(), all),
            &[],
        );
        t.pod(from, "a router advertisement to its node", |d| advertisement(d, d.own(), d.node(0)), &[]);
        t.pod(from, "a redirect for its node", |d| redirect(d, d.own()), &[]);
        t.pod(from, "a redirect for its node, link-local", |d| redirect(d, link_local), &[]);
        t.pod(from, "a redirect for its node, from the gateway", |d| redirect(d, d.gateway()), &[]);
    }
}

/// Where a packet for a special address may go.
enum Goes {
    Nowhere,
    /// A node and its own pods always reach each other.
    ToTheNode,
    /// By the node's default route, where it has one, as from a pod that no policy selects everything does.
    ByDefault,
}

/// Addresses that are no pod's.
fn destinations(t: &mut Table<'_>) {
    use Who::{Denied, Near, Open};
    t.group("special destinations");
    let everywhere: &[(&str, &str, Goes)] = match t.family {
        Family::V4 => &[
            ("127.0.0.1", "loopback", Goes::Nowhere),
            ("127.8.8.8", "loopback", Goes::Nowhere),
            ("169.254.1.1", "the gateway", Goes::ByDefault),
            ("169.254.169.254", "link-local", Goes::ByDefault),
            ("224.0.0.1", "all systems", Goes::ToTheNode),
            ("239.1.2.3", "multicast", Goes::Nowhere),
            ("255.255.255.255", "broadcast", Goes::ToTheNode),
            ("0.0.0.0", "nobody", Goes::Nowhere),
            ("10.244.1.255", "the last of the podCIDR", Goes::Nowhere),
            ("10.244.1.0", "the first of the podCIDR", Goes::Nowhere),
            ("10.244.1.250", "nobody's in the podCIDR", Goes::Nowhere),
            ("240.0.0.1", "reserved", Goes::ByDefault),
        ],
        Family::V6 => &[
            ("::1", "loopback", Goes::Nowhere),
            ("::", "nobody", Goes::ByDefault),
            ("fe80::1", "the gateway", Goes::Nowhere),
            ("fe80::77", "link-local", Goes::Nowhere),
            ("ff01::1", "this host", Goes::Nowhere),
            ("ff02::1", "all nodes", Goes::ToTheNode),
            ("ff02::2", "all routers", Goes::ToTheNode),
            ("ff05::1:3", "multicast", Goes::Nowhere),
            ("ff0e::1", "multicast", Goes::Nowhere),
            ("::ffff:10.244.1.1", "an IPv4 address", Goes::ByDefault),
            ("fd10:244:0:1::fefe", "nobody's in the podCIDR", Goes::Nowhere),
        ],
    };
    for (text, what, goes) in everywhere {
        let Ok(to) = text.parse::<IpAddr>() else { continue };
        for from in [Denied, Open] {
            let expected: &[Place] = match goes {
                Goes::ToTheNode => &[Place::Node(0)],
                Goes::ByDefault if from == Open && t.cast.routed => &[Place::Wire(0)],
                Goes::ByDefault | Goes::Nowhere => &[],
            };
            t.pod(from, format!("{what} ({text})"), |d| d.allowed(d.own(), to), expected);
        }
    }
    // To the hardware address of another pod, of all, of nobody: a cable has two ends.
    let direct = |d: &Draft<'_>, mac| {
        let (from, to) = (d.own(), d.of(Near));
        let datagram = Ends::new(from, to).udp((super::FROM, super::ALLOWED), &d.payload());
        let eth = super::Eth::new(d.seat().mac, mac);
        vec![eth.ip(&d.ip(from, to).packet(UDP, &datagram))]
    };
    for from in [Denied, Who::Limited] {
        let from = Sender::Pod(from);
        t.row(from, "near, by its hardware address", |d| direct(d, d.cast.pod(Near).mac), &[]);
        t.row(from, "near, by the broadcast hardware address", |d| direct(d, [0xff; 6]), &[]);
    }
}
