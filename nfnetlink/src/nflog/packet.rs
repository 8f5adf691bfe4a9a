//! Logged packets on the wire. Pure: any bytes may come in.

use std::time::Duration;

use crate::wire::{Message, Messages, message_type, subsystem};

/// `NFULNL_MSG_PACKET`.
const PACKET: u8 = 0;

/// A logged packet, in the datagram's own buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The group that it was logged to.
    pub group: u16,
    /// Its family (`NFPROTO_*`): 2 for IPv4, 10 for IPv6, 3 for ARP, 5 for others on a device's hook.
    pub family: u8,
    /// What its frame carries (0x0800 IPv4, 0x86dd IPv6).
    pub protocol: u16,
    /// The number of the hook that logged it, in its family.
    pub hook: u8,
    /// Its mark.
    pub mark: u32,
    /// When it came in, since the epoch; only packets that came from outside have a time.
    pub timestamp: Option<Duration>,
    /// The index of the interface that it came in by.
    pub indev: Option<u32>,
    /// The index of the interface that it was to leave by.
    pub outdev: Option<u32>,
    /// The sender's hardware address.
    pub hardware_address: Option<&'a [u8]>,
    /// The link-layer header.
    pub hardware_header: Option<&'a [u8]>,
    /// The log statement's prefix.
    pub prefix: &'a str,
    /// Its bytes from the network header on, as many as were asked for.
    pub payload: &'a [u8],
    /// Its number in the group: a gap is packets lost.
    pub seq: Option<u32>,
    /// The user that sent it, for packets of this machine.
    pub uid: Option<u32>,
}

/// The packets of one datagram.
#[derive(Debug, Clone)]
pub struct Packets<'a> {
    messages: Messages<'a>,
}

impl<'a> Packets<'a> {
    /// Reads a datagram from the kernel.
    pub fn new(datagram: &'a [u8]) -> Self {
        Packets { messages: Messages::new(datagram) }
    }
}

impl<'a> Iterator for Packets<'a> {
    type Item = Packet<'a>;

    fn next(&mut self) -> Option<Packet<'a>> {
        self.messages.find_map(|message| Packet::decode(&message))
    }
}

impl<'a> Packet<'a> {
    fn decode(message: &Message<'a>) -> Option<Packet<'a>> {
        if message.kind != message_type(subsystem::LOG, PACKET) {
            return None;
        }
        let mut packet = Packet {
            group: u16::from_be_bytes(message.body.get(2..4)?.try_into().ok()?),
            family: message.family(),
            protocol: 0,
            hook: 0,
            mark: 0,
            timestamp: None,
            indev: None,
            outdev: None,
            hardware_address: None,
            hardware_header: None,
            prefix: "",
            payload: &[],
            seq: None,
            uid: None,
        };
        for attr in message.attrs() {
            match attr.kind {
                1 => {
                    let [a, b, hook, ..] = *attr.payload else { return None };
                    packet.protocol = u16::from_be_bytes([a, b]);
                    packet.hook = hook;
                }
                2 => packet.mark = attr.be32()?,
                3 => packet.timestamp = timestamp(attr.payload),
                4 => packet.indev = attr.be32(),
                5 => packet.outdev = attr.be32(),
                8 => packet.hardware_address = hardware_address(attr.payload),
                9 => packet.payload = attr.payload,
                10 => packet.prefix = attr.string().unwrap_or_default(),
                11 => packet.uid = attr.be32(),
                12 => packet.seq = attr.be32(),
                16 => packet.hardware_header = Some(attr.payload),
                _ => {}
            }
        }
        Some(packet)
    }
}

/// Seconds and microseconds, 64 bits each.
fn timestamp(bytes: &[u8]) -> Option<Duration> {
    let word = |at| Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let micros = u32::try_from(word(8)?).ok().filter(|&micros| micros < 1_000_000)?;
    Some(Duration::new(word(0)?, micros * 1000))
}

/// A length, two bytes of padding, and eight bytes of which so many count.
fn hardware_address(bytes: &[u8]) -> Option<&[u8]> {
    let length = u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?);
    bytes.get(4..)?.get(..usize::from(length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Writer;

    #[test]
    fn every_field_has_its_place() {
        let mut w = Writer::default();
        let open = w.open(message_type(subsystem::LOG, PACKET), 0, 0, 2, 77);
        w.attr(1, &[0x08, 0x00, 2, 0]);
        w.be32(2, 0x1234);
        w.attr(3, &[5u64.to_be_bytes(), 7u64.to_be_bytes()].concat());
        w.be32(4, 3);
        w.be32(5, 4);
        w.attr(8, &[0, 6, 0, 0, 1, 2, 3, 4, 5, 6, 0, 0]);
        w.attr(9, b"payload");
        w.string(10, "policy: web");
        w.be32(11, 1000);
        w.be32(12, 42);
        w.attr(16, b"header");
        w.close(open).unwrap();
        let expected = Packet {
            group: 77,
            family: 2,
            protocol: 0x0800,
            hook: 2,
            mark: 0x1234,
            timestamp: Some(Duration::new(5, 7000)),
            indev: Some(3),
            outdev: Some(4),
            hardware_address: Some(&[1, 2, 3, 4, 5, 6]),
            hardware_header: Some(b"header"),
            prefix: "policy: web",
            payload: b"payload",
            seq: Some(42),
            uid: Some(1000),
        };
        assert_eq!(Packets::new(w.bytes()).collect::<Vec<_>>(), [expected]);
    }
}
