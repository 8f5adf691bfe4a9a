//! Writes messages and attributes into one growing buffer.

use super::{ATTRIBUTE, GENERIC, HEADER, align};
use crate::EncodeError;

/// A buffer of messages, the last of which may be open.
///
/// What cannot be written is noted, not returned: [`Writer::close`] takes the whole message back and
/// says why, so that the code that writes attributes reads like the message it writes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Writer {
    buffer: Vec<u8>,
    fault: Option<EncodeError>,
}

/// An attribute that is still open; [`Writer::end`] fills its length in.
#[derive(Debug)]
pub(crate) struct Nest {
    start: usize,
}

/// A message that is still open; [`Writer::close`] fills its length in.
#[derive(Debug)]
pub(crate) struct Open {
    start: usize,
}

const NESTED: u16 = 0x8000;

impl Writer {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer
    }

    pub(crate) fn len(&self) -> usize {
        self.buffer.len()
    }

    pub(crate) fn truncate(&mut self, length: usize) {
        self.buffer.truncate(length);
    }

    /// Begins a message: header and generic header. `resource` is netfilter's `res_id`.
    pub(crate) fn open(&mut self, kind: u16, flags: u16, seq: u32, family: u8, resource: u16) -> Open {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&((HEADER + GENERIC) as u32).to_ne_bytes());
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer.extend_from_slice(&flags.to_ne_bytes());
        self.buffer.extend_from_slice(&seq.to_ne_bytes());
        self.buffer.extend_from_slice(&0u32.to_ne_bytes());
        self.buffer.extend_from_slice(&[family, 0]);
        self.buffer.extend_from_slice(&resource.to_be_bytes());
        Open { start }
    }

    /// Ends a message. On an error nothing of the message is left in the buffer.
    pub(crate) fn close(&mut self, open: Open) -> Result<(), EncodeError> {
        if let Some(fault) = self.fault.take() {
            self.buffer.truncate(open.start);
            return Err(fault);
        }
        let length = (self.buffer.len() - open.start) as u32;
        self.buffer[open.start..open.start + 4].copy_from_slice(&length.to_ne_bytes());
        Ok(())
    }

    /// Notes that the open message cannot be written; the first fault is the one reported.
    pub(crate) fn fault(&mut self, fault: EncodeError) {
        self.fault.get_or_insert(fault);
    }

    pub(crate) fn begin(&mut self, kind: u16) -> Nest {
        let start = self.buffer.len();
        self.header(ATTRIBUTE as u16, kind | NESTED);
        Nest { start }
    }

    pub(crate) fn end(&mut self, nest: Nest) {
        let length = self.buffer.len() - nest.start;
        match u16::try_from(length) {
            Ok(length) => {
                self.buffer[nest.start..nest.start + 2].copy_from_slice(&length.to_ne_bytes());
            }
            Err(_) => self.fault(EncodeError::AttributeTooLong { length }),
        }
    }

    /// Writes a nested attribute whose content is what `content` writes.
    pub(crate) fn nest(&mut self, kind: u16, content: impl FnOnce(&mut Self)) {
        let nest = self.begin(kind);
        content(self);
        self.end(nest);
    }

    pub(crate) fn attr(&mut self, kind: u16, payload: &[u8]) {
        let length = ATTRIBUTE + payload.len();
        let Ok(short) = u16::try_from(length) else {
            self.fault(EncodeError::AttributeTooLong { length });
            return;
        };
        self.header(short, kind);
        self.buffer.extend_from_slice(payload);
        self.pad();
    }

    pub(crate) fn u8(&mut self, kind: u16, value: u8) {
        self.attr(kind, &[value]);
    }

    pub(crate) fn be16(&mut self, kind: u16, value: u16) {
        self.attr(kind, &value.to_be_bytes());
    }

    pub(crate) fn be32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_be_bytes());
    }

    pub(crate) fn be64(&mut self, kind: u16, value: u64) {
        self.attr(kind, &value.to_be_bytes());
    }

    /// Writes a string with its final zero byte; one that holds a zero byte cannot be written.
    pub(crate) fn string(&mut self, kind: u16, value: &str) {
        if value.contains('\0') {
            self.fault(EncodeError::Zero { text: value.to_owned() });
            return;
        }
        let length = ATTRIBUTE + value.len() + 1;
        let Ok(short) = u16::try_from(length) else {
            self.fault(EncodeError::AttributeTooLong { length });
            return;
        };
        self.header(short, kind);
        self.buffer.extend_from_slice(value.as_bytes());
        self.buffer.push(0);
        self.pad();
    }

    /// Sets flag bits of the finished message at `start`, or clears them.
    pub(crate) fn set_flags(&mut self, start: usize, flags: u16, on: bool) {
        let field = &mut self.buffer[start + 6..start + 8];
        let old = u16::from_ne_bytes([field[0], field[1]]);
        let new = if on { old | flags } else { old & !flags };
        field.copy_from_slice(&new.to_ne_bytes());
    }

    fn header(&mut self, length: u16, kind: u16) {
        self.buffer.extend_from_slice(&length.to_ne_bytes());
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
    }

    fn pad(&mut self) {
        self.buffer.resize(align(self.buffer.len()), 0);
    }
}
