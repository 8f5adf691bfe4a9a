//! The objects of a dump or an event, decoded. Any bytes may come in; what lacks its identity is skipped.

use std::sync::Arc;
use std::time::Duration;

use super::message::COUNTER;
use super::set::{VERDICT, flag};
use super::{Data, DataType, Element, Family, Key, KeyType, Set, TableId, UserData, Verdict, userdata};
use crate::wire::{Attr, Attrs, Message};

/// A table as the kernel holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableInfo {
    /// Its family and name.
    pub id: TableId,
    /// Bits of [`table_flags`](super::table_flags).
    pub flags: u32,
    /// Its number, which no other table ever has.
    pub handle: u64,
    /// The port id of the socket that owns it, if one does.
    pub owner: Option<u32>,
    /// Its user data.
    pub userdata: Vec<u8>,
}

/// A chain as the kernel holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainInfo {
    /// Its table.
    pub table: TableId,
    /// Its name.
    pub name: Arc<str>,
    /// Its number.
    pub handle: u64,
    /// How many rules and elements lead to it, and how many rules it holds, in sum.
    pub uses: u32,
    /// What makes it a base chain.
    pub base: Option<BaseInfo>,
    /// Its user data.
    pub userdata: Vec<u8>,
}

/// The base of a chain as the kernel holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseInfo {
    /// The hook's number in its family.
    pub hook: u32,
    /// Its place among the chains of the hook.
    pub priority: i32,
    /// Its devices, in a netdev table.
    pub devices: Vec<String>,
    /// Whether a packet at its end passes.
    pub accept: bool,
    /// `filter`, `nat` or `route`.
    pub kind: String,
}

/// A set or map as the kernel holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetInfo {
    /// Its table.
    pub table: TableId,
    /// Its name.
    pub name: Arc<str>,
    /// Its number.
    pub handle: u64,
    /// Bits of `NFT_SET_*`.
    pub flags: u32,
    /// The number of its keys' type.
    pub key_type: u32,
    /// The bytes of a key.
    pub key_len: u32,
    /// The number of its data's type; `None`: no map.
    pub data_type: Option<u32>,
    /// The most elements it takes.
    pub size: Option<u32>,
    /// When its elements leave.
    pub timeout: Option<Duration>,
    /// What each of its elements does besides: `counter`, `limit`, …
    pub expression: Option<String>,
    /// Its user data.
    pub userdata: Vec<u8>,
}

/// An element as the kernel holds it, in the dump's own buffer.
#[derive(Debug, Clone)]
pub struct ElementView<'a> {
    /// Its key's bytes; in an interval set the lowest.
    pub key: &'a [u8],
    /// The highest key's bytes.
    pub end: Option<&'a [u8]>,
    /// What it leads to, in a verdict map.
    pub verdict: Option<Verdict>,
    /// What it leads to, in another map.
    pub value: Option<&'a [u8]>,
    /// What it counted: packets and bytes.
    pub counter: Option<(u64, u64)>,
    /// Its user data.
    pub userdata: &'a [u8],
}

/// A rule as the kernel holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleInfo {
    /// Its table.
    pub table: TableId,
    /// Its chain.
    pub chain: Arc<str>,
    /// Its number in its table, by which it is deleted or replaced.
    pub handle: u64,
    /// Its expressions as the kernel wrote them: a list of `NFTA_LIST_ELEM`. They hold more than what was
    /// sent (defaults, counts), so rules are told apart by their user data.
    pub expressions: Vec<u8>,
    /// Its user data.
    pub userdata: Vec<u8>,
}

/// A counter with a name, as the kernel holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CounterInfo {
    /// Its table.
    pub table: TableId,
    /// Its name.
    pub name: Arc<str>,
    /// The packets it counted.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The table that a message is about: in all messages of nf_tables it is the first attribute.
pub(super) fn table_of(message: &Message<'_>) -> Option<TableId> {
    let family = Family::from_number(message.family())?;
    Some(TableId::new(family, message.attrs().find(1)?.string()?))
}

fn bytes(attrs: &Attrs<'_>, kind: u16) -> Vec<u8> {
    attrs.find(kind).map(|attr| attr.payload.to_vec()).unwrap_or_default()
}

fn be32(attrs: &Attrs<'_>, kind: u16) -> Option<u32> {
    attrs.find(kind)?.be32()
}

impl TableInfo {
    pub(super) fn decode(message: &Message<'_>) -> Option<Self> {
        let attrs = message.attrs();
        Some(TableInfo {
            id: table_of(message)?,
            flags: be32(&attrs, 2).unwrap_or_default(),
            handle: attrs.find(4)?.be64()?,
            owner: be32(&attrs, 7),
            userdata: bytes(&attrs, 6),
        })
    }
}

impl ChainInfo {
    pub(super) fn decode(message: &Message<'_>) -> Option<Self> {
        let attrs = message.attrs();
        let base = attrs.find(4).map(|hook| {
            let hook = hook.nested();
            let list = hook.find(4).into_iter().flat_map(|devices| devices.nested());
            BaseInfo {
                hook: be32(&hook, 1).unwrap_or_default(),
                priority: be32(&hook, 2).unwrap_or_default() as i32,
                devices: hook
                    .find(3)
                    .into_iter()
                    .chain(list)
                    .filter_map(|device| device.string().map(str::to_owned))
                    .fold(Vec::new(), |mut devices, device| {
                        if !devices.contains(&device) {
                            devices.push(device);
                        }
                        devices
                    }),
                accept: be32(&attrs, 5) == Some(1),
                kind: attrs.find(7).and_then(|kind| kind.string()).unwrap_or_default().to_owned(),
            }
        });
        Some(ChainInfo {
            table: table_of(message)?,
            name: attrs.find(3)?.string()?.into(),
            handle: attrs.find(2)?.be64()?,
            uses: be32(&attrs, 6).unwrap_or_default(),
            base,
            userdata: bytes(&attrs, 12),
        })
    }
}

impl SetInfo {
    pub(crate) fn decode(message: &Message<'_>) -> Option<Self> {
        let attrs = message.attrs();
        let flags = be32(&attrs, 3).unwrap_or_default();
        Some(SetInfo {
            table: table_of(message)?,
            name: attrs.find(2)?.string()?.into(),
            handle: attrs.find(16).and_then(|attr| attr.be64()).unwrap_or_default(),
            flags,
            key_type: be32(&attrs, 4).unwrap_or_default(),
            key_len: be32(&attrs, 5).unwrap_or_default(),
            data_type: (flags & flag::MAP != 0).then(|| be32(&attrs, 6)).flatten(),
            size: attrs.find(9).and_then(|desc| be32(&desc.nested(), 1)),
            timeout: attrs.find(11).and_then(|attr| attr.be64()).map(Duration::from_millis),
            expression: attrs.find(17).and_then(|expr| expr.nested().find(1)?.string().map(str::to_owned)),
            userdata: bytes(&attrs, 13),
        })
    }

    /// Whether it belongs to one rule and has no name of its own.
    pub fn is_anonymous(&self) -> bool {
        self.flags & flag::ANONYMOUS != 0
    }

    /// The set as [`Batch`](super::Batch) declares it, where it is of a kind that it can declare.
    pub fn declaration(&self) -> Option<Set> {
        const OURS: u32 = flag::INTERVAL | flag::CONCAT | flag::MAP | flag::TIMEOUT | flag::EVAL;
        if self.flags & !OURS != 0 || (self.flags & flag::INTERVAL == 0) != (self.flags & flag::CONCAT == 0) {
            return None;
        }
        let mut set = Set::new(self.name.clone(), KeyType::from_number(self.key_type)?);
        if self.flags & flag::INTERVAL != 0 {
            set = set.intervals();
        }
        match self.data_type {
            None => {}
            Some(VERDICT) => set = set.verdict_map(),
            Some(value) => set = set.map(KeyType::from_number(value)?),
        }
        if self.flags & flag::EVAL != 0 {
            set = set.dynamic();
        }
        match self.expression.as_deref() {
            None => {}
            Some("counter") => set = set.counted(),
            Some(_) => return None,
        }
        if let Some(size) = self.size {
            set = set.size(size);
        }
        if let Some(timeout) = self.timeout {
            set = set.timeout(timeout);
        }
        Some(match userdata::set_comment(&self.userdata) {
            Some(comment) => set.userdata(UserData::new().comment(comment)),
            None => set,
        })
    }
}

impl<'a> ElementView<'a> {
    pub(crate) fn decode(attrs: Attrs<'a>) -> Option<Self> {
        let value = |attr: Attr<'a>| attr.nested().find(1).map(|value| value.payload);
        let data = attrs.find(2);
        Some(ElementView {
            key: value(attrs.find(1)?)?,
            end: attrs.find(10).and_then(value),
            verdict: data.and_then(|data| Verdict::decode(data.nested().find(2)?.nested())),
            value: data.and_then(value),
            counter: attrs.find(7).and_then(|expression| counted(expression.nested())),
            userdata: attrs.find(6).map(|attr| attr.payload).unwrap_or_default(),
        })
    }

    /// The element as [`Batch`](super::Batch) adds it to that set; `None` where it does not fit the set.
    pub fn element(&self, set: &Set) -> Option<Element> {
        let data = match set.data() {
            None => None,
            Some(DataType::Verdict) => Some(Data::Verdict(self.verdict.clone()?)),
            Some(DataType::Value(kind)) => Some(Data::Value(Key::read(kind, self.value?)?)),
        };
        let end = match self.end {
            None => None,
            Some(end) => Some(Key::read(set.key(), end)?),
        };
        let key = Key::read(set.key(), self.key)?;
        Some(Element { key, end, data, comment: userdata::comment(self.userdata).map(Box::from) })
    }
}

impl RuleInfo {
    pub(super) fn decode(message: &Message<'_>) -> Option<Self> {
        let attrs = message.attrs();
        Some(RuleInfo {
            table: table_of(message)?,
            chain: attrs.find(2)?.string()?.into(),
            handle: attrs.find(3)?.be64()?,
            expressions: bytes(&attrs, 4),
            userdata: bytes(&attrs, 7),
        })
    }

    /// The names of its expressions, in order.
    pub fn expression_names(&self) -> Vec<&str> {
        let expressions = Attrs::new(&self.expressions);
        expressions.filter_map(|expression| expression.nested().find(1)?.string()).collect()
    }

    /// Whether it accepts everything that comes in (or goes out, the second) by some interfaces, and asks for nothing else;
    /// which ones, with `*` for every end of a name.
    pub fn accepts_all_of(&self) -> Option<(String, bool)> {
        const IIFNAME: u32 = 6;
        const OIFNAME: u32 = 7;
        const ACCEPT: u32 = 1;
        let (mut outgoing, mut name, mut accepts) = (None, None, false);
        for expression in Attrs::new(&self.expressions) {
            let expression = expression.nested();
            let data = expression.find(2)?.nested();
            match expression.find(1)?.string()? {
                "counter" => {}
                // iptables-nft keeps a rule's comment as a match.
                "match" if data.find(1)?.string() == Some("comment") => {}
                "meta" if outgoing.is_none() => match be32(&data, 2)? {
                    IIFNAME => outgoing = Some(false),
                    OIFNAME => outgoing = Some(true),
                    _ => return None,
                },
                "cmp" if name.is_none() && be32(&data, 2) == Some(0) => {
                    let bytes = data.find(3)?.nested().find(1)?.payload;
                    let end = bytes.iter().position(|byte| *byte == 0);
                    let text = std::str::from_utf8(&bytes[..end.unwrap_or(bytes.len())]).ok()?;
                    name = Some(if end.is_some() { text.to_owned() } else { format!("{text}*") });
                }
                "immediate" => accepts = be32(&data.find(2)?.nested().find(2)?.nested(), 1) == Some(ACCEPT),
                _ => return None,
            }
        }
        accepts.then_some((name?, outgoing?))
    }

    /// What its first counter counted: packets and bytes.
    pub fn counter(&self) -> Option<(u64, u64)> {
        Attrs::new(&self.expressions).find_map(|expression| counted(expression.nested()))
    }
}

impl CounterInfo {
    pub(super) fn decode(message: &Message<'_>) -> Option<Self> {
        let attrs = message.attrs();
        if be32(&attrs, 3) != Some(COUNTER) {
            return None;
        }
        let data = attrs.find(4)?.nested();
        Some(CounterInfo {
            table: table_of(message)?,
            name: attrs.find(2)?.string()?.into(),
            packets: data.find(2)?.be64()?,
            bytes: data.find(1)?.be64()?,
        })
    }
}

/// What an expression counted, if it is a counter: packets and bytes.
fn counted(expression: Attrs<'_>) -> Option<(u64, u64)> {
    if expression.find(1)?.string()? != "counter" {
        return None;
    }
    let counter = expression.find(2)?.nested();
    Some((counter.find(2)?.be64()?, counter.find(1)?.be64()?))
}
