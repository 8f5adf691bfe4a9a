//! The drop log: every dropped packet is counted, and as many as a person can read are told, with who, to whom and why.
//!
//! ```text
//!   drop chain ─▶ counters (all), log statement (so many for each pair of interfaces)
//!                     │               │
//!                     │            nflog group ─▶ packet ─▶ fold ─▶ words ──▶ the agent's log (target `drop`)
//!                     │                           (pure: headers, repeats, names and reasons)  │
//!                     └── unlogged: counted and not told ─▶ a line each now and then ──────────┴─▶ the last ones, for `moat drops`
//! ```
//!
//! The kernel limits ([`layout`](crate::dataplane::DropPoint)), so that no pod can make the node busy with its drops, and counts
//! what the limit keeps back. Here the first packet of a kind (same ends, protocol, port, side, reason) makes a line at
//! once; those that follow make one more line every ten seconds as long as there are any. With nothing dropped the thread
//! sleeps.

mod fold;
mod numbers;
mod packet;
mod reader;
mod unlogged;
mod words;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use moat_cni::stream::{Dropped, Event, Unlogged};
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::broadcast;
use tracing::{debug, info};

use crate::dataplane;
use crate::desired::Desired;
pub(crate) use numbers::DropNumbers;
use reader::Reader;
pub(crate) use words::Names;

/// What the drop log reads of a packet, for the fuzz targets; `None` where our rules did not log it.
#[cfg(feature = "fuzzing")]
pub(crate) fn in_words(packet: &moat_nfnetlink::nflog::Packet<'_>) -> Option<String> {
    let packet::Kind { point, headers, .. } = packet::Kind::of(packet)?;
    Some(format!("{point} {} {:?} {:?}", headers.carries.name(), headers.traffic(), headers))
}

/// Events that are kept for who asks later.
const KEPT: usize = 1024;

/// How the log is to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropLogConfig {
    /// The nflog group that the tables log to.
    pub group: u16,
    /// How long packets of a kind are counted before they are told, and how often it is told what was not logged.
    pub window: Duration,
}

impl DropLogConfig {
    /// The log of these tables, with a line every ten seconds for what goes on.
    pub fn of(layout: &dataplane::LayoutConfig) -> Self {
        Self { group: layout.log_group, window: Duration::from_secs(10) }
    }
}

/// Why there is no drop log.
#[derive(Debug, thiserror::Error)]
pub enum DropLogError {
    /// The drop log's thread could not be started.
    #[error("cannot start the drop log's thread")]
    Thread(#[source] std::io::Error),
    /// The kernel's counters cannot be read.
    #[error("cannot read the counters of dropped packets")]
    Counters(#[source] dataplane::Error),
}

/// Numbers about the log itself. Shared; every one may be read at any time.
#[derive(Debug, Default)]
pub struct DropLogStats {
    records: AtomicU64,
    unlogged: AtomicU64,
    overruns: AtomicU64,
}

impl DropLogStats {
    /// Packets that came as a record, and are told or counted in a line.
    pub fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    /// Packets of this node's pods that were dropped and counted and did not come as a record.
    pub fn unlogged(&self) -> u64 {
        self.unlogged.load(Ordering::Relaxed)
    }

    /// Times that records came faster than they were read.
    pub fn overruns(&self) -> u64 {
        self.overruns.load(Ordering::Relaxed)
    }
}

/// The thread that reads the log, and its last events. It ends when this is dropped.
#[derive(Debug)]
pub struct DropLog {
    shared: Arc<Shared>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// What is told, and to whom.
#[derive(Debug)]
struct Shared {
    last: Mutex<VecDeque<Event>>,
    followers: broadcast::Sender<Event>,
    stats: Arc<DropLogStats>,
}

impl DropLog {
    /// Reads the log of the tables in the network namespace of the calling thread. `desired` knows names and policies.
    pub fn start(config: DropLogConfig, desired: Arc<Mutex<Desired>>) -> Result<Self, DropLogError> {
        let shared = Arc::new(Shared {
            last: Mutex::new(VecDeque::new()),
            followers: broadcast::Sender::new(KEPT),
            stats: Arc::default(),
        });
        let stop = eventfd(0, EventfdFlags::CLOEXEC).map_err(|e| DropLogError::Thread(e.into()))?;
        let stop = Arc::new(stop);
        let counters = dataplane::DropCounters::open().map_err(DropLogError::Counters)?;
        let (told, stopped) = (shared.clone(), stop.clone());
        let thread = std::thread::Builder::new()
            .name("drop-log".to_owned())
            .spawn(move || Reader::new(config, desired, counters, told).run(&stopped))
            .map_err(DropLogError::Thread)?;
        Ok(Self { shared, stop, thread: Some(thread) })
    }

    /// The last events, and those that come from now on.
    pub fn follow(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let last = self.shared.last.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the same lock as an event is told under: none is missing between the two, none is in both.
        (last.iter().cloned().collect(), self.shared.followers.subscribe())
    }

    /// Numbers about the log.
    pub fn stats(&self) -> &Arc<DropLogStats> {
        &self.shared.stats
    }
}

impl Drop for DropLog {
    fn drop(&mut self) {
        if let Err(e) = rustix::io::write(&self.stop, &1_u64.to_ne_bytes()) {
            debug!("cannot wake the drop log: {e}");
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Writes an event into the agent's log and hands it to whoever follows.
    fn tell(&self, event: Event) {
        write(&event);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() == KEPT {
            last.pop_front();
        }
        last.push_back(event.clone());
        // Nobody may be following.
        let _ = self.followers.send(event);
    }
}

/// One structured line.
fn write(event: &Event) {
    match event {
        Event::Drop(d) => {
            let Dropped { node, source, destination, direction, reason, count, explanation, .. } = d;
            let (traffic, time) = (d.traffic(), &d.time);
            // Whose interface it came by, where that is not who it says.
            let by = d.pod.as_ref().filter(|pod| direction == "egress" && source.pod.as_ref() != Some(pod));
            match by {
                None => info!(
                    target: "drop", time, node, %source, %destination, traffic, direction, reason, count,
                    "{explanation}"
                ),
                Some(by) => info!(
                    target: "drop", time, node, %source, %destination, traffic, direction, reason, count, by,
                    "{explanation}"
                ),
            }
        }
        Event::Unlogged(u) => {
            let Unlogged { time, node, pod, direction, reason, count } = u;
            info!(target: "drop", time, node, pod, direction, reason, count, "dropped and not logged one by one");
        }
        Event::Flow(_) | Event::Missed(_) | Event::End => {}
    }
}
