//! Connection tracking: lists entries, and changes the mark of exactly the ones that are named.
//!
//! An entry is known by its *tuple*: addresses, protocol and ports as the connection's first packet had them
//! (the original tuple), or as its answers have them (the reply tuple, which NAT makes more than the mirror
//! image). The kernel finds an entry by either.

mod codec;
mod tuple;
mod usage;

pub use codec::{Deletion, Entry, Filter, MarkChange, status};
pub use tuple::{Detail, Family, Tuple};
pub use usage::{Losses, Usage};

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::Error;
use crate::connection::Connection;
use crate::wire::{Messages, Writer, flags, message_type, subsystem};

const RECEIVE: usize = 2 << 20;
/// Changes in one datagram: every one of them may be answered by an error, and all answers must find room.
const CHANGES: usize = 128;

/// `IPCTNL_MSG_CT_*`.
mod message {
    pub(super) const NEW: u8 = 0;
    pub(super) const GET: u8 = 1;
    pub(super) const DELETE: u8 = 2;
    pub(super) const GET_STATS_CPU: u8 = 4;
    pub(super) const GET_STATS: u8 = 5;
}

/// A socket to the connection tracking table of one network namespace.
#[derive(Debug)]
pub struct Conntrack {
    connection: Connection,
    /// What is sent, here so that its memory is used again.
    writer: Writer,
}

/// What became of a list of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changed {
    /// Entries that were found and changed.
    pub changed: usize,
    /// Entries that were gone by then.
    pub gone: usize,
}

impl Conntrack {
    /// Opens a socket in the network namespace of the calling thread.
    pub fn open() -> Result<Self, Error> {
        Ok(Conntrack { connection: Connection::open(0, RECEIVE)?, writer: Writer::default() })
    }

    /// Hands over every entry that the filter lets through. The kernel compares families, IPv4 addresses and the mark, but
    /// walks the whole table for it; IPv6 addresses are compared here. An entry may be handed over twice, and one made
    /// meanwhile may be missed.
    pub fn entries(&mut self, filter: &Filter, mut each: impl FnMut(Entry)) -> Result<(), Error> {
        let kind = message_type(subsystem::CONNTRACK, message::GET);
        let request = self.connection.request(kind, flags::DUMP, filter.family(), |w| filter.encode(w))?;
        self.connection.dump(&request, "list conntrack entries", |message| {
            if let Some(entry) = Entry::decode(message).filter(|entry| filter.matches(entry)) {
                each(entry);
            }
        })?;
        Ok(())
    }

    /// How many entries there are, and may be. Costs the same however many that is.
    pub fn usage(&mut self) -> Result<Usage, Error> {
        Usage::ask(&mut self.connection)
    }

    /// What it cost until now that the table was full.
    pub fn losses(&mut self) -> Result<Losses, Error> {
        Losses::ask(&mut self.connection)
    }

    /// Changes the marks of entries; bits outside of a change's mask stay as they are. An entry that is gone
    /// is no error.
    pub fn set_marks(&mut self, changes: &[MarkChange]) -> Result<Changed, Error> {
        self.each(changes, message::NEW, "set conntrack marks", MarkChange::encode, |change| &change.tuple)
    }

    /// Deletes entries. One that is gone is no error.
    pub fn delete(&mut self, entries: &[Deletion]) -> Result<Changed, Error> {
        self.each(entries, message::DELETE, "delete conntrack entries", Deletion::encode, |entry| {
            &entry.tuple
        })
    }

    /// Sends a message for each item; only the last of a datagram is acknowledged, and failures always are.
    fn each<T>(
        &mut self,
        items: &[T],
        kind: u8,
        doing: &'static str,
        encode: impl Fn(&T, &mut Writer),
        tuple: impl Fn(&T) -> &Tuple,
    ) -> Result<Changed, Error> {
        let mut sum = Changed::default();
        for chunk in items.chunks(CHANGES) {
            let base = self.connection.take_seqs(chunk.len() as u32);
            let writer = &mut self.writer;
            writer.truncate(0);
            for (index, item) in chunk.iter().enumerate() {
                let ack = if index + 1 == chunk.len() { flags::ACK } else { 0 };
                let family = tuple(item).family();
                let kind = message_type(subsystem::CONNTRACK, kind);
                let open =
                    writer.open(kind, flags::REQUEST | ack, base.wrapping_add(index as u32), family, 0);
                encode(item, writer);
                writer.close(open)?;
            }
            self.connection.send(&[self.writer.bytes()], doing)?;
            let gone = self.answers(base, chunk.len(), doing)?;
            sum.gone += gone;
            sum.changed += chunk.len() - gone;
        }
        Ok(sum)
    }

    /// Reads the answers to messages numbered from `base`; returns how many entries were gone.
    fn answers(&mut self, base: u32, count: usize, doing: &'static str) -> Result<usize, Error> {
        let mut gone = 0;
        let mut failed = None;
        let mut last = false;
        while !last {
            let Some(datagram) = self.connection.receive(doing, false)? else {
                return Err(Error::Malformed { doing });
            };
            for message in Messages::new(datagram) {
                let Some(reply) = message.reply() else { continue };
                let index = message.seq.wrapping_sub(base) as usize;
                match reply.errno {
                    _ if index >= count => continue,
                    0 => {}
                    libc::ENOENT => gone += 1,
                    errno => {
                        failed.get_or_insert(Error::Request {
                            doing: doing.to_owned(),
                            message: reply.message.map(str::to_owned),
                            source: io::Error::from_raw_os_error(errno),
                        });
                    }
                }
                last |= index + 1 == count;
            }
        }
        self.connection.settled();
        failed.map_or(Ok(gone), Err)
    }
}

impl AsFd for Conntrack {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}
