//! How many packets were dropped, and why, as the kernel has counted.

use std::collections::BTreeMap;

use moat_nfnetlink::nft::Socket;

use super::error::Error;
use super::layout::{DropReason, Table};

/// Reads the kernel's counters of dropped packets, on a socket of its own: the writer does not wait for who looks.
#[derive(Debug)]
pub struct DropCounters {
    socket: Socket,
}

impl DropCounters {
    /// For the tables in the network namespace of the calling thread.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::open()? })
    }

    /// Packets dropped for each reason since the tables were last adopted: an agent's start begins at zero, as all its
    /// counters do. A reason whose chain is not there has none.
    pub fn read(&mut self) -> Result<BTreeMap<DropReason, u64>, Error> {
        let mut all: BTreeMap<DropReason, u64> = DropReason::ALL.into_iter().map(|r| (r, 0)).collect();
        for (reason, total) in &mut all {
            for table in Table::ALL.into_iter().filter(|t| reason.is_in(*t)) {
                let rules = self.socket.rules(&table.id(), Some(reason.as_str()));
                match rules {
                    Ok(rules) => {
                        *total += rules.items.iter().filter_map(|r| r.counter()).map(|(n, _)| n).sum::<u64>();
                    }
                    Err(e) if e.is_not_found() => {}
                    Err(e) => return Err(e.into()),
                }
            }
        }
        Ok(all)
    }
}
