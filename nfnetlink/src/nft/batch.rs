//! A batch: the messages of one transaction, which the kernel puts in force all at once or not at all.

use super::{
    Chain, Element, Family, Operation, Position, Ref, Rule, Set, Table, TableId, encode_name, message,
};
use crate::EncodeError;
use crate::wire::{HEADER, Message, Messages, Writer, align, flags, message_type, subsystem};

/// Attributes have 16-bit lengths, and so has the list of a message's elements: it is closed before this.
const ELEMENTS: usize = 60_000;

/// Messages in the order in which the kernel carries them out. Pure: [`Socket::send`](super::Socket::send)
/// does the rest.
///
/// A method that fails has added nothing. The order matters: what a message names must exist by then, and
/// a chain or set can be deleted only when nothing leads to it any more.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    writer: Writer,
    /// Where the last message begins: it alone asks for an acknowledgement.
    last: usize,
    count: usize,
    sets: u32,
}

impl Batch {
    /// No messages.
    pub fn new() -> Self {
        Batch::default()
    }

    /// How many messages it holds.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Its messages as they go over the wire, without the transaction's begin and end.
    pub fn as_bytes(&self) -> &[u8] {
        self.writer.bytes()
    }

    /// Adds a table; one that exists keeps what it holds. With the owner flag, one that has no owner now
    /// is taken over.
    pub fn add_table(&mut self, table: &Table) -> Result<(), EncodeError> {
        self.push(message::NEW_TABLE, flags::CREATE, &table.id, |w| table.encode(w))
    }

    /// Adds a table that must not exist.
    pub fn create_table(&mut self, table: &Table) -> Result<(), EncodeError> {
        self.push(message::NEW_TABLE, flags::CREATE | flags::EXCL, &table.id, |w| table.encode(w))
    }

    /// Deletes a table and all it holds.
    pub fn delete_table(&mut self, table: &TableId) -> Result<(), EncodeError> {
        self.push(message::DEL_TABLE, 0, table, |w| encode_name(w, 1, &table.name))
    }

    /// Deletes the table with this handle, and all it holds.
    pub fn delete_table_by_handle(&mut self, family: Family, handle: u64) -> Result<(), EncodeError> {
        let nameless = TableId::new(family, "");
        self.push(message::DEL_TABLE, 0, &nameless, |w| w.be64(4, handle))
    }

    /// Adds a chain; one that exists keeps its rules.
    pub fn add_chain(&mut self, table: &TableId, chain: &Chain) -> Result<(), EncodeError> {
        self.push(message::NEW_CHAIN, flags::CREATE, table, |w| chain.encode(table, w))
    }

    /// Deletes a chain and its rules. Nothing may lead to it: not even an element deleted later on.
    pub fn delete_chain<'a>(
        &mut self,
        table: &TableId,
        chain: impl Into<Ref<'a>>,
    ) -> Result<(), EncodeError> {
        self.push(message::DEL_CHAIN, 0, table, |w| {
            encode_name(w, 1, &table.name);
            chain.into().encode(w, 3, 2);
        })
    }

    /// Deletes all rules of a chain.
    pub fn flush_chain(&mut self, table: &TableId, chain: &str) -> Result<(), EncodeError> {
        self.push(message::DEL_RULE, 0, table, |w| {
            encode_name(w, 1, &table.name);
            encode_name(w, 2, chain);
        })
    }

    /// Deletes all rules of all chains of a table.
    pub fn flush_table(&mut self, table: &TableId) -> Result<(), EncodeError> {
        self.push(message::DEL_RULE, 0, table, |w| encode_name(w, 1, &table.name))
    }

    /// Adds a rule behind the others of its chain.
    pub fn add_rule(&mut self, table: &TableId, chain: &str, rule: &Rule) -> Result<(), EncodeError> {
        self.add_rule_at(table, chain, Position::Last, rule)
    }

    /// Adds a rule at a place of its chain.
    pub fn add_rule_at(
        &mut self,
        table: &TableId,
        chain: &str,
        position: Position,
        rule: &Rule,
    ) -> Result<(), EncodeError> {
        let flags = match position {
            Position::Last | Position::After(_) => flags::CREATE | flags::APPEND,
            Position::First | Position::Before(_) => flags::CREATE,
            Position::Replace(_) => flags::REPLACE,
        };
        self.push(message::NEW_RULE, flags, table, |w| {
            encode_name(w, 1, &table.name);
            encode_name(w, 2, chain);
            match position {
                Position::Last | Position::First => {}
                Position::After(handle) | Position::Before(handle) => w.be64(6, handle),
                Position::Replace(handle) => w.be64(3, handle),
            }
            rule.encode(w);
        })
    }

    /// Deletes the rule with this handle.
    pub fn delete_rule(&mut self, table: &TableId, chain: &str, handle: u64) -> Result<(), EncodeError> {
        self.push(message::DEL_RULE, 0, table, |w| {
            encode_name(w, 1, &table.name);
            encode_name(w, 2, chain);
            w.be64(3, handle);
        })
    }

    /// Adds a set or map; one that exists must be of the same type, and keeps its elements.
    pub fn add_set(&mut self, table: &TableId, set: &Set) -> Result<(), EncodeError> {
        self.sets += 1;
        let id = self.sets;
        self.push(message::NEW_SET, flags::CREATE, table, |w| set.encode(table, id, w))
    }

    /// Deletes a set or map with its elements. No rule may look into it.
    pub fn delete_set<'a>(&mut self, table: &TableId, set: impl Into<Ref<'a>>) -> Result<(), EncodeError> {
        self.push(message::DEL_SET, 0, table, |w| {
            encode_name(w, 1, &table.name);
            set.into().encode(w, 2, 16);
        })
    }

    /// Deletes all elements of a set or map.
    pub fn flush_set(&mut self, table: &TableId, set: &str) -> Result<(), EncodeError> {
        self.push(message::DEL_SETELEM, 0, table, |w| {
            encode_name(w, 1, &table.name);
            encode_name(w, 2, set);
        })
    }

    /// Adds elements; adding one that is there does nothing, unless it leads somewhere else (EEXIST).
    pub fn add_elements(
        &mut self,
        table: &TableId,
        set: &Set,
        elements: impl IntoIterator<Item = Element>,
    ) -> Result<(), EncodeError> {
        self.elements(message::NEW_SETELEM, flags::CREATE, table, set, elements)
    }

    /// Deletes elements; one that is not there fails the batch. Only their keys count.
    pub fn delete_elements(
        &mut self,
        table: &TableId,
        set: &Set,
        elements: impl IntoIterator<Item = Element>,
    ) -> Result<(), EncodeError> {
        self.elements(message::DEL_SETELEM, 0, table, set, elements)
    }

    /// Adds a counter with a name; one that exists keeps what it counted.
    pub fn add_counter(&mut self, table: &TableId, name: &str) -> Result<(), EncodeError> {
        self.push(message::NEW_OBJ, flags::CREATE, table, |w| {
            counter(w, table, name);
            w.nest(4, |w| {
                w.be64(1, 0);
                w.be64(2, 0);
            });
        })
    }

    /// Deletes a counter. No rule may count in it.
    pub fn delete_counter(&mut self, table: &TableId, name: &str) -> Result<(), EncodeError> {
        self.push(message::DEL_OBJ, 0, table, |w| counter(w, table, name))
    }

    /// What its message of that index does.
    pub fn operation(&self, index: usize) -> Option<Operation> {
        Operation::of(&Messages::new(self.as_bytes()).nth(index)?)
    }

    /// Its messages: all bytes, and as read.
    pub(crate) fn messages(&self) -> impl Iterator<Item = (&[u8], Message<'_>)> {
        let mut rest = self.as_bytes();
        Messages::new(rest).map(move |message| {
            let (bytes, tail) = rest.split_at(align(HEADER + message.body.len()));
            rest = tail;
            (bytes, message)
        })
    }

    fn elements(
        &mut self,
        kind: u8,
        flags: u16,
        table: &TableId,
        set: &Set,
        elements: impl IntoIterator<Item = Element>,
    ) -> Result<(), EncodeError> {
        let before = (self.writer.len(), self.last, self.count);
        let mut elements = elements.into_iter().peekable();
        while elements.peek().is_some() {
            let result = self.push(kind, flags, table, |w| {
                encode_name(w, 1, &table.name);
                encode_name(w, 2, set.name());
                w.nest(3, |w| {
                    let start = w.len();
                    // An element's own length is bounded by the names and texts it may hold.
                    while w.len() - start < ELEMENTS {
                        let Some(element) = elements.next() else { break };
                        let adds = kind == message::NEW_SETELEM;
                        if let Err(fault) = set.check(&element, adds) {
                            w.fault(fault);
                            break;
                        }
                        w.nest(1, |w| element.encode(w, adds));
                    }
                });
            });
            if let Err(fault) = result {
                self.undo(before);
                return Err(fault);
            }
        }
        Ok(())
    }

    fn push(
        &mut self,
        kind: u8,
        flags: u16,
        table: &TableId,
        content: impl FnOnce(&mut Writer),
    ) -> Result<(), EncodeError> {
        let start = self.writer.len();
        let kind = message_type(subsystem::NFTABLES, kind);
        // The index is the sequence number; the transaction's begin has 0.
        let seq = self.count as u32 + 1;
        let open = self.writer.open(kind, flags | flags::REQUEST | flags::ACK, seq, table.family as u8, 0);
        content(&mut self.writer);
        self.writer.close(open)?;
        debug_assert_eq!(self.writer.len(), align(self.writer.len()));
        if self.count > 0 {
            self.writer.set_flags(self.last, flags::ACK, false);
        }
        self.last = start;
        self.count += 1;
        Ok(())
    }

    /// Adds a message of any content.
    #[cfg(test)]
    pub(super) fn push_raw(
        &mut self,
        kind: u8,
        flags: u16,
        table: &TableId,
        content: impl FnOnce(&mut Writer),
    ) {
        self.push(kind, flags, table, content).unwrap();
    }

    fn undo(&mut self, (length, last, count): (usize, usize, usize)) {
        self.writer.truncate(length);
        self.last = last;
        self.count = count;
        if count > 0 {
            self.writer.set_flags(last, flags::ACK, true);
        }
    }
}

/// Which counter a message is about.
fn counter(writer: &mut Writer, table: &TableId, name: &str) {
    encode_name(writer, 1, &table.name);
    encode_name(writer, 2, name);
    writer.be32(3, message::COUNTER);
}
