//! The table: what is sent, by whom, and where it must be seen. Pure.

mod basics;
mod flows;
mod fragments;
mod headers;
mod protocols;
mod routers;
mod services;
mod spoofed;
mod tags;

pub(super) use services::rules as service_rules;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use moat_policies::Family;

use super::cast::{ALLOWED, Cast, Place, Seat, Sender, Who};
use super::frame::{Ends, Eth, Ip, Mac, UDP};
use crate::probe::payload;

/// The first label. Counters that start at zero are far from it.
const FIRST_LABEL: u16 = 0x5a00;
/// The port that datagrams come from.
pub(super) const FROM: u16 = 40_000;

/// One line of the table.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) group: &'static str,
    pub(super) name: String,
    pub(super) family: Family,
    pub(super) from: Sender,
    pub(super) label: u16,
    /// What is sent before, by whom: it opens a flow, and is not looked for.
    pub(super) before: Vec<(Sender, Vec<u8>)>,
    pub(super) frames: Vec<Vec<u8>>,
    pub(super) expected: BTreeSet<Place>,
}

/// All rows of a family; those about Services where there are some.
pub(super) fn rows(cast: &Cast, family: Family, services: bool) -> Vec<Row> {
    let mut table = Table { cast, family, group: "", next: FIRST_LABEL, rows: Vec::new() };
    basics::rows(&mut table);
    spoofed::rows(&mut table);
    tags::rows(&mut table);
    fragments::rows(&mut table);
    headers::rows(&mut table);
    protocols::rows(&mut table);
    routers::rows(&mut table);
    flows::rows(&mut table);
    if services {
        services::rows(&mut table);
    }
    table.rows
}

/// A table that is being written.
struct Table<'c> {
    cast: &'c Cast,
    family: Family,
    group: &'static str,
    next: u16,
    rows: Vec<Row>,
}

impl<'c> Table<'c> {
    /// The rows from here on belong together.
    fn group(&mut self, name: &'static str) {
        self.group = name;
    }

    /// A row: `frames` writes what is sent.
    fn row(
        &mut self,
        from: Sender,
        name: impl Into<String>,
        frames: impl FnOnce(&Draft<'c>) -> Vec<Vec<u8>>,
        expected: &[Place],
    ) {
        let draft = Draft { cast: self.cast, family: self.family, from, label: self.next };
        self.rows.push(Row {
            group: self.group,
            name: name.into(),
            family: self.family,
            from,
            label: self.next,
            before: Vec::new(),
            frames: frames(&draft),
            expected: expected.iter().copied().collect(),
        });
        self.next += 1;
    }

    /// A row of one frame from a pod.
    fn pod(
        &mut self,
        from: Who,
        name: impl Into<String>,
        frame: impl FnOnce(&Draft<'c>) -> Vec<u8>,
        expected: &[Place],
    ) {
        self.row(Sender::Pod(from), name, |draft| vec![frame(draft)], expected);
    }

    /// A row of one frame from the uplink.
    fn uplink(
        &mut self,
        name: impl Into<String>,
        frame: impl FnOnce(&Draft<'c>) -> Vec<u8>,
        expected: &[Place],
    ) {
        self.row(Sender::Uplink, name, |draft| vec![frame(draft)], expected);
    }
}

impl<'c> Table<'c> {
    /// The last row has a flow before it, which this pod opens.
    fn opened_by(&mut self, who: Who, frame: impl FnOnce(&Draft<'c>) -> Vec<u8>) {
        let from = Sender::Pod(who);
        let draft = Draft { cast: self.cast, family: self.family, from, label: 0 };
        if let Some(row) = self.rows.last_mut() {
            row.before.push((from, frame(&draft)));
        }
    }
}

/// What a row's frames are made from.
struct Draft<'c> {
    cast: &'c Cast,
    family: Family,
    from: Sender,
    label: u16,
}

impl Draft<'_> {
    fn seat(&self) -> &Seat {
        self.cast.seat(self.from)
    }

    /// The sender's own address.
    fn own(&self) -> IpAddr {
        self.seat().address(self.family)
    }

    fn of(&self, who: Who) -> IpAddr {
        self.cast.pod(who).address(self.family)
    }

    fn node(&self, number: usize) -> IpAddr {
        self.cast.nodes[number].address(self.family)
    }

    fn world(&self) -> IpAddr {
        self.cast.world.address(self.family)
    }

    /// From the sender's hardware address to the one that it sends everything to.
    fn eth(&self) -> Eth {
        Eth::new(self.seat().mac, self.seat().next)
    }

    fn ip(&self, from: IpAddr, to: IpAddr) -> Ip {
        Ip::new(Ends::new(from, to), self.label)
    }

    fn payload(&self) -> [u8; 16] {
        payload(self.label.into())
    }

    /// A datagram from the sender's own hardware address.
    fn udp(&self, from: IpAddr, to: IpAddr, port: u16) -> Vec<u8> {
        let ends = Ends::new(from, to);
        self.eth().ip(&self.ip(from, to).packet(UDP, &ends.udp((FROM, port), &self.payload())))
    }

    /// A datagram with nothing of a row in it.
    fn plain(&self, from: IpAddr, to: IpAddr, port: u16) -> Vec<u8> {
        let ends = Ends::new(from, to);
        self.eth().ip(&Ip::new(ends, 0).packet(UDP, &ends.udp((FROM, port), b"open")))
    }

    /// A datagram from a hardware address that may not be the sender's.
    fn by_mac(&self, mac: Mac, from: IpAddr, to: IpAddr) -> Vec<u8> {
        let datagram = Ends::new(from, to).udp((FROM, ALLOWED), &self.payload());
        Eth::new(mac, self.seat().next).ip(&self.ip(from, to).packet(UDP, &datagram))
    }

    /// The beginning of a datagram, as an error quotes it: headers alone.
    fn quote(&self, from: IpAddr, to: IpAddr, from_port: u16, to_port: u16) -> Vec<u8> {
        let ends = Ends::new(from, to);
        Ip::new(ends, 0).packet(UDP, &ends.udp((from_port, to_port), b""))
    }

    /// An ICMP message of the sender's family.
    fn icmp(&self, from: IpAddr, to: IpAddr, kind: u8, code: u8, body: &[u8]) -> Vec<u8> {
        let (protocol, message) = Ends::new(from, to).icmp(kind, code, body);
        self.eth().ip(&self.ip(from, to).packet(protocol, &message))
    }

    /// A message of neighbour discovery, which is believed only with all its hops left.
    fn icmp6(&self, from: IpAddr, to: IpAddr, kind: u8, body: &[u8]) -> Vec<u8> {
        let (protocol, message) = Ends::new(from, to).icmp(kind, 0, body);
        self.eth().ip(&self.ip(from, to).hops(255).packet(protocol, &message))
    }

    /// An option of neighbour discovery that nobody knows (RFC 4727), with the row's number.
    fn option(&self) -> Vec<u8> {
        [&[253, 3], &self.payload()[..], &[0; 6]].concat()
    }

    /// The gateway that moat gives every pod.
    fn gateway(&self) -> IpAddr {
        match self.family {
            Family::V4 => spoofed::GATEWAY4.into(),
            Family::V6 => spoofed::GATEWAY6.into(),
        }
    }

    /// An address of the sender's node that no pod has.
    fn second(&self) -> IpAddr {
        match self.own() {
            IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() ^ 0x40).into(),
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() ^ 0x4000).into(),
        }
    }

    /// A datagram to the port that the victims take from `Limited`.
    fn allowed(&self, from: IpAddr, to: IpAddr) -> Vec<u8> {
        self.udp(from, to, ALLOWED)
    }
}
