//! Datagrams for a port of the node that leads to a pod from now on.
//!
//! The kernel translates the first packet of a connection, and takes all datagrams between two ports for one connection as
//! long as they go on. So whoever was sending to the port before the pod came would never reach it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError};

use moat_cni::port::{HostPort, Transport};
use moat_nfnetlink::conntrack::{Deletion, Detail, Entry, Filter};

use super::stats::FlowStats;
use super::{Flows, FlowsError, grace, own_addresses};

impl Flows {
    /// Removes the connections by which datagrams for these ports go elsewhere than to the pod with these addresses. To be
    /// called when the ports lead to it. Waits until that is done; costs nothing where no port is of UDP.
    pub(crate) async fn lead(
        &self,
        ports: &[HostPort],
        pod: impl IntoIterator<Item = IpAddr>,
    ) -> Result<(), FlowsError> {
        let ports: Vec<HostPort> =
            ports.iter().filter(|port| port.protocol == Transport::Udp).copied().collect();
        if ports.is_empty() {
            return Ok(());
        }
        let pod: Vec<IpAddr> = pod.into_iter().collect();
        let (asked, stats) = (Arc::clone(&self.asked), Arc::clone(&self.stats));
        let work = move || {
            // Those that were translated by what was in force before are in the kernel's table by then.
            grace::wait();
            let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
            let (conntrack, node) = &mut *asked;
            let own = own_addresses(node)?;
            let mut gone = Vec::new();
            conntrack.entries(&Filter::all(), |entry| {
                if is_elsewhere(&entry, &ports, &own, &pod) {
                    gone.push(Deletion::of(&entry));
                }
            })?;
            FlowStats::count(&stats.forgotten, conntrack.delete(&gone)?.changed as u64);
            Ok(())
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(done) => done,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

/// Whether an entry carries datagrams for one of these ports, and not to the pod.
fn is_elsewhere(entry: &Entry, ports: &[HostPort], own: &BTreeSet<IpAddr>, pod: &[IpAddr]) -> bool {
    let to = entry.original.destination;
    let Detail::Ports { destination, .. } = entry.original.detail else { return false };
    let is_for = |port: &HostPort| {
        let at = match port.address() {
            Some(address) => address == to,
            None => port.is_of(to.is_ipv4()) && own.contains(&to) && !to.is_loopback(),
        };
        at && port.protocol.number() == entry.original.protocol && port.host_port == destination
    };
    !pod.contains(&entry.reply.source) && ports.iter().any(is_for)
}
