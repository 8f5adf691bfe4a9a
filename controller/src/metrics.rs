//! The controller's numbers, in OpenMetrics.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::index::Index;

/// All numbers.
pub struct Metrics {
    registry: Registry,
    /// Readings that were taken in.
    pub readings: Counter,
    /// Readings that could not be decoded.
    pub reading_errors: Counter,
    /// Updates that were sent.
    pub updates: Counter,
    /// Agents that were refused.
    pub refused: Counter,
}

impl Metrics {
    /// The numbers of this index, and of what is done with it.
    pub fn new(index: Arc<Mutex<Index>>) -> Self {
        let mut registry = Registry::with_prefix("moat_controller");
        let mut counter = |name, help| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let readings = counter("readings", "Readings of the manifest folders that were taken in");
        let reading_errors = counter(
            "reading_errors",
            "Readings of the manifest folders that were refused; the last good one stays in force",
        );
        let updates = counter("updates", "Updates that were sent to agents");
        let refused = counter("agents_refused", "Agents that were refused");
        registry.register_collector(Box::new(Agents(index)));
        Self { registry, readings, reading_errors, updates, refused }
    }

    /// What is to be encoded.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }
}

/// What the index knows, asked when somebody asks.
struct Agents(Arc<Mutex<Index>>);

impl std::fmt::Debug for Agents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Agents")
    }
}

impl Collector for Agents {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (revision, agents, behind) = {
            let index = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let behind = index.agents().filter(|agent| !agent.current).count();
            (index.revision(), index.agents().count(), behind)
        };
        let gauges = [
            (
                "revision",
                "Changes of the cluster's state so far",
                i64::try_from(revision).unwrap_or(i64::MAX),
            ),
            ("agents", "Connected agents", i64::try_from(agents).unwrap_or(i64::MAX)),
            (
                "agents_behind",
                "Connected agents on whose nodes the newest is not (yet) in force",
                i64::try_from(behind).unwrap_or(i64::MAX),
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}
