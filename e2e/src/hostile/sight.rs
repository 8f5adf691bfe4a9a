//! What a watcher makes of the bytes it sees: whose row they are of. Pure.

use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};

use super::frame::UDP;
use crate::probe::number_in;

/// Marks have numbers from here on; below are the labels of rows.
pub(super) const FIRST_MARK: u64 = 1 << 32;

/// VXLAN's port (IANA), and the size of its header (RFC 7348).
const TUNNEL_PORT: u16 = 4789;
const TUNNEL_HEADER: usize = 8;

/// The number of a frame as it is on a link: the label in its IP header, or a mark in its payload. Of a tunnel's frame,
/// the number of what is in it.
pub(super) fn of_frame(frame: &[u8]) -> Option<u64> {
    let packet = LaxSlicedPacket::from_ethernet(frame).ok()?;
    let label = match packet.net.as_ref()? {
        LaxNetSlice::Ipv4(ip) => u64::from(ip.header().identification()),
        LaxNetSlice::Ipv6(ip) => u64::from(ip.header().flow_label().value()),
        LaxNetSlice::Arp(_) => return None,
    };
    let inner = || match &packet.transport {
        Some(TransportSlice::Udp(udp)) if udp.destination_port() == TUNNEL_PORT => {
            of_frame(udp.payload().get(TUNNEL_HEADER..)?)
        }
        _ => None,
    };
    scan(frame).filter(|number| *number >= FIRST_MARK).or_else(inner).or(Some(label))
}

/// The number of what a raw socket of a protocol handed out: the payload's, or IPv4's label. Of a tunnel's frame, only one
/// that stands where the tunnel's header should be: what is carried is not for this node.
pub(super) fn of_datagram(datagram: &[u8], v4: bool, protocol: u8) -> Option<u64> {
    let (label, header) = match (v4, datagram) {
        (true, [first, _, _, _, high, low, ..]) => {
            (Some(u64::from(u16::from_be_bytes([*high, *low]))), usize::from(first & 0xf) * 4)
        }
        _ => (None, 0),
    };
    let message = datagram.get(header..)?;
    if protocol == UDP && message.get(2..4) == Some(&TUNNEL_PORT.to_be_bytes()) {
        return number_in(message.get(8..)?);
    }
    scan(message).or(label)
}

fn scan(bytes: &[u8]) -> Option<u64> {
    (0..bytes.len()).find_map(|at| number_in(&bytes[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile::frame::{Ends, Eth, Ip};
    use crate::probe::payload;

    #[test]
    fn frames_are_told_apart_by_label_and_marks_by_number() {
        let ends = Ends::new("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap());
        let frame = |number| {
            let datagram = ends.udp((1, 2), &payload(number));
            Eth::new([2; 6], [3; 6]).tags(&[(0x8100, 5)]).ip(&Ip::new(ends, 7).packet(UDP, &datagram))
        };
        assert_eq!(of_frame(&frame(7)), Some(7));
        // An error message may quote another row's packet.
        assert_eq!(of_frame(&frame(8)), Some(7));
        assert_eq!(of_frame(&frame(FIRST_MARK + 1)), Some(FIRST_MARK + 1));
        assert_eq!(of_frame(b"short"), None);
    }

    #[test]
    fn datagrams_are_told_by_their_payload_first() {
        let ends = Ends::new("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        assert_eq!(of_datagram(&Ip::new(ends, 7).packet(253, b""), true, 253), Some(7));
        assert_eq!(of_datagram(&Ip::new(ends, 7).packet(253, &payload(9)), true, 253), Some(9));
        assert_eq!(of_datagram(&payload(9), false, UDP), Some(9));
        let tunnelled = |payload: &[u8]| ends.udp((1, TUNNEL_PORT), payload);
        assert_eq!(of_datagram(&tunnelled(&payload(9)), false, UDP), Some(9));
        assert_eq!(of_datagram(&tunnelled(&[&[8; 8], &payload(9)[..]].concat()), false, UDP), None);
        assert_eq!(of_datagram(b"nothing", false, UDP), None);
    }
}
