//! What a rule can read: meta data, connection tracking, the packet's bytes, the routing table.

use std::fmt;

use super::expression;
use crate::wire::Writer;

/// Connection states as bits, for [`Source::CT_STATE`] (`NF_CT_STATE_BIT`).
pub mod ct_state {
    /// The packet fits no connection.
    pub const INVALID: u32 = 1;
    /// Both directions have been seen.
    pub const ESTABLISHED: u32 = 2;
    /// It opens a connection, or is an error, that belongs to another one.
    pub const RELATED: u32 = 4;
    /// The first direction only has been seen.
    pub const NEW: u32 = 8;
    /// It was exempted from tracking.
    pub const UNTRACKED: u32 = 64;
}

/// Where in a packet an offset counts from (`NFT_PAYLOAD_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Base {
    /// The link-layer header.
    Link = 0,
    /// The network header.
    Network = 1,
    /// The transport header.
    Transport = 2,
}

/// A direction of a tracked connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Direction {
    /// As the first packet went.
    Original = 0,
    /// Back.
    Reply = 1,
}

/// Meta data of a packet (`NFT_META_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
#[allow(missing_docs, reason = "the names are nft's own")]
pub enum Meta {
    Length = 0,
    Protocol = 1,
    Mark = 3,
    Iif = 4,
    Oif = 5,
    IifName = 6,
    OifName = 7,
    IifType = 8,
    OifType = 9,
    NfProto = 15,
    L4Proto = 16,
    PacketType = 19,
    IifGroup = 21,
    OifGroup = 22,
    IifKind = 26,
    OifKind = 27,
}

/// Fields of a packet's connection (`NFT_CT_*`); those with addresses or ports need a direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
#[allow(missing_docs, reason = "the names are nft's own")]
pub enum Ct {
    State = 0,
    Direction = 1,
    Status = 2,
    Mark = 3,
    Protocol = 10,
    ProtoSrc = 11,
    ProtoDst = 12,
    SrcIp = 19,
    DstIp = 20,
    SrcIp6 = 21,
    DstIp6 = 22,
    Id = 23,
}

/// What a routing lookup answers (`NFT_FIB_RESULT_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum FibResult {
    /// The outgoing interface's index; 0 where there is no route.
    Oif = 1,
    /// The outgoing interface's name.
    OifName = 2,
    /// The kind of address (`RTN_*`).
    AddressType = 3,
}

/// What goes into a routing lookup, as bits (`NFTA_FIB_F_*`).
pub mod fib {
    /// Look the source address up.
    pub const SADDR: u32 = 1;
    /// Look the destination address up.
    pub const DADDR: u32 = 2;
    /// With the packet's mark.
    pub const MARK: u32 = 4;
    /// With the incoming interface.
    pub const IIF: u32 = 8;
    /// With the outgoing interface.
    pub const OIF: u32 = 16;
    /// Answer only whether there is a route: 1 or 0, in four bytes of the machine's order.
    pub const PRESENT: u32 = 32;
    /// `RTN_UNICAST`: a route leads there.
    pub const UNICAST: u32 = 1;
    /// `RTN_LOCAL`: the address is this machine's.
    pub const LOCAL: u32 = 2;
    /// `RTN_BROADCAST`.
    pub const BROADCAST: u32 = 3;
    /// `RTN_ANYCAST`.
    pub const ANYCAST: u32 = 4;
    /// `RTN_MULTICAST`.
    pub const MULTICAST: u32 = 5;
}

/// The headers in which a rule can look for an option (`NFT_EXTHDR_OP_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Options {
    /// IPv6 extension headers, by their next-header number.
    Ipv6 = 0,
    /// TCP options, by kind.
    Tcp = 1,
    /// IPv4 options, by number.
    Ipv4 = 2,
}

/// Something that a rule reads into a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// Meta data.
    Meta(Meta),
    /// A field of the connection, of one of its directions where that makes a difference.
    Ct(Ct, Option<Direction>),
    /// Bytes of the packet.
    Payload {
        /// What the offset counts from.
        base: Base,
        /// The first byte.
        offset: u16,
        /// How many: 1 to 16.
        len: u8,
    },
    /// A routing lookup.
    Fib {
        /// What goes in: bits of [`fib`].
        flags: u32,
        /// What comes out.
        result: FibResult,
    },
    /// One byte: 1 where the packet has that option or extension header, 0 where not.
    Has {
        /// In which header.
        options: Options,
        /// Which option.
        kind: u8,
    },
}

const fn payload(base: Base, offset: u16, len: u8) -> Source {
    Source::Payload { base, offset, len }
}

impl Source {
    /// The transport protocol, behind all extension headers.
    pub const L4PROTO: Source = Source::Meta(Meta::L4Proto);
    /// The packet's family: 2 for IPv4, 10 for IPv6.
    pub const NFPROTO: Source = Source::Meta(Meta::NfProto);
    /// What the Ethernet frame carries.
    pub const PROTOCOL: Source = Source::Meta(Meta::Protocol);
    /// The name of the interface that the packet came in by.
    pub const IIFNAME: Source = Source::Meta(Meta::IifName);
    /// The name of the interface that it leaves by.
    pub const OIFNAME: Source = Source::Meta(Meta::OifName);
    /// The index of the interface that it came in by.
    pub const IIF: Source = Source::Meta(Meta::Iif);
    /// The index of the interface that it leaves by.
    pub const OIF: Source = Source::Meta(Meta::Oif);
    /// The packet's mark.
    pub const MARK: Source = Source::Meta(Meta::Mark);
    /// The connection's state: one bit of [`ct_state`].
    pub const CT_STATE: Source = Source::Ct(Ct::State, None);
    /// The packet's direction in its connection: a [`Direction`] in one byte.
    pub const CT_DIRECTION: Source = Source::Ct(Ct::Direction, None);
    /// The connection's mark.
    pub const CT_MARK: Source = Source::Ct(Ct::Mark, None);
    /// IPv4 source address.
    pub const IP_SADDR: Source = payload(Base::Network, 12, 4);
    /// IPv4 destination address.
    pub const IP_DADDR: Source = payload(Base::Network, 16, 4);
    /// IPv6 source address.
    pub const IP6_SADDR: Source = payload(Base::Network, 8, 16);
    /// IPv6 destination address.
    pub const IP6_DADDR: Source = payload(Base::Network, 24, 16);
    /// IPv6 hop limit.
    pub const IP6_HOPLIMIT: Source = payload(Base::Network, 7, 1);
    /// The source port of TCP, UDP, SCTP and others.
    pub const TH_SPORT: Source = payload(Base::Transport, 0, 2);
    /// The destination port of TCP, UDP, SCTP and others.
    pub const TH_DPORT: Source = payload(Base::Transport, 2, 2);
    /// The byte of TCP flags.
    pub const TCP_FLAGS: Source = payload(Base::Transport, 13, 1);
    /// The type of an ICMP or ICMPv6 message.
    pub const ICMP_TYPE: Source = payload(Base::Transport, 0, 1);
    /// The target of a neighbour solicitation or advertisement.
    pub const ND_TARGET: Source = payload(Base::Transport, 8, 16);
    /// The frame's destination address.
    pub const ETHER_DADDR: Source = payload(Base::Link, 0, 6);
    /// The frame's source address.
    pub const ETHER_SADDR: Source = payload(Base::Link, 6, 6);
    /// The frame's type field.
    pub const ETHER_TYPE: Source = payload(Base::Link, 12, 2);
    /// ARP operation: 1 request, 2 reply.
    pub const ARP_OPERATION: Source = payload(Base::Network, 6, 2);
    /// ARP sender's hardware address (Ethernet and IPv4).
    pub const ARP_SADDR_ETHER: Source = payload(Base::Network, 8, 6);
    /// ARP sender's IPv4 address.
    pub const ARP_SADDR_IP: Source = payload(Base::Network, 14, 4);
    /// ARP target's hardware address.
    pub const ARP_DADDR_ETHER: Source = payload(Base::Network, 18, 6);
    /// ARP target's IPv4 address.
    pub const ARP_DADDR_IP: Source = payload(Base::Network, 24, 4);

    /// The connection's IPv4 source address as its first packet (or its answers) had it.
    pub const fn ct_ip_saddr(direction: Direction) -> Source {
        Source::Ct(Ct::SrcIp, Some(direction))
    }

    /// The connection's IPv4 destination address.
    pub const fn ct_ip_daddr(direction: Direction) -> Source {
        Source::Ct(Ct::DstIp, Some(direction))
    }

    /// The connection's IPv6 source address.
    pub const fn ct_ip6_saddr(direction: Direction) -> Source {
        Source::Ct(Ct::SrcIp6, Some(direction))
    }

    /// The connection's IPv6 destination address.
    pub const fn ct_ip6_daddr(direction: Direction) -> Source {
        Source::Ct(Ct::DstIp6, Some(direction))
    }

    /// How many bytes it reads.
    pub const fn size(&self) -> usize {
        match self {
            Source::Meta(Meta::NfProto | Meta::L4Proto | Meta::PacketType) => 1,
            Source::Meta(Meta::Protocol | Meta::IifType | Meta::OifType) => 2,
            Source::Meta(
                Meta::Length | Meta::Mark | Meta::Iif | Meta::Oif | Meta::IifGroup | Meta::OifGroup,
            ) => 4,
            Source::Meta(Meta::IifName | Meta::OifName | Meta::IifKind | Meta::OifKind) => 16,
            Source::Ct(Ct::Direction | Ct::Protocol, _) => 1,
            Source::Ct(Ct::ProtoSrc | Ct::ProtoDst, _) => 2,
            Source::Ct(Ct::State | Ct::Status | Ct::Mark | Ct::SrcIp | Ct::DstIp | Ct::Id, _) => 4,
            Source::Ct(Ct::SrcIp6 | Ct::DstIp6, _) => 16,
            Source::Payload { len, .. } => *len as usize,
            Source::Fib { result: FibResult::OifName, .. } => 16,
            Source::Fib { .. } => 4,
            Source::Has { .. } => 1,
        }
    }

    /// Writes the expression that reads it into a register.
    pub(crate) fn encode(&self, writer: &mut Writer, register: u32) {
        match *self {
            Source::Meta(key) => expression(writer, "meta", |w| {
                w.be32(1, register);
                w.be32(2, key as u32);
            }),
            Source::Ct(key, direction) => expression(writer, "ct", |w| {
                w.be32(1, register);
                w.be32(2, key as u32);
                if let Some(direction) = direction {
                    w.u8(3, direction as u8);
                }
            }),
            Source::Payload { base, offset, len } => expression(writer, "payload", |w| {
                w.be32(1, register);
                w.be32(2, base as u32);
                w.be32(3, u32::from(offset));
                w.be32(4, u32::from(len));
            }),
            Source::Fib { flags, result } => expression(writer, "fib", |w| {
                w.be32(1, register);
                w.be32(2, result as u32);
                w.be32(3, flags);
            }),
            Source::Has { options, kind } => expression(writer, "exthdr", |w| {
                w.be32(1, register);
                w.u8(2, kind);
                w.be32(3, 0);
                w.be32(4, 1);
                w.be32(5, 1); // NFT_EXTHDR_F_PRESENT
                w.be32(6, options as u32);
            }),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}
