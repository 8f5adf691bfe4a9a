//! One netlink socket: sends requests, receives datagrams, knows no message.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags, SocketType};
use rustix::net::{bind, getsockname, recvfrom, sendmsg, socket_with, sockopt};

use crate::Error;
use crate::sys::{network_of, set_netlink_option};
use crate::wire::{Message, Messages, Writer, control, flags};

/// Larger than any datagram the kernel makes: 32 KiB for dumps, 64 KiB and a header for nflog.
const DATAGRAM: usize = 128 * 1024;

/// A netlink socket for netfilter, bound to a port id of its own.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    port: u32,
    seq: u32,
    buffer: Vec<u8>,
    /// How large a message may be sent as things are.
    room: usize,
    /// Whether answers of an earlier request may still be waiting.
    stale: bool,
}

impl Connection {
    /// Opens a socket that listens to `groups` (a bit each) and can hold `receive` bytes unread.
    pub(crate) fn open(groups: u32, receive: usize) -> Result<Self, Error> {
        let failed = |source: Errno| Error::socket("open a netlink socket", source);
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(netlink::NETFILTER),
        )
        .map_err(failed)?;
        bind(&socket, &SocketAddrNetlink::new(0, groups)).map_err(failed)?;
        Self::on(socket, receive)
    }

    /// Goes on with a socket that somebody else opened and used, and does not use any more: as if it were new, with
    /// the port id that it has.
    pub(crate) fn take_over(socket: OwnedFd, receive: usize) -> Result<Self, Error> {
        let netfilter = sockopt::socket_domain(&socket) == Ok(AddressFamily::NETLINK)
            && sockopt::socket_protocol(&socket) == Ok(Some(netlink::NETFILTER));
        if !netfilter {
            return Err(Error::NotNetfilter);
        }
        let here = Self::open(0, receive)?;
        let network = |socket: &OwnedFd| {
            network_of(socket.as_fd()).map_err(|source| Error::socket("ask for a socket's namespace", source))
        };
        if network(&socket)? != network(&here.socket)? {
            return Err(Error::OtherNetwork);
        }
        let mut connection = Self::on(socket, receive)?;
        // Its last user may have gone in the middle of an answer, and a listing that nobody reads to its end would
        // keep the kernel from beginning another.
        connection.stale = true;
        connection.drain("take a socket over")?;
        Ok(connection)
    }

    fn on(socket: OwnedFd, receive: usize) -> Result<Self, Error> {
        let failed = |source: Errno| Error::socket("open a netlink socket", source);
        let address = getsockname(&socket).map_err(failed)?;
        let port = SocketAddrNetlink::try_from(address).map_err(failed)?.pid();
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            // Without these an error has no words, or carries the whole request: worse, not wrong.
            set_netlink_option(socket.as_fd(), option, true)
                .map_err(|source| Error::socket("set a netlink option", source))?;
        }
        // Beyond net.core.rmem_max only with CAP_NET_ADMIN in the first user namespace.
        if sockopt::set_socket_recv_buffer_size_force(&socket, receive).is_err() {
            sockopt::set_socket_recv_buffer_size(&socket, receive).map_err(failed)?;
        }
        let room = sockopt::socket_send_buffer_size(&socket).map_err(failed)?;
        Ok(Connection { socket, port, seq: 0, buffer: vec![0; DATAGRAM], room, stale: false })
    }

    /// The port id that the kernel gave this socket; events carry the id of who caused them.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// Takes numbers for the next requests; returns the first.
    pub(crate) fn take_seqs(&mut self, count: u32) -> u32 {
        // None is 0, which is what the kernel's own messages have.
        let first = if self.seq > u32::MAX - count { 1 } else { self.seq + 1 };
        self.seq = first + (count - 1);
        first
    }

    /// Sends one datagram made of `parts`. What the kernel has to say about it is waiting when this returns:
    /// netfilter does its work inside the system call.
    pub(crate) fn send(&mut self, parts: &[&[u8]], doing: &'static str) -> Result<(), Error> {
        // Answers that an earlier request left behind, because it failed half-way.
        self.drain(doing)?;
        self.send_only(parts, doing)
    }

    fn drain(&mut self, doing: &'static str) -> Result<(), Error> {
        while self.stale {
            match self.receive(doing, false) {
                Ok(_) | Err(Error::Overrun { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Like [`Connection::send`], for a socket on which other messages arrive, too.
    pub(crate) fn send_only(&mut self, parts: &[&[u8]], doing: &'static str) -> Result<(), Error> {
        let size = parts.iter().map(|part| part.len()).sum();
        self.make_room(size)?;
        self.stale = true;
        let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        loop {
            match sendmsg(&self.socket, &slices, &mut SendAncillaryBuffer::default(), SendFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::MSGSIZE) => return Err(Error::TooLarge { size }),
                Err(source) => return Err(Error::socket(doing, source)),
            }
        }
    }

    /// Receives one datagram from the kernel; `None` where none is waiting.
    pub(crate) fn receive(&mut self, doing: &'static str, wait: bool) -> Result<Option<&[u8]>, Error> {
        let flags = RecvFlags::TRUNC | if wait { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
        loop {
            match recvfrom(&self.socket, &mut self.buffer[..], flags) {
                Ok((_, length, from)) => {
                    let kernel = from.is_some_and(|from| {
                        SocketAddrNetlink::try_from(from).is_ok_and(|address| address.pid() == 0)
                    });
                    if !kernel {
                        continue;
                    }
                    if length > self.buffer.len() {
                        return Err(Error::Overrun { doing });
                    }
                    return Ok(Some(&self.buffer[..length]));
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.stale = false;
                    return Ok(None);
                }
                Err(Errno::NOBUFS) => return Err(Error::Overrun { doing }),
                Err(source) => return Err(Error::socket(doing, source)),
            }
        }
    }

    /// Notes that every answer to the last request has been received.
    pub(crate) fn settled(&mut self) {
        self.stale = false;
    }

    /// Begins a request of its own, not of a batch, that `Connection::dump` or `ask` sends.
    pub(crate) fn request(
        &mut self,
        kind: u16,
        extra: u16,
        family: u8,
        build: impl FnOnce(&mut Writer),
    ) -> Result<Request, Error> {
        let seq = self.take_seqs(1);
        let mut writer = Writer::default();
        let open = writer.open(kind, flags::REQUEST | extra, seq, family, 0);
        build(&mut writer);
        writer.close(open)?;
        Ok(Request { seq, writer })
    }

    /// Sends a dump request and hands every message of the answer over. False: the kernel changed what
    /// it was listing while it did.
    pub(crate) fn dump(
        &mut self,
        request: &Request,
        doing: &'static str,
        mut each: impl FnMut(&Message<'_>),
    ) -> Result<bool, Error> {
        self.send(&[request.writer.bytes()], doing)?;
        let mut consistent = true;
        loop {
            let Some(datagram) = self.receive(doing, false)? else {
                return Err(Error::Malformed { doing });
            };
            let mut done = false;
            for message in Messages::new(datagram).filter(|message| message.seq == request.seq) {
                consistent &= message.flags & flags::DUMP_INTR == 0;
                match message.reply() {
                    Some(reply) if reply.errno != 0 => {
                        return Err(Error::Request {
                            doing: doing.to_owned(),
                            message: reply.message.map(str::to_owned),
                            source: io::Error::from_raw_os_error(reply.errno),
                        });
                    }
                    Some(_) => done = true,
                    None if message.kind == control::DONE => done = true,
                    None => each(&message),
                }
            }
            if done {
                self.settled();
                return Ok(consistent);
            }
        }
    }

    fn make_room(&mut self, size: usize) -> Result<(), Error> {
        // The kernel wants 32 bytes of the buffer for itself, and doubles what it is told.
        if size + 32 <= self.room {
            return Ok(());
        }
        let wanted = size.next_power_of_two();
        if sockopt::set_socket_send_buffer_size_force(&self.socket, wanted).is_err() {
            sockopt::set_socket_send_buffer_size(&self.socket, wanted)
                .map_err(|source| Error::socket("enlarge the send buffer", source))?;
        }
        self.room = sockopt::socket_send_buffer_size(&self.socket)
            .map_err(|source| Error::socket("read the send buffer's size", source))?;
        if size + 32 <= self.room { Ok(()) } else { Err(Error::TooLarge { size }) }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A request that is ready to be sent.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) seq: u32,
    pub(crate) writer: Writer,
}
