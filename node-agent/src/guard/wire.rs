//! Messages between agent and guard: a packet each, text, and a descriptor in it where it says so.
//!
//! ```text
//!   moat-guard/1 take             held + descriptor | empty | busy PID
//!   moat-guard/1 hold + descr.    kept | busy PID
//!   moat-guard/1 stop             stopping
//!   anything else                 unknown
//! ```

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

pub(super) const TAKE: &str = "moat-guard/1 take";
pub(super) const HOLD: &str = "moat-guard/1 hold";
pub(super) const STOP: &str = "moat-guard/1 stop";

pub(super) const HELD: &str = "held";
pub(super) const EMPTY: &str = "empty";
pub(super) const KEPT: &str = "kept";
pub(super) const BUSY: &str = "busy";
pub(super) const STOPPING: &str = "stopping";
pub(super) const UNKNOWN: &str = "unknown";

/// No message is longer.
const LONGEST: usize = 64;

/// A message as it came in.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) text: String,
    pub(super) descriptor: Option<OwnedFd>,
}

/// Sends a message.
pub(super) fn send(to: impl AsFd, text: &str, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        // There is room for one.
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    loop {
        match sendmsg(&to, &[IoSlice::new(text.as_bytes())], &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            other => return other.map(drop).map_err(Into::into),
        }
    }
}

/// Receives a message; `None`: the other end is gone.
pub(super) fn receive(from: impl AsFd) -> io::Result<Option<Message>> {
    let mut bytes = [0; LONGEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        match recvmsg(&from, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Ok(None),
            other => break other?.bytes,
        }
    };
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    if got == 0 {
        return Ok(None);
    }
    Ok(Some(Message { text: String::from_utf8_lossy(&bytes[..got]).into_owned(), descriptor }))
}
