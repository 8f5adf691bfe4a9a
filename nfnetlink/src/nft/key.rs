//! Values, and the keys made of them: what the elements of a set are.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::field::FIELDS;
use super::{Field, IfName, KeyType};
use crate::wire::align;

/// One field's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Value {
    /// A packet's family: 2 for IPv4, 10 for IPv6.
    NfProto(u8),
    /// An IPv4 address.
    Ipv4(Ipv4Addr),
    /// An IPv6 address.
    Ipv6(Ipv6Addr),
    /// A hardware address.
    Ether([u8; 6]),
    /// What an Ethernet frame carries (0x0800 IPv4, 0x0806 ARP, 0x86dd IPv6).
    EtherType(u16),
    /// A transport protocol.
    Proto(u8),
    /// A port.
    Port(u16),
    /// An ICMP type.
    IcmpType(u8),
    /// An ICMPv6 type.
    Icmp6Type(u8),
    /// A packet or connection mark.
    Mark(u32),
    /// An interface's index.
    IfIndex(u32),
    /// Connection states, the bits of [`ct_state`](super::ct_state).
    CtState(u32),
    /// An interface's name.
    IfName(IfName),
}

impl Value {
    /// The field type that this is a value of.
    pub fn field(&self) -> Field {
        match self {
            Value::NfProto(_) => Field::NfProto,
            Value::Ipv4(_) => Field::Ipv4Addr,
            Value::Ipv6(_) => Field::Ipv6Addr,
            Value::Ether(_) => Field::EtherAddr,
            Value::EtherType(_) => Field::EtherType,
            Value::Proto(_) => Field::InetProto,
            Value::Port(_) => Field::InetService,
            Value::IcmpType(_) => Field::IcmpType,
            Value::Icmp6Type(_) => Field::Icmp6Type,
            Value::Mark(_) => Field::Mark,
            Value::IfIndex(_) => Field::IfIndex,
            Value::CtState(_) => Field::CtState,
            Value::IfName(_) => Field::IfName,
        }
    }

    /// Writes the value as it stands in a register; returns its length.
    pub(crate) fn write(&self, out: &mut [u8; 16]) -> usize {
        let bytes: &[u8] = match self {
            Value::NfProto(v) | Value::Proto(v) | Value::IcmpType(v) | Value::Icmp6Type(v) => &[*v],
            Value::EtherType(v) | Value::Port(v) => &v.to_be_bytes(),
            Value::Ipv4(v) => &v.octets(),
            Value::Ipv6(v) => &v.octets(),
            Value::Ether(v) => v,
            Value::Mark(v) | Value::IfIndex(v) | Value::CtState(v) => &v.to_ne_bytes(),
            Value::IfName(v) => v.as_bytes(),
        };
        out[..bytes.len()].copy_from_slice(bytes);
        bytes.len()
    }

    fn read(field: Field, bytes: &[u8]) -> Option<Value> {
        let four = || bytes.try_into().ok();
        Some(match field {
            Field::NfProto => Value::NfProto(bytes[0]),
            Field::InetProto => Value::Proto(bytes[0]),
            Field::IcmpType => Value::IcmpType(bytes[0]),
            Field::Icmp6Type => Value::Icmp6Type(bytes[0]),
            Field::EtherType => Value::EtherType(u16::from_be_bytes(bytes.try_into().ok()?)),
            Field::InetService => Value::Port(u16::from_be_bytes(bytes.try_into().ok()?)),
            Field::Ipv4Addr => Value::Ipv4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
            Field::Ipv6Addr => Value::Ipv6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
            Field::EtherAddr => Value::Ether(bytes.try_into().ok()?),
            Field::Mark => Value::Mark(u32::from_ne_bytes(four()?)),
            Field::IfIndex => Value::IfIndex(u32::from_ne_bytes(four()?)),
            Field::CtState => Value::CtState(u32::from_ne_bytes(four()?)),
            Field::IfName => {
                let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
                Value::IfName(IfName::new(std::str::from_utf8(&bytes[..end]).ok()?).ok()?)
            }
        })
    }
}

impl From<Ipv4Addr> for Value {
    fn from(address: Ipv4Addr) -> Self {
        Value::Ipv4(address)
    }
}

impl From<Ipv6Addr> for Value {
    fn from(address: Ipv6Addr) -> Self {
        Value::Ipv6(address)
    }
}

impl From<IpAddr> for Value {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Value::Ipv4(address),
            IpAddr::V6(address) => Value::Ipv6(address),
        }
    }
}

impl From<IfName> for Value {
    fn from(name: IfName) -> Self {
        Value::IfName(name)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::NfProto(v) | Value::Proto(v) | Value::IcmpType(v) | Value::Icmp6Type(v) => {
                write!(f, "{v}")
            }
            Value::Port(v) => write!(f, "{v}"),
            Value::EtherType(v) => write!(f, "{v:#06x}"),
            Value::Ipv4(v) => write!(f, "{v}"),
            Value::Ipv6(v) => write!(f, "{v}"),
            Value::Ether([a, b, c, d, e, g]) => write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}"),
            Value::Mark(v) | Value::CtState(v) => write!(f, "{v:#010x}"),
            Value::IfIndex(v) => write!(f, "{v}"),
            Value::IfName(v) => write!(f, "{v}"),
        }
    }
}

/// A key of a set's element, or a value of a map: one to five fields' values.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    values: [Value; FIELDS],
    count: u8,
}

impl Key {
    /// The values in order.
    pub fn values(&self) -> &[Value] {
        &self.values[..usize::from(self.count)]
    }

    /// Whether this is a key of that type.
    pub fn is_of(&self, kind: &KeyType) -> bool {
        self.values().len() == kind.fields().len()
            && self.values().iter().zip(kind.fields()).all(|(value, &field)| value.field() == field)
    }

    /// The fields of this key, as an error names them.
    pub(crate) fn describe(&self) -> String {
        let names: Vec<String> = self.values().iter().map(|value| value.field().to_string()).collect();
        names.join(" . ")
    }

    /// Reads a key of that type from the bytes that a dump holds.
    pub fn read(kind: &KeyType, bytes: &[u8]) -> Option<Key> {
        if bytes.len() < kind.bytes() {
            return None;
        }
        let mut key = Key::from(Value::NfProto(0));
        let mut at = 0;
        for (slot, &field) in key.values.iter_mut().zip(kind.fields()) {
            *slot = Value::read(field, bytes.get(at..at + field.size())?)?;
            at += align(field.size());
        }
        key.count = kind.fields().len() as u8;
        Some(key)
    }

    /// The bytes of the key as registers hold it, and how many there are.
    pub(crate) fn bytes(&self) -> ([u8; FIELDS * 16], usize) {
        let mut bytes = [0; FIELDS * 16];
        let mut length = 0;
        let values = self.values();
        for value in values {
            let mut field = [0; 16];
            let size = value.write(&mut field);
            bytes[length..length + size].copy_from_slice(&field[..size]);
            length += if values.len() == 1 { size } else { align(size) };
        }
        (bytes, length)
    }
}

impl<V: Into<Value>> From<V> for Key {
    fn from(value: V) -> Self {
        let mut values = [Value::NfProto(0); FIELDS];
        values[0] = value.into();
        Key { values, count: 1 }
    }
}

macro_rules! key_of_fields {
    ($($count:literal)*) => {$(
        impl From<[Value; $count]> for Key {
            fn from(fields: [Value; $count]) -> Self {
                let mut values = [Value::NfProto(0); FIELDS];
                values[..$count].copy_from_slice(&fields);
                Key { values, count: $count }
            }
        }
    )*};
}

key_of_fields!(1 2 3 4 5);

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, value) in self.values().iter().enumerate() {
            write!(f, "{}{value}", if index == 0 { "" } else { " . " })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
