//! Waiting that nobody cuts short.

use std::io;

/// Does it again for as long as the kernel says that it was interrupted.
///
/// A socket that waits with a timeout is not waited on again by the kernel itself (signal(7)), and no signal handler is needed
/// for that: it is enough that the machine is frozen and goes on.
pub(crate) fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
