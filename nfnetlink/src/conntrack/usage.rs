//! How full the table is, and what it cost that it was full.

use super::message;
use crate::Error;
use crate::connection::Connection;
use crate::wire::{Attrs, flags, message_type, subsystem};

/// `CTA_STATS_GLOBAL_*`.
const ENTRIES: u16 = 1;
const LIMIT: u16 = 2;
/// `CTA_STATS_*`, of a processor.
const DROPPED: u16 = 10;
const EVICTED: u16 = 11;

/// How many entries a network namespace has, and may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Entries there are (`nf_conntrack_count`).
    pub entries: u32,
    /// Entries there may be in any one network namespace (`nf_conntrack_max`). `None`: any number, or the kernel does not
    /// say (before Linux 5.12).
    pub limit: Option<u32>,
}

/// What happened in a network namespace because there was no room for an entry, since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Losses {
    /// Packets that were dropped.
    pub dropped: u64,
    /// Connections without both ways' traffic that made room for others.
    pub evicted: u64,
}

impl Usage {
    fn decode(attrs: &Attrs<'_>) -> Option<Self> {
        let number = |kind| attrs.find(kind).and_then(|attr| attr.be32());
        Some(Self { entries: number(ENTRIES)?, limit: number(LIMIT).filter(|limit| *limit != 0) })
    }

    pub(super) fn ask(connection: &mut Connection) -> Result<Self, Error> {
        const DOING: &str = "ask how full the conntrack table is";
        let kind = message_type(subsystem::CONNTRACK, message::GET_STATS);
        let request = connection.request(kind, flags::ACK, 0, |_| {})?;
        let mut usage = None;
        connection.dump(&request, DOING, |message| usage = Self::decode(&message.attrs()))?;
        usage.ok_or(Error::Malformed { doing: DOING })
    }
}

impl Losses {
    pub(super) fn ask(connection: &mut Connection) -> Result<Self, Error> {
        let kind = message_type(subsystem::CONNTRACK, message::GET_STATS_CPU);
        let request = connection.request(kind, flags::DUMP, 0, |_| {})?;
        let mut sum = Self::default();
        connection.dump(&request, "ask what a full conntrack table cost", |message| {
            let attrs = message.attrs();
            let number = |kind| attrs.find(kind).and_then(|attr| attr.be32()).map_or(0, u64::from);
            sum.dropped += number(DROPPED);
            sum.evicted += number(EVICTED);
        })?;
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Writer;

    #[test]
    fn no_limit_is_no_number() {
        let attrs = |numbers: &[(u16, u32)]| {
            let mut w = Writer::default();
            numbers.iter().for_each(|(kind, number)| w.be32(*kind, *number));
            w.bytes().to_vec()
        };
        let decode = |numbers: &[(u16, u32)]| Usage::decode(&Attrs::new(&attrs(numbers)));
        assert_eq!(decode(&[(ENTRIES, 7), (LIMIT, 9)]), Some(Usage { entries: 7, limit: Some(9) }));
        assert_eq!(decode(&[(ENTRIES, 7), (LIMIT, 0)]), Some(Usage { entries: 7, limit: None }));
        assert_eq!(decode(&[(ENTRIES, 7)]), Some(Usage { entries: 7, limit: None }));
        assert_eq!(decode(&[(LIMIT, 9)]), None);
    }
}
