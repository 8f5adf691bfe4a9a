//! Protocols without ports, and those that carry others.

use std::net::IpAddr;

use moat_policies::Family;

use super::{Draft, Place, Sender, Table, Who};
use crate::hostile::frame::{ESP, Ends, Eth, GRE, IP6_IN_IP, IPIP, Ip, SCTP, UDP};
use crate::hostile::wire::UNKNOWN;

pub(super) fn rows(t: &mut Table<'_>) {
    use Who::{Denied, Far, Limited, Near, Open, OpenFar};
    t.group("other protocols");
    let bare = |d: &Draft<'_>, to: Who, protocol: u8, payload: &[u8]| {
        d.eth().ip(&d.ip(d.own(), d.of(to)).packet(protocol, payload))
    };
    let across = [Place::Wire(0), Place::Pod(OpenFar)];
    for length in 0..=4_usize {
        let name = format!("protocol 253 with {length} octets");
        for (from, to) in [(Limited, Near), (Limited, Far), (Denied, Near), (Open, Near)] {
            t.pod(
                from,
                format!("{name}, to {}", to.name()),
                |d| bare(d, to, UNKNOWN, &[0x1f; 4][..length]),
                &[],
            );
        }
        t.uplink(format!("{name}, to near"), |d| bare(d, Near, UNKNOWN, &[0x1f; 4][..length]), &[]);
        let control = format!("{name}, to open-far");
        t.pod(Open, control, |d| bare(d, OpenFar, UNKNOWN, &[0x1f; 4][..length]), &across);
    }
    // Each with the allowed port where a port would stand.
    let ports = [super::FROM.to_be_bytes(), super::ALLOWED.to_be_bytes()].concat();
    for (name, protocol, is_there) in [
        ("GRE", GRE, true),
        ("ESP", ESP, true),
        ("SCTP", SCTP, true),
        ("UDP-Lite", 136, true),
        ("TCP cut short", 6, false),
        ("UDP cut short", UDP, false),
    ] {
        let mut payload = ports.clone();
        payload.resize(if is_there { 24 } else { 4 }, 0);
        for (from, to) in [(Limited, Near), (Limited, Far), (Denied, Near), (Open, Near)] {
            t.pod(from, format!("{name}, to {}", to.name()), |d| bare(d, to, protocol, &payload), &[]);
        }
        t.uplink(format!("{name}, to near"), |d| bare(d, Near, protocol, &payload), &[]);
        if is_there && protocol != SCTP && protocol != 136 {
            t.pod(Open, format!("{name}, to open-far"), |d| bare(d, OpenFar, protocol, &payload), &across);
        }
    }
    tunnels(t);
    in_a_nodes_name(t);
}

/// Packets in packets: the outer without a label, so that what is seen is the inner.
fn tunnels(t: &mut Table<'_>) {
    use Who::{Denied, Far, Limited, Near, Open};
    t.group("tunnels");
    let inner = |d: &Draft<'_>, to: Who| {
        let (from, to) = (d.of(Limited), d.of(to));
        d.ip(from, to).packet(UDP, &Ends::new(from, to).udp((super::FROM, super::ALLOWED), b"inside"))
    };
    let outer = |d: &Draft<'_>, to, protocol: u8, payload: &[u8]| {
        d.eth().ip(&Ip::new(Ends::new(d.own(), to), 0).packet(protocol, payload))
    };
    let carried = if t.family == Family::V4 { IPIP } else { IP6_IN_IP };
    // VXLAN's header, an Ethernet header, the packet.
    let vxlan = move |d: &Draft<'_>, to: Who, network: u32| {
        let mut bytes = vec![8, 0, 0, 0];
        bytes.extend((network << 8).to_be_bytes());
        bytes.extend(d.eth().ip(&inner(d, to)));
        bytes
    };
    let gre = move |d: &Draft<'_>, to: Who| {
        let carries: [u8; 2] = if d.family == Family::V4 { [8, 0] } else { [0x86, 0xdd] };
        [&[0, 0], &carries[..], &inner(d, to)].concat()
    };
    for from in [Sender::Pod(Denied), Sender::Pod(Limited), Sender::Pod(Open), Sender::Uplink] {
        for (node, to) in [(0, Near), (1, Far)] {
            if from == Sender::Uplink && node == 1 {
                continue;
            }
            let place = if node == 0 { "its own node" } else { "another node" };
            for (which, network) in [("of our network", 27983), ("of another network", 1)] {
                let name = format!("a VXLAN frame {which} to {place}");
                let write = |d: &Draft<'_>| {
                    let ends = Ends::new(d.own(), d.node(node));
                    vec![outer(d, d.node(node), UDP, &ends.udp((super::FROM, 4789), &vxlan(d, to, network)))]
                };
                t.row(from, name, write, &[]);
            }
            t.row(
                from,
                format!("a packet in IP to {place}"),
                |d| vec![outer(d, d.node(node), carried, &inner(d, to))],
                &[],
            );
            t.row(
                from,
                format!("a packet in GRE to {place}"),
                |d| vec![outer(d, d.node(node), GRE, &gre(d, to))],
                &[],
            );
        }
    }
    // The node's own stack sees what is for the tunnel port by its label: nothing may come even so far.
    for from in [Sender::Pod(Denied), Sender::Pod(Open), Sender::Uplink] {
        let write = |d: &Draft<'_>| vec![d.udp(d.own(), d.node(0), 4789)];
        t.row(from, "a datagram to the tunnel port of the first node", write, &[]);
    }
    t.pod(Open, "a datagram to the tunnel port of another node", |d| d.udp(d.own(), d.node(1), 4789), &[]);
    t.pod(Open, "a datagram to the tunnel port of a pod", |d| d.udp(d.own(), d.of(Who::OpenFar), 4789), &[]);
}

/// Frames of the tunnel in another node's name, which the uplink can write: what is in them must be of that node's pods, and
/// policy judges it as everything else.
fn in_a_nodes_name(t: &mut Table<'_>) {
    use Who::{Far, Limited, Near, Open, OpenFar};
    t.group("tunnel frames in a node's name");
    let Some(tunnel) = t.cast.tunnel else { return };
    // One tunnel carries both families, over IPv4 where nodes have it.
    let over = if t.cast.nodes[0].v4.is_some() { Family::V4 } else { Family::V6 };
    let node = |d: &Draft<'_>, number: usize| d.cast.nodes[number].address(over);
    let stranger = |d: &Draft<'_>| d.cast.world.address(over);
    let write = |d: &Draft<'_>, outer: IpAddr, from: IpAddr, to: IpAddr| {
        let packet =
            d.ip(from, to).packet(UDP, &Ends::new(from, to).udp((super::FROM, super::ALLOWED), b"inside"));
        let inner = Eth::new([2, 0, 0, 0, 0, 2], tunnel).ip(&packet);
        let frame = [&[8, 0, 0, 0, 0, 0x6d, 0x4f, 0][..], &inner].concat();
        let ends = Ends::new(outer, node(d, 0));
        d.eth().ip(&Ip::new(ends, 0).packet(UDP, &ends.udp((super::FROM, 4789), &frame)))
    };
    let good = [Place::Pod(Open)];
    t.uplink("its pod to open", |d| write(d, node(d, 1), d.of(OpenFar), d.of(Open)), &good);
    t.uplink("its pod to near", |d| write(d, node(d, 1), d.of(Far), d.of(Near)), &[]);
    t.uplink("a pod of the first node to near", |d| write(d, node(d, 1), d.of(Limited), d.of(Near)), &[]);
    t.uplink("a pod of the first node to open", |d| write(d, node(d, 1), d.of(Limited), d.of(Open)), &[]);
    t.uplink("near to near", |d| write(d, node(d, 1), d.of(Near), d.of(Near)), &[]);
    t.uplink("the world to open", |d| write(d, node(d, 1), d.world(), d.of(Open)), &[]);
    t.uplink("the first node to near", |d| write(d, node(d, 1), d.node(0), d.of(Near)), &[]);
    t.uplink(
        "its pod to open, in the first node's name",
        |d| write(d, node(d, 0), d.of(OpenFar), d.of(Open)),
        &[],
    );
    t.uplink("its pod to open, in nobody's name", |d| write(d, stranger(d), d.of(OpenFar), d.of(Open)), &[]);
}
