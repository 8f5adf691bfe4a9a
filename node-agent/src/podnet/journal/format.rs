//! The state file's bytes.
//!
//! ```text
//! {"moat":"attachments","version":2,"boot":"0b1c…"}
//! 5d41402a [{"attached":{"container_id":"c0ffee",…}}]
//! 09f7e02f [{"released":{"key":{…},"at":81273645}},{"attached":{…}}]
//! ```
//!
//! One line holds what was written at once, behind the first digits of its hash: it counts as a whole or not at all, whatever
//! parts of it have reached the disk. Moments are of the boot that the first line names ([`super::super::clock`]).
//!
//! Version 1 had a record a line, no hashes, and moments by the time of day.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::super::attachment::{Attachment, AttachmentKey};

/// The version that is written.
const VERSION: u32 = 2;

/// The first line of version 1, which is still read.
#[cfg(test)]
pub(crate) const HEADER_1: &str = r#"{"moat":"attachments","version":1}"#;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Record {
    /// These addresses are this attachment's.
    Attached(Attachment),
    /// The attachment is gone; its addresses rest since then.
    Released {
        /// Whose they were.
        key: AttachmentKey,
        /// When.
        at: u64,
    },
    /// An address rests since then.
    Resting {
        /// The address.
        address: IpAddr,
        /// When.
        at: u64,
    },
    /// Who had which address before then is not known: every address rests since then.
    Forgotten {
        /// When.
        at: u64,
    },
}

/// What a state file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    /// The oldest first.
    attachments: Vec<Attachment>,
    pub(crate) resting: BTreeMap<IpAddr, u64>,
    /// Since when even addresses rest that no record tells of.
    pub(crate) forgotten: Option<u64>,
}

impl Contents {
    /// All attachments, the oldest first.
    pub(crate) fn attachments(&self) -> &[Attachment] {
        &self.attachments
    }

    /// The attachment of this key.
    pub(crate) fn get(&self, key: &AttachmentKey) -> Option<&Attachment> {
        self.attachments.iter().find(|a| is(a, key))
    }

    /// Whether an attachment has this address.
    pub(crate) fn holds(&self, address: IpAddr) -> bool {
        self.attachments.iter().any(|a| a.addresses().any(|held| held == address))
    }

    pub(crate) fn apply(&mut self, record: Record) {
        match record {
            Record::Attached(attachment) => {
                let key = attachment.key();
                for address in attachment.addresses() {
                    self.resting.remove(&address);
                    // Nobody is given an address that another has: that other is gone, and the record of it is lost.
                    let other = self
                        .attachments
                        .iter()
                        .position(|a| !is(a, &key) && a.addresses().any(|held| held == address));
                    if let Some(other) = other {
                        let other = self.attachments.remove(other);
                        self.resting.extend(other.addresses().map(|left| (left, u64::MAX)));
                        self.resting.remove(&address);
                    }
                }
                match self.attachments.iter_mut().find(|a| is(a, &key)) {
                    Some(known) => *known = attachment,
                    None => self.attachments.push(attachment),
                }
            }
            Record::Released { key, at } => {
                if let Some(index) = self.attachments.iter().position(|a| is(a, &key)) {
                    let gone = self.attachments.remove(index);
                    // Of a damaged file the record may be missing that told of the new owner's taking over.
                    let free: Vec<IpAddr> = gone.addresses().filter(|a| !self.holds(*a)).collect();
                    self.resting.extend(free.into_iter().map(|address| (address, at)));
                }
            }
            // Of a damaged file, again.
            Record::Resting { address, .. } if self.holds(address) => {}
            Record::Resting { address, at } => {
                self.resting.insert(address, at);
            }
            Record::Forgotten { at } => self.forgotten = Some(at),
        }
    }

    /// Applies [`Record::Attached`], and returns what it takes to undo that.
    pub(crate) fn attach(&mut self, attachment: Attachment) -> Undo {
        let key = attachment.key();
        let rested = |address| self.resting.get(&address).map(|at| (address, *at));
        let undo = Undo {
            before: self.get(&key).cloned(),
            resting: attachment.addresses().filter_map(rested).collect(),
            key,
        };
        self.apply(Record::Attached(attachment));
        undo
    }

    /// Undoes the last [`Contents::attach`].
    pub(crate) fn undo(&mut self, undo: Undo) {
        match undo.before {
            Some(before) => self.apply(Record::Attached(before)),
            None => self.attachments.retain(|a| !is(a, &undo.key)),
        }
        self.resting.extend(undo.resting);
    }

    /// Puts the attachments in this order.
    pub(crate) fn sort_by_key<K: Ord>(&mut self, key: impl FnMut(&Attachment) -> K) {
        self.attachments.sort_by_key(key);
    }

    /// The records that say the same.
    pub(crate) fn records(&self) -> impl Iterator<Item = Record> + '_ {
        let forgotten = self.forgotten.map(|at| Record::Forgotten { at });
        let resting = self.resting.iter().map(|(&address, &at)| Record::Resting { address, at });
        let attached = self.attachments.iter().cloned().map(Record::Attached);
        forgotten.into_iter().chain(resting).chain(attached)
    }
}

/// How it was before.
#[derive(Debug)]
pub(crate) struct Undo {
    key: AttachmentKey,
    before: Option<Attachment>,
    resting: Vec<(IpAddr, u64)>,
}

fn is(attachment: &Attachment, key: &AttachmentKey) -> bool {
    attachment.container_id == key.container_id && attachment.ifname == key.ifname
}

/// What the bytes of a state file say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Decoded {
    pub(crate) contents: Contents,
    /// The boot that its moments are of; `None` of version 1.
    pub(crate) boot: Option<String>,
    /// The first line, from 1, that cannot be read and is not the last: no crash leaves that.
    pub(crate) damaged: Option<usize>,
}

/// A state file of a release to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Newer(pub(crate) u32);

#[derive(Serialize, Deserialize)]
struct Header {
    moat: Kind,
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    boot: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Attachments,
}

/// The first line of a file whose moments are of `boot`.
pub(crate) fn header(boot: &str) -> Vec<u8> {
    json(&Header { moat: Kind::Attachments, version: VERSION, boot: Some(boot.to_owned()) })
}

/// The line that says all of `records`.
pub(crate) fn line(records: &[Record]) -> Vec<u8> {
    let body = json(&records);
    let mut line = sum(&body).into_bytes();
    line.push(b' ');
    line.extend(body);
    line
}

/// Reads a state file. What cannot be read is left out: whoever reads compares with the kernel, which knows better.
pub(crate) fn decode(bytes: &[u8]) -> Result<Decoded, Newer> {
    let mut lines = bytes.split_inclusive(|&byte| byte == b'\n');
    let header: Option<Header> = lines.next().and_then(|line| serde_json::from_slice(line).ok());
    let mut decoded = Decoded::default();
    let read: fn(&[u8]) -> Option<Vec<Record>> = match header {
        Some(Header { version: 1, .. }) => read_line_1,
        Some(Header { version: VERSION, boot, .. }) => {
            decoded.boot = boot;
            read_line
        }
        Some(Header { version, .. }) => return Err(Newer(version)),
        None => {
            decoded.damaged = Some(1);
            return Ok(decoded);
        }
    };
    let mut torn = None;
    for (number, line) in (2..).zip(lines) {
        match read(line) {
            Some(records) => {
                decoded.damaged = decoded.damaged.or(torn);
                records.into_iter().for_each(|record| decoded.contents.apply(record));
            }
            None => torn = torn.or(Some(number)),
        }
    }
    Ok(decoded)
}

fn read_line(line: &[u8]) -> Option<Vec<Record>> {
    let (sum_read, body) = line.split_at_checked(SUM)?;
    let body = body.strip_prefix(b" ")?;
    (sum(body).as_bytes() == sum_read).then(|| serde_json::from_slice(body).ok())?
}

fn read_line_1(line: &[u8]) -> Option<Vec<Record>> {
    // Without its newline it was not written to its end, so nobody was told that it was.
    line.strip_suffix(b"\n").and_then(|line| serde_json::from_slice(line).ok()).map(|record| vec![record])
}

/// How many hex digits of the hash there are.
const SUM: usize = 8;

fn sum(body: &[u8]) -> String {
    blake3::hash(body).to_hex().as_str()[..SUM].to_owned()
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    // Strings and numbers: nothing here can fail to become JSON.
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}
