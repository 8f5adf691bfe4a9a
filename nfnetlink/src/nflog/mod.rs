//! nflog: packets that a rule copies to a group, with what the kernel knows about each.

mod packet;

pub use packet::{Packet, Packets};

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use crate::Error;
use crate::connection::Connection;
use crate::wire::{Messages, Writer, flags, message_type, subsystem};

/// `NFULNL_MSG_CONFIG`.
const CONFIG: u8 = 1;
const RECEIVE: usize = 4 << 20;

/// How the kernel hands packets over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// The most bytes of each packet.
    pub snaplen: u32,
    /// How many packets the kernel collects before it hands them over.
    pub threshold: u32,
    /// How long it collects at most, in steps of 10 ms.
    pub timeout: Duration,
}

impl Default for Options {
    /// The headers of each packet, at once.
    fn default() -> Self {
        Options { snaplen: 128, threshold: 1, timeout: Duration::from_millis(10) }
    }
}

/// What [`Group::receive`] met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// So many packets.
    Packets(usize),
    /// Nothing is waiting.
    Nothing,
    /// Packets were lost, because they came faster than they were read.
    Lost,
}

/// A listener to one group. A group has one listener at a time in a network namespace.
#[derive(Debug)]
pub struct Group {
    connection: Connection,
    group: u16,
}

impl Group {
    /// Binds to a group in the network namespace of the calling thread; EPERM if another listener has it.
    pub fn bind(group: u16, options: &Options) -> Result<Self, Error> {
        let mut listener = Group { connection: Connection::open(0, RECEIVE)?, group };
        listener.configure("bind to an nflog group", |w| w.u8(1, 1))?; // NFULNL_CFG_CMD_BIND
        listener.configure("configure an nflog group", |w| {
            let mut mode = [0; 6];
            mode[..4].copy_from_slice(&options.snaplen.to_be_bytes());
            mode[4] = 2; // NFULNL_COPY_PACKET
            w.attr(2, &mode);
            w.be32(4, options.timeout.as_millis().div_ceil(10) as u32);
            w.be32(5, options.threshold.max(1));
            w.be16(6, 1); // NFULNL_CFG_F_SEQ
        })?;
        Ok(listener)
    }

    /// The group.
    pub fn group(&self) -> u16 {
        self.group
    }

    /// Receives one datagram and hands its packets over; waits for one if `wait`.
    pub fn receive(&mut self, wait: bool, mut each: impl FnMut(Packet<'_>)) -> Result<Received, Error> {
        match self.connection.receive("receive logged packets", wait) {
            Ok(None) => Ok(Received::Nothing),
            Ok(Some(datagram)) => {
                let mut count = 0;
                for packet in Packets::new(datagram) {
                    count += 1;
                    each(packet);
                }
                Ok(Received::Packets(count))
            }
            Err(Error::Overrun { .. }) => Ok(Received::Lost),
            Err(error) => Err(error),
        }
    }

    fn configure(&mut self, doing: &'static str, build: impl FnOnce(&mut Writer)) -> Result<(), Error> {
        let seq = self.connection.take_seqs(1);
        let mut writer = Writer::default();
        let kind = message_type(subsystem::LOG, CONFIG);
        let open = writer.open(kind, flags::REQUEST | flags::ACK, seq, 0, self.group);
        build(&mut writer);
        writer.close(open)?;
        self.connection.send_only(&[writer.bytes()], doing)?;
        loop {
            // Packets may arrive between the answers; they are not ours to keep yet.
            let Some(datagram) = self.connection.receive(doing, false)? else {
                return Err(Error::Malformed { doing });
            };
            let answer =
                Messages::new(datagram).find(|message| message.seq == seq && message.reply().is_some());
            let Some(reply) =
                answer.and_then(|answer| answer.reply().map(|r| (r.errno, r.message.map(str::to_owned))))
            else {
                continue;
            };
            self.connection.settled();
            return match reply {
                (0, _) => Ok(()),
                (errno, message) => Err(Error::Request {
                    doing: format!("{doing} {}", self.group),
                    message,
                    source: io::Error::from_raw_os_error(errno),
                }),
            };
        }
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}
