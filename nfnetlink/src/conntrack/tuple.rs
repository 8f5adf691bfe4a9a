//! One direction of a tracked connection: who sends what to whom.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::wire::{Attr, Attrs, Writer};

/// `CTA_TUPLE_*`, `CTA_IP_*` and `CTA_PROTO_*` (linux/netfilter/nfnetlink_conntrack.h).
mod attr {
    pub(super) const IP: u16 = 1;
    pub(super) const PROTO: u16 = 2;
    pub(super) const V4_SOURCE: u16 = 1;
    pub(super) const V4_DESTINATION: u16 = 2;
    pub(super) const V6_SOURCE: u16 = 3;
    pub(super) const V6_DESTINATION: u16 = 4;
    pub(super) const NUMBER: u16 = 1;
    pub(super) const SOURCE_PORT: u16 = 2;
    pub(super) const DESTINATION_PORT: u16 = 3;
    pub(super) const ICMP_ID: u16 = 4;
    pub(super) const ICMP_TYPE: u16 = 5;
    pub(super) const ICMP_CODE: u16 = 6;
    pub(super) const ICMP6_ID: u16 = 7;
    pub(super) const ICMP6_TYPE: u16 = 8;
    pub(super) const ICMP6_CODE: u16 = 9;
}

const ICMP6: u8 = 58;

/// What tells two connections of the same ends and protocol apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Detail {
    /// Ports (TCP, UDP, SCTP, DCCP), or what GRE has for them.
    Ports {
        /// The sender's.
        source: u16,
        /// The receiver's.
        destination: u16,
    },
    /// ICMP and ICMPv6.
    Icmp {
        /// The message's type.
        kind: u8,
        /// Its code.
        code: u8,
        /// Its identifier.
        id: u16,
    },
    /// Nothing: one entry for all packets of the protocol between the two.
    None,
}

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    /// Who sends.
    pub source: IpAddr,
    /// Who receives; of the same family.
    pub destination: IpAddr,
    /// The transport protocol's number.
    pub protocol: u8,
    /// Ports and the like.
    pub detail: Detail,
}

impl Tuple {
    /// `NFPROTO_IPV4` or `NFPROTO_IPV6`.
    pub(super) fn family(&self) -> u8 {
        Family::of(self.source).number()
    }

    pub(super) fn encode(&self, w: &mut Writer, kind: u16) {
        w.nest(kind, |w| {
            w.nest(attr::IP, |w| {
                encode_source(w, self.source);
                encode_destination(w, self.destination);
            });
            w.nest(attr::PROTO, |w| {
                w.u8(attr::NUMBER, self.protocol);
                match self.detail {
                    Detail::Ports { source, destination } => {
                        w.be16(attr::SOURCE_PORT, source);
                        w.be16(attr::DESTINATION_PORT, destination);
                    }
                    Detail::Icmp { kind, code, id } if self.protocol == ICMP6 => {
                        w.be16(attr::ICMP6_ID, id);
                        w.u8(attr::ICMP6_TYPE, kind);
                        w.u8(attr::ICMP6_CODE, code);
                    }
                    Detail::Icmp { kind, code, id } => {
                        w.be16(attr::ICMP_ID, id);
                        w.u8(attr::ICMP_TYPE, kind);
                        w.u8(attr::ICMP_CODE, code);
                    }
                    Detail::None => {}
                }
            });
        });
    }

    pub(super) fn decode(attrs: Attrs<'_>) -> Option<Tuple> {
        let (mut source, mut destination) = (None, None);
        let (mut protocol, mut from, mut to) = (None, None, None);
        let (mut icmp_kind, mut icmp_code, mut icmp_id) = (None, None, None);
        for attr in attrs.flat_map(|outer| outer.nested().map(move |inner| (outer.kind, inner))) {
            let (outer, attr) = attr;
            match (outer, attr.kind) {
                (attr::IP, attr::V4_SOURCE | attr::V6_SOURCE) => source = address(attr),
                (attr::IP, attr::V4_DESTINATION | attr::V6_DESTINATION) => destination = address(attr),
                (attr::PROTO, attr::NUMBER) => protocol = attr.u8(),
                (attr::PROTO, attr::SOURCE_PORT) => from = attr.be16(),
                (attr::PROTO, attr::DESTINATION_PORT) => to = attr.be16(),
                (attr::PROTO, attr::ICMP_ID | attr::ICMP6_ID) => icmp_id = attr.be16(),
                (attr::PROTO, attr::ICMP_TYPE | attr::ICMP6_TYPE) => icmp_kind = attr.u8(),
                (attr::PROTO, attr::ICMP_CODE | attr::ICMP6_CODE) => icmp_code = attr.u8(),
                _ => {}
            }
        }
        let (source, destination) = (source?, destination?);
        if source.is_ipv4() != destination.is_ipv4() {
            return None;
        }
        let detail = match (from, to, icmp_kind, icmp_code, icmp_id) {
            (Some(source), Some(destination), ..) => Detail::Ports { source, destination },
            (.., Some(kind), Some(code), Some(id)) => Detail::Icmp { kind, code, id },
            _ => Detail::None,
        };
        Some(Tuple { source, destination, protocol: protocol?, detail })
    }
}

/// An address of either family, which its length tells.
fn address(attr: Attr<'_>) -> Option<IpAddr> {
    match attr.payload.len() {
        4 => attr.payload.try_into().ok().map(|octets: [u8; 4]| Ipv4Addr::from(octets).into()),
        _ => attr.payload.try_into().ok().map(|octets: [u8; 16]| Ipv6Addr::from(octets).into()),
    }
}

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// An address's family.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// `NFPROTO_IPV4` or `NFPROTO_IPV6`.
    pub(super) fn number(self) -> u8 {
        match self {
            Family::V4 => 2,
            Family::V6 => 10,
        }
    }
}

/// Writes the part of a tuple that a filter compares.
pub(super) fn encode_addresses(
    w: &mut Writer,
    kind: u16,
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
) {
    w.nest(kind, |w| {
        w.nest(attr::IP, |w| {
            if let Some(source) = source {
                encode_source(w, source);
            }
            if let Some(destination) = destination {
                encode_destination(w, destination);
            }
        });
    });
}

fn encode_source(w: &mut Writer, address: IpAddr) {
    match address {
        IpAddr::V4(address) => w.attr(attr::V4_SOURCE, &address.octets()),
        IpAddr::V6(address) => w.attr(attr::V6_SOURCE, &address.octets()),
    }
}

fn encode_destination(w: &mut Writer, address: IpAddr) {
    match address {
        IpAddr::V4(address) => w.attr(attr::V4_DESTINATION, &address.octets()),
        IpAddr::V6(address) => w.attr(attr::V6_DESTINATION, &address.octets()),
    }
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tuple { source, destination, protocol, detail } = self;
        match detail {
            Detail::Ports { source: from, destination: to } => {
                write!(f, "protocol {protocol} [{source}]:{from} to [{destination}]:{to}")
            }
            Detail::Icmp { kind, code, id } => {
                write!(f, "protocol {protocol} {source} to {destination} type {kind} code {code} id {id}")
            }
            Detail::None => write!(f, "protocol {protocol} {source} to {destination}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn detail() -> impl Strategy<Value = Detail> {
        prop_oneof![
            any::<(u16, u16)>().prop_map(|(source, destination)| Detail::Ports { source, destination }),
            any::<(u8, u8, u16)>().prop_map(|(kind, code, id)| Detail::Icmp { kind, code, id }),
            Just(Detail::None),
        ]
    }

    fn addresses() -> impl Strategy<Value = (IpAddr, IpAddr)> {
        prop_oneof![
            any::<([u8; 4], [u8; 4])>().prop_map(|(a, b)| (a.into(), b.into())),
            any::<([u8; 16], [u8; 16])>().prop_map(|(a, b)| (a.into(), b.into())),
        ]
    }

    proptest! {
        #[test]
        fn round_trip((source, destination) in addresses(), protocol: u8, detail in detail()) {
            let tuple = Tuple { source, destination, protocol, detail };
            let mut writer = Writer::default();
            tuple.encode(&mut writer, 1);
            let attr = Attrs::new(writer.bytes()).find(1).unwrap();
            prop_assert_eq!(Tuple::decode(attr.nested()), Some(tuple));
        }
    }
}
