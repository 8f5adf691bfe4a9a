//! The types of keys: what a set is declared with.

use std::fmt;

use crate::EncodeError;
use crate::wire::align;

/// The most fields a type number can name (6 bits each of 32).
pub(super) const FIELDS: usize = 5;
/// The bytes of all data registers.
pub(crate) const REGISTERS: usize = 64;

/// The type of one field of a key, by `nft`'s names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Field {
    /// `nf_proto`: the packet's family.
    NfProto = 6,
    /// `ipv4_addr`.
    Ipv4Addr = 7,
    /// `ipv6_addr`.
    Ipv6Addr = 8,
    /// `ether_addr`.
    EtherAddr = 9,
    /// `ether_type`.
    EtherType = 10,
    /// `inet_proto`: the transport protocol.
    InetProto = 12,
    /// `inet_service`: a port.
    InetService = 13,
    /// `icmp_type`.
    IcmpType = 14,
    /// `mark`.
    Mark = 19,
    /// `iface_index`.
    IfIndex = 20,
    /// `ct_state`.
    CtState = 26,
    /// `icmpv6_type`.
    Icmp6Type = 29,
    /// `ifname`.
    IfName = 41,
}

impl Field {
    pub(crate) const ALL: [Field; 13] = [
        Field::NfProto,
        Field::Ipv4Addr,
        Field::Ipv6Addr,
        Field::EtherAddr,
        Field::EtherType,
        Field::InetProto,
        Field::InetService,
        Field::IcmpType,
        Field::Mark,
        Field::IfIndex,
        Field::CtState,
        Field::Icmp6Type,
        Field::IfName,
    ];

    /// Bytes of a value, without padding.
    pub const fn size(self) -> usize {
        match self {
            Field::NfProto | Field::InetProto | Field::IcmpType | Field::Icmp6Type => 1,
            Field::EtherType | Field::InetService => 2,
            Field::Ipv4Addr | Field::Mark | Field::IfIndex | Field::CtState => 4,
            Field::EtherAddr => 6,
            Field::Ipv6Addr | Field::IfName => 16,
        }
    }

    /// Whether `nft` must be told that the bytes are in host order (`BYTEORDER_HOST_ENDIAN`).
    pub(crate) const fn host_order(self) -> bool {
        matches!(self, Field::Mark | Field::IfIndex | Field::CtState | Field::IfName)
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Field::NfProto => "nf_proto",
            Field::Ipv4Addr => "ipv4_addr",
            Field::Ipv6Addr => "ipv6_addr",
            Field::EtherAddr => "ether_addr",
            Field::EtherType => "ether_type",
            Field::InetProto => "inet_proto",
            Field::InetService => "inet_service",
            Field::IcmpType => "icmp_type",
            Field::Mark => "mark",
            Field::IfIndex => "iface_index",
            Field::CtState => "ct_state",
            Field::Icmp6Type => "icmpv6_type",
            Field::IfName => "ifname",
        })
    }
}

/// The type of a set's keys: one to five fields, 64 bytes at most.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyType {
    fields: [Field; FIELDS],
    count: u8,
}

impl KeyType {
    /// A key of these fields, in this order.
    pub fn new(fields: &[Field]) -> Result<Self, EncodeError> {
        let bytes = fields.iter().map(|field| align(field.size())).sum();
        if fields.is_empty() || fields.len() > FIELDS || bytes > REGISTERS {
            return Err(EncodeError::KeyTooLong { fields: fields.len(), bytes });
        }
        let mut padded = [Field::NfProto; FIELDS];
        padded[..fields.len()].copy_from_slice(fields);
        Ok(KeyType { fields: padded, count: fields.len() as u8 })
    }

    /// The type that `nft` declared a set with, where all its fields are known here.
    pub fn from_number(number: u32) -> Option<Self> {
        let mut fields = Vec::new();
        let mut rest = number;
        while rest != 0 {
            fields.insert(0, Field::ALL.into_iter().find(|&field| field as u32 == rest & 0x3f)?);
            rest >>= 6;
        }
        KeyType::new(&fields).ok()
    }

    /// The fields in order.
    pub fn fields(&self) -> &[Field] {
        &self.fields[..usize::from(self.count)]
    }

    /// Bytes of a key: a lone field unpadded, several each padded to four.
    pub fn bytes(&self) -> usize {
        match self.fields() {
            [field] => field.size(),
            fields => fields.iter().map(|field| align(field.size())).sum(),
        }
    }

    /// The number that `nft` knows this type by.
    pub(crate) fn number(&self) -> u32 {
        self.fields().iter().fold(0, |number, &field| number << 6 | field as u32)
    }
}

impl From<Field> for KeyType {
    fn from(field: Field) -> Self {
        KeyType { fields: [field; FIELDS], count: 1 }.canonical()
    }
}

impl KeyType {
    /// Equal types have equal bytes behind their last field, too.
    fn canonical(mut self) -> Self {
        self.fields[usize::from(self.count)..].fill(Field::NfProto);
        self
    }
}

impl fmt::Display for KeyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, field) in self.fields().iter().enumerate() {
            write!(f, "{}{field}", if index == 0 { "" } else { " . " })?;
        }
        Ok(())
    }
}

impl fmt::Debug for KeyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
