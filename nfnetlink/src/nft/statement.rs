//! The statements of a rule, and the expressions that the kernel gets for each.
//!
//! A statement reads what it compares into the data registers from the first one on, so none depends on
//! what an earlier one left there.

use std::sync::Arc;
use std::time::Duration;

use super::field::REGISTERS;
use super::message::COUNTER;
use super::name::encode_name;
use super::{IfName, Source, Value, Verdict, expression};
use crate::EncodeError;
use crate::wire::{Writer, align};

/// The number of the first 4-byte register (`NFT_REG32_00`).
const REGISTER: u32 = 8;

/// How a value is compared (`NFT_CMP_*`), byte by byte as in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Cmp {
    Eq = 0,
    Neq = 1,
    Lt = 2,
    Lte = 3,
    Gt = 4,
    Gte = 5,
}

/// What something read from a packet is compared with, or masked by: 1 to 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Operand {
    bytes: [u8; 16],
    length: u8,
    prefix: bool,
}

impl Operand {
    /// The beginning of an interface's name, as `iifname "moat*"`; the only operand that may be shorter
    /// than what it is compared with.
    pub fn prefix(name: IfName) -> Self {
        Operand { bytes: *name.as_bytes(), length: name.len() as u8, prefix: true }
    }

    /// Bytes as they stand in the packet.
    pub fn bytes<const N: usize>(value: [u8; N]) -> Self {
        const { assert!(N >= 1 && N <= 16, "an operand has 1 to 16 bytes") };
        let mut bytes = [0; 16];
        bytes[..N].copy_from_slice(&value);
        Operand { bytes, length: N as u8, prefix: false }
    }

    /// A number in the packet's order.
    pub fn be16(value: u16) -> Self {
        Operand::bytes(value.to_be_bytes())
    }

    /// A number in the packet's order.
    pub fn be32(value: u32) -> Self {
        Operand::bytes(value.to_be_bytes())
    }

    /// A number in the machine's order: types of interfaces.
    pub fn host16(value: u16) -> Self {
        Operand::bytes(value.to_ne_bytes())
    }

    /// A number in the machine's order: marks, states, indexes.
    pub fn host32(value: u32) -> Self {
        Operand::bytes(value.to_ne_bytes())
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    fn check(&self, source: &Source) -> Result<(), EncodeError> {
        let length = usize::from(self.length);
        if length == source.size() || (self.prefix && length < source.size()) {
            return Ok(());
        }
        Err(EncodeError::Length {
            what: source.to_string(),
            source_length: source.size(),
            value_length: length,
        })
    }
}

impl<V: Into<Value>> From<V> for Operand {
    fn from(value: V) -> Self {
        let mut bytes = [0; 16];
        let length = value.into().write(&mut bytes) as u8;
        Operand { bytes, length, prefix: false }
    }
}

impl From<u8> for Operand {
    fn from(value: u8) -> Self {
        Operand::bytes([value])
    }
}

/// How a packet's sender is told (`NFT_REJECT_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reject {
    /// A TCP reset; only after a match on TCP.
    TcpReset,
    /// An ICMP or ICMPv6 error, whichever the packet's family wants.
    Icmp(IcmpError),
}

/// The ICMP errors that both families have (`NFT_REJECT_ICMPX_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names say it")]
pub enum IcmpError {
    NoRoute = 0,
    PortUnreachable = 1,
    HostUnreachable = 2,
    AdminProhibited = 3,
}

/// Copies a packet to an nflog group.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Log {
    /// The group; a listener binds to it.
    pub group: u16,
    /// What every copy carries with it; up to 127 bytes.
    pub prefix: Arc<str>,
    /// How many bytes of the packet; the whole packet where it is `None`.
    pub snaplen: Option<u32>,
    /// How many packets the kernel collects before it wakes the listener.
    pub threshold: Option<u16>,
}

/// Lets a rule match so often and no more (a token bucket).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limit {
    /// Matches in each period.
    pub rate: u64,
    /// The period, in whole seconds.
    pub per: Duration,
    /// How many may come at once.
    pub burst: u32,
}

/// One statement of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Statement {
    /// Goes on if the comparison holds.
    Match {
        /// What is read.
        source: Source,
        /// Bits that are kept before the comparison.
        mask: Option<Operand>,
        /// The comparison.
        cmp: Cmp,
        /// What with.
        value: Operand,
    },
    /// Goes on if what is read lies between two values, both included; or, `inverted`, if not.
    Range {
        /// What is read.
        source: Source,
        /// The lowest.
        from: Operand,
        /// The highest.
        to: Operand,
        /// Whether the range is what does not match.
        inverted: bool,
    },
    /// Goes on if the set holds the key; or, `inverted`, if not.
    Lookup {
        /// The key's fields.
        key: Box<[Source]>,
        /// The set's name.
        set: Arc<str>,
        /// Whether being in the set is what does not match.
        inverted: bool,
    },
    /// Does what the verdict map says for the key; goes on with the next rule if it holds none.
    VerdictMap {
        /// The key's fields.
        key: Box<[Source]>,
        /// The map's name.
        map: Arc<str>,
    },
    /// Counts packets and bytes.
    Counter,
    /// Counts packets and bytes in the counter of that name, which outlives the rule.
    CountIn(Arc<str>),
    /// Goes on so often.
    Limit(Limit),
    /// Goes on so often for each key: the limit is an element's own. Adds the element where there is none, puts its time-out
    /// off where there is one, and does not go on where the set is full.
    Meter {
        /// The key's fields.
        key: Box<[Source]>,
        /// The dynamic set's name.
        set: Arc<str>,
        /// How often.
        limit: Limit,
    },
    /// Copies the packet to a listener.
    Log(Log),
    /// Drops the packet and tells its sender.
    Reject(Reject),
    /// Decides.
    Verdict(Verdict),
    /// Sets bits of the connection's mark: those in `mask` become those of `value`.
    SetCtMark {
        /// The new bits.
        value: u32,
        /// Which bits change.
        mask: u32,
    },
    /// Exempts the packet from connection tracking (raw priority only).
    NoTrack,
    /// Source NAT to the outgoing interface's address.
    Masquerade,
    /// Destination NAT to where the map leads the key, an address and a port; goes on with the next rule if it holds none.
    DestinationNat {
        /// The key's fields.
        key: Box<[Source]>,
        /// The map's name; its values are an address of the packet's family and a port.
        map: Arc<str>,
        /// The family: IPv4 or else IPv6. To be matched before.
        ipv4: bool,
    },
}

impl Statement {
    pub(crate) fn encode(&self, w: &mut Writer) {
        match self {
            Statement::Match { source, mask, cmp, value } => {
                if let Err(fault) = value.check(source) {
                    return w.fault(fault);
                }
                source.encode(w, REGISTER);
                if let Some(mask) = mask {
                    if let Err(fault) = mask.check(source) {
                        return w.fault(fault);
                    }
                    bitwise(w, mask.as_slice(), &[0; 16][..source.size()]);
                }
                expression(w, "cmp", |w| {
                    w.be32(1, REGISTER);
                    w.be32(2, *cmp as u32);
                    value_data(w, 3, value.as_slice());
                });
            }
            Statement::Range { source, from, to, inverted } => {
                if let Err(fault) = from.check(source).and(to.check(source)) {
                    return w.fault(fault);
                }
                source.encode(w, REGISTER);
                expression(w, "range", |w| {
                    w.be32(1, REGISTER);
                    w.be32(2, u32::from(*inverted));
                    value_data(w, 3, from.as_slice());
                    value_data(w, 4, to.as_slice());
                });
            }
            Statement::Lookup { key, set, inverted } => {
                load(w, key);
                expression(w, "lookup", |w| {
                    encode_name(w, 1, set);
                    w.be32(2, REGISTER);
                    w.be32(5, u32::from(*inverted)); // NFT_LOOKUP_F_INV
                });
            }
            Statement::VerdictMap { key, map } => {
                load(w, key);
                expression(w, "lookup", |w| {
                    encode_name(w, 1, map);
                    w.be32(2, REGISTER);
                    w.be32(3, 0); // NFT_REG_VERDICT
                });
            }
            Statement::Counter => expression(w, "counter", |w| {
                w.be64(1, 0);
                w.be64(2, 0);
            }),
            Statement::CountIn(name) => expression(w, "objref", |w| {
                w.be32(1, COUNTER);
                encode_name(w, 2, name);
            }),
            Statement::Limit(limit) => expression(w, "limit", |w| limit.encode(w)),
            Statement::Meter { key, set, limit } => {
                load(w, key);
                expression(w, "dynset", |w| {
                    encode_name(w, 1, set);
                    w.be32(3, 1); // NFT_DYNSET_OP_UPDATE
                    w.be32(4, REGISTER);
                    w.nest(7, |w| {
                        w.string(1, "limit");
                        w.nest(2, |w| limit.encode(w));
                    });
                });
            }
            Statement::Log(log) => log.encode(w),
            Statement::Reject(reject) => expression(w, "reject", |w| match reject {
                Reject::TcpReset => w.be32(1, 1),
                Reject::Icmp(error) => {
                    w.be32(1, 2);
                    w.u8(2, *error as u8);
                }
            }),
            Statement::Verdict(verdict) => expression(w, "immediate", |w| {
                w.be32(1, 0);
                w.nest(2, |w| verdict.encode(w));
            }),
            Statement::SetCtMark { value, mask } => {
                Source::CT_MARK.encode(w, REGISTER);
                bitwise(w, &(!mask).to_ne_bytes(), &(value & mask).to_ne_bytes());
                expression(w, "ct", |w| {
                    w.be32(2, super::source::Ct::Mark as u32);
                    w.be32(4, REGISTER);
                });
            }
            Statement::NoTrack => expression(w, "notrack", |_| {}),
            Statement::Masquerade => expression(w, "masq", |_| {}),
            Statement::DestinationNat { key, map, ipv4 } => {
                load(w, key);
                expression(w, "lookup", |w| {
                    encode_name(w, 1, map);
                    w.be32(2, REGISTER);
                    w.be32(3, REGISTER);
                });
                let (family, address) = if *ipv4 { (2, 4) } else { (10, 16) };
                expression(w, "nat", |w| {
                    w.be32(1, 1); // NFT_NAT_DNAT
                    w.be32(2, family);
                    w.be32(3, REGISTER);
                    w.be32(5, REGISTER + address / 4);
                });
            }
        }
    }
}

impl Limit {
    fn encode(&self, w: &mut Writer) {
        w.be64(1, self.rate);
        w.be64(2, self.per.as_secs());
        w.be32(3, self.burst);
        w.be32(4, 0); // NFT_LIMIT_PKTS
        w.be32(5, 0);
    }
}

impl Log {
    fn encode(&self, w: &mut Writer) {
        if self.prefix.len() > 127 {
            return w.fault(EncodeError::NameLength { name: self.prefix.to_string(), limit: 127 });
        }
        expression(w, "log", |w| {
            w.be16(1, self.group);
            if !self.prefix.is_empty() {
                w.string(2, &self.prefix);
            }
            if let Some(snaplen) = self.snaplen {
                w.be32(3, snaplen);
            }
            if let Some(threshold) = self.threshold {
                w.be16(4, threshold);
            }
        });
    }
}

/// Reads the fields of a key into consecutive registers.
fn load(w: &mut Writer, key: &[Source]) {
    let bytes: usize = key.iter().map(|source| align(source.size())).sum();
    if key.is_empty() || bytes > REGISTERS || key.iter().any(|source| source.size() == 0) {
        return w.fault(EncodeError::Registers { sources: key.len(), bytes });
    }
    let mut register = REGISTER;
    for source in key {
        source.encode(w, register);
        register += (align(source.size()) / 4) as u32;
    }
}

fn bitwise(w: &mut Writer, mask: &[u8], xor: &[u8]) {
    expression(w, "bitwise", |w| {
        w.be32(1, REGISTER);
        w.be32(2, REGISTER);
        w.be32(3, mask.len() as u32);
        value_data(w, 4, mask);
        value_data(w, 5, xor);
    });
}

/// Writes `NFTA_DATA_VALUE` inside an attribute.
pub(crate) fn value_data(w: &mut Writer, kind: u16, value: &[u8]) {
    w.nest(kind, |w| w.attr(1, value));
}
