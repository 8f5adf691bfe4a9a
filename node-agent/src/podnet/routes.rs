//! Which routes a node needs to the pods of others, and what to change to have them: pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use moat_policies::Node;

pub(crate) use super::route::{Hop, Route};

/// The metric of the routes to podCIDRs. A pod's own route has another one, and an operator's route to the same
/// prefix, as a rule with a lower metric, goes first instead of being replaced.
pub(crate) const METRIC: u32 = 2048;

/// The routes that a node wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) routes: BTreeMap<IpNet, Hop>,
    /// What has no route, and why.
    pub(crate) skipped: Vec<String>,
}

/// What `local` needs: its own podCIDRs lead nowhere, unless a pod has the address; others' lead to their node.
pub(crate) fn wanted(local: &Node, others: &[Node]) -> Wanted {
    let mut wanted = Wanted::default();
    for &cidr in &local.pod_cidrs {
        wanted.routes.insert(cidr.trunc(), Hop::Unreachable);
    }
    let mut others: Vec<&Node> = others.iter().filter(|node| node.name != local.name).collect();
    others.sort_by(|a, b| a.name.cmp(&b.name));
    for node in others {
        for cidr in node.pod_cidrs.iter().map(IpNet::trunc) {
            let same_family = |address: &&IpAddr| address.is_ipv4() == cidr.addr().is_ipv4();
            let skip = if cidr.prefix_len() == 0 {
                "it is everything"
            } else if let Some(hop) = wanted.routes.get(&cidr) {
                match hop {
                    Hop::Unreachable => "it is this node's, too",
                    _ => "another node has it, too",
                }
            } else if let Some(&address) = node.addresses.iter().find(same_family) {
                wanted.routes.insert(cidr, Hop::Via(address));
                continue;
            } else {
                "the node has no address of its family"
            };
            wanted.skipped.push(format!("no route to podCIDR {cidr} of node {}: {skip}", node.name));
        }
    }
    wanted
}

/// What to set, then what to remove, so that of `present` and `wanted` the latter is left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) set: Vec<Route>,
    pub(crate) remove: Vec<Route>,
}

/// The way from `present`, all routes of our protocol number, to `wanted`.
pub(crate) fn plan(wanted: &BTreeMap<IpNet, Hop>, present: &[Route]) -> Plan {
    // The routes to local pods have no such metric; they come and go with the pods' links.
    let present: BTreeMap<IpNet, &Route> =
        present.iter().filter(|route| route.metric == METRIC).map(|route| (route.to, route)).collect();
    let same = |there: &Hop, hop: &Hop| match (there, hop) {
        // Which link a router is on is for the kernel to find.
        (Hop::LinkVia(_, there), Hop::Via(hop)) => there == hop,
        _ => there == hop,
    };
    Plan {
        set: wanted
            .iter()
            .filter(|(to, hop)| !present.get(to).is_some_and(|route| same(&route.hop, hop)))
            .map(|(&to, hop)| Route { to, hop: hop.clone(), metric: METRIC })
            .collect(),
        remove: present
            .values()
            .filter(|route| !wanted.contains_key(&route.to))
            .map(|&route| route.clone())
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, addresses: &[&str], cidrs: &[&str]) -> Node {
        Node {
            name: name.into(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            pod_cidrs: cidrs.iter().map(|c| c.parse().unwrap()).collect(),
        }
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn via(text: &str) -> Hop {
        Hop::Via(text.parse().unwrap())
    }

    #[test]
    fn each_family_goes_by_the_nodes_address_of_that_family() {
        let local = node("a", &["192.0.2.1", "2001:db8::1"], &["10.1.0.0/24", "fd00:1::/64"]);
        let others = [
            node("b", &["2001:db8::2", "192.0.2.2", "192.0.2.22"], &["10.2.0.0/24", "fd00:2::/64"]),
            node("c", &["192.0.2.3"], &["10.3.0.0/24", "fd00:3::/64"]),
            // The list of all nodes may well hold the local one.
            local.clone(),
        ];
        let wanted = wanted(&local, &others);
        assert_eq!(
            wanted.routes,
            BTreeMap::from([
                (net("10.1.0.0/24"), Hop::Unreachable),
                (net("fd00:1::/64"), Hop::Unreachable),
                (net("10.2.0.0/24"), via("192.0.2.2")),
                (net("fd00:2::/64"), via("2001:db8::2")),
                (net("10.3.0.0/24"), via("192.0.2.3")),
            ])
        );
        assert_eq!(
            wanted.skipped,
            ["no route to podCIDR fd00:3::/64 of node c: the node has no address of its family"]
        );
    }

    #[test]
    fn a_prefix_has_one_node() {
        let local = node("a", &["192.0.2.1"], &["10.1.0.0/24"]);
        let others = [
            node("c", &["192.0.2.3"], &["10.2.0.0/24", "0.0.0.0/0"]),
            node("b", &["192.0.2.2"], &["10.2.0.0/24", "10.1.0.9/24"]),
        ];
        let wanted = wanted(&local, &others);
        assert_eq!(wanted.routes[&net("10.2.0.0/24")], via("192.0.2.2"), "the first by name");
        assert_eq!(wanted.routes[&net("10.1.0.0/24")], Hop::Unreachable);
        assert_eq!(wanted.skipped.len(), 3);
    }

    #[test]
    fn only_what_differs_is_touched() {
        let route = |to: &str, hop: Hop, metric: u32| Route { to: net(to), hop, metric };
        let hop = |text: &str| Hop::LinkVia(4, text.parse().unwrap());
        let wanted = BTreeMap::from([
            (net("10.1.0.0/24"), Hop::Unreachable),
            (net("10.2.0.0/24"), via("192.0.2.2")),
            (net("10.3.0.0/24"), via("192.0.2.3")),
        ]);
        let present = [
            route("10.1.0.5/32", Hop::Link(7), 0),
            route("10.2.0.0/24", hop("192.0.2.2"), METRIC),
            route("10.3.0.0/24", hop("192.0.2.9"), METRIC),
            route("10.4.0.0/24", hop("192.0.2.4"), METRIC),
        ];
        let plan = plan(&wanted, &present);
        assert_eq!(
            plan.set,
            [route("10.1.0.0/24", Hop::Unreachable, METRIC), route("10.3.0.0/24", via("192.0.2.3"), METRIC)]
        );
        assert_eq!(plan.remove, [route("10.4.0.0/24", hop("192.0.2.4"), METRIC)]);
    }
}
