//! The agent's numbers, in OpenMetrics.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};

use crate::crowding::CrowdingNumbers;
use crate::dataplane::Stats;
use crate::droplog::DropNumbers;
use crate::flows::FlowNumbers;
use crate::podnet::PodNet;

/// All numbers.
pub struct Metrics {
    registry: Registry,
    dataplane: Arc<OnceLock<DataplaneNumbers>>,
    drops: Arc<OnceLock<DropNumbers>>,
    flows: Arc<OnceLock<FlowNumbers>>,
    crowding: Arc<OnceLock<CrowdingNumbers>>,
    podnet: Arc<OnceLock<PodNetNumbers>>,
    attachments: Gauge,
    /// Readings that were put in force.
    pub readings: Counter,
    /// Readings that could not be decoded.
    pub reading_errors: Counter,
    /// ADDs that failed.
    pub add_errors: Counter,
    /// What somebody removed or changed of the pod network, and was made again.
    pub mended: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("moat_agent");
        let mut counter = |name, help| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let readings = counter("readings", "Readings of the manifest folders that were put in force");
        let reading_errors = counter(
            "reading_errors",
            "Readings of the manifest folders that were refused; the last good one stays in force",
        );
        let add_errors = counter("cni_add_errors", "CNI ADD requests that failed");
        let mended = counter(
            "podnet_mended",
            "Routes, neighbours, rules, links and kernel parameters that somebody removed or changed, and that were made again",
        );
        let attachments = Gauge::default();
        registry.register("attachments", "Pod interfaces of this node", attachments.clone());
        let dataplane = Arc::new(OnceLock::new());
        registry.register_collector(Box::new(Later(dataplane.clone())));
        let drops = Arc::new(OnceLock::new());
        registry.register_collector(Box::new(Later(drops.clone())));
        let flows = Arc::new(OnceLock::new());
        registry.register_collector(Box::new(Later(flows.clone())));
        let crowding = Arc::new(OnceLock::new());
        registry.register_collector(Box::new(Later(crowding.clone())));
        let podnet = Arc::new(OnceLock::new());
        registry.register_collector(Box::new(Later(podnet.clone())));
        Self {
            registry,
            dataplane,
            drops,
            flows,
            crowding,
            podnet,
            attachments,
            readings,
            reading_errors,
            add_errors,
            mended,
        }
    }
}

impl Metrics {
    /// The data plane has started, and these are its numbers.
    pub fn dataplane(&self, stats: Arc<Stats>) {
        // It starts once; a second call would change nothing.
        let _ = self.dataplane.set(DataplaneNumbers(stats));
    }

    /// The drop log has started, and these are its numbers.
    pub(crate) fn drops(&self, numbers: DropNumbers) {
        // It starts once, too.
        let _ = self.drops.set(numbers);
    }

    /// Connections are looked after, and these are the numbers.
    pub(crate) fn flows(&self, numbers: FlowNumbers) {
        // And that, too.
        let _ = self.flows.set(numbers);
    }

    /// It is watched how full the connection tracking table is, and these are the numbers.
    pub(crate) fn crowding(&self, numbers: CrowdingNumbers) {
        // And that.
        let _ = self.crowding.set(numbers);
    }

    /// The pod network has been taken over, and this is it.
    pub(crate) fn podnet(&self, podnet: PodNet) {
        // And that as well.
        let _ = self.podnet.set(PodNetNumbers(podnet));
    }

    /// Whether the kernel does not hold what it is to hold.
    pub fn is_behind(&self) -> bool {
        self.dataplane.get().is_some_and(|numbers| numbers.0.behind() > 0)
    }

    /// There are so many pod interfaces now.
    pub fn attachments(&self, count: usize) {
        self.attachments.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// What is to be encoded.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }
}

/// Numbers that are there from some moment on.
#[derive(Debug)]
struct Later<C>(Arc<OnceLock<C>>);

impl<C: Collector> Collector for Later<C> {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        self.0.get().map_or(Ok(()), |numbers| numbers.encode(encoder))
    }
}

/// Encodes counters that somebody else keeps: name, help and value.
pub(crate) fn encode_counters(
    encoder: &mut DescriptorEncoder<'_>,
    counters: &[(&str, &str, u64)],
) -> Result<(), fmt::Error> {
    for (name, help, value) in counters {
        let counter = ConstCounter::new(*value);
        counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
    }
    Ok(())
}

/// Encodes a gauge in seconds.
pub(crate) fn encode_seconds(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: Duration,
) -> Result<(), fmt::Error> {
    let gauge = ConstGauge::new(value.as_secs_f64());
    gauge.encode(encoder.encode_descriptor(name, help, Some(&Unit::Seconds), gauge.metric_type())?)
}

/// The data plane's own counters, read when somebody asks.
#[derive(Debug)]
struct DataplaneNumbers(Arc<Stats>);

impl Collector for DataplaneNumbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let stats = &self.0;
        let counters = [
            ("dataplane_commits", "Commits that changed something", stats.commits()),
            ("dataplane_updates", "Updates that were submitted", stats.updates()),
            ("dataplane_coalesced", "Updates that shared an earlier one's commit", stats.coalesced()),
            ("dataplane_refusals", "Commits that the kernel refused", stats.refusals()),
            ("dataplane_listings", "Times that our tables were listed", stats.listings()),
            (
                "dataplane_foreign_commits",
                "Commits by others that left our tables alone",
                stats.foreign_commits(),
            ),
            (
                "dataplane_restores",
                "Times that our tables were restored after somebody changed them",
                stats.restores(),
            ),
        ];
        encode_counters(&mut encoder, &counters)?;
        let last = Duration::from_nanos(stats.last_commit_ns());
        encode_seconds(&mut encoder, "dataplane_last_commit", "How long the last commit took", last)?;
        let gauges = [
            ("dataplane_pods", "Pods in force", stats.pods()),
            (
                "dataplane_closed_pods",
                "Pods that are closed because the kernel refused what they need, or a limit keeps it from the kernel",
                stats.closed(),
            ),
            (
                "dataplane_guard",
                "1 while a guard keeps our tables' owner, also for when we do not live",
                stats.guard(),
            ),
            ("dataplane_owner", "1 while the kernel guards our tables against others", stats.owner()),
            ("dataplane_behind", "1 while the kernel does not hold what it is to hold", stats.behind()),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

/// What the pod network knows, asked when somebody asks.
#[derive(Debug)]
struct PodNetNumbers(PodNet);

impl Collector for PodNetNumbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Addresses of pods that are gone, which are not given to others before every controller has answered";
        let gauge = ConstGauge::new(i64::try_from(self.0.unanswered()).unwrap_or(i64::MAX));
        gauge.encode(encoder.encode_descriptor("addresses_unanswered", help, None, gauge.metric_type())?)
    }
}
