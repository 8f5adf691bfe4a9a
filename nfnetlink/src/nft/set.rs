//! Sets, maps and their elements.
//!
//! | wanted | how | kernel's structure |
//! |---|---|---|
//! | exact keys | [`Set::new`] | hash table |
//! | ranges, prefixes | [`Set::intervals`], two fields or more | pipapo |
//! | key to verdict | [`Set::verdict_map`] | as above |
//! | key to value | [`Set::map`] | as above |
//!
//! The kernel has no pipapo set of one field: it refuses `NFT_SET_CONCAT` with one (EINVAL), and an
//! interval set without it is an rbtree, which takes over a hundred milliseconds to change once it is large.
//! So there are none here. A set of prefixes takes a second field that is always the same, or whole range.

use std::sync::Arc;
use std::time::Duration;

use super::userdata::{SET_COMMENT, UserData};
use super::{Key, KeyType, TableId, Verdict, encode_name};
use crate::EncodeError;
use crate::wire::Writer;

/// Flags of a set (`NFT_SET_*`).
pub(crate) mod flag {
    pub(crate) const ANONYMOUS: u32 = 0x1;
    pub(crate) const INTERVAL: u32 = 0x4;
    pub(crate) const MAP: u32 = 0x8;
    pub(crate) const TIMEOUT: u32 = 0x10;
    pub(crate) const EVAL: u32 = 0x20;
    pub(crate) const CONCAT: u32 = 0x80;
}

/// The number of a verdict map's data type (`NFT_DATA_VERDICT`).
pub(crate) const VERDICT: u32 = 0xffff_ff00;

/// What a map's elements lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DataType {
    /// A verdict.
    Verdict,
    /// A value.
    Value(KeyType),
}

/// A set or map to be added, or that elements are to be added to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    name: Arc<str>,
    key: KeyType,
    intervals: bool,
    data: Option<DataType>,
    size: Option<u32>,
    timeout: Option<Duration>,
    dynamic: bool,
    counted: bool,
    userdata: UserData,
}

impl Set {
    /// A set of exact keys.
    pub fn new(name: impl Into<Arc<str>>, key: impl Into<KeyType>) -> Self {
        Set {
            name: name.into(),
            key: key.into(),
            intervals: false,
            data: None,
            size: None,
            timeout: None,
            dynamic: false,
            counted: false,
            userdata: UserData::new(),
        }
    }

    /// Its elements are ranges, field by field, and must not overlap (the kernel accepts or refuses an
    /// overlap by the order of insertion). The key must have two fields or more.
    pub fn intervals(mut self) -> Self {
        self.intervals = true;
        self
    }

    /// It maps keys to verdicts.
    pub fn verdict_map(mut self) -> Self {
        self.data = Some(DataType::Verdict);
        self
    }

    /// It maps keys to values.
    pub fn map(mut self, data: impl Into<KeyType>) -> Self {
        self.data = Some(DataType::Value(data.into()));
        self
    }

    /// It holds no more elements than this.
    pub fn size(mut self, elements: u32) -> Self {
        self.size = Some(elements);
        self
    }

    /// Its elements leave after this time, unless they say otherwise.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Rules add elements to it ([`Statement::Meter`](super::Statement::Meter)). It should say how many it holds at most, and
    /// when they leave.
    pub fn dynamic(mut self) -> Self {
        self.dynamic = true;
        self
    }

    /// Each element counts the packets that are found to be in the set by it.
    pub fn counted(mut self) -> Self {
        self.counted = true;
        self
    }

    /// With this user data, behind what `nft` needs to print the elements.
    pub fn userdata(mut self, userdata: UserData) -> Self {
        self.userdata = userdata;
        self
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The type of its keys.
    pub fn key(&self) -> &KeyType {
        &self.key
    }

    /// What its elements lead to, if it is a map.
    pub fn data(&self) -> Option<&DataType> {
        self.data.as_ref()
    }

    /// Whether its elements are ranges.
    pub fn has_intervals(&self) -> bool {
        self.intervals
    }

    /// Whether rules add elements to it.
    pub fn is_dynamic(&self) -> bool {
        self.dynamic
    }

    /// Whether each element counts.
    pub fn is_counted(&self) -> bool {
        self.counted
    }

    fn flags(&self) -> u32 {
        let mut flags = 0;
        if self.dynamic {
            flags |= flag::EVAL;
        }
        if self.intervals {
            flags |= flag::INTERVAL | flag::CONCAT;
        }
        if self.data.is_some() {
            flags |= flag::MAP;
        }
        if self.timeout.is_some() {
            flags |= flag::TIMEOUT;
        }
        flags
    }

    pub(crate) fn encode(&self, table: &TableId, id: u32, writer: &mut Writer) {
        if self.intervals && self.key.fields().len() < 2 {
            writer.fault(EncodeError::IntervalFields { set: self.name.clone() });
        }
        encode_name(writer, 1, &table.name);
        encode_name(writer, 2, &self.name);
        writer.be32(3, self.flags());
        writer.be32(4, self.key.number());
        writer.be32(5, self.key.bytes() as u32);
        match &self.data {
            None => {}
            Some(DataType::Verdict) => {
                writer.be32(6, VERDICT);
                writer.be32(7, 0);
            }
            Some(DataType::Value(value)) => {
                writer.be32(6, value.number());
                writer.be32(7, value.bytes() as u32);
            }
        }
        if self.size.is_some() || self.intervals {
            writer.nest(9, |w| {
                if let Some(size) = self.size {
                    w.be32(1, size);
                }
                if self.intervals {
                    // Unpadded lengths: the kernel pads them to registers itself.
                    w.nest(2, |w| {
                        for field in self.key.fields() {
                            w.nest(1, |w| w.be32(1, field.size() as u32));
                        }
                    });
                }
            });
        }
        writer.be32(10, id);
        if let Some(timeout) = self.timeout {
            writer.be64(11, timeout.as_millis() as u64);
        }
        self.userdata.encode(writer, 13, SET_COMMENT, &[(0, byte_order(&self.key)), (1, self.data_order())]);
        if self.counted {
            // Kernels since 5.11 give it to every element of the set.
            writer.nest(17, |w| {
                w.string(1, "counter");
                w.nest(2, |_| {});
            });
        }
    }

    fn data_order(&self) -> u32 {
        match &self.data {
            Some(DataType::Value(value)) => byte_order(value),
            _ => 0,
        }
    }

    /// Checks that an element has this set's type; where it is to be deleted, only its key counts.
    pub(crate) fn check(&self, element: &Element, with_data: bool) -> Result<(), EncodeError> {
        let wrong = |part, found: String, expected: String| EncodeError::ElementType {
            set: self.name.clone(),
            part,
            found,
            expected,
        };
        if !element.key.is_of(&self.key) {
            return Err(wrong("key", element.key.describe(), self.key.to_string()));
        }
        if let Some(end) = &element.end {
            if !self.intervals {
                return Err(wrong("key end", end.describe(), "none".to_owned()));
            }
            if !end.is_of(&self.key) {
                return Err(wrong("key end", end.describe(), self.key.to_string()));
            }
        }
        let fits = match (&element.data, &self.data) {
            _ if !with_data => true,
            (None, None) | (Some(Data::Verdict(_)), Some(DataType::Verdict)) => true,
            (Some(Data::Value(value)), Some(DataType::Value(kind))) => value.is_of(kind),
            _ => false,
        };
        if fits {
            return Ok(());
        }
        let found = match &element.data {
            None => "none".to_owned(),
            Some(Data::Verdict(_)) => "a verdict".to_owned(),
            Some(Data::Value(value)) => value.describe(),
        };
        let expected = match &self.data {
            None => "none".to_owned(),
            Some(DataType::Verdict) => "a verdict".to_owned(),
            Some(DataType::Value(kind)) => kind.to_string(),
        };
        Err(wrong("data", found, expected))
    }
}

/// `nft`'s byte order of a type: host 1, big endian 2; a concatenation has none of its own.
fn byte_order(kind: &KeyType) -> u32 {
    match kind.fields() {
        [field] if field.host_order() => 1,
        [_] => 2,
        _ => 0,
    }
}

/// What an element of a map leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// A verdict.
    Verdict(Verdict),
    /// A value.
    Value(Key),
}

/// An element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// Its key; in an interval set the lowest.
    pub key: Key,
    /// The highest key of a range; `None`: the range is one key.
    pub end: Option<Key>,
    /// What it leads to, in a map.
    pub data: Option<Data>,
    /// A text that `nft list` shows.
    pub comment: Option<Box<str>>,
}

impl Element {
    /// An element of a set.
    pub fn new(key: impl Into<Key>) -> Self {
        Element { key: key.into(), end: None, data: None, comment: None }
    }

    /// A range, both ends included.
    pub fn range(from: impl Into<Key>, to: impl Into<Key>) -> Self {
        Element { key: from.into(), end: Some(to.into()), data: None, comment: None }
    }

    /// It leads to a verdict.
    pub fn verdict(mut self, verdict: Verdict) -> Self {
        self.data = Some(Data::Verdict(verdict));
        self
    }

    /// It leads to a value.
    pub fn value(mut self, value: impl Into<Key>) -> Self {
        self.data = Some(Data::Value(value.into()));
        self
    }

    /// It has a comment.
    pub fn comment(mut self, text: impl Into<Box<str>>) -> Self {
        self.comment = Some(text.into());
        self
    }

    /// Writes the content of `NFTA_LIST_ELEM`.
    pub(crate) fn encode(&self, writer: &mut Writer, with_data: bool) {
        key_data(writer, 1, &self.key);
        if let Some(end) = &self.end {
            key_data(writer, 10, end);
        }
        match &self.data {
            Some(data) if with_data => writer.nest(2, |w| match data {
                Data::Verdict(verdict) => verdict.encode(w),
                Data::Value(value) => {
                    let (bytes, length) = value.bytes();
                    w.attr(1, &bytes[..length]);
                }
            }),
            _ => {}
        }
        if let Some(text) = &self.comment {
            UserData::new().comment(text.clone()).encode(writer, 6, super::userdata::COMMENT, &[]);
        }
    }
}

fn key_data(writer: &mut Writer, kind: u16, key: &Key) {
    let (bytes, length) = key.bytes();
    writer.nest(kind, |w| w.attr(1, &bytes[..length]));
}
