//! How the network of all nodes is to be: carried with the other objects, and of no meaning for verdicts.

use std::fmt;
use std::ops::RangeInclusive;

use ipnet::IpNet;

/// A NetworkConfig (`moat.dev/v1alpha1`). Each node has its own default for what is `None` or empty here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkConfig {
    /// `clusterCIDRs`: where all pods' addresses are from. Empty: the nodes' podCIDRs.
    pub cluster_cidrs: Vec<IpNet>,
    /// `routeMode`.
    pub route_mode: Option<RouteMode>,
    /// `mtu` of the pods' links, in bytes.
    pub mtu: Option<u32>,
    /// `masquerade.enabled`: whether what leaves the cluster leaves in the node's name.
    pub masquerade: Option<bool>,
    /// `masquerade.exceptCIDRs`: what is not masqueraded all the same.
    pub masquerade_except: Vec<IpNet>,
    /// `denyAction`.
    pub deny: Option<DenyAction>,
    /// `dropLog`.
    pub drop_log: Option<LogLimit>,
}

impl NetworkConfig {
    /// The only name that one may have.
    pub const NAME: &str = "default";
    /// What `mtu` may be: IPv6 asks for the least.
    pub const MTU: RangeInclusive<u32> = 1280..=65535;
}

/// How packets get to the pods of other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteMode {
    /// By routes to nodes on a shared link, through a tunnel to the others.
    Auto,
    /// By routes alone.
    Routed,
    /// Through a VXLAN tunnel.
    Vxlan,
}

/// What becomes of a packet that no policy allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum DenyAction {
    /// Nothing: who sent it waits.
    #[default]
    Drop,
    /// Who sent it is told at once, if it is the cluster's.
    Reject,
}

/// How many dropped packets are logged, for each pair of interfaces and each reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLimit {
    /// In a second; 0: none.
    pub rate: u32,
    /// At once, before the rate counts.
    pub burst: u32,
}

impl LogLimit {
    /// What `ratePerSecond` may be.
    pub const RATE: RangeInclusive<u32> = 0..=1000;
    /// What `burst` may be.
    pub const BURST: RangeInclusive<u32> = 1..=10_000;

    /// This many in a second, and where nothing else is said twice as many at once.
    pub fn new(rate: u32, burst: Option<u32>) -> Self {
        Self { rate, burst: burst.unwrap_or((2 * rate).max(1)) }
    }
}

impl Default for LogLimit {
    fn default() -> Self {
        Self::new(10, None)
    }
}

impl fmt::Display for DenyAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DenyAction::Drop => "drop",
            DenyAction::Reject => "reject",
        })
    }
}
