//! Families, tables and the names of things.

use std::fmt;
use std::sync::Arc;

use crate::EncodeError;
use crate::wire::Writer;

/// The most bytes a name may have (`NFT_NAME_MAXLEN` less its final zero).
const NAME: usize = 255;

/// Which packets a table sees (`NFPROTO_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet = 1,
    /// IPv4.
    Ip = 2,
    /// ARP.
    Arp = 3,
    /// A device's own hooks, before the network layer.
    Netdev = 5,
    /// Bridges.
    Bridge = 7,
    /// IPv6.
    Ip6 = 10,
}

impl Family {
    /// The family of a number in a message, where we know it.
    pub fn from_number(number: u8) -> Option<Family> {
        Some(match number {
            1 => Family::Inet,
            2 => Family::Ip,
            3 => Family::Arp,
            5 => Family::Netdev,
            7 => Family::Bridge,
            10 => Family::Ip6,
            _ => return None,
        })
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Inet => "inet",
            Family::Ip => "ip",
            Family::Arp => "arp",
            Family::Netdev => "netdev",
            Family::Bridge => "bridge",
            Family::Ip6 => "ip6",
        })
    }
}

/// A table's family and name, which together are its identity.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableId {
    /// Which packets it sees.
    pub family: Family,
    /// Its name.
    pub name: Arc<str>,
}

impl TableId {
    /// A table's identity.
    pub fn new(family: Family, name: impl Into<Arc<str>>) -> Self {
        TableId { family, name: name.into() }
    }
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

/// How to name what is to be deleted: by its name, or by the handle that a dump reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ref<'a> {
    /// By name.
    Name(&'a str),
    /// By handle.
    Handle(u64),
}

impl<'a> From<&'a str> for Ref<'a> {
    fn from(name: &'a str) -> Self {
        Ref::Name(name)
    }
}

impl<'a> From<&'a Arc<str>> for Ref<'a> {
    fn from(name: &'a Arc<str>) -> Self {
        Ref::Name(name)
    }
}

impl From<u64> for Ref<'_> {
    fn from(handle: u64) -> Self {
        Ref::Handle(handle)
    }
}

impl Ref<'_> {
    pub(crate) fn encode(&self, writer: &mut Writer, name: u16, handle: u16) {
        match self {
            Ref::Name(text) => encode_name(writer, name, text),
            Ref::Handle(number) => writer.be64(handle, *number),
        }
    }
}

/// Writes the name of an object.
pub(crate) fn encode_name(writer: &mut Writer, kind: u16, name: &str) {
    if name.is_empty() || name.len() > NAME {
        writer.fault(EncodeError::NameLength { name: name.to_owned(), limit: NAME });
    } else {
        writer.string(kind, name);
    }
}

/// An interface's name, 1 to 15 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IfName {
    bytes: [u8; 16],
}

impl IfName {
    /// Checks a name as the kernel does (`dev_valid_name`).
    pub fn new(name: &str) -> Result<Self, EncodeError> {
        let source = name.as_bytes();
        if source.is_empty() || source.len() > 15 {
            return Err(EncodeError::NameLength { name: name.to_owned(), limit: 15 });
        }
        if source.iter().any(|byte| matches!(byte, b'/' | b':' | 0) || byte.is_ascii_whitespace()) {
            return Err(EncodeError::InterfaceName { name: name.to_owned() });
        }
        let mut bytes = [0; 16];
        bytes[..source.len()].copy_from_slice(source);
        Ok(IfName { bytes })
    }

    /// The name, with zero bytes behind it.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.bytes
    }

    /// The name alone.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len()]).unwrap_or_default()
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.iter().position(|&byte| byte == 0).unwrap_or(self.bytes.len())
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}
