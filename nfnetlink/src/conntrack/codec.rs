//! Entries, filters and changes on the wire.

use std::net::IpAddr;

use super::Tuple;
use super::tuple::{Family, encode_addresses};
use crate::wire::{Message, Messages, Writer, message_type, subsystem};

/// `CTA_*` (linux/netfilter/nfnetlink_conntrack.h).
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const TIMEOUT: u16 = 7;
const MARK: u16 = 8;
const ID: u16 = 12;
const ZONE: u16 = 18;
const MARK_MASK: u16 = 21;
const FILTER: u16 = 25;
const FILTER_ORIGINAL: u16 = 1;
const FILTER_REPLY: u16 = 2;
/// Which parts of a filter's tuple count (bits that the kernel knows and its headers do not export).
const COMPARE_SOURCE: u32 = 1;
const COMPARE_DESTINATION: u32 = 2;

/// What has become of an entry so far, as bits (`IPS_*`).
pub mod status {
    /// Packets have been seen in both directions.
    pub const SEEN_REPLY: u32 = 1 << 1;
    /// It will not leave early.
    pub const ASSURED: u32 = 1 << 2;
    /// Its first packet has left this machine.
    pub const CONFIRMED: u32 = 1 << 3;
    /// Its source is translated.
    pub const SRC_NAT: u32 = 1 << 4;
    /// Its destination is translated.
    pub const DST_NAT: u32 = 1 << 5;
    /// It is about to go.
    pub const DYING: u32 = 1 << 9;
}

/// A tracked connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// As its first packet went.
    pub original: Tuple,
    /// As its answers come.
    pub reply: Tuple,
    /// Its mark.
    pub mark: u32,
    /// Bits of [`status`].
    pub status: u32,
    /// Its zone, 0 but for those who set one.
    pub zone: u16,
    /// A number that tells it from a later entry of the same tuples.
    pub id: u32,
    /// Seconds until it goes, if no more packets come.
    pub timeout: u32,
}

impl Entry {
    /// Reads the entries of one datagram of a dump. Any bytes may come in.
    pub fn read(datagram: &[u8]) -> impl Iterator<Item = Entry> {
        Messages::new(datagram).filter_map(|message| Entry::decode(&message))
    }

    pub(super) fn decode(message: &Message<'_>) -> Option<Entry> {
        if message.kind != message_type(subsystem::CONNTRACK, super::message::NEW) {
            return None;
        }
        let (mut original, mut reply) = (None, None);
        let (mut mark, mut status, mut id, mut timeout, mut zone) = (0, 0, 0, 0, 0);
        // In one walk: there may be hundreds of thousands of them to read, with a dozen attributes each.
        for attr in message.attrs() {
            let be32 = || attr.be32().unwrap_or_default();
            match attr.kind {
                TUPLE_ORIGINAL => original = Tuple::decode(attr.nested()),
                TUPLE_REPLY => reply = Tuple::decode(attr.nested()),
                MARK => mark = be32(),
                STATUS => status = be32(),
                ID => id = be32(),
                TIMEOUT => timeout = be32(),
                ZONE => zone = attr.be16().unwrap_or_default(),
                _ => {}
            }
        }
        Some(Entry { original: original?, reply: reply?, mark, status, zone, id, timeout })
    }

    /// As the kernel writes it in a dump, for the tests of the way there and back.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        let kind = message_type(subsystem::CONNTRACK, super::message::NEW);
        let open = w.open(kind, 0, 0, self.original.family(), 0);
        self.original.encode(&mut w, TUPLE_ORIGINAL);
        self.reply.encode(&mut w, TUPLE_REPLY);
        for (kind, value) in
            [(MARK, self.mark), (STATUS, self.status), (ID, self.id), (TIMEOUT, self.timeout)]
        {
            w.be32(kind, value);
        }
        w.be16(ZONE, self.zone);
        // Nothing above can be too long to write.
        let _ = w.close(open);
        w.bytes().to_vec()
    }
}

/// Which entries a dump hands over: those that have everything that is named here.
///
/// All its addresses are of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Filter {
    /// Of this family.
    pub family: Option<Family>,
    /// Who opened the connection.
    pub original_source: Option<IpAddr>,
    /// Whom it was opened to, as its first packet had it.
    pub original_destination: Option<IpAddr>,
    /// Who answers.
    pub reply_source: Option<IpAddr>,
    /// Whom it answers.
    pub reply_destination: Option<IpAddr>,
    /// Bits of the mark: (value, mask).
    pub mark: Option<(u32, u32)>,
}

impl Filter {
    /// Every entry.
    pub fn all() -> Self {
        Filter::default()
    }

    /// Every entry of a family.
    pub fn of(family: Family) -> Self {
        Filter { family: Some(family), ..Filter::default() }
    }

    /// The connections that an address opened.
    pub fn opened_by(address: IpAddr) -> Self {
        Filter { original_source: Some(address), ..Filter::default() }
    }

    /// The connections that an address answers, which it may have got by NAT.
    pub fn answered_by(address: IpAddr) -> Self {
        Filter { reply_source: Some(address), ..Filter::default() }
    }

    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        [self.original_source, self.original_destination, self.reply_source, self.reply_destination]
            .into_iter()
            .flatten()
    }

    /// Its family, or that of its addresses; 0 for both.
    pub(super) fn family(&self) -> u8 {
        let addresses = || self.addresses().next().map(Family::of);
        self.family.or_else(addresses).map_or(0, Family::number)
    }

    /// Whether an entry has all of it.
    pub fn matches(&self, entry: &Entry) -> bool {
        let is = |wanted: Option<IpAddr>, found| wanted.is_none_or(|wanted| wanted == found);
        self.family.is_none_or(|family| family == Family::of(entry.original.source))
            && is(self.original_source, entry.original.source)
            && is(self.original_destination, entry.original.destination)
            && is(self.reply_source, entry.reply.source)
            && is(self.reply_destination, entry.reply.destination)
            && self.mark.is_none_or(|(value, mask)| (entry.mark ^ value) & mask == 0)
    }

    /// Writes what the kernel is to compare. Not IPv6 addresses: it compares those the wrong way round, and
    /// leaves out what it should hand over (`ctnetlink_filter_match_tuple`, Linux 6.18).
    pub(super) fn encode(&self, w: &mut Writer) {
        if let Some((value, mask)) = self.mark {
            w.be32(MARK, value & mask);
            w.be32(MARK_MASK, mask);
        }
        if self.addresses().any(|address| address.is_ipv6()) {
            return;
        }
        let bits = |source: Option<IpAddr>, destination: Option<IpAddr>| {
            u32::from(source.is_some()) * COMPARE_SOURCE
                + u32::from(destination.is_some()) * COMPARE_DESTINATION
        };
        let original = bits(self.original_source, self.original_destination);
        let reply = bits(self.reply_source, self.reply_destination);
        if original != 0 {
            encode_addresses(w, TUPLE_ORIGINAL, self.original_source, self.original_destination);
        }
        if reply != 0 {
            encode_addresses(w, TUPLE_REPLY, self.reply_source, self.reply_destination);
        }
        if original != 0 || reply != 0 {
            w.nest(FILTER, |w| {
                if original != 0 {
                    w.attr(FILTER_ORIGINAL, &original.to_ne_bytes());
                }
                if reply != 0 {
                    w.attr(FILTER_REPLY, &reply.to_ne_bytes());
                }
            });
        }
    }
}

/// A change to the mark of one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MarkChange {
    /// The entry's original tuple.
    pub tuple: Tuple,
    /// The entry's zone.
    pub zone: u16,
    /// The new bits.
    pub value: u32,
    /// Which bits change.
    pub mask: u32,
}

impl MarkChange {
    pub(super) fn encode(&self, w: &mut Writer) {
        self.tuple.encode(w, TUPLE_ORIGINAL);
        encode_zone(w, self.zone);
        // The kernel clears the bits of the mask and then flips those of the value.
        w.be32(MARK, self.value & self.mask);
        w.be32(MARK_MASK, self.mask);
    }
}

/// An entry that is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deletion {
    /// The entry's original tuple.
    pub tuple: Tuple,
    /// The entry's zone.
    pub zone: u16,
    /// The entry's number: a later one of the same tuple stays. `None`: whichever is there.
    pub id: Option<u32>,
}

impl Deletion {
    /// Exactly this entry.
    pub fn of(entry: &Entry) -> Self {
        Self { tuple: entry.original, zone: entry.zone, id: Some(entry.id) }
    }

    pub(super) fn encode(&self, w: &mut Writer) {
        self.tuple.encode(w, TUPLE_ORIGINAL);
        encode_zone(w, self.zone);
        if let Some(id) = self.id {
            w.be32(ID, id);
        }
    }
}

fn encode_zone(w: &mut Writer, zone: u16) {
    if zone != 0 {
        w.be16(ZONE, zone);
    }
}
