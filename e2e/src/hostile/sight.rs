//! What a watcher makes of the bytes it sees: whose row they are of. Pure.

use etherparse::{LaxNetSlice, LaxSlicedPacket};

use crate::probe::number_in;

/// Marks have numbers from here on; below are the labels of rows.
pub(super) const FIRST_MARK: u64 = 1 << 32;

/// The number of a frame as it is on a link: the label in its IP header, or a mark in its payload.
pub(super) fn of_frame(frame: &[u8]) -> Option<u64> {
    let packet = LaxSlicedPacket::from_ethernet(frame).ok()?;
    let label = match packet.net.as_ref()? {
        LaxNetSlice::Ipv4(ip) => u64::from(ip.header().identification()),
        LaxNetSlice::Ipv6(ip) => u64::from(ip.header().flow_label().value()),
        LaxNetSlice::Arp(_) => return None,
    };
    scan(frame).filter(|number| *number >= FIRST_MARK).or(Some(label))
}

/// The number of what a raw socket handed out: the payload's, or IPv4's label.
pub(super) fn of_datagram(datagram: &[u8], v4: bool) -> Option<u64> {
    let label = || match (v4, datagram) {
        (true, [_, _, _, _, high, low, ..]) => Some(u64::from(u16::from_be_bytes([*high, *low]))),
        _ => None,
    };
    scan(datagram).or_else(label)
}

fn scan(bytes: &[u8]) -> Option<u64> {
    (0..bytes.len()).find_map(|at| number_in(&bytes[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile::frame::{Ends, Eth, Ip, UDP};
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
        assert_eq!(of_datagram(&Ip::new(ends, 7).packet(253, b""), true), Some(7));
        assert_eq!(of_datagram(&Ip::new(ends, 7).packet(253, &payload(9)), true), Some(9));
        assert_eq!(of_datagram(&payload(9), false), Some(9));
        assert_eq!(of_datagram(b"nothing", false), None);
    }
}
