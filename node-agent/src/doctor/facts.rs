//! What is looked at of a host: values, gathered elsewhere.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Feature;

/// A host, as far as it matters to moat.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The kernel's release, as `uname -r` writes it.
    pub release: String,
    /// What the kernel was found to be able to do.
    pub probes: BTreeMap<Feature, Probe>,
    /// This node's podCIDRs, where they are known.
    pub pod_cidrs: Vec<IpNet>,
    /// All links of the node.
    pub links: Vec<HostLink>,
    /// All routes of the main tables.
    pub routes: Vec<HostRoute>,
    /// Neighbours that the node knows, each with the index of its link.
    pub neighbours: Vec<(u32, IpAddr)>,
    /// The chains of others that every forwarded packet goes through.
    pub forward_chains: Vec<ForwardChain>,
    /// The nftables tables of others, as nft writes them, and their chains.
    pub tables: BTreeMap<String, Vec<String>>,
    /// Links with an IPv6 default route that a router advertised.
    pub advertised: Vec<Router>,
    /// Virtual services of IPVS.
    pub ipvs_services: usize,
    /// Links that take in only what they would be answered by (`rp_filter` 1, theirs or that of all).
    pub strict: Vec<String>,
}

impl Facts {
    /// The name of a link.
    pub(super) fn link(&self, index: u32) -> Option<&HostLink> {
        self.links.iter().find(|link| link.index == index)
    }

    /// Whether an address is one that this node gives its pods.
    pub(super) fn is_pods(&self, address: &IpAddr) -> bool {
        self.pod_cidrs.iter().any(|cidr| cidr.contains(address))
    }
}

/// What came of trying something in a namespace of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// The kernel does it.
    Works,
    /// The kernel refuses, in its own words.
    Missing(String),
    /// It could not be tried.
    Unknown(String),
}

/// A link of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostLink {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The kind of virtual link that it is, as the kernel calls it; empty for a real one.
    pub kind: String,
    /// Whether somebody set it up.
    pub up: bool,
    /// The index of the bridge that it is a port of, or 0.
    pub master: u32,
    /// Whether its other end is in another network namespace.
    pub leads_elsewhere: bool,
    /// Whether moat made it.
    pub ours: bool,
}

/// A route of a main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRoute {
    /// Where to.
    pub to: IpNet,
    /// The index of the link that it leaves by, if by one.
    pub link: Option<u32>,
    /// Whether moat made it.
    pub ours: bool,
}

/// A chain of somebody else's that sees forwarded packets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ForwardChain {
    /// Its table, as nft writes it (`ip filter`), or `filter` for the older iptables.
    pub table: String,
    /// Its name.
    pub chain: String,
    /// Whether it belongs to the older iptables.
    pub legacy: bool,
    /// Whether it sees IPv6.
    pub ipv6: bool,
    /// Whether it sees IPv4.
    pub ipv4: bool,
    /// Whether what none of its rules accept is dropped.
    pub drops: bool,
    /// Whether a rule of it accepts everything that comes from pods' links.
    pub accepts_from_pods: bool,
    /// Whether a rule of it accepts everything that goes to pods' links.
    pub accepts_to_pods: bool,
    /// The chains of its table that somebody named.
    pub others: Vec<String>,
}

/// A link with an IPv6 default route that a router advertised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Router {
    /// The link.
    pub link: String,
    /// `net.ipv6.conf.LINK.accept_ra`.
    pub accept_ra: String,
    /// `net.ipv6.conf.LINK.forwarding`.
    pub forwarding: String,
}
