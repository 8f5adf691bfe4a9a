//! Reads messages and attributes. Any bytes may come in: what does not fit ends the walk, nothing panics.

use super::{ATTRIBUTE, GENERIC, HEADER, align, control, flags};

/// One message: its header's fields, and what follows the header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) seq: u32,
    pub(crate) port: u32,
    pub(crate) body: &'a [u8],
}

/// What a `NLMSG_ERROR` says; `errno` 0 is an acknowledgement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reply<'a> {
    pub(crate) errno: i32,
    pub(crate) message: Option<&'a str>,
    /// Where in the refused request the attribute stands that the kernel did not like.
    pub(crate) offset: Option<u32>,
}

/// The messages of one datagram.
#[derive(Debug, Clone)]
pub(crate) struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    pub(crate) fn new(datagram: &'a [u8]) -> Self {
        Messages { rest: datagram }
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let length = u32_ne(self.rest, 0)? as usize;
        if length < HEADER || length > self.rest.len() {
            return None;
        }
        let message = Message {
            kind: u16_ne(self.rest, 4)?,
            flags: u16_ne(self.rest, 6)?,
            seq: u32_ne(self.rest, 8)?,
            port: u32_ne(self.rest, 12)?,
            body: &self.rest[HEADER..length],
        };
        self.rest = self.rest.get(align(length)..).unwrap_or_default();
        Some(message)
    }
}

impl<'a> Message<'a> {
    pub(crate) fn subsystem(&self) -> u8 {
        (self.kind >> 8) as u8
    }

    pub(crate) fn number(&self) -> u8 {
        self.kind as u8
    }

    pub(crate) fn family(&self) -> u8 {
        self.body.first().copied().unwrap_or_default()
    }

    /// The attributes behind the generic header.
    pub(crate) fn attrs(&self) -> Attrs<'a> {
        Attrs::new(self.body.get(GENERIC..).unwrap_or_default())
    }

    /// The error number, for an error message; also what `NLMSG_DONE` of a failed dump carries.
    pub(crate) fn reply(&self) -> Option<Reply<'a>> {
        if self.kind != control::ERROR && self.kind != control::DONE {
            return None;
        }
        let errno = i32::from_ne_bytes(self.body.get(..4)?.try_into().ok()?).checked_neg()?;
        let mut reply = Reply { errno, message: None, offset: None };
        if self.flags & flags::ACK_TLVS != 0 {
            // An error is followed by the request's header, and by its body unless that was capped.
            let skip = match self.kind {
                control::DONE => 4,
                _ if self.flags & flags::CAPPED != 0 => 4 + HEADER,
                _ => 4 + align(u32_ne(self.body, 4)? as usize),
            };
            for attr in Attrs::new(self.body.get(skip..).unwrap_or_default()) {
                match attr.kind {
                    1 => reply.message = attr.string(),
                    2 => reply.offset = attr.payload.try_into().ok().map(u32::from_ne_bytes),
                    _ => {}
                }
            }
        }
        Some(reply)
    }
}

/// One attribute; the flag bits are taken off its type.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attr<'a> {
    pub(crate) kind: u16,
    pub(crate) payload: &'a [u8],
}

/// The attributes of a message or of a nest.
#[derive(Debug, Clone)]
pub(crate) struct Attrs<'a> {
    rest: &'a [u8],
}

impl<'a> Attrs<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Attrs { rest: bytes }
    }

    /// The first attribute of a type.
    pub(crate) fn find(&self, kind: u16) -> Option<Attr<'a>> {
        Iterator::find(&mut self.clone(), |attr| attr.kind == kind)
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = Attr<'a>;

    fn next(&mut self) -> Option<Attr<'a>> {
        let length = usize::from(u16_ne(self.rest, 0)?);
        if length < ATTRIBUTE || length > self.rest.len() {
            return None;
        }
        let attr = Attr { kind: u16_ne(self.rest, 2)? & 0x3fff, payload: &self.rest[ATTRIBUTE..length] };
        self.rest = self.rest.get(align(length)..).unwrap_or_default();
        Some(attr)
    }
}

impl<'a> Attr<'a> {
    pub(crate) fn nested(&self) -> Attrs<'a> {
        Attrs::new(self.payload)
    }

    pub(crate) fn string(&self) -> Option<&'a str> {
        let bytes = self.payload;
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        std::str::from_utf8(&bytes[..end]).ok()
    }

    pub(crate) fn u8(&self) -> Option<u8> {
        self.payload.first().copied()
    }

    pub(crate) fn be16(&self) -> Option<u16> {
        self.payload.try_into().ok().map(u16::from_be_bytes)
    }

    pub(crate) fn be32(&self) -> Option<u32> {
        self.payload.try_into().ok().map(u32::from_be_bytes)
    }

    pub(crate) fn be64(&self) -> Option<u64> {
        self.payload.try_into().ok().map(u64::from_be_bytes)
    }
}

fn u16_ne(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

fn u32_ne(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}
