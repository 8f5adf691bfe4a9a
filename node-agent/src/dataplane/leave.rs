//! Taking the tables off a node.

use moat_nfnetlink::nft::{Batch, Socket};

use super::error::Error;
use super::layout::Table;

/// Removes our tables from the network namespace of the calling thread, all in one transaction, and tells which were there. Nobody may
/// own them any more: no agent, and no guard.
pub(crate) fn leave() -> Result<Vec<String>, Error> {
    let mut socket = Socket::open()?;
    let mut there = Vec::new();
    for table in Table::ALL {
        let id = table.id();
        let tables = socket.tables(Some(id.family))?.items;
        let Some(found) = tables.into_iter().find(|found| found.id == id) else { continue };
        if let Some(owner) = found.owner {
            return Err(Error::Owned { table: id, owner });
        }
        there.push(id);
    }
    let mut batch = Batch::new();
    for id in &there {
        batch.delete_table(id)?;
    }
    socket.send(&batch, None)?;
    Ok(there.iter().map(|id| format!("the table {id}")).collect())
}
