//! Commits batches and tells what became of each message.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{Batch, Operation, message};
use crate::Error;
use crate::connection::Connection;
use crate::error::{Failure, Refusal};
use crate::wire::{ATTRIBUTE, Message, Messages, Writer, control, flags, message_type, subsystem};

/// What is read unread: acknowledgements and dumps, never a flood.
const RECEIVE: usize = 1 << 20;
/// Sequence number of a transaction's begin; its messages count from 1.
const BEGIN: u32 = 0;

/// A socket that commits batches and lists what the kernel holds. It owns the tables that it adds with the owner flag,
/// until it is closed.
#[derive(Debug)]
pub struct Socket {
    pub(super) connection: Connection,
}

/// A batch is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// The generation to build the next batch on. For a batch that was sent with a generation it is the one that this
    /// commit made, or the same again if the batch changed nothing; otherwise the one read right after the
    /// commit, which may already be somebody else's.
    pub genid: u32,
}

impl Socket {
    /// Opens a socket in the network namespace of the calling thread.
    pub fn open() -> Result<Self, Error> {
        Ok(Socket { connection: Connection::open(0, RECEIVE)? })
    }

    /// Goes on with a socket that somebody else opened, and that he does not use any more: the tables that it owns can be
    /// changed through it. It must belong to the network namespace of the calling thread. What was left unread in it is
    /// thrown away.
    pub fn take_over(socket: OwnedFd) -> Result<Self, Error> {
        Ok(Socket { connection: Connection::take_over(socket, RECEIVE)? })
    }

    /// The port id of this socket: what a table's owner is known by, and its commits in events.
    pub fn port_id(&self) -> u32 {
        self.connection.port()
    }

    /// Commits a batch: all of it is in force when this returns, or nothing.
    ///
    /// With a generation, only if nobody has committed since that one: else [`Error::Restart`], and the
    /// batch can be sent again as it is.
    pub fn send(&mut self, batch: &Batch, genid: Option<u32>) -> Result<Committed, Error> {
        const DOING: &str = "commit a batch";
        if batch.is_empty() {
            return Ok(Committed { genid: genid.map_or_else(|| self.generation(), Ok)? });
        }
        let begin = mark(control::BATCH_BEGIN, genid)?;
        let end = mark(control::BATCH_END, None)?;
        self.connection.send(&[begin.bytes(), batch.as_bytes(), end.bytes()], DOING)?;

        let mut outcome = Outcome::default();
        let mut lost = false;
        while !outcome.acknowledged {
            match self.connection.receive(DOING, false) {
                Ok(Some(datagram)) => outcome.read(datagram, batch),
                Ok(None) => break,
                // Only the last message asks for an acknowledgement, so it is failures that fill the buffer.
                Err(Error::Overrun { .. }) => lost = true,
                Err(error) => return Err(error),
            }
        }
        if outcome.acknowledged {
            self.connection.settled();
        }
        outcome.judge(batch, genid, lost)?;
        let now = self.generation()?;
        // The check of the generation proves that nobody came between it and ours.
        Ok(Committed { genid: genid.filter(|&genid| genid != now).map_or(now, following) })
    }

    /// The generation of the ruleset: every commit of anybody makes a new one.
    pub fn generation(&mut self) -> Result<u32, Error> {
        const DOING: &str = "read the generation";
        let kind = message_type(subsystem::NFTABLES, message::GET_GEN);
        let request = self.connection.request(kind, 0, 0, |_| {})?;
        self.connection.send(&[request.writer.bytes()], DOING)?;
        let Some(datagram) = self.connection.receive(DOING, false)? else {
            return Err(Error::Malformed { doing: DOING });
        };
        let answer = Messages::new(datagram).find(|message| message.seq == request.seq);
        let Some(answer) = answer else {
            return Err(Error::Malformed { doing: DOING });
        };
        if let Some(reply) = answer.reply() {
            return Err(Error::Request {
                doing: DOING.to_owned(),
                message: reply.message.map(str::to_owned),
                source: io::Error::from_raw_os_error(reply.errno),
            });
        }
        let genid = generation(&answer).ok_or(Error::Malformed { doing: DOING })?;
        self.connection.settled();
        Ok(genid)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

/// The generation that the kernel makes after this one; it leaves zero out.
fn following(genid: u32) -> u32 {
    genid.wrapping_add(1).max(1)
}

/// Writes a transaction's begin or end.
fn mark(kind: u16, genid: Option<u32>) -> Result<Writer, Error> {
    let mut writer = Writer::default();
    let open = writer.open(kind, flags::REQUEST, BEGIN, 0, u16::from(subsystem::NFTABLES));
    if let Some(genid) = genid {
        writer.be32(1, genid);
    }
    writer.close(open)?;
    Ok(writer)
}

/// The generation that a `NFT_MSG_NEWGEN` names.
pub(super) fn generation(message: &Message<'_>) -> Option<u32> {
    (message.kind == message_type(subsystem::NFTABLES, message::NEW_GEN))
        .then(|| message.attrs().find(1)?.be32())
        .flatten()
}

/// What the answers to a batch have said so far.
#[derive(Debug, Default)]
struct Outcome {
    acknowledged: bool,
    whole: Option<(i32, Option<String>)>,
    failures: Vec<Refused>,
}

/// A message that the kernel refused, by its sequence number.
#[derive(Debug)]
struct Refused {
    seq: u32,
    errno: i32,
    message: Option<String>,
    offset: Option<u32>,
}

impl Outcome {
    fn read(&mut self, datagram: &[u8], batch: &Batch) {
        for message in Messages::new(datagram) {
            let Some(reply) = message.reply() else { continue };
            let words = reply.message.map(str::to_owned);
            if message.seq == BEGIN {
                self.whole.get_or_insert((reply.errno, words));
            } else if reply.errno != 0 {
                let offset = reply.offset;
                self.failures.push(Refused { seq: message.seq, errno: reply.errno, message: words, offset });
            }
            self.acknowledged |= message.seq as usize == batch.len();
        }
    }

    fn judge(self, batch: &Batch, genid: Option<u32>, lost: bool) -> Result<(), Error> {
        if let Some(refusal) = refusal(&self.failures, batch) {
            return Err(Error::Refused(Box::new(refusal)));
        }
        match (self.whole, genid) {
            (Some((libc::ERESTART, _)), Some(expected)) => Err(Error::Restart { expected }),
            (Some((errno, message)), _) => Err(Error::Commit {
                messages: batch.len(),
                message,
                source: io::Error::from_raw_os_error(errno),
            }),
            (None, _) if lost => Err(Error::Overrun { doing: "commit a batch" }),
            (None, _) if !self.acknowledged => Err(Error::Malformed { doing: "commit a batch" }),
            (None, _) => Ok(()),
        }
    }
}

/// Finds the messages that failed, in one walk over the batch.
fn refusal(refused: &[Refused], batch: &Batch) -> Option<Refusal> {
    let mut refused: Vec<&Refused> = refused.iter().collect();
    refused.sort_by_key(|refused| refused.seq);
    let mut next = refused.into_iter().peekable();
    let mut failures = Vec::new();
    for (index, (bytes, message)) in batch.messages().enumerate() {
        while let Some(failure) = next.next_if(|failure| failure.seq as usize == index + 1) {
            let Some(operation) = Operation::of(&message) else { continue };
            failures.push(Failure {
                index,
                operation,
                errno: failure.errno,
                message: failure.message.clone(),
                element: failure.offset.and_then(|offset| element_at(bytes, &message, offset as usize)),
            });
        }
    }
    let mut failures = failures.into_iter();
    Some(Refusal { first: failures.next()?, rest: failures.collect() })
}

/// Which element of a message's list stands at an offset from the message's beginning.
fn element_at(bytes: &[u8], message: &Message<'_>, offset: usize) -> Option<usize> {
    if !matches!(message.number(), message::NEW_SETELEM | message::DEL_SETELEM) {
        return None;
    }
    let base = bytes.as_ptr() as usize;
    message.attrs().find(3)?.nested().position(|element| {
        let start = element.payload.as_ptr() as usize - base;
        (start.saturating_sub(ATTRIBUTE)..start + element.payload.len()).contains(&offset)
    })
}

/// Points into a message at every place near its beginning and behind its end, for the tests of what that survives.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn decode_any(message: &Message<'_>) {
    for offset in (0..message.body.len().min(1000)).chain(message.body.len()..message.body.len() + 40) {
        element_at(message.body, message, offset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::{Family, Table, TableId};
    use crate::support::in_namespace;

    /// Nothing that the builder writes breaks the kernel's rules for attributes, which is where it has words.
    #[test]
    fn the_kernels_words_are_passed_on() {
        in_namespace(|| {
            let table = TableId::new(Family::Inet, "moat");
            let mut batch = Batch::new();
            batch.add_table(&Table::new(table.clone())).unwrap();
            batch.push_raw(message::NEW_CHAIN, flags::CREATE, &table, |w| {
                w.string(1, "moat");
                w.string(3, "web");
                w.attr(2, &[0]); // a handle of one byte
            });
            let error = Socket::open().unwrap().send(&batch, None).unwrap_err();
            let Error::Refused(refusal) = &error else { panic!("{error:?}") };
            assert_eq!(refusal.first.operation.to_string(), "add chain inet moat web");
            assert_eq!(refusal.first.message.as_deref(), Some("Attribute failed policy validation"));
            let text = error.to_string();
            assert!(text.starts_with("the kernel refused to add chain inet moat web: "), "{text}");
            assert!(text.ends_with(": Attribute failed policy validation"), "{text}");
        });
    }
}
