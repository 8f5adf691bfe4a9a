//! The netlink wire format: messages of a header and attributes, written and read without I/O.
//!
//! ```text
//!   nlmsghdr (16 bytes)   length, type = subsystem << 8 | message, flags, sequence, port id
//!   nfgenmsg (4 bytes)    family, version, resource id (big endian)
//!   attributes            length: u16, type: u16, payload, padding to 4 bytes; nested ones recur
//! ```
//!
//! Headers and attribute headers are in host order; the numbers inside netfilter's attributes are big endian.

mod read;
mod write;

pub(crate) use read::{Attr, Attrs, Message, Messages};
pub(crate) use write::Writer;

/// Bytes in a `nlmsghdr`.
pub(crate) const HEADER: usize = 16;
/// Bytes in a `nfgenmsg`.
pub(crate) const GENERIC: usize = 4;
/// Bytes in an attribute's header.
pub(crate) const ATTRIBUTE: usize = 4;

/// `NLM_F_*` of requests and answers (linux/netlink.h).
pub(crate) mod flags {
    pub(crate) const REQUEST: u16 = 0x01;
    pub(crate) const ACK: u16 = 0x04;
    pub(crate) const DUMP_INTR: u16 = 0x10;
    pub(crate) const DUMP: u16 = 0x300;
    pub(crate) const REPLACE: u16 = 0x100;
    pub(crate) const EXCL: u16 = 0x200;
    pub(crate) const CREATE: u16 = 0x400;
    pub(crate) const APPEND: u16 = 0x800;
    /// On an error message: the request is not echoed behind the error number.
    pub(crate) const CAPPED: u16 = 0x100;
    /// On an error message: attributes with the kernel's own words follow.
    pub(crate) const ACK_TLVS: u16 = 0x200;
}

/// `NLMSG_*` control messages.
pub(crate) mod control {
    pub(crate) const ERROR: u16 = 2;
    pub(crate) const DONE: u16 = 3;
    pub(crate) const BATCH_BEGIN: u16 = 0x10;
    pub(crate) const BATCH_END: u16 = 0x11;
}

/// `NFNL_SUBSYS_*` (linux/netfilter/nfnetlink.h).
pub(crate) mod subsystem {
    pub(crate) const CONNTRACK: u8 = 1;
    pub(crate) const LOG: u8 = 4;
    pub(crate) const NFTABLES: u8 = 10;
}

/// The `nlmsg_type` of a subsystem's message.
pub(crate) const fn message_type(subsystem: u8, message: u8) -> u16 {
    (subsystem as u16) << 8 | message as u16
}

/// Rounds a length up to netlink's 4-byte alignment.
pub(crate) const fn align(length: usize) -> usize {
    (length + 3) & !3
}
