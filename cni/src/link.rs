//! Removing a link by rtnetlink: all the networking that the plugin does itself, and only where no agent can.

use std::io;
use std::time::Duration;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netdevice, recv, sendto, socket_with,
    sockopt,
};

const RTM_DELLINK: u16 = 17;
const NLM_F_REQUEST_ACK: u16 = 0x1 | 0x4;
const NLMSG_ERROR: u16 = 2;
/// `nlmsghdr`, then `ifinfomsg`.
const LENGTH: usize = 16 + 16;
/// The kernel answers at once; tens of milliseconds on a machine with many links.
const PATIENCE: Duration = Duration::from_secs(10);

/// The index of the link `name` in our network namespace, if there is one.
pub fn index(name: &str) -> io::Result<Option<u32>> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    match netdevice::name_to_index(&socket, name) {
        Ok(index) => Ok(Some(index)),
        Err(rustix::io::Errno::NODEV) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Removes the link with this index, and with a veth its other end. Fine where there is none.
///
/// By its index and not by its name: a link that somebody makes under the same name meanwhile is another one.
pub fn remove(index: u32) -> io::Result<()> {
    // Of netlink's families, rtnetlink is number 0, and 0 is no protocol by this name.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
    let request = request(index);
    sendto(&socket, &request, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    // The acknowledgement repeats our request at most.
    let mut answer = [0; 256];
    let (length, _) = rustix::io::retry_on_intr(|| recv(&socket, &mut answer, RecvFlags::empty()))?;
    match verdict(answer.get(..length).unwrap_or_default()) {
        Some(0) => Ok(()),
        Some(errno) if errno == rustix::io::Errno::NODEV.raw_os_error() => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(errno)),
        None => Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is no acknowledgement")),
    }
}

fn request(index: u32) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    bytes[0..4].copy_from_slice(&(LENGTH as u32).to_ne_bytes());
    bytes[4..6].copy_from_slice(&RTM_DELLINK.to_ne_bytes());
    bytes[6..8].copy_from_slice(&NLM_F_REQUEST_ACK.to_ne_bytes());
    // Sequence and port stay 0. Of `ifinfomsg` (family, padding, type, index, flags, change) only the index counts.
    bytes[20..24].copy_from_slice(&index.to_ne_bytes());
    bytes
}

/// The error number that an acknowledgement carries, positive; 0 for success.
fn verdict(answer: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let code = i32::from_ne_bytes(answer.get(16..20)?.try_into().ok()?);
    (kind == NLMSG_ERROR).then(|| code.saturating_neg())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_loopback_link_and_none_of_a_name_that_nobody_gives() {
        assert_eq!(index("lo").unwrap(), Some(1));
        assert_eq!(index("moat-not-there").unwrap(), None);
    }

    #[test]
    fn what_is_not_there_need_not_be_removed() {
        // In a namespace of plain users too: the kernel looks for the link before it asks who wants it removed, or says that
        // we may not; both are no mistake of the message.
        match remove(i32::MAX as u32) {
            Ok(()) => {}
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}"),
        }
    }

    #[test]
    fn an_answer_is_read_to_its_end_only() {
        assert_eq!(verdict(&[]), None);
        let mut ack = [0u8; 20];
        ack[4] = NLMSG_ERROR as u8;
        assert_eq!(verdict(&ack), Some(0));
        ack[16..20].copy_from_slice(&(-19i32).to_ne_bytes());
        assert_eq!(verdict(&ack), Some(19));
        assert_eq!(verdict(&ack[..19]), None);
    }
}
