//! A small rtnetlink socket: requests out, acknowledgements and dumps in, with the kernel's own words on refusal.
//!
//! A socket belongs to the network namespace that its thread was in when it was opened, and stays there.

use std::fmt;
use std::io;
use std::time::Duration;

use netlink_packet_core::{NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
/// Of a request that creates: replace what has the same key.
const NLM_F_REPLACE: u16 = 0x100;
/// Of a request that creates: refuse if the key exists.
const NLM_F_EXCL: u16 = 0x200;
/// Of a request that creates: create.
const NLM_F_CREATE: u16 = 0x400;
/// Of an answer: attributes follow the request's header.
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;
const NLMSGERR_ATTR_MSG: u16 = 1;
const HEADER: usize = 16;
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_IPV6_ROUTE: u32 = 11;

/// What the kernel did not do, and why.
#[derive(Debug, thiserror::Error)]
pub struct NetlinkError {
    action: String,
    #[source]
    errno: io::Error,
    /// The text of the extended acknowledgement.
    text: Option<String>,
}

impl NetlinkError {
    pub(crate) fn new(action: impl Into<String>, errno: io::Error) -> Self {
        Self { action: action.into(), errno, text: None }
    }

    /// Whether the kernel's error is `errno`.
    pub(crate) fn is(&self, errno: Errno) -> bool {
        self.errno.raw_os_error() == Some(errno.raw_os_error())
    }
}

impl fmt::Display for NetlinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}", self.action)?;
        match &self.text {
            Some(text) => write!(f, " (the kernel says: {text})"),
            None => Ok(()),
        }
    }
}

/// How a request that creates something treats what is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Existing {
    /// The request fails.
    Refuse,
    /// What has the same key is replaced.
    Replace,
}

/// One request, and in words what it is for.
#[derive(Debug)]
pub(crate) struct Request {
    message: RouteNetlinkMessage,
    flags: u16,
    action: String,
}

impl Request {
    /// A request that creates; `action` completes the sentence "cannot …".
    pub(crate) fn create(
        message: RouteNetlinkMessage,
        existing: Existing,
        action: impl Into<String>,
    ) -> Self {
        let flag = match existing {
            Existing::Refuse => NLM_F_EXCL,
            Existing::Replace => NLM_F_REPLACE,
        };
        Self { message, flags: NLM_F_CREATE | flag, action: action.into() }
    }

    /// A request that changes, removes or reads.
    pub(crate) fn plain(message: RouteNetlinkMessage, action: impl Into<String>) -> Self {
        Self { message, flags: 0, action: action.into() }
    }
}

/// A socket to the kernel's rtnetlink.
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl fmt::Debug for Netlink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Netlink").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

impl Netlink {
    /// A socket in the network namespace of the calling thread.
    pub(crate) fn open() -> Result<Self, NetlinkError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            // Without the second, every refusal would carry our whole request back.
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            // Filters of a dump are then obeyed rather than ignored.
            socket.set_netlink_get_strict_chk(true)?;
            Ok(socket)
        };
        let socket = open().map_err(|errno| NetlinkError::new("open an rtnetlink socket", errno))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Carries the requests out in their order, all of them with one call of the kernel. Fails with the first
    /// refusal; later requests have then been carried out or refused all the same.
    pub(crate) fn apply(&mut self, requests: Vec<Request>) -> Result<(), NetlinkError> {
        self.apply_each(requests).into_iter().collect()
    }

    /// Like [`Netlink::apply`], with an answer for each request.
    pub(crate) fn apply_each(&mut self, requests: Vec<Request>) -> Vec<Result<(), NetlinkError>> {
        self.carry_out(requests, |_| {})
    }

    /// Like [`Netlink::apply`]; what requests that read something are told is handed over as it came, with its header.
    pub(crate) fn apply_and_read(
        &mut self,
        requests: Vec<Request>,
        told: impl FnMut(&[u8]),
    ) -> Result<(), NetlinkError> {
        self.carry_out(requests, told).into_iter().collect()
    }

    fn carry_out(
        &mut self,
        requests: Vec<Request>,
        mut told: impl FnMut(&[u8]),
    ) -> Vec<Result<(), NetlinkError>> {
        let mut bytes = Vec::new();
        let first = self.sequence.wrapping_add(1);
        let mut actions = Vec::with_capacity(requests.len());
        for request in requests {
            self.write(&mut bytes, request.message, request.flags | NLM_F_ACK);
            actions.push(request.action);
        }
        let mut answers: Vec<Option<Result<(), NetlinkError>>> = actions.iter().map(|_| None).collect();
        let mut missing = answers.len();
        let failed = self.send(&bytes).err().or_else(|| {
            while missing > 0 {
                let received = self.receive(|frame| {
                    let index = frame.sequence.wrapping_sub(first) as usize;
                    match (answers.get_mut(index), frame.kind) {
                        (Some(answer @ None), NLMSG_ERROR) => {
                            *answer = Some(frame.verdict(&actions[index]));
                            missing -= 1;
                        }
                        (Some(None), _) => told(frame.bytes),
                        _ => {}
                    }
                });
                if let Err(error) = received {
                    return Some(error);
                }
            }
            None
        });
        answers
            .into_iter()
            .zip(actions)
            .map(|(answer, action)| match (answer, &failed) {
                (Some(answer), _) => answer,
                // `missing` is 0 without a failure, so there is always one to tell.
                (None, failed) => {
                    let kind = failed.as_ref().map_or(io::ErrorKind::Other, io::Error::kind);
                    Err(NetlinkError::new(action, kind.into()))
                }
            })
            .collect()
    }

    /// From now on, changes of links and of IPv6 routes are told as well: see [`Netlink::wait`].
    pub(crate) fn watch(&mut self) -> Result<(), NetlinkError> {
        let join = |group| self.socket.add_membership(group);
        let joined = join(RTNLGRP_LINK).and_then(|()| join(RTNLGRP_IPV6_ROUTE));
        joined.map_err(|errno| NetlinkError::new("watch the links and routes", errno))
    }

    /// Waits until something is told, at most so long; what it is, is read by the next request.
    pub(crate) fn wait(&self, at_most: Duration) -> Result<(), NetlinkError> {
        let failed = |errno: io::Error| NetlinkError::new("wait for a change of the links and routes", errno);
        let timeout = Timespec::try_from(at_most).map_err(|error| failed(io::Error::other(error)))?;
        match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => Ok(()),
            Ok(_) => self.receive(|_| {}).map_err(failed),
            Err(errno) => Err(failed(errno.into())),
        }
    }

    /// Everything that a dump lists.
    pub(crate) fn dump(&mut self, request: Request) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        self.ask(request, NLM_F_DUMP, decode)
    }

    /// Everything that a dump lists, each message as it came, with its header.
    pub(crate) fn dump_bytes(&mut self, request: Request) -> Result<Vec<Vec<u8>>, NetlinkError> {
        self.ask(request, NLM_F_DUMP, |bytes| Ok(Some(bytes.to_vec())))
    }

    /// The one object that a request asks for.
    pub(crate) fn get(&mut self, request: Request) -> Result<RouteNetlinkMessage, NetlinkError> {
        self.get_with(request, decode)
    }

    /// The one object that a request asks for, as it came, with its header.
    pub(crate) fn get_bytes(&mut self, request: Request) -> Result<Vec<u8>, NetlinkError> {
        self.get_with(request, |bytes| Ok(Some(bytes.to_vec())))
    }

    fn get_with<T>(
        &mut self,
        request: Request,
        read: impl Fn(&[u8]) -> io::Result<Option<T>>,
    ) -> Result<T, NetlinkError> {
        let action = request.action.clone();
        let answers = self.ask(request, NLM_F_ACK, read)?;
        answers
            .into_iter()
            .next()
            .ok_or_else(|| NetlinkError::new(action, io::Error::other("the kernel answered nothing")))
    }

    fn ask<T>(
        &mut self,
        request: Request,
        flags: u16,
        read: impl Fn(&[u8]) -> io::Result<Option<T>>,
    ) -> Result<Vec<T>, NetlinkError> {
        let Request { message, action, .. } = request;
        let mut bytes = Vec::new();
        self.write(&mut bytes, message, flags);
        let sequence = self.sequence;
        let mut answers = Vec::new();
        let mut end = None;
        let failed = |errno| NetlinkError::new(&action, errno);
        self.send(&bytes).map_err(failed)?;
        while end.is_none() {
            self.receive(|frame| {
                if frame.sequence != sequence || end.is_some() {
                    return;
                }
                match frame.kind {
                    NLMSG_ERROR | NLMSG_DONE => end = Some(frame.verdict(&action)),
                    NLMSG_OVERRUN => {
                        end = Some(Err(failed(io::Error::other("the kernel's answer did not fit"))));
                    }
                    _ => match read(frame.bytes) {
                        Ok(answer) => answers.extend(answer),
                        Err(error) => end = Some(Err(failed(error))),
                    },
                }
            })
            .map_err(failed)?;
        }
        end.unwrap_or(Ok(())).map(|()| answers)
    }

    fn write(&mut self, bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags | NLM_F_REQUEST;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let start = bytes.len();
        bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut bytes[start..]);
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.socket.send_to(bytes, &SocketAddr::new(0, 0), 0).map(|_| ())
    }

    /// Receives one datagram and shows each of its messages to `each`.
    fn receive(&self, mut each: impl FnMut(Frame<'_>)) -> io::Result<()> {
        let (datagram, sender) = self.socket.recv_from_full()?;
        if sender.port_number() != 0 {
            // Not from the kernel: any process may write to a netlink socket.
            return Ok(());
        }
        let mut rest = &datagram[..];
        while let Some(frame) = Frame::parse(rest) {
            rest = rest.get(frame.bytes.len().next_multiple_of(4)..).unwrap_or_default();
            each(frame);
        }
        Ok(())
    }
}

fn decode(bytes: &[u8]) -> io::Result<Option<RouteNetlinkMessage>> {
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) {
        Ok(NetlinkMessage { payload: NetlinkPayload::InnerMessage(message), .. }) => Ok(Some(message)),
        Ok(_) => Ok(None),
        Err(error) => Err(io::Error::other(error.to_string())),
    }
}

/// One message as it came.
struct Frame<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    bytes: &'a [u8],
}

impl<'a> Frame<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let length = u32_at(bytes, 0)? as usize;
        let sequence = u32_at(bytes, 8)?;
        if length < HEADER {
            return None;
        }
        Some(Self {
            kind: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            sequence,
            bytes: bytes.get(..length)?,
        })
    }

    /// What an acknowledgement or the end of a dump says.
    fn verdict(&self, action: &str) -> Result<(), NetlinkError> {
        let code = u32_at(self.bytes, HEADER).map_or(0, |code| code as i32);
        if code == 0 {
            return Ok(());
        }
        Err(NetlinkError {
            action: action.to_owned(),
            errno: io::Error::from_raw_os_error(code.saturating_neg()),
            text: self.text(),
        })
    }

    /// The text among the attributes after the error code (and, in an acknowledgement, the request's header).
    fn text(&self) -> Option<String> {
        if self.flags & NLM_F_ACK_TLVS == 0 {
            return None;
        }
        let skip = if self.kind == NLMSG_ERROR { HEADER + 4 + HEADER } else { HEADER + 4 };
        let mut rest = self.bytes.get(skip..)?;
        loop {
            let length = usize::from(u16_at(rest, 0)?);
            let value = rest.get(4..length)?;
            if u16_at(rest, 2)? & 0x3fff == NLMSGERR_ATTR_MSG {
                return Some(String::from_utf8_lossy(value).trim_end_matches('\0').to_owned());
            }
            rest = rest.get(length.next_multiple_of(4)..)?;
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
