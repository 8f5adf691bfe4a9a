//! Frames as bytes: what a pod with a raw socket can write. Pure.
//!
//! Whatever is sent carries the number of its row where every router leaves it alone: in IPv4's identification, in IPv6's flow
//! label, and in the payload where there is room for it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::checksum::Sum16BitWords;
use etherparse::{IpFragOffset, IpNumber, Ipv4Header, Ipv4Options, Ipv6FlowLabel, Ipv6Header};

/// A hardware address.
pub(super) type Mac = [u8; 6];

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMP: u8 = 1;
pub(super) const ICMP6: u8 = 58;
pub(super) const IPIP: u8 = 4;
pub(super) const IP6_IN_IP: u8 = 41;
pub(super) const GRE: u8 = 47;
pub(super) const ESP: u8 = 50;
pub(super) const SCTP: u8 = 132;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// The two ends of a packet, of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ends {
    V4(Ipv4Addr, Ipv4Addr),
    V6(Ipv6Addr, Ipv6Addr),
}

impl Ends {
    /// From and to. Where the families differ, both are IPv6 (the IPv4 one mapped).
    pub(super) fn new(from: IpAddr, to: IpAddr) -> Self {
        let wide = |address| match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => Ends::V4(from, to),
            _ => Ends::V6(wide(from), wide(to)),
        }
    }

    /// What transport checksums cover of the IP header (RFC 768, RFC 8200).
    fn pseudo_header(self, protocol: u8, length: usize) -> Sum16BitWords {
        let mut sum = Sum16BitWords::new();
        sum = match self {
            Ends::V4(from, to) => sum.add_4bytes(from.octets()).add_4bytes(to.octets()),
            Ends::V6(from, to) => sum.add_16bytes(from.octets()).add_16bytes(to.octets()),
        };
        sum.add_2bytes([0, protocol]).add_4bytes((length as u32).to_be_bytes())
    }

    fn sum(self, protocol: u8, message: &[u8]) -> [u8; 2] {
        let sum = self.pseudo_header(protocol, message.len()).add_slice(message);
        // Both crate and kernel keep sums in the order of the wire.
        sum.to_ones_complement_with_no_zero().to_ne_bytes()
    }

    /// A UDP datagram.
    pub(super) fn udp(self, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
        let length = (8 + payload.len()) as u16;
        let mut message = [ports.0, ports.1, length, 0].map(u16::to_be_bytes).concat();
        message.extend(payload);
        let sum = self.sum(UDP, &message);
        message[6..8].copy_from_slice(&sum);
        message
    }

    /// A TCP segment: SYN is 2, RST 4, ACK 16.
    pub(super) fn tcp(self, ports: (u16, u16), flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut message = [ports.0, ports.1].map(u16::to_be_bytes).concat();
        message.extend([0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88]);
        message.extend([5 << 4, flags, 0x40, 0, 0, 0, 0, 0]);
        message.extend(payload);
        let sum = self.sum(TCP, &message);
        message[16..18].copy_from_slice(&sum);
        message
    }

    /// An ICMP or ICMPv6 message, its protocol's number first.
    pub(super) fn icmp(self, kind: u8, code: u8, body: &[u8]) -> (u8, Vec<u8>) {
        let mut message = vec![kind, code, 0, 0];
        message.extend(body);
        let (protocol, sum) = match self {
            Ends::V4(..) => (ICMP, Sum16BitWords::new().add_slice(&message).ones_complement().to_ne_bytes()),
            Ends::V6(..) => (ICMP6, self.sum(ICMP6, &message)),
        };
        message[2..4].copy_from_slice(&sum);
        (protocol, message)
    }
}

/// An IP header, as far as rows want to say it.
#[derive(Clone, Debug)]
pub(super) struct Ip {
    pub(super) ends: Ends,
    pub(super) label: u16,
    pub(super) hops: u8,
    /// IPv4 options.
    pub(super) options: Vec<u8>,
    /// Of a fragment: its offset in units of eight octets, and whether more follow. IPv6's header for it is added.
    pub(super) fragment: Option<(u16, bool)>,
}

impl Ip {
    pub(super) fn new(ends: Ends, label: u16) -> Self {
        Self { ends, label, hops: 64, options: Vec::new(), fragment: None }
    }

    pub(super) fn hops(self, hops: u8) -> Self {
        Self { hops, ..self }
    }

    pub(super) fn options(self, options: &[u8]) -> Self {
        Self { options: options.into(), ..self }
    }

    pub(super) fn fragment(self, offset: u16, more: bool) -> Self {
        Self { fragment: Some((offset, more)), ..self }
    }

    /// The packet. What the headers cannot say (more options than fit) is left out.
    pub(super) fn packet(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        match self.ends {
            Ends::V4(from, to) => {
                let (offset, more) = self.fragment.unwrap_or_default();
                let options: Ipv4Options = self.options.as_slice().try_into().unwrap_or_default();
                let mut header = Ipv4Header {
                    identification: self.label,
                    dont_fragment: false,
                    more_fragments: more,
                    fragment_offset: IpFragOffset::try_new(offset).unwrap_or_default(),
                    time_to_live: self.hops,
                    protocol: IpNumber(protocol),
                    source: from.octets(),
                    destination: to.octets(),
                    options,
                    ..Ipv4Header::default()
                };
                header.total_len = (header.header_len() + payload.len()) as u16;
                header.header_checksum = header.calc_header_checksum();
                [&header.to_bytes(), payload].concat()
            }
            Ends::V6(from, to) => {
                let mut body = payload.to_vec();
                let mut next = protocol;
                if let Some((offset, more)) = self.fragment {
                    let mut extension = vec![protocol, 0];
                    extension.extend((offset << 3 | u16::from(more)).to_be_bytes());
                    extension.extend(u32::from(self.label).to_be_bytes());
                    extension.append(&mut body);
                    (body, next) = (extension, 44);
                }
                let header = Ipv6Header {
                    traffic_class: 0,
                    flow_label: Ipv6FlowLabel::try_new(u32::from(self.label)).unwrap_or_default(),
                    payload_length: body.len() as u16,
                    next_header: IpNumber(next),
                    hop_limit: self.hops,
                    source: from.octets(),
                    destination: to.octets(),
                };
                [&header.to_bytes()[..], &body].concat()
            }
        }
    }
}

/// An Ethernet header, with the tags before what is carried: each its protocol number and its VLAN.
#[derive(Clone, Debug)]
pub(super) struct Eth {
    pub(super) from: Mac,
    pub(super) to: Mac,
    pub(super) tags: Vec<(u16, u16)>,
}

impl Eth {
    pub(super) fn new(from: Mac, to: Mac) -> Self {
        Self { from, to, tags: Vec::new() }
    }

    pub(super) fn tags(self, tags: &[(u16, u16)]) -> Self {
        Self { tags: tags.into(), ..self }
    }

    fn frame(&self, carried: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = [self.to, self.from].concat();
        for (protocol, vlan) in &self.tags {
            frame.extend(protocol.to_be_bytes());
            frame.extend(vlan.to_be_bytes());
        }
        frame.extend(carried.to_be_bytes());
        frame.extend(payload);
        frame
    }

    /// A frame with an IP packet.
    pub(super) fn ip(&self, packet: &[u8]) -> Vec<u8> {
        let version = packet.first().map_or(0, |byte| byte >> 4);
        self.frame(if version == 6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 }, packet)
    }

    /// A frame with an ARP packet (request 1, reply 2) about IPv4 addresses on Ethernet.
    pub(super) fn arp(&self, operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
        let mut packet = vec![0, 1, 8, 0, 6, 4];
        packet.extend(operation.to_be_bytes());
        for (mac, address) in [sender, target] {
            packet.extend(mac);
            packet.extend(address.octets());
        }
        self.frame(ETHERTYPE_ARP, &packet)
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    fn ends(v6: bool) -> Ends {
        match v6 {
            false => Ends::new(Ipv4Addr::new(10, 0, 0, 1).into(), Ipv4Addr::new(10, 0, 0, 2).into()),
            true => Ends::new("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap()),
        }
    }

    #[test]
    fn packets_are_what_others_read() {
        for v6 in [false, true] {
            let ends = ends(v6);
            let packet = Ip::new(ends, 77).packet(UDP, &ends.udp((1, 2), b"hello"));
            let frame = Eth::new([2; 6], [3; 6]).ip(&packet);
            let read = SlicedPacket::from_ethernet(&frame).unwrap();
            let Some(TransportSlice::Udp(udp)) = read.transport else { panic!("no UDP") };
            assert_eq!((udp.source_port(), udp.destination_port(), udp.payload()), (1, 2, &b"hello"[..]));
            let sum = match read.net.unwrap() {
                NetSlice::Ipv4(ip) => {
                    assert_eq!(ip.header().header_checksum(), ip.header().to_header().calc_header_checksum());
                    udp.to_header().calc_checksum_ipv4(&ip.header().to_header(), b"hello")
                }
                NetSlice::Ipv6(ip) => udp.to_header().calc_checksum_ipv6(&ip.header().to_header(), b"hello"),
                NetSlice::Arp(_) => panic!("no IP"),
            };
            assert_eq!(sum, Ok(udp.checksum()));
        }
    }

    #[test]
    fn segments_and_messages_have_right_sums() {
        for v6 in [false, true] {
            let ends = ends(v6);
            let (protocol, echo) = ends.icmp(8, 0, b"\0\x01\0\x01body");
            for (protocol, message) in [(TCP, ends.tcp((1, 2), 2, b"")), (protocol, echo)] {
                let packet = Ip::new(ends, 1).packet(protocol, &message);
                let frame = Eth::new([2; 6], [3; 6]).ip(&packet);
                let read = SlicedPacket::from_ethernet(&frame).unwrap();
                assert!(read.transport.is_some());
                let sum = match (protocol, ends) {
                    (ICMP, _) => Sum16BitWords::new(),
                    _ => ends.pseudo_header(protocol, message.len()),
                };
                assert_eq!(sum.add_slice(&message).ones_complement(), 0);
            }
        }
    }
}
