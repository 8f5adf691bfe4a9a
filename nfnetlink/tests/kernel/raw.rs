//! Messages that the builder refuses to write.

use moat_nfnetlink::nft::Batch;

/// A batch as bytes, for what the builder refuses to write. Sent by a few lines of its own.
#[derive(Clone)]
pub(crate) struct RawBatch {
    bytes: Vec<u8>,
}

impl From<&Batch> for RawBatch {
    fn from(batch: &Batch) -> Self {
        RawBatch { bytes: batch.as_bytes().to_vec() }
    }
}

impl RawBatch {
    /// Takes the second field off the description of the last message's set.
    pub(crate) fn with_one_field(mut self) -> Self {
        // NFTA_SET_DESC { NFTA_SET_DESC_CONCAT { two of NFTA_LIST_ELEM { NFTA_SET_FIELD_LEN } } }
        let nest = |length: u16, kind: u16| [length.to_ne_bytes(), (kind | 0x8000).to_ne_bytes()].concat();
        let description = [nest(32, 9), nest(28, 2)].concat();
        let at = self.bytes.windows(8).position(|bytes| bytes == description).expect("a description");
        self.bytes[at..at + 8].copy_from_slice(&[nest(20, 9), nest(16, 2)].concat());
        self.bytes.drain(at + 20..at + 32);
        // The message is the last one; its length shrinks by as much.
        let mut start = 0;
        loop {
            let length = u32::from_ne_bytes(self.bytes[start..start + 4].try_into().expect("4 bytes"));
            if start + length as usize > self.bytes.len() {
                self.bytes[start..start + 4].copy_from_slice(&(length - 12).to_ne_bytes());
                return self;
            }
            start += length as usize;
        }
    }

    /// Commits; returns the error number of the first answer that has one, or 0.
    pub(crate) fn commit(&self) -> i32 {
        use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, netlink, recv, send, socket};
        let fd = socket(AddressFamily::NETLINK, SocketType::RAW, Some(netlink::NETFILTER)).expect("a socket");
        let mark = |kind: u16| {
            let mut bytes = Vec::new();
            bytes.extend(20u32.to_ne_bytes());
            bytes.extend([kind.to_ne_bytes(), 1u16.to_ne_bytes()].concat());
            bytes.extend([0u8; 8]);
            bytes.extend([0, 0, 0, 10]);
            bytes
        };
        send(&fd, &[mark(16), self.bytes.clone(), mark(17)].concat(), SendFlags::empty()).expect("sent");
        let mut buffer = vec![0; 8192];
        let (length, _) = recv(&fd, &mut buffer[..], RecvFlags::DONTWAIT).expect("an answer");
        assert!(length >= 20);
        -i32::from_ne_bytes(buffer[16..20].try_into().expect("4 bytes"))
    }
}
