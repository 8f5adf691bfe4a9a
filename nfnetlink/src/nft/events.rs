//! Everybody's commits, as the kernel announces them: which tables one touched, and who made it.
//!
//! ```text
//!   new rule, new element, …   one message for every object (many datagrams for a large commit)
//!   new generation             the commit's end: its number, its process, its socket's port id
//! ```

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};

use super::socket::generation;
use super::{TableId, info, message};
use crate::Error;
use crate::connection::Connection;
use crate::wire::{Message, Messages, subsystem};

/// `NFNLGRP_NFTABLES` (7), as a bit.
const GROUP: u32 = 1 << (7 - 1);
/// Room for the messages of a large commit.
const RECEIVE: usize = 8 << 20;

/// A commit by anybody in this network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Commit {
    /// The generation that it made.
    pub genid: u32,
    /// The port id of the socket that made it; compare with [`Socket::port_id`](super::Socket::port_id).
    pub port_id: u32,
    /// The thread that made it: its id and name.
    pub process: Option<(u32, String)>,
    /// The tables that it touched, in any way.
    pub tables: BTreeSet<TableId>,
}

/// Puts the messages of commits together. Pure; [`Events`] feeds it.
#[derive(Debug, Clone, Default)]
pub struct Assembler {
    open: Commit,
}

impl Assembler {
    /// Takes one datagram; hands over the commits that it completes.
    pub fn feed(&mut self, datagram: &[u8], mut each: impl FnMut(Commit)) {
        for message in Messages::new(datagram) {
            if message.subsystem() != subsystem::NFTABLES {
                continue;
            }
            match message.number() {
                message::NEW_GEN => each(self.complete(&message)),
                message::NEW_TABLE
                | message::DEL_TABLE
                | message::NEW_CHAIN
                | message::DEL_CHAIN
                | message::NEW_RULE
                | message::DEL_RULE
                | message::NEW_SET
                | message::DEL_SET
                | message::NEW_SETELEM
                | message::DEL_SETELEM
                | message::NEW_OBJ
                | message::DEL_OBJ
                | message::NEW_FLOWTABLE
                | message::DEL_FLOWTABLE => self.open.tables.extend(info::table_of(&message)),
                _ => {}
            }
        }
    }

    fn complete(&mut self, message: &Message<'_>) -> Commit {
        let attrs = message.attrs();
        let process = || Some((attrs.find(2)?.be32()?, attrs.find(3)?.string()?.to_owned()));
        Commit {
            genid: generation(message).unwrap_or_default(),
            port_id: message.port,
            process: process(),
            ..std::mem::take(&mut self.open)
        }
    }
}

/// What [`Events::wait_next`] has to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Somebody committed.
    Commit(Commit),
    /// Events were lost, because they came faster than they were read: anything may have changed.
    Lost,
}

/// A socket that hears of every commit in its network namespace.
#[derive(Debug)]
pub struct Events {
    connection: Connection,
    assembler: Assembler,
    ready: std::collections::VecDeque<Commit>,
}

impl Events {
    /// Opens the socket in the network namespace of the calling thread. Subscribe before listing, so that
    /// nothing falls in between.
    pub fn open() -> Result<Self, Error> {
        Events::with_room(RECEIVE)
    }

    fn with_room(receive: usize) -> Result<Self, Error> {
        Ok(Events {
            connection: Connection::open(GROUP, receive)?,
            assembler: Assembler::default(),
            ready: Default::default(),
        })
    }

    /// The next event, without waiting; `None`: none so far. The descriptor is readable when there is one.
    pub fn try_next(&mut self) -> Result<Option<Event>, Error> {
        self.take(false)
    }

    /// The next event; waits for it.
    pub fn wait_next(&mut self) -> Result<Event, Error> {
        loop {
            if let Some(event) = self.take(true)? {
                return Ok(event);
            }
        }
    }

    fn take(&mut self, wait: bool) -> Result<Option<Event>, Error> {
        loop {
            if let Some(commit) = self.ready.pop_front() {
                return Ok(Some(Event::Commit(commit)));
            }
            match self.connection.receive("hear of commits", wait) {
                Ok(Some(datagram)) => {
                    let ready = &mut self.ready;
                    self.assembler.feed(datagram, |commit| ready.push_back(commit));
                }
                Ok(None) => return Ok(None),
                Err(Error::Overrun { .. }) => {
                    self.assembler = Assembler::default();
                    return Ok(Some(Event::Lost));
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::{Batch, Chain, Family, Socket, Table};
    use crate::support::in_namespace;

    #[test]
    fn a_flood_is_said_to_be_one() {
        in_namespace(|| {
            let mut events = Events::with_room(4096).unwrap();
            let table = TableId::new(Family::Inet, "moat");
            let mut socket = Socket::open().unwrap();
            let mut batch = Batch::new();
            batch.add_table(&Table::new(table.clone())).unwrap();
            for chain in 0..1000 {
                batch.add_chain(&table, &Chain::new(format!("chain{chain}"))).unwrap();
            }
            socket.send(&batch, None).unwrap();
            assert_eq!(events.try_next().unwrap(), Some(Event::Lost));
            while events.try_next().unwrap().is_some() {}

            // What comes afterwards is heard again.
            let mut batch = Batch::new();
            batch.add_chain(&table, &Chain::new("last")).unwrap();
            let genid = socket.send(&batch, None).unwrap().genid;
            let Some(Event::Commit(commit)) = events.try_next().unwrap() else { panic!("no commit") };
            assert_eq!((commit.genid, commit.tables), (genid, BTreeSet::from([table])));
        });
    }
}
