//! How full the table is, in OpenMetrics: read from the kernel when somebody asks.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use moat_nfnetlink::conntrack::Conntrack;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use tracing::warn;

use super::{Crowding, CrowdingError};
use crate::metrics::encode_counters;

/// Reads the table's numbers at each look, and has who fills it counted where it is nearly full.
#[derive(Debug)]
pub(crate) struct CrowdingNumbers {
    conntrack: Mutex<Conntrack>,
    crowding: Crowding,
}

impl CrowdingNumbers {
    /// For the table of the calling thread's network namespace.
    pub(crate) fn open(crowding: Crowding) -> Result<Self, CrowdingError> {
        Ok(Self { conntrack: Mutex::new(Conntrack::open()?), crowding })
    }
}

impl Collector for CrowdingNumbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        self.crowding.look();
        let read = {
            let mut conntrack = self.conntrack.lock().unwrap_or_else(PoisonError::into_inner);
            conntrack.usage().and_then(|usage| Ok((usage, conntrack.losses()?)))
        };
        let (usage, losses) = match read {
            Ok(read) => read,
            Err(error) => {
                // The other numbers are worth having all the same.
                warn!("cannot read how full the connection tracking table is: {error:#}");
                return Ok(());
            }
        };
        let gauges = [
            ("conntrack_entries", "Entries of the node's connection tracking table", usage.entries),
            (
                "conntrack_limit",
                "Entries that there may be (nf_conntrack_max); 0: any number",
                usage.limit.unwrap_or_default(),
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(i64::from(value));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let help = "Of these, the ones of the pods that have the most, as last counted; only while the table is nearly full";
        let mut family = encoder.encode_descriptor("conntrack_pod_entries", help, None, MetricType::Gauge)?;
        for holder in self.crowding.holders() {
            let labels =
                [("namespace", holder.pod.namespace.to_string()), ("pod", holder.pod.name.to_string())];
            let gauge = ConstGauge::new(i64::try_from(holder.entries).unwrap_or(i64::MAX));
            gauge.encode(family.encode_family(&labels)?)?;
        }
        let counters = [
            (
                "conntrack_dropped",
                "Packets that the kernel dropped because it had no entry to give them",
                losses.dropped,
            ),
            (
                "conntrack_evicted",
                "Connections without traffic both ways that made room for others",
                losses.evicted,
            ),
        ];
        encode_counters(&mut encoder, &counters)
    }
}
