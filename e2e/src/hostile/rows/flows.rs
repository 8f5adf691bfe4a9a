//! Packets that say that they belong to something: errors about flows, segments of no connection, answers to nothing.

use std::net::IpAddr;

use moat_policies::Family;

use super::{ALLOWED, Draft, FROM, Place, Table, Who};
use crate::hostile::frame::{Ends, TCP};

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

pub(super) fn rows(t: &mut Table<'_>) {
    errors(t);
    segments(t);
    answers(t);
}

/// Port unreachable, too big: about a flow that the quoted packet names.
fn errors(t: &mut Table<'_>) {
    use Who::{Denied, Far, Limited, Near, Open, OpenFar};
    t.group("ICMP errors");
    let (unreachable, too_big) = match t.family {
        Family::V4 => ((3, 3), (3, 4)),
        Family::V6 => ((1, 4), (2, 0)),
    };
    let about = move |d: &Draft<'_>, from: IpAddr, to: IpAddr, quoted: Vec<u8>, kind: (u8, u8)| {
        // The next link's size, in both families at the end of the four octets.
        let mut body = vec![0, 0, 5, 0];
        body.extend(quoted);
        d.icmp(from, to, kind.0, kind.1, &body)
    };
    let opened = |d: &Draft<'_>| d.quote(d.of(Limited), d.of(Near), FROM, ALLOWED);
    let answered = |d: &Draft<'_>| d.quote(d.of(Near), d.of(Limited), ALLOWED, FROM);
    for (what, kind) in [("port unreachable", unreachable), ("too big", too_big)] {
        let first = |t: &mut Table<'_>| {
            t.opened_by(Limited, |d| d.plain(d.of(Limited), d.of(Near), ALLOWED));
        };
        let name = |rest: &str| format!("{what}, {rest}");
        t.pod(
            Limited,
            name("about its own flow"),
            |d| about(d, d.own(), d.of(Near), answered(d), kind),
            &[Place::Pod(Near)],
        );
        first(t);
        t.pod(
            Denied,
            name("about limited's flow to near"),
            |d| about(d, d.own(), d.of(Limited), opened(d), kind),
            &[],
        );
        first(t);
        t.pod(
            Denied,
            name("about it, from near's address"),
            |d| about(d, d.of(Near), d.of(Limited), opened(d), kind),
            &[],
        );
        first(t);
        t.pod(Denied, name("about it, to near"), |d| about(d, d.own(), d.of(Near), answered(d), kind), &[]);
        first(t);
        t.pod(
            Open,
            name("about limited's flow to near"),
            |d| about(d, d.own(), d.of(Limited), opened(d), kind),
            &[],
        );
        first(t);
        t.pod(
            Denied,
            name("about its own, never opened"),
            |d| about(d, d.own(), d.of(Near), d.quote(d.of(Near), d.own(), ALLOWED, FROM), kind),
            &[],
        );
        t.pod(
            Limited,
            name("about its own, never opened"),
            |d| about(d, d.own(), d.of(Near), d.quote(d.of(Near), d.own(), ALLOWED, 1111), kind),
            &[],
        );
        t.pod(Limited, name("about nothing"), |d| about(d, d.own(), d.of(Near), vec![0; 28], kind), &[]);
        t.uplink(
            name("about a flow never opened"),
            |d| about(d, d.own(), d.of(Near), d.quote(d.of(Near), d.own(), ALLOWED, 1111), kind),
            &[],
        );
        // A router on the way may say so.
        t.uplink(
            name("about open's flow to open-far"),
            |d| about(d, d.own(), d.of(Open), d.quote(d.of(Open), d.of(OpenFar), FROM, ALLOWED), kind),
            &[Place::Pod(Open)],
        );
        t.opened_by(Open, |d| d.plain(d.of(Open), d.of(OpenFar), ALLOWED));
        // No router is between two pods of one node.
        t.uplink(
            name("about limited's flow to near"),
            |d| about(d, d.own(), d.of(Limited), opened(d), kind),
            &[],
        );
        first(t);
        t.uplink(
            name("about it, from near's address"),
            |d| about(d, d.of(Near), d.of(Limited), opened(d), kind),
            &[],
        );
        first(t);
        // Nor does a pod speak for another node's flows.
        t.pod(
            Denied,
            name("about limited's flow to far"),
            |d| about(d, d.own(), d.of(Limited), d.quote(d.of(Limited), d.of(Far), FROM, ALLOWED), kind),
            &[],
        );
        t.opened_by(Limited, |d| d.plain(d.of(Limited), d.of(Far), ALLOWED));
    }
}

fn segments(t: &mut Table<'_>) {
    use Who::{Denied, Far, Limited, Near, Open, OpenFar};
    t.group("TCP from nowhere");
    let segment = |d: &Draft<'_>, to: IpAddr, flags: u8, from_port: u16, to_port: u16| {
        let ends = Ends::new(d.own(), to);
        d.eth().ip(&d.ip(d.own(), to).packet(TCP, &ends.tcp((from_port, to_port), flags, &[])))
    };
    // Ports of its own each: what one row opens is nothing that the next picks up.
    let across = |to| [Place::Wire(0), Place::Pod(to)];
    t.pod(
        Limited,
        "SYN, the allowed port of near",
        |d| segment(d, d.of(Near), SYN, 41_000, ALLOWED),
        &[Place::Pod(Near)],
    );
    t.pod(
        Limited,
        "SYN, the allowed port of far",
        |d| segment(d, d.of(Far), SYN, 41_001, ALLOWED),
        &across(Far),
    );
    t.pod(Denied, "SYN, the allowed port of near", |d| segment(d, d.of(Near), SYN, 41_002, ALLOWED), &[]);
    let all = [
        ("SYN-ACK", SYN | ACK),
        ("ACK", ACK),
        ("RST", RST),
        ("RST-ACK", RST | ACK),
        ("FIN-ACK", FIN | ACK),
        ("no flag", 0),
        ("every flag", 0x3f),
        ("SYN-FIN", SYN | FIN),
        ("SYN-RST", SYN | RST),
    ];
    for (at, (name, flags)) in (0..).zip(all) {
        let port = 42_000 + at * 10;
        t.pod(
            Limited,
            format!("{name}, the allowed port of near"),
            |d| segment(d, d.of(Near), flags, port, ALLOWED),
            &[],
        );
        t.pod(
            Limited,
            format!("{name}, the allowed port of far"),
            |d| segment(d, d.of(Far), flags, port + 1, ALLOWED),
            &[],
        );
        t.pod(
            Near,
            format!("{name}, from the allowed port to limited"),
            |d| segment(d, d.of(Limited), flags, ALLOWED, port + 2),
            &[],
        );
        t.pod(Denied, format!("{name}, to open"), |d| segment(d, d.of(Open), flags, port + 3, ALLOWED), &[]);
        t.pod(
            Open,
            format!("{name}, to denied"),
            |d| segment(d, d.of(Denied), flags, port + 4, ALLOWED),
            &[],
        );
        t.uplink(
            format!("{name}, the allowed port of near"),
            |d| segment(d, d.of(Near), flags, port + 5, ALLOWED),
            &[],
        );
        t.uplink(format!("{name}, to denied"), |d| segment(d, d.of(Denied), flags, port + 6, ALLOWED), &[]);
    }
    // Nobody there is isolated: nothing is to be protected, and what the kernel knows of a connection may be gone.
    t.pod(Open, "ACK, to open-far", |d| segment(d, d.of(OpenFar), ACK, 43_000, ALLOWED), &across(OpenFar));
}

fn answers(t: &mut Table<'_>) {
    use Who::{Denied, Far, Limited, Near, Open};
    t.group("UDP answers to nothing");
    let answer = |d: &Draft<'_>, to: IpAddr, from_port: u16, to_port: u16| {
        let ends = Ends::new(d.own(), to);
        d.eth().ip(&d.ip(d.own(), to).packet(super::UDP, &ends.udp((from_port, to_port), &d.payload())))
    };
    for to in [Limited, Denied, Open, Far] {
        t.pod(
            Near,
            format!("from the allowed port, to {}", to.name()),
            |d| answer(d, d.of(to), ALLOWED, 44_000),
            &[],
        );
    }
    for to in [Denied, Limited, Near] {
        t.pod(Open, format!("from port 53, to {}", to.name()), |d| answer(d, d.of(to), 53, 44_001), &[]);
        t.uplink(format!("from port 53, to {}", to.name()), |d| answer(d, d.of(to), 53, 44_002), &[]);
    }
    t.pod(
        Near,
        "from the allowed port, to who asked",
        |d| answer(d, d.of(Limited), ALLOWED, FROM),
        &[Place::Pod(Limited)],
    );
    t.opened_by(Limited, |d| d.plain(d.of(Limited), d.of(Near), ALLOWED));
    t.pod(Near, "from another port, to who asked", |d| answer(d, d.of(Limited), ALLOWED + 1, FROM), &[]);
    t.opened_by(Limited, |d| d.plain(d.of(Limited), d.of(Near), ALLOWED));
}
