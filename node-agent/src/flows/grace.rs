//! When packets are through that were judged by what was in force before.
//!
//! A packet meets the tables in `forward` and puts its connection into the tracking table on its way out, a moment later. A
//! commit that comes in between does not see the connection. The kernel handles a packet from one end to the other
//! without letting go of RCU's read side, and `membarrier(GLOBAL)` returns when everybody has let go of it who held
//! it at the call: from then on every such connection is in the table.

use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use rustix::thread::{MembarrierCommand, membarrier};
use tokio::sync::oneshot;
use tracing::debug;

use super::Due;
use crate::dataplane::Concern;

/// How long to wait where the kernel cannot say (it cannot where CPUs run without a timer tick). Packets take microseconds.
const INSTEAD: Duration = Duration::from_millis(50);

/// A thread that waits, so that looks need not.
#[derive(Debug)]
pub(super) struct Grace(Sender<Due>);

impl Grace {
    /// Starts the thread. `tell` hears of what was asked about, or of several as one; it says whether anybody still wants
    /// to know.
    pub(super) fn start(tell: impl Fn(Due) -> bool + Send + 'static) -> std::io::Result<Self> {
        let (asks, asked) = channel::<Due>();
        std::thread::Builder::new().name("flows-grace".to_owned()).spawn(move || {
            while let Ok(mut due) = asked.recv() {
                asked.try_iter().for_each(|more| due.merge(more));
                wait();
                if !tell(due) {
                    return;
                }
            }
        })?;
        Ok(Self(asks))
    }

    /// Asks to be told when all packets are through that are under way now.
    pub(super) fn ask(&self, concern: Concern, waiting: Vec<oneshot::Sender<()>>) {
        // The thread lives as long as somebody may ask.
        let _ = self.0.send(Due { concern, waiting, asks: 1 });
    }
}

/// Waits until all packets are through that are under way now.
pub(super) fn wait() {
    if let Err(e) = membarrier(MembarrierCommand::Global) {
        debug!("the kernel cannot say when packets are through, waiting {INSTEAD:?}: {e}");
        std::thread::sleep(INSTEAD);
    }
}
