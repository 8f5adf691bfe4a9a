//! Who sends and who receives write down what they did; the judge reads it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::mpsc::Sender;

use super::clock::{Clock, Moment};
use super::judge::{Event, Kind, Sent, Tuple};

/// Source ports of flows of one packet. No server of the lab is above them, and conversations are below.
const FRESH: std::ops::Range<u16> = 40_000..60_000;

/// Where everything is written down.
#[derive(Clone)]
pub(crate) struct Journal {
    pub(crate) clock: Clock,
    next: Arc<AtomicU64>,
    port: Arc<AtomicU16>,
    events: Sender<Event>,
}

/// A packet that is about to be sent.
pub(crate) struct Departure {
    /// Its number, which it carries.
    pub(crate) number: u64,
    before: Moment,
}

impl Journal {
    /// A journal that tells this reader.
    pub(crate) fn new(clock: Clock, events: Sender<Event>) -> Self {
        Self { clock, next: Arc::new(AtomicU64::new(1)), port: Arc::new(AtomicU16::new(0)), events }
    }

    /// Writes an event down. When nobody reads any more, it is nobody's business.
    pub(crate) fn note(&self, event: Event) {
        let _ = self.events.send(event);
    }

    /// Just before a packet is sent.
    pub(crate) fn departs(&self) -> Departure {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Departure { number, before: self.clock.now() }
    }

    /// Just after.
    pub(crate) fn sent(&self, departure: &Departure, tuple: Tuple, kind: Kind, answer: bool, opens: bool) {
        let sent = Sent { tuple, kind, answer, opens, before: departure.before, after: self.clock.now() };
        self.note(Event::Sent { number: departure.number, sent });
    }

    /// A packet arrived.
    pub(crate) fn arrived(&self, number: u64, at: Moment) {
        self.note(Event::Arrived { number, at });
    }

    /// A source port that no flow of the last minutes had.
    pub(crate) fn fresh_port(&self) -> u16 {
        let number = self.port.fetch_add(1, Ordering::Relaxed);
        FRESH.start + number % (FRESH.end - FRESH.start)
    }
}
