//! What can stand between the IP header and the port.

use std::net::IpAddr;

use moat_policies::Family;

use super::spoofed::octets;
use super::{ALLOWED, Draft, Place, Sender, Table, Who};
use crate::hostile::cast::DENIED;
use crate::hostile::frame::{Ends, UDP};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

pub(super) fn rows(t: &mut Table<'_>) {
    match t.family {
        Family::V4 => options(t),
        Family::V6 => extensions(t),
    }
}

/// An extension header: its number, and what is behind next header and length.
type Header<'a> = (u8, &'a [u8]);

fn extensions(t: &mut Table<'_>) {
    use Who::{Denied, Limited, Near};
    t.group("extension headers");
    // Options: six octets of padding.
    let padding = [1, 4, 0, 0, 0, 0];
    let chains: [(&str, &[Header<'_>]); 6] = [
        ("hop-by-hop options", &[(HOP_BY_HOP, &padding)]),
        ("destination options", &[(DESTINATION, &padding)]),
        (
            "destination options, three times",
            &[(DESTINATION, &padding), (DESTINATION, &padding), (DESTINATION, &padding)],
        ),
        ("hop-by-hop and destination options", &[(HOP_BY_HOP, &padding), (DESTINATION, &padding)]),
        // Next header and length are before these: a sequence and no sum.
        ("authentication", &[(AUTHENTICATION, &[0; 10])]),
        ("authentication behind destination options", &[(DESTINATION, &padding), (AUTHENTICATION, &[0; 10])]),
    ];
    for (name, chain) in chains {
        let write = move |d: &Draft<'_>, from, to, port| chained(d, from, to, port, chain);
        t.pod(Limited, format!("{name}, another port"), |d| write(d, d.own(), d.of(Near), DENIED), &[]);
        t.pod(Denied, name, |d| write(d, d.own(), d.of(Near), ALLOWED), &[]);
        t.pod(
            Denied,
            format!("{name}, limited's address"),
            |d| write(d, d.of(Limited), d.of(Near), ALLOWED),
            &[],
        );
        t.uplink(name, |d| write(d, d.own(), d.of(Near), ALLOWED), &[]);
        // Authentication counts as a protocol of its own, which no policy here allows.
        let is_udp = chain.iter().all(|(kind, _)| *kind != AUTHENTICATION);
        let good: &[Place] = if is_udp { &[Place::Pod(Near)] } else { &[] };
        t.pod(Limited, format!("{name}, the allowed port"), |d| write(d, d.own(), d.of(Near), ALLOWED), good);
    }
    // To its own node, which would lead it on to near.
    for (name, kind) in [("a source route", 0), ("a mobile's route", 2), ("a segment route", 4)] {
        let write = move |d: &Draft<'_>| {
            let mut body = vec![kind, 1, 0, 0, 0, 0];
            body.extend(octets(d.of(Near)));
            chained(d, d.own(), d.node(0), ALLOWED, &[(ROUTING, &body)])
        };
        t.pod(Denied, format!("{name} by its node to near"), write, &[]);
        t.pod(Limited, format!("{name} by its node to near"), write, &[]);
    }
    t.row(Sender::Pod(Limited), "the port in a later fragment", split_headers, &[]);
}

/// A UDP datagram behind a chain of extension headers.
fn chained(d: &Draft<'_>, from: IpAddr, to: IpAddr, port: u16, chain: &[Header<'_>]) -> Vec<u8> {
    let datagram = Ends::new(from, to).udp((super::FROM, port), &d.payload());
    let (first, body) = chain.iter().rev().fold((UDP, datagram), |(next, behind), (kind, body)| {
        let length = match *kind {
            // In words of four octets, without two.
            AUTHENTICATION => (body.len() + 2) / 4 - 2,
            // In words of eight octets, without the first.
            _ => (body.len() + 2) / 8 - 1,
        };
        (*kind, [&[next, length as u8], *body, &behind].concat())
    });
    d.eth().ip(&d.ip(from, to).packet(first, &body))
}

/// The first fragment holds extension headers alone; which port it is about comes later (RFC 7112 forbids it).
fn split_headers(d: &Draft<'_>) -> Vec<Vec<u8>> {
    let (from, to) = (d.own(), d.of(Who::Near));
    let datagram = Ends::new(from, to).udp((super::FROM, DENIED), &d.payload());
    let body = [&[UDP, 0, 1, 4, 0, 0, 0, 0][..], &datagram].concat();
    let piece = |offset, more, part: &[u8]| {
        d.eth().ip(&d.ip(from, to).fragment(offset, more).packet(DESTINATION, part))
    };
    vec![piece(0, true, &body[..8]), piece(1, false, &body[8..])]
}

fn options(t: &mut Table<'_>) {
    use Who::{Denied, Limited, Near};
    t.group("IPv4 options");
    let write = |d: &Draft<'_>, to: IpAddr, options: &[u8]| {
        let datagram = Ends::new(d.own(), to).udp((super::FROM, ALLOWED), &d.payload());
        d.eth().ip(&d.ip(d.own(), to).options(options).packet(UDP, &datagram))
    };
    let routed = |d: &Draft<'_>, kind: u8, by: IpAddr, to: IpAddr| {
        let mut options = vec![kind, 7, 4];
        if let IpAddr::V4(to) = to {
            options.extend(to.octets());
        }
        options.push(0);
        write(d, by, &options)
    };
    for (name, kind) in [("loose source route", 131), ("strict source route", 137)] {
        t.pod(Denied, format!("{name} by its node to near"), |d| routed(d, kind, d.node(0), d.of(Near)), &[]);
        t.pod(
            Limited,
            format!("{name} by its node to near"),
            |d| routed(d, kind, d.node(0), d.of(Near)),
            &[],
        );
        t.pod(
            Limited,
            format!("{name} by near to far"),
            |d| routed(d, kind, d.of(Near), d.of(Who::Far)),
            &[],
        );
        t.uplink(format!("{name} by the node to near"), |d| routed(d, kind, d.node(0), d.of(Near)), &[]);
    }
    let few: [(&str, &[u8]); 4] = [
        ("record route", &[7, 7, 4, 0, 0, 0, 0, 0]),
        ("timestamp", &[68, 8, 5, 0, 0, 0, 0, 0]),
        ("security", &[130, 4, 0, 0]),
        ("nothing but padding", &[1, 1, 1, 0]),
    ];
    for (name, options) in few {
        t.pod(Denied, name, |d| write(d, d.of(Near), options), &[]);
        t.pod(Limited, format!("{name}, the allowed port"), |d| write(d, d.of(Near), options), &[]);
    }
    let alert = [148, 4, 0, 0];
    t.pod(Denied, "router alert", |d| write(d, d.of(Near), &alert), &[]);
    t.pod(Limited, "router alert, the allowed port", |d| write(d, d.of(Near), &alert), &[Place::Pod(Near)]);
}
