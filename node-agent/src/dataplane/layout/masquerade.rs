//! What leaves the cluster leaves in the node's name: nobody outside knows a pod's address.
//!
//! ```text
//! inet moat-net  masquerade (postrouting)   from @own (this node's podCIDRs), not to @inside   ──▶ masquerade
//! ```
//!
//! `inside` holds the podCIDRs and the addresses of all nodes, and what the operator adds: between those nothing is translated, and
//! policy sees the address that a pod has. The chain sees the first packet of a connection only.

use ipnet::IpNet;
use moat_nfnetlink::nft::{
    Base, Chain, ChainType, Cmp, Element, Field, Hook, Policy, Rule, Set, Source, Statement, UserData,
};
use moat_policies::Node;

use super::fixed::{v4, v6, veth};
use super::names::{self, Table};
use super::sets::prefixes;
use super::{ChainRules, LayoutConfig};

/// Where the kernel translates sources (`srcnat`).
const PRIORITY: i32 = 100;

/// What is this node's, and what is the cluster's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inside {
    own: Vec<IpNet>,
    all: Vec<IpNet>,
}

impl Inside {
    /// What the nodes have, and `more` that is not to be translated either.
    pub fn of(local: &Node, others: &[Node], more: &[IpNet]) -> Self {
        let addresses = |node: &Node| node.addresses.iter().map(|a| IpNet::from(*a)).collect::<Vec<_>>();
        let nodes = others.iter().chain([local]);
        let nets = nodes.flat_map(|node| node.pod_cidrs.iter().copied().chain(addresses(node)));
        // A node that claims everything makes nothing of the outside a part of the cluster.
        let claimed = nets.filter(|net| net.prefix_len() > 0);
        Self { own: local.pod_cidrs.clone(), all: claimed.chain(more.iter().copied()).collect() }
    }

    /// The sets, with what is in them.
    pub(crate) fn sets(&self) -> [(Set, Vec<Element>); 4] {
        [
            (set("own", true), prefixes(&self.own, true)),
            (set("own", false), prefixes(&self.own, false)),
            (inside(true), prefixes(&self.all, true)),
            (inside(false), prefixes(&self.all, false)),
        ]
    }

    /// Those of what is the cluster's.
    pub(crate) fn sets_of_all(&self) -> [(Set, Vec<Element>); 2] {
        [(inside(true), prefixes(&self.all, true)), (inside(false), prefixes(&self.all, false))]
    }
}

/// The set of what is the cluster's. Each table that asks has its own.
pub(super) fn inside(ipv4: bool) -> Set {
    set("inside", ipv4)
}

/// A set of prefixes. The second field is always the whole range, as in an allow set's.
fn set(name: &str, ipv4: bool) -> Set {
    let (field, digit) = if ipv4 { (Field::Ipv4Addr, 4) } else { (Field::Ipv6Addr, 6) };
    Set::new(format!("{name}{digit}"), names::key([field, Field::InetProto])).intervals()
}

/// The chain, where there is to be one.
pub(crate) fn chain(config: &LayoutConfig) -> Option<ChainRules> {
    let rule = |ipv4: bool| {
        let (family, from, to): (fn(Rule) -> Rule, _, _) = if ipv4 {
            (v4, Source::IP_SADDR, Source::IP_DADDR)
        } else {
            (v6, Source::IP6_SADDR, Source::IP6_DADDR)
        };
        // First of all whether it is for a pod of this node: that is cheap to ask, and the sets are not.
        family(Rule::new().then(veth(Source::OIFNAME, Cmp::Neq)))
            .lookup([from, Source::L4PROTO], set("own", ipv4).name().clone())
            .lookup_missing([to, Source::L4PROTO], inside(ipv4).name().clone())
            .then(Statement::Masquerade)
    };
    let base =
        Base { kind: ChainType::Nat, hook: Hook::Postrouting, priority: PRIORITY, policy: Policy::Accept };
    let chain = Chain { name: "masquerade".into(), base: Some(base), userdata: UserData::new() };
    config.masquerade.then(|| ChainRules { table: Table::Net, chain, rules: vec![rule(true), rule(false)] })
}
