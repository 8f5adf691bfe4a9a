//! What else is on the host: other networks for pods, other ways into the node, other people's routes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{Facts, Finding, HostLink, Severity};

/// Kinds of links that take packets out of packets.
const TUNNELS: [&str; 12] = [
    "ipip",
    "sit",
    "gre",
    "gretap",
    "erspan",
    "ip6tnl",
    "ip6gre",
    "ip6gretap",
    "vxlan",
    "geneve",
    "bareudp",
    "vti",
];
/// Links that the kernel itself makes with a tunnel's module; they take everything that is theirs by protocol.
const FALLBACKS: [&str; 6] = ["tunl0", "sit0", "gre0", "gretap0", "ip6tnl0", "ip6gre0"];
/// How other pod networks call their links.
const OTHERS: [(&str, &str); 9] = [
    ("cali", "Calico"),
    ("lxc", "Cilium"),
    ("cilium_", "Cilium"),
    ("cni0", "the bridge plugin"),
    ("flannel", "Flannel"),
    ("weave", "Weave Net"),
    ("kube-bridge", "kube-router"),
    ("antrea-gw", "Antrea"),
    ("ovn-k8s", "OVN-Kubernetes"),
];
/// So many addresses are listed by name.
const LISTED: usize = 20;

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(ipvs(facts));
    findings.extend(advertised(facts));
    findings.extend(strangers(facts));
    findings.extend(tunnels(facts));
    findings.extend(strict(facts));
    findings.extend(portmap(facts));
    findings
}

/// Other nodes' own packets to a host port come by a link; what they send to pods comes through the tunnel, and so do answers go.
fn strict(facts: &Facts) -> Option<Finding> {
    let tunnel = facts.links.iter().any(|link| link.ours && link.kind == "vxlan");
    let by_link = |name: &&String| {
        let link = facts.links.iter().find(|link| link.name == **name);
        link.is_some_and(|link| {
            link.up && !link.ours && facts.routes.iter().any(|r| r.link == Some(link.index))
        })
    };
    let strict: Vec<String> = facts.strict.iter().filter(by_link).cloned().collect();
    (tunnel && !strict.is_empty()).then(|| Finding {
        severity: Severity::Note,
        check: "strict-sources",
        what: format!(
            "{} takes in only what would be answered by it (rp_filter is 1): what a node behind the tunnel sends, in its own name, \
             to a port of this node that leads to a pod (hostPort, or a NodePort with externalTrafficPolicy Local) is dropped; \
             pods and all others are served",
            strict.join(", ")
        ),
        to_do: "where that is needed: sysctl -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.LINK.rp_filter=2".into(),
    })
}

/// The reference plugin for host ports, or what it left.
fn portmap(facts: &Facts) -> Option<Finding> {
    let chains = ["CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-MASQ"];
    let is = |(table, there): (&String, &Vec<String>)| {
        table.ends_with(" cni_hostport") || there.iter().any(|chain| chains.contains(&chain.as_str()))
    };
    let table = facts.tables.iter().find(|entry| is(*entry)).map(|(table, _)| table)?;
    Some(Finding {
        severity: Severity::Warning,
        check: "host-ports",
        what: format!("the plugin portmap leads host ports to pods here, or did (the table {table}): moat does not know which"),
        to_do: "remove portmap from the CNI configuration, give moat-cni the capability portMappings, and remove portmap's rules when \
                its pods are gone"
            .into(),
    })
}

fn ipvs(facts: &Facts) -> Option<Finding> {
    let kube = facts.links.iter().any(|link| link.name == "kube-ipvs0");
    if kube {
        return Some(Finding {
            severity: Severity::Refused,
            check: "ipvs",
            what: "kube-proxy works in ipvs mode here (there is a link kube-ipvs0): what it sends to pods does not cross the \
                   forward hook, so no policy would hold for it"
                .into(),
            to_do: "set kube-proxy's mode to nftables or iptables, run on this node: kube-proxy --cleanup, and, where it is \
                    still there: ip link delete kube-ipvs0"
                .into(),
        });
    }
    (facts.ipvs_services > 0).then(|| Finding {
        severity: Severity::Warning,
        check: "ipvs",
        what: format!(
            "IPVS has {} virtual services here; what they send to pods does not cross the forward hook",
            facts.ipvs_services
        ),
        to_do: "see with: ipvsadm -Ln, that none of them leads to a pod".into(),
    })
}

/// The kernel believes advertisements on a link that forwards only where it is told so with a 2.
fn advertised(facts: &Facts) -> Vec<Finding> {
    let loses = facts.advertised.iter().filter(|r| r.accept_ra == "1" && r.forwarding == "1");
    loses
        .map(|router| Finding {
            severity: Severity::Warning,
            check: "router-advertisements",
            what: format!(
                "the IPv6 default route by {0} is a router's advertisement, and {0} forwards: the kernel will not renew it",
                router.link
            ),
            to_do: format!(
                "run: sysctl -w net.ipv6.conf.{}.accept_ra=2 (and keep that over a reboot, in /etc/sysctl.d)",
                router.link
            ),
        })
        .collect()
}

/// Pods, or what may be some, that moat has not made: they pass as if moat were not there.
fn strangers(facts: &Facts) -> Vec<Finding> {
    // By link: the addresses of this node's podCIDRs that lead there.
    let mut found: BTreeMap<u32, Vec<IpAddr>> = BTreeMap::new();
    let foreign = |index: u32| facts.link(index).is_some_and(|link| !link.ours);
    for route in facts.routes.iter().filter(|route| !route.ours) {
        if let Some(link) = route.link
            && foreign(link)
            && facts.is_pods(&route.to.addr())
        {
            let whole = route.to.prefix_len() == route.to.max_prefix_len();
            found.entry(link).or_default().extend(whole.then(|| route.to.addr()));
        }
    }
    for (link, address) in &facts.neighbours {
        if foreign(*link) && facts.is_pods(address) {
            found.entry(*link).or_default().push(*address);
        }
    }
    for link in facts.links.iter().filter(|link| !link.ours && whose(link).is_some()) {
        found.entry(link.index).or_default();
    }
    let ports = |bridge: u32| facts.links.iter().filter(move |link| link.master == bridge);
    found
        .into_iter()
        .filter_map(|(index, mut addresses)| {
            let link = facts.link(index)?;
            addresses.sort_unstable();
            addresses.dedup();
            let mut what = format!("the link {} is not moat's", link.name);
            if let Some(whose) = whose(link) {
                what += &format!(" but, by its name, one of {whose}");
            }
            if !addresses.is_empty() {
                what += &format!("; this node leads to it {}", list(addresses.iter().map(IpAddr::to_string)));
            }
            let ports: Vec<String> = ports(index).map(|port| port.name.clone()).collect();
            if !ports.is_empty() {
                what += &format!("; behind it are {}", list(ports.into_iter()));
            }
            Some(Finding {
                severity: Severity::Warning,
                check: "other-pods",
                what: what + ": pods there are not protected",
                to_do: "drain the node and take the other network's configuration out of /etc/cni/net.d, so that its pods come \
                        again with moat's; then remove the link"
                    .into(),
            })
        })
        .collect()
}

/// Whose pod network names its links so.
fn whose(link: &HostLink) -> Option<&'static str> {
    OTHERS.iter().find(|(prefix, _)| link.name.starts_with(prefix)).map(|(_, whose)| *whose)
}

fn list(all: impl ExactSizeIterator<Item = String>) -> String {
    let more = all.len().saturating_sub(LISTED);
    let mut text = all.take(LISTED).collect::<Vec<_>>().join(", ");
    if more > 0 {
        text += &format!(" and {more} more");
    }
    text
}

fn tunnels(facts: &Facts) -> Vec<Finding> {
    let tunnel = |link: &&HostLink| {
        let known = TUNNELS.contains(&link.kind.as_str()) || FALLBACKS.contains(&link.name.as_str());
        known && link.up && !link.ours
    };
    facts
        .links
        .iter()
        .filter(tunnel)
        .map(|link| {
            let fallback = FALLBACKS.contains(&link.name.as_str());
            let kind = if link.kind.is_empty() { "tunnel" } else { link.kind.as_str() };
            Finding {
                severity: Severity::Warning,
                check: "tunnel",
                what: format!(
                    "{} ({kind}) is up: whoever can send it packets brings others into this node, with any source inside, and \
                     policy believes sources",
                    link.name
                ),
                to_do: match fallback {
                    true => format!("if nobody uses it, run: ip link set {0} down", link.name),
                    false => format!(
                        "if nobody uses it, run: ip link delete {0}; else let only the hosts that you trust send to it",
                        link.name
                    ),
                },
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::{HostRoute, Router, judge};
    use super::*;

    fn link(index: u32, name: &str, kind: &str) -> HostLink {
        let ours = name.starts_with("moat");
        HostLink { index, name: name.into(), kind: kind.into(), up: true, ours, ..HostLink::default() }
    }

    fn facts(links: Vec<HostLink>) -> Facts {
        let pod_cidrs = vec!["10.1.0.0/24".parse().unwrap(), "fd00:1::/64".parse().unwrap()];
        Facts { release: "6.18.0".into(), links, pod_cidrs, ..Facts::default() }
    }

    fn checks(facts: &Facts) -> Vec<(Severity, &'static str)> {
        judge(facts).into_iter().map(|finding| (finding.severity, finding.check)).collect()
    }

    fn route(to: &str, link: u32, ours: bool) -> HostRoute {
        HostRoute { to: to.parse().unwrap(), link: Some(link), ours }
    }

    #[test]
    fn strict_links_matter_beside_a_tunnel() {
        let up = |link| HostLink { up: true, ..link };
        let uplink = || up(link(2, "eth0", ""));
        let tunnel = || HostLink { ours: true, ..up(link(3, "vxlan-moat", "vxlan")) };
        let of = |links, strict: &str| {
            checks(&Facts {
                strict: vec![strict.into()],
                routes: vec![route("192.0.2.0/24", 2, false)],
                ..facts(links)
            })
        };
        assert_eq!(of(vec![uplink(), tunnel()], "eth0"), [(Severity::Note, "strict-sources")]);
        assert_eq!(of(vec![uplink(), tunnel()], "lo"), []);
        assert_eq!(of(vec![uplink()], "eth0"), []);
    }

    #[test]
    fn portmap_is_known_by_its_table_or_its_chains() {
        let of = |table: &str, chain: &str| {
            let tables = [(table.to_owned(), vec![chain.to_owned()])].into();
            checks(&Facts { tables, ..facts(vec![]) })
        };
        assert_eq!(of("inet cni_hostport", "prerouting"), [(Severity::Warning, "host-ports")]);
        assert_eq!(of("ip nat", "CNI-HOSTPORT-DNAT"), [(Severity::Warning, "host-ports")]);
        assert_eq!(of("ip nat", "KUBE-SERVICES"), []);
    }

    #[test]
    fn kube_proxys_ipvs_is_refused_and_others_are_named() {
        assert_eq!(checks(&facts(vec![link(3, "kube-ipvs0", "dummy")])), [(Severity::Refused, "ipvs")]);
        let others = Facts { ipvs_services: 2, ..facts(vec![]) };
        assert_eq!(checks(&others), [(Severity::Warning, "ipvs")]);
    }

    #[test]
    fn an_advertised_default_route_is_kept_by_a_two() {
        let router = |accept_ra: &str, forwarding: &str| Router {
            link: "eth0".into(),
            accept_ra: accept_ra.into(),
            forwarding: forwarding.into(),
        };
        let warns = |router| !checks(&Facts { advertised: vec![router], ..facts(vec![]) }).is_empty();
        assert!(warns(router("1", "1")));
        assert!(!warns(router("2", "1")));
        // moat sets the 2 itself where it is the one who turns forwarding on.
        assert!(!warns(router("1", "0")));
        // A daemon of the host listens, not the kernel.
        assert!(!warns(router("0", "1")));
    }

    #[test]
    fn pods_of_other_networks_are_listed() {
        let mut facts = facts(vec![
            link(2, "eth0", ""),
            link(3, "moat0123456789a", "veth"),
            link(4, "caliabc", "veth"),
            link(5, "veth77", "veth"),
            HostLink { master: 7, ..link(6, "veth78", "veth") },
            link(7, "br7", "bridge"),
        ]);
        facts.routes = vec![
            route("0.0.0.0/0", 2, false),
            route("10.1.0.0/24", 7, false),
            route("10.1.0.5/32", 3, true),
            route("10.1.0.6/32", 5, false),
            route("10.9.0.6/32", 2, false),
        ];
        facts.neighbours = vec![(7, "10.1.0.9".parse().unwrap()), (3, "10.1.0.5".parse().unwrap())];
        let findings = judge(&facts);
        let what: Vec<&str> = findings.iter().map(|f| f.what.as_str()).collect();
        assert_eq!(
            what,
            [
                "the link caliabc is not moat's but, by its name, one of Calico: pods there are not protected",
                "the link veth77 is not moat's; this node leads to it 10.1.0.6: pods there are not protected",
                "the link br7 is not moat's; this node leads to it 10.1.0.9; behind it are veth78: pods there are not protected",
            ]
        );
        assert!(findings.iter().all(|f| f.check == "other-pods" && f.severity == Severity::Warning));
    }

    #[test]
    fn other_tunnels_that_are_up_are_named() {
        let down = HostLink { up: false, ..link(3, "sit0", "sit") };
        let all = vec![
            link(2, "tunl0", "ipip"),
            down,
            link(4, "moat-vxlan", "vxlan"),
            link(5, "wan", "gre"),
            link(6, "gre0", ""),
            link(7, "eth0", ""),
        ];
        let findings = judge(&facts(all));
        let named: Vec<&str> = findings.iter().map(|f| f.what.split(' ').next().unwrap()).collect();
        assert_eq!(named, ["tunl0", "wan", "gre0"]);
        assert!(findings[0].to_do.contains("ip link set tunl0 down"));
        assert!(findings[1].to_do.contains("ip link delete wan"));
    }

    #[test]
    fn a_plain_host_has_nothing_to_say() {
        assert_eq!(judge(&facts(vec![link(1, "lo", ""), link(2, "eth0", "")])), []);
    }
}
