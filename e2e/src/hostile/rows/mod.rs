//! The table: what is sent, by whom, and where it must be seen. Pure.

mod basics;
mod spoofed;

use std::collections::BTreeSet;
use std::net::IpAddr;

use moat_policies::Family;

use super::cast::{ALLOWED, Cast, Place, Seat, Sender, Who};
use super::frame::{Ends, Eth, Ip, UDP};
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
    pub(super) frames: Vec<Vec<u8>>,
    pub(super) expected: BTreeSet<Place>,
}

/// All rows of a family.
pub(super) fn rows(cast: &Cast, family: Family) -> Vec<Row> {
    let mut table = Table { cast, family, group: "", next: FIRST_LABEL, rows: Vec::new() };
    basics::rows(&mut table);
    spoofed::rows(&mut table);
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

    /// A datagram to the port that the victims take from `Limited`.
    fn allowed(&self, from: IpAddr, to: IpAddr) -> Vec<u8> {
        self.udp(from, to, ALLOWED)
    }
}
