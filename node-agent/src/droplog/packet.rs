//! From a log record's bytes to what was dropped. Pure: any bytes may come in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use moat_nfnetlink::nflog::Packet;
use moat_policies::{Protocol, Traffic};

use crate::dataplane::DropPoint;

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;

/// Extension headers that are read over at most.
const EXTENSIONS: usize = 8;

/// What packets of one kind have in common: they make one line of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Kind {
    /// Why, and whose side.
    pub(super) point: DropPoint,
    /// The index of the interface that it came in by.
    pub(super) indev: Option<u32>,
    /// The index of the interface that it was to leave by.
    pub(super) outdev: Option<u32>,
    /// What its headers say.
    pub(super) headers: Headers,
}

/// What a packet says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Headers {
    pub(super) source: Option<IpAddr>,
    pub(super) destination: Option<IpAddr>,
    pub(super) carries: Carries,
    /// The destination port.
    pub(super) port: Option<u16>,
}

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Carries {
    /// An IP packet of this protocol.
    Ip(u8),
    /// An ARP packet.
    Arp,
    /// Anything else, by its Ethernet type.
    Other(u16),
}

impl Kind {
    /// What a record is about; `None` where it is not of our making.
    pub(super) fn of(packet: &Packet<'_>) -> Option<Kind> {
        let point = DropPoint::from_prefix(packet.prefix)?;
        let headers = Headers::read(packet.protocol, packet.payload);
        Some(Kind { point, indev: packet.indev, outdev: packet.outdev, headers })
    }
}

impl Headers {
    fn read(ether_type: u16, bytes: &[u8]) -> Headers {
        let read = match ether_type {
            IPV4 => ipv4(bytes),
            IPV6 => ipv6(bytes),
            ARP => arp(bytes),
            _ => None,
        };
        let carries = Carries::Other(ether_type);
        read.unwrap_or(Headers { source: None, destination: None, carries, port: None })
    }

    /// What a policy would be asked about.
    pub(super) fn traffic(&self) -> Option<Traffic> {
        let Carries::Ip(number) = self.carries else { return None };
        match (Protocol::ALL.into_iter().find(|p| p.number() == number), self.port) {
            (Some(protocol), Some(port)) => Some(Traffic::Port(protocol, port)),
            // A later fragment: nobody knows its port.
            (Some(_), None) => None,
            (None, _) => Some(Traffic::Other(number)),
        }
    }
}

impl Carries {
    /// In a word, as people write it.
    pub(super) fn name(self) -> String {
        match self {
            Carries::Ip(1) => "ICMP".to_owned(),
            Carries::Ip(58) => "ICMPv6".to_owned(),
            Carries::Ip(number) => match Protocol::ALL.into_iter().find(|p| p.number() == number) {
                Some(protocol) => protocol.to_string(),
                None => format!("protocol {number}"),
            },
            Carries::Arp => "ARP".to_owned(),
            Carries::Other(ether_type) => format!("type {ether_type:#06x}"),
        }
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn v4_at(bytes: &[u8], at: usize) -> Option<IpAddr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?).into())
}

fn v6_at(bytes: &[u8], at: usize) -> Option<IpAddr> {
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok()?).into())
}

/// The destination port, at the same place in all protocols that have ports.
fn port(protocol: u8, transport: Option<&[u8]>) -> Option<u16> {
    Protocol::ALL.into_iter().find(|p| p.number() == protocol)?;
    be16(transport?, 2)
}

fn ipv4(bytes: &[u8]) -> Option<Headers> {
    let (source, destination) = (v4_at(bytes, 12)?, v4_at(bytes, 16)?);
    let protocol = bytes[9];
    let length = usize::from(bytes[0] & 0xf) * 4;
    let first = be16(bytes, 6)? & 0x1fff == 0;
    let transport = bytes.get(length.max(20)..).filter(|_| first);
    Some(Headers {
        source: Some(source),
        destination: Some(destination),
        carries: Carries::Ip(protocol),
        port: port(protocol, transport),
    })
}

fn ipv6(bytes: &[u8]) -> Option<Headers> {
    let (source, destination) = (v6_at(bytes, 8)?, v6_at(bytes, 24)?);
    let (mut protocol, mut rest, mut first) = (bytes[6], &bytes[40..], true);
    for _ in 0..EXTENSIONS {
        let length = match (protocol, rest) {
            // Hop by hop, routing, destination options; authentication counts in fours.
            (0 | 43 | 60, [_, length, ..]) => (usize::from(*length) + 1) * 8,
            (51, [_, length, ..]) => (usize::from(*length) + 2) * 4,
            (44, [_, _, high, low, ..]) => {
                first = u16::from_be_bytes([*high, *low]) & 0xfff8 == 0;
                8
            }
            _ => break,
        };
        protocol = rest[0];
        rest = rest.get(length..).unwrap_or_default();
        if !first {
            // What follows is the middle of something, and no header.
            break;
        }
    }
    Some(Headers {
        source: Some(source),
        destination: Some(destination),
        carries: Carries::Ip(protocol),
        port: port(protocol, Some(rest).filter(|_| first)),
    })
}

/// For IPv4 over Ethernet: who asks, and who is asked for.
fn arp(bytes: &[u8]) -> Option<Headers> {
    let (source, destination) = (v4_at(bytes, 14)?, v4_at(bytes, 24)?);
    let carries = Carries::Arp;
    Some(Headers { source: Some(source), destination: Some(destination), carries, port: None })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4(protocol: u8, fragment: u16, options: usize, transport: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 20 + options];
        bytes[0] = 0x40 | (5 + options / 4) as u8;
        bytes[6..8].copy_from_slice(&fragment.to_be_bytes());
        bytes[9] = protocol;
        bytes[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        bytes.extend(transport);
        bytes
    }

    fn v6(next: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x60, 0, 0, 0, 0, 0, next, 64];
        bytes.extend("fd00::1".parse::<Ipv6Addr>().unwrap().octets());
        bytes.extend("fd00::2".parse::<Ipv6Addr>().unwrap().octets());
        bytes.extend(rest);
        bytes
    }

    #[test]
    fn headers_of_all_kinds() {
        let ports = [0x10, 0, 0x23, 0x82];
        let with = |extension: &[u8]| [extension, &ports].concat();
        let arp = [&[0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1][..], &[10, 0, 0, 1], &[0; 6], &[10, 0, 0, 2]]
            .concat();
        let table: [(u16, Vec<u8>, &str, Option<u16>); 15] = [
            (IPV4, v4(6, 0, 0, &ports), "TCP", Some(9090)),
            (IPV4, v4(17, 0x4000, 8, &ports), "UDP", Some(9090)),
            (IPV4, v4(132, 0x2000, 0, &ports), "SCTP", Some(9090)),
            (IPV4, v4(17, 0x2001, 0, &ports), "UDP", None),
            (IPV4, v4(17, 0, 0, &ports[..3]), "UDP", None),
            (IPV4, v4(1, 0, 0, &ports), "ICMP", None),
            (IPV4, v4(253, 0, 0, &ports), "protocol 253", None),
            (IPV6, v6(6, &ports), "TCP", Some(9090)),
            (IPV6, v6(58, &ports), "ICMPv6", None),
            (
                IPV6,
                v6(0, &with(&[43, 0, 0, 0, 0, 0, 0, 0, 17, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
                "UDP",
                Some(9090),
            ),
            (IPV6, v6(44, &with(&[17, 0, 0, 1, 0, 0, 0, 9])), "UDP", Some(9090)),
            (IPV6, v6(44, &with(&[17, 0, 0, 8, 0, 0, 0, 9])), "UDP", None),
            (IPV6, v6(44, &with(&[60, 0, 0, 8, 0, 0, 0, 9, 6, 0, 0, 0, 0, 0, 0, 0])), "protocol 60", None),
            (IPV6, v6(60, &[]), "protocol 60", None),
            (ARP, arp, "ARP", None),
        ];
        for (ether_type, bytes, name, port) in table {
            let read = Headers::read(ether_type, &bytes);
            assert_eq!((read.carries.name().as_str(), read.port), (name, port), "{bytes:?}");
            let last = |a: Option<IpAddr>| a.unwrap().to_string().chars().last();
            assert_eq!((last(read.source), last(read.destination)), (Some('1'), Some('2')));
        }
        let odd = Headers::read(0x88cc, &[1, 2, 3]);
        assert_eq!((odd.carries.name().as_str(), odd.source), ("type 0x88cc", None));
        assert_eq!(Headers::read(IPV4, &[0x45; 19]).carries, Carries::Other(IPV4), "cut off");
    }

    #[test]
    fn what_a_policy_is_asked() {
        let traffic = |bytes: &[u8]| Headers::read(IPV4, bytes).traffic();
        assert_eq!(traffic(&v4(6, 0, 0, &[0, 1, 0, 80])), Some(Traffic::Port(Protocol::Tcp, 80)));
        assert_eq!(traffic(&v4(6, 7, 0, &[0, 1, 0, 80])), None);
        assert_eq!(traffic(&v4(47, 0, 0, &[])), Some(Traffic::Other(47)));
        assert_eq!(Headers::read(ARP, &[0; 28]).traffic(), None);
    }

    proptest! {
        #[test]
        fn any_bytes(ether_type in prop_oneof![Just(IPV4), Just(IPV6), Just(ARP), any::<u16>()], bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Headers::read(ether_type, &bytes).traffic();
        }
    }
}
