//! The controller's numbers, in OpenMetrics.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use moat_apiserver::{KindState, State};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::authority::leaf::Shown;
use crate::index::Index;
use crate::tokens::Refusal;

/// All numbers.
pub struct Metrics {
    registry: Registry,
    /// Readings that were taken in.
    pub readings: Counter,
    /// Readings that could not be decoded.
    pub reading_errors: Counter,
    /// Updates that were sent.
    pub updates: Counter,
    refused: Family<Why, Counter>,
    /// Connections on which TLS did not come about.
    pub handshakes_failed: Counter,
    /// Policies that are not compiled as they stand, and isolate whom they may select.
    pub policies_refused: Gauge,
    /// Events that are there about policies.
    pub events: Counter,
    /// Events that could not be written.
    pub event_errors: Counter,
    /// NodeEnforcements that were written.
    pub enforcements: Counter,
}

/// Why an agent was refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    reason: &'static str,
}

/// Reasons that are not a token's.
pub const PROTOCOL: [&str; 2] = ["hello", "level"];

impl Metrics {
    /// The numbers of this index, of what is done with it, and of what agents are shown.
    pub fn new(index: Arc<Mutex<Index>>, source: Option<watch::Receiver<State>>, shown: Shown) -> Self {
        let mut registry = Registry::with_prefix("moat_controller");
        let mut counter = |name, help| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let readings = counter("readings", "How often something became different in what the source says");
        let reading_errors = counter(
            "reading_errors",
            "Readings of the manifest folders that were refused; the last good one stays in force",
        );
        let updates = counter("updates", "Updates that were sent to agents");
        let handshakes_failed =
            counter("tls_handshakes_failed", "Connections on which TLS did not come about");
        let events =
            counter("policy_events", "Events about policies that were written, or were there already");
        let event_errors = counter("policy_event_errors", "Events about policies that could not be written");
        let enforcements = counter("node_enforcements", "Times that a NodeEnforcement was written");
        let policies_refused = Gauge::default();
        registry.register(
            "policies_refused",
            "Policies that are not compiled as they stand, and isolate the pods that they may select",
            policies_refused.clone(),
        );
        let refused = Family::<Why, Counter>::default();
        registry.register("agents_refused", "Agents that were refused", refused.clone());
        // All are there from the beginning: what begins with a one has no rise.
        for reason in Refusal::REASONS.into_iter().chain(PROTOCOL) {
            drop(refused.get_or_create(&Why { reason }));
        }
        registry.register_collector(Box::new(Agents(index)));
        registry.register_collector(Box::new(Certificates(shown)));
        source.into_iter().for_each(|source| registry.register_collector(Box::new(ApiServer(source))));
        Self {
            registry,
            readings,
            reading_errors,
            updates,
            refused,
            handshakes_failed,
            policies_refused,
            events,
            event_errors,
            enforcements,
        }
    }

    /// An agent was refused for this reason.
    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Why { reason }).inc();
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
            ("revision", "Changes of the cluster's state so far", number(revision)),
            ("agents", "Connected agents", number(agents as u64)),
            (
                "agents_behind",
                "Connected agents on whose nodes the newest is not (yet) in force",
                number(behind as u64),
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

/// Until when what is valid, where there is one.
#[derive(Debug)]
struct Certificates(Shown);

impl Collector for Certificates {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let standing = self.0.standing();
        let gauges = [
            (
                "certificate_expires_timestamp_seconds",
                "Until when the certificate is valid that agents are shown",
                standing.certificate,
            ),
            (
                "ca_expires_timestamp_seconds",
                "Until when the controllers' CA is valid that signs such certificates",
                standing.authority,
            ),
        ];
        for (name, help, until) in gauges {
            let Some(until) = until else { continue };
            let since = until.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let gauge = ConstGauge::new(number(since.as_secs()));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

/// How it stands with the API server.
struct ApiServer(watch::Receiver<State>);

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiServer")
    }
}

impl Collector for ApiServer {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let states = self.0.borrow().clone();
        let watched = |state: &KindState| u64::from(state.error.is_none() && state.lists > 0);
        type Number = fn(&KindState) -> u64;
        let counters: [(&str, &str, Number); 2] = [
            ("source_lists", "How often a kind of objects was listed", |state| state.lists),
            ("source_failures", "How often listing or watching a kind of objects failed", |state| {
                state.failures
            }),
        ];
        for (name, help, count) in counters {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for state in &states {
                let counter = ConstCounter::new(count(state));
                counter.encode(family.encode_family(&[("kind", state.kind)])?)?;
            }
        }
        let help = "Whether a kind of objects is watched; where it is not, what was known last is served";
        let mut family = encoder.encode_descriptor("source_watched", help, None, MetricType::Gauge)?;
        for state in &states {
            let gauge = ConstGauge::new(number(watched(state)));
            gauge.encode(family.encode_family(&[("kind", state.kind)])?)?;
        }
        Ok(())
    }
}

fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
