//! What a message of a batch was to do, read back from the message itself: nothing is kept for the case
//! that it fails.

use std::fmt;
use std::sync::Arc;

use super::{Family, TableId, message};
use crate::wire::{Attrs, Message, flags};

/// What a message does with its object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Adds it, or changes it where it exists.
    Add,
    /// Puts it in another's place.
    Replace,
    /// Deletes it.
    Delete,
    /// Deletes all it holds.
    Flush,
}

/// What a message is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// The table itself.
    Table,
    /// A chain, by name or handle.
    Chain(Arc<str>),
    /// A rule of a chain, with its handle where one is named.
    Rule {
        /// Its chain; empty for all of the table's rules.
        chain: Arc<str>,
        /// Its handle.
        handle: Option<u64>,
    },
    /// A set or map, by name or handle.
    Set(Arc<str>),
    /// Elements of a set or map.
    Elements(Arc<str>),
    /// A counter with a name.
    Counter(Arc<str>),
}

/// What one message of a batch was to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// What it does.
    pub verb: Verb,
    /// With what.
    pub object: Object,
    /// In which table.
    pub table: TableId,
}

impl Operation {
    /// Reads what a message is to do.
    pub(crate) fn of(message: &Message<'_>) -> Option<Operation> {
        let attrs = message.attrs();
        let table = TableId {
            family: Family::from_number(message.family())?,
            name: match message.number() {
                message::DEL_TABLE => name(&attrs, 1, 4),
                _ => name(&attrs, 1, u16::MAX),
            },
        };
        let handle = |kind| attrs.find(kind).and_then(|attr| attr.be64());
        let object = match message.number() {
            message::NEW_TABLE | message::DEL_TABLE => Object::Table,
            message::NEW_CHAIN | message::DEL_CHAIN => Object::Chain(name(&attrs, 3, 2)),
            message::NEW_RULE | message::DEL_RULE => {
                Object::Rule { chain: name(&attrs, 2, u16::MAX), handle: handle(3) }
            }
            message::NEW_SET | message::DEL_SET => Object::Set(name(&attrs, 2, 16)),
            message::NEW_SETELEM | message::DEL_SETELEM => Object::Elements(name(&attrs, 2, u16::MAX)),
            message::NEW_OBJ | message::DEL_OBJ if attrs.find(3)?.be32() == Some(message::COUNTER) => {
                Object::Counter(name(&attrs, 2, 6))
            }
            _ => return None,
        };
        let all = match message.number() {
            message::DEL_RULE => handle(3).is_none(),
            message::DEL_SETELEM => attrs.find(3).is_none(),
            _ => false,
        };
        let verb = match message.number() {
            message::NEW_RULE if message.flags & flags::REPLACE != 0 => Verb::Replace,
            message::NEW_TABLE
            | message::NEW_CHAIN
            | message::NEW_RULE
            | message::NEW_SET
            | message::NEW_SETELEM
            | message::NEW_OBJ => Verb::Add,
            _ if all => Verb::Flush,
            _ => Verb::Delete,
        };
        Some(Operation { verb, object, table })
    }
}

/// A name, or the handle that stands for it.
fn name(attrs: &Attrs<'_>, name: u16, handle: u16) -> Arc<str> {
    match attrs.find(name).and_then(|attr| attr.string()) {
        Some(name) => Arc::from(name),
        None => match attrs.find(handle).and_then(|attr| attr.be64()) {
            Some(handle) => Arc::from(format!("handle {handle}")),
            None => Arc::from(""),
        },
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.verb {
            Verb::Add => "add ",
            Verb::Replace => "replace ",
            Verb::Delete => "delete ",
            Verb::Flush => "flush ",
        })?;
        let table = &self.table;
        match (&self.object, self.verb) {
            (Object::Table, _) => write!(f, "table {table}"),
            (Object::Chain(name), _) => write!(f, "chain {table} {name}"),
            (Object::Rule { chain, .. }, Verb::Flush) if chain.is_empty() => write!(f, "table {table}"),
            (Object::Rule { chain, .. }, Verb::Flush) => write!(f, "chain {table} {chain}"),
            (Object::Rule { chain, handle: Some(handle) }, _) => {
                write!(f, "rule {table} {chain} handle {handle}")
            }
            (Object::Rule { chain, handle: None }, _) => write!(f, "rule {table} {chain}"),
            (Object::Set(name), _) => write!(f, "set {table} {name}"),
            (Object::Elements(name), Verb::Flush) => write!(f, "set {table} {name}"),
            (Object::Counter(name), _) => write!(f, "counter {table} {name}"),
            (Object::Elements(name), _) => write!(f, "elements {table} {name}"),
        }
    }
}
