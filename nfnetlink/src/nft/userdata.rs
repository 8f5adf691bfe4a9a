//! User data: bytes that the kernel keeps with an object and does not read.
//!
//! `nft` puts a list of (type: u8, length: u8, value) there. We follow it, so that `nft list` shows our
//! comments, and keep data of our own under types that `nft` skips.

use crate::EncodeError;
use crate::wire::Writer;

/// The most bytes of user data (`NFT_USERDATA_MAXLEN`).
const LIMIT: usize = 256;
/// The comment's type in a table, chain, rule or element (`NFTNL_UDATA_*_COMMENT`).
pub(crate) const COMMENT: u8 = 0;
/// The comment's type in a set (`NFTNL_UDATA_SET_COMMENT`).
pub(crate) const SET_COMMENT: u8 = 7;

/// User data to be written: a comment, and data of the program's own.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct UserData {
    comment: Option<Box<str>>,
    private: Vec<(u8, Box<[u8]>)>,
}

impl UserData {
    /// No data.
    pub fn new() -> Self {
        UserData::default()
    }

    /// A text that `nft list` shows as the object's comment, up to 253 bytes (`nft` itself stops at 128).
    pub fn comment(mut self, text: impl Into<Box<str>>) -> Self {
        self.comment = Some(text.into());
        self
    }

    /// Data under a type of our own; `nft` uses the first few numbers, so take high ones.
    pub fn with(mut self, kind: u8, value: impl Into<Box<[u8]>>) -> Self {
        self.private.push((kind, value.into()));
        self
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.comment.is_none() && self.private.is_empty()
    }

    /// The bytes, with `extra` entries before ours.
    pub(crate) fn bytes(&self, comment: u8, extra: &[(u8, u32)]) -> Result<Vec<u8>, EncodeError> {
        let mut bytes = Vec::new();
        for (kind, number) in extra {
            bytes.extend_from_slice(&[*kind, 4]);
            bytes.extend_from_slice(&number.to_ne_bytes());
        }
        if let Some(text) = &self.comment {
            if text.contains('\0') {
                return Err(EncodeError::Zero { text: text.to_string() });
            }
            put(&mut bytes, comment, &[text.as_bytes(), &[0]].concat())?;
        }
        for (kind, value) in &self.private {
            put(&mut bytes, *kind, value)?;
        }
        if bytes.len() > LIMIT {
            return Err(EncodeError::UserData { length: bytes.len(), limit: LIMIT });
        }
        Ok(bytes)
    }

    pub(crate) fn encode(&self, writer: &mut Writer, kind: u16, comment: u8, extra: &[(u8, u32)]) {
        match self.bytes(comment, extra) {
            Ok(bytes) if bytes.is_empty() => {}
            Ok(bytes) => writer.attr(kind, &bytes),
            Err(fault) => writer.fault(fault),
        }
    }
}

fn put(bytes: &mut Vec<u8>, kind: u8, value: &[u8]) -> Result<(), EncodeError> {
    let length =
        u8::try_from(value.len()).map_err(|_| EncodeError::UserData { length: value.len(), limit: 255 })?;
    bytes.extend_from_slice(&[kind, length]);
    bytes.extend_from_slice(value);
    Ok(())
}

/// Finds the value of a type in user data that a dump holds.
pub fn find(data: &[u8], kind: u8) -> Option<&[u8]> {
    let mut rest = data;
    while let [found, length, tail @ ..] = rest {
        let value = tail.get(..usize::from(*length))?;
        if *found == kind {
            return Some(value);
        }
        rest = &tail[value.len()..];
    }
    None
}

/// The comment in the user data of a table, chain, rule or element.
pub fn comment(data: &[u8]) -> Option<&str> {
    let text = find(data, COMMENT)?;
    std::str::from_utf8(text.strip_suffix(&[0]).unwrap_or(text)).ok()
}

/// The comment in the user data of a set or map.
pub fn set_comment(data: &[u8]) -> Option<&str> {
    let text = find(data, SET_COMMENT)?;
    std::str::from_utf8(text.strip_suffix(&[0]).unwrap_or(text)).ok()
}
