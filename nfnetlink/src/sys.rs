//! The system calls that have no safe wrapper: socket options that rustix and std do not know.
#![allow(unsafe_code, reason = "setsockopt with SOL_NETLINK, getsockopt of SO_NETNS_COOKIE and of xtables")]

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

/// The number of the network namespace that a socket belongs to. No two have the same while the machine runs.
pub(crate) fn network_of(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: the descriptor is open for as long as it is borrowed, the pointers are to a live u64 and to a live
    // length that says its size; the kernel writes no more than that.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Reads an option of a level into `value`, which also says what is asked for. Returns how many bytes were written.
pub(crate) fn read_option(
    socket: BorrowedFd<'_>,
    level: i32,
    option: i32,
    value: &mut [u8],
) -> io::Result<usize> {
    let mut length = value.len() as libc::socklen_t;
    // SAFETY: the descriptor is open for as long as it is borrowed, the pointers are to live bytes and to a live length
    // that says how many there are; the kernel writes no more than that.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, option, value.as_mut_ptr().cast(), &raw mut length)
    };
    if result == 0 { Ok(length as usize) } else { Err(io::Error::last_os_error()) }
}
