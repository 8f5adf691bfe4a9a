//! The numbers of dropped packets, read from the kernel when somebody asks.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use tracing::warn;

use super::{DropLogError, DropLogStats};
use crate::dataplane::DropCounters;
use crate::desired::Desired;
use crate::metrics::encode_counters;

/// Reads the counters at each look.
pub(crate) struct DropNumbers {
    counters: Mutex<DropCounters>,
    desired: Arc<Mutex<Desired>>,
    stats: Arc<DropLogStats>,
}

impl DropNumbers {
    /// For the tables in the network namespace of the calling thread.
    pub(crate) fn open(desired: Arc<Mutex<Desired>>, stats: Arc<DropLogStats>) -> Result<Self, DropLogError> {
        let counters = DropCounters::open().map_err(DropLogError::Counters)?;
        Ok(Self { counters: Mutex::new(counters), desired, stats })
    }
}

impl fmt::Debug for DropNumbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DropNumbers")
    }
}

impl Collector for DropNumbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let read = {
            let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
            counters.read().and_then(|all| Ok((all, counters.by_interface()?)))
        };
        let (all, pods) = match read {
            Ok(read) => read,
            Err(error) => {
                // The other numbers are worth having all the same.
                warn!("cannot read the counters of drops: {:#}", anyhow::Error::new(error));
                return Ok(());
            }
        };
        let help = "Packets dropped, by side and reason; kept by the kernel over restarts of the agent";
        let mut family = encoder.encode_descriptor("drops", help, None, MetricType::Counter)?;
        for (point, packets) in all {
            let labels = [("direction", point.direction.to_string()), ("reason", point.reason.to_string())];
            ConstCounter::new(packets).encode(family.encode_family(&labels)?)?;
        }
        let help = "Of these, the ones of each pod that has an interface, since it has it";
        let mut family = encoder.encode_descriptor("pod_drops", help, None, MetricType::Counter)?;
        let desired = self.desired.lock().unwrap_or_else(PoisonError::into_inner);
        for ((point, interface), packets) in pods {
            let Some(pod) = desired.pod_of(&interface) else { continue };
            let labels = [
                ("namespace", pod.namespace.to_string()),
                ("pod", pod.name.to_string()),
                ("direction", point.direction.to_string()),
                ("reason", point.reason.to_string()),
            ];
            ConstCounter::new(packets).encode(family.encode_family(&labels)?)?;
        }
        drop(desired);
        let log = [
            (
                "drop_log_records",
                "Dropped packets that came as a record and are in the log",
                self.stats.records(),
            ),
            (
                "drop_log_unlogged",
                "Packets of pods that were dropped and counted and not logged",
                self.stats.unlogged(),
            ),
            (
                "drop_log_overruns",
                "Times that records came faster than they were read",
                self.stats.overruns(),
            ),
        ];
        encode_counters(&mut encoder, &log)
    }
}
