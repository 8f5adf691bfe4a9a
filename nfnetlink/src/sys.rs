//! The one system call that has no safe wrapper: netlink's own socket options.
#![allow(unsafe_code, reason = "setsockopt with SOL_NETLINK; rustix and std cannot set these options")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Sets an option of level `SOL_NETLINK` that is on or off.
pub(crate) fn set_netlink_option(socket: BorrowedFd<'_>, option: i32, on: bool) -> io::Result<()> {
    let value = libc::c_int::from(on);
    // SAFETY: the descriptor is open for as long as it is borrowed, the pointer is to a live c_int, and the
    // length is that of a c_int; the kernel only reads it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
