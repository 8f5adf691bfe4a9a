//! How many packets were dropped, and why, as the kernel has counted.

use std::collections::BTreeMap;

use moat_nfnetlink::nft::{Socket, Value};

use super::error::Error;
use super::layout::{DropPoint, Table};

/// Reads the kernel's counters of dropped packets, on a socket of its own: the writer does not wait for who looks.
///
/// They are the tables' own and go on over the agent's restarts. A pod's begin with its interface and end with it.
#[derive(Debug)]
pub struct DropCounters {
    socket: Socket,
}

impl DropCounters {
    /// For the tables in the network namespace of the calling thread.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::open()? })
    }

    /// All packets that were dropped. Where there is no table, there were none.
    pub fn read(&mut self) -> Result<BTreeMap<DropPoint, u64>, Error> {
        let mut all: BTreeMap<DropPoint, u64> = DropPoint::all().map(|point| (point, 0)).collect();
        for table in Table::ALL {
            let counters = match self.socket.counters(&table.id()) {
                Ok(counters) => counters.items,
                Err(e) if e.is_not_found() => continue,
                Err(e) => return Err(e.into()),
            };
            for counter in counters {
                let point = DropPoint::all_in(table).find(|point| point.name() == *counter.name);
                if let Some(total) = point.and_then(|point| all.get_mut(&point)) {
                    *total += counter.packets;
                }
            }
        }
        Ok(all)
    }

    /// Of these, those that are about a pod that has an interface now, by the interface's name; only where there were any.
    pub fn by_interface(&mut self) -> Result<BTreeMap<(DropPoint, String), u64>, Error> {
        let mut all = BTreeMap::new();
        for table in Table::ALL {
            for point in DropPoint::all_in(table) {
                let set = point.pods();
                let listed = self.socket.elements(&table.id(), set.name(), |view| {
                    let key = view.element(&set).map(|element| element.key);
                    let Some([Value::IfName(name)]) = key.as_ref().map(|key| key.values()) else { return };
                    let packets = view.counter.map_or(0, |(packets, _)| packets);
                    if packets > 0 {
                        *all.entry((point, name.as_str().to_owned())).or_default() += packets;
                    }
                });
                match listed {
                    Ok(_) => {}
                    Err(e) if e.is_not_found() => {}
                    Err(e) => return Err(e.into()),
                }
            }
        }
        Ok(all)
    }
}
