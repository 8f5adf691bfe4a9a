//! Numbers about looks, for whoever renders them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use crate::metrics::{encode_counters, encode_seconds};

/// What has been done since the start. Shared; every number may be read at any time.
#[derive(Debug, Default)]
pub struct FlowStats {
    pub(super) looks: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) seen: AtomicU64,
    pub(super) cut: AtomicU64,
    pub(super) resumed: AtomicU64,
    pub(super) forgotten: AtomicU64,
    pub(super) under_way: AtomicU64,
    pub(super) last_look_ns: AtomicU64,
}

impl FlowStats {
    /// Looks at connection tracking entries: one at the start, and one for each commit, fewer where they were merged and none
    /// where it only allows more and nothing of that was revoked; one more where addresses have moved.
    pub fn looks(&self) -> u64 {
        self.looks.load(Ordering::Relaxed)
    }

    /// Looks that failed, and were tried again.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Entries that were read.
    pub fn seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }

    /// Connections that were revoked.
    pub fn cut(&self) -> u64 {
        self.cut.load(Ordering::Relaxed)
    }

    /// Connections that had been revoked and may go on again.
    pub fn resumed(&self) -> u64 {
        self.resumed.load(Ordering::Relaxed)
    }

    /// Connections that were deleted because an address of theirs has moved.
    pub fn forgotten(&self) -> u64 {
        self.forgotten.load(Ordering::Relaxed)
    }

    /// Commits whose look is still to come, or not over. 0 when all is settled.
    pub fn under_way(&self) -> u64 {
        self.under_way.load(Ordering::Relaxed)
    }

    /// How long the last look took.
    pub fn last_look(&self) -> Duration {
        Duration::from_nanos(self.last_look_ns.load(Ordering::Relaxed))
    }

    pub(super) fn count(counter: &AtomicU64, by: u64) {
        counter.fetch_add(by, Ordering::Relaxed);
    }

    pub(super) fn settle(gauge: &AtomicU64, by: u64) {
        gauge.fetch_sub(by, Ordering::Relaxed);
    }

    pub(super) fn looked(&self, took: Duration) {
        Self::count(&self.looks, 1);
        self.last_look_ns.store(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// The same, in OpenMetrics.
#[derive(Debug)]
pub(crate) struct FlowNumbers(pub(crate) Arc<FlowStats>);

impl Collector for FlowNumbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let stats = &self.0;
        let counters = [
            (
                "flows_looks",
                "Looks at connections: one at the start, then for commits together and for addresses that moved",
                stats.looks(),
            ),
            ("flows_look_failures", "Looks that failed and were tried again", stats.failures()),
            ("flows_seen", "Connections that were looked at", stats.seen()),
            ("flows_cut", "Connections that were revoked because policy denies them now", stats.cut()),
            ("flows_resumed", "Revoked connections that were allowed again", stats.resumed()),
            (
                "flows_forgotten",
                "Connections that were deleted because an address of theirs has another owner",
                stats.forgotten(),
            ),
        ];
        encode_counters(&mut encoder, &counters)?;
        encode_seconds(&mut encoder, "flows_last_look", "How long the last look took", stats.last_look())
    }
}
