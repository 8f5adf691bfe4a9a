//! When the kernel received what a socket hands out.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, SystemTime};

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt::ReceiveTimestampns,
};
use nix::sys::time::TimeSpec;

use crate::chaos::clock::{Clock, Moment};

/// What was received.
pub(super) struct Received {
    pub(super) length: usize,
    /// Of a datagram.
    pub(super) from: Option<SocketAddr>,
    pub(super) at: Moment,
}

/// Asks the kernel to stamp what arrives: on a busy machine the reader comes later, sometimes much later.
pub(super) fn stamped(socket: &impl AsFd) -> io::Result<()> {
    Ok(setsockopt(socket, ReceiveTimestampns, &true)?)
}

/// Reads what is there.
pub(super) fn receive(socket: &impl AsRawFd, bytes: &mut [u8], clock: Clock) -> io::Result<Received> {
    let mut control = nix::cmsg_space!(TimeSpec);
    let mut parts = [IoSliceMut::new(bytes)];
    let flags = MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let stamp = message.cmsgs()?.find_map(|c| match c {
        ControlMessageOwned::ScmTimestampns(time) => Some(SystemTime::UNIX_EPOCH + Duration::from(time)),
        _ => None,
    });
    let from = message.address.as_ref().and_then(|a| {
        let v4 = a.as_sockaddr_in().map(|a| SocketAddr::V4((*a).into()));
        v4.or_else(|| a.as_sockaddr_in6().map(|a| SocketAddr::V6((*a).into())))
    });
    let at = stamp.map_or_else(|| clock.now(), |stamp| clock.of_stamp(stamp));
    Ok(Received { length: message.bytes, from, at })
}
