//! A connection tracking table that is nearly full, and who fills it.
//!
//! All pods of a node share the kernel's table. While it is full, new connections of anybody may fail, whatever policy
//! says of them; what is denied stays denied. So who fills it is named, in the log and in the numbers.
//!
//! ```text
//!   once a minute, and when somebody reads the numbers ──▶ usage ──▶ Level: nearly full? ──▶ count by pod ──▶ log, numbers
//!                                          (one message, no walk)          (one walk of the table, once a minute at most)
//! ```

mod level;
mod numbers;
mod tally;

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use moat_nfnetlink::conntrack::{Conntrack, Filter, Usage};
use tracing::{info, warn};

use crate::desired::Desired;
use level::{Level, Turn};
use tally::{Holder, Tally};

pub(crate) use numbers::CrowdingNumbers;

/// How often it is asked how full the table is: one message to the kernel, which knows the number.
const EVERY: Duration = Duration::from_secs(60);
/// So many pods are named.
const NAMED: usize = 10;

/// Why nobody would know who fills the table.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CrowdingError {
    /// The table cannot be read.
    #[error(transparent)]
    Conntrack(#[from] moat_nfnetlink::Error),
    /// A thread could not be started.
    #[error("cannot start a thread that looks how full the connection tracking table is")]
    Thread(#[from] std::io::Error),
}

/// Looks how full the table is, until it is dropped.
#[derive(Debug)]
pub(crate) struct Crowding {
    /// A word in it is a reason to look now; its end is the end.
    look: Sender<()>,
    holders: Arc<Mutex<Vec<Holder>>>,
}

impl Crowding {
    /// For the table of the calling thread's network namespace. `desired` says whose an address is.
    pub(crate) fn start(desired: Arc<Mutex<Desired>>) -> Result<Self, CrowdingError> {
        let (look, asked) = channel();
        let holders = Arc::new(Mutex::new(Vec::new()));
        let watcher = Watcher {
            conntrack: Conntrack::open()?,
            desired,
            level: Level::default(),
            holders: holders.clone(),
        };
        std::thread::Builder::new().name("crowding".to_owned()).spawn(move || watcher.run(&asked))?;
        Ok(Self { look, holders })
    }

    /// Has it looked now, and not in a while.
    fn look(&self) {
        // It ends only with this.
        let _ = self.look.send(());
    }

    /// Those who had the most entries when they were last counted. Empty while the table has room.
    fn holders(&self) -> Vec<Holder> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct Watcher {
    conntrack: Conntrack,
    desired: Arc<Mutex<Desired>>,
    level: Level,
    holders: Arc<Mutex<Vec<Holder>>>,
}

impl Watcher {
    fn run(mut self, asked: &Receiver<()>) {
        let mut failed = false;
        loop {
            match asked.recv_timeout(EVERY) {
                Err(RecvTimeoutError::Disconnected) => return,
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
            }
            let looked = self.look();
            if let (Err(error), false) = (&looked, failed) {
                warn!("it is not known who fills the connection tracking table: {error:#}");
            }
            failed = looked.is_err();
        }
    }

    fn look(&mut self) -> Result<(), moat_nfnetlink::Error> {
        let usage = self.conntrack.usage()?;
        match self.level.turn(usage, Instant::now()) {
            Turn::Nothing => return Ok(()),
            Turn::Count => self.count(usage)?,
            Turn::Over => {
                info!(entries = usage.entries, "the connection tracking table has room again");
                self.tell(Vec::new());
            }
        }
        Ok(())
    }

    fn count(&mut self, usage: Usage) -> Result<(), moat_nfnetlink::Error> {
        let mut tally = Tally::of({
            let desired = self.desired.lock().unwrap_or_else(PoisonError::into_inner);
            desired.interfaces().flat_map(|a| a.addresses().map(|address| (address, a.pod()))).collect()
        });
        self.conntrack
            .entries(&Filter::all(), |entry| tally.add(entry.original.source, entry.reply.source))?;
        let most = tally.most(NAMED);
        let names: Vec<String> = most.iter().map(|h| format!("{} {}", h.pod, h.entries)).collect();
        let names = if names.is_empty() { "none is a pod's".to_owned() } else { names.join(", ") };
        let pod = most.first().map(|h| h.pod.to_string()).unwrap_or_default();
        warn!(
            pod,
            "the connection tracking table is nearly full, and new connections of all pods may fail: {} of {} entries; \
             by pod: {names}",
            usage.entries,
            usage.limit.unwrap_or_default(),
        );
        self.tell(most);
        Ok(())
    }

    fn tell(&self, holders: Vec<Holder>) {
        *self.holders.lock().unwrap_or_else(PoisonError::into_inner) = holders;
    }
}
