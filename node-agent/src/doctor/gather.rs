//! The edge: what a host is like, read from the kernel. Nothing is changed, nothing is made by asking, and no other program
//! is run.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use moat_nfnetlink::nft::{ChainInfo, Family, Socket};
use moat_nfnetlink::xtables;
use netlink_packet_route::neighbour::NeighbourState;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{DoctorError, Facts, ForwardChain, HostLink, HostRoute, Router, probe};
use crate::dataplane::TABLE;
use crate::podnet::{Link, Netlink, ROUTE_PROTOCOL, Request, TUNNEL, TUNNEL_ID, is_host_ifname, sysctl};

/// `NF_INET_FORWARD`.
const FORWARD: u32 = 2;

/// Looks at the network namespace of the calling thread. Without `pod_cidrs`, those that moat's own routes tell of.
pub fn gather(pod_cidrs: &[IpNet]) -> Result<Facts, DoctorError> {
    let mut netlink = Netlink::open()?;
    let links: Vec<HostLink> = netlink.links()?.into_iter().map(host_link).collect();
    let (mut routes, mut advertised, mut own_cidrs) = (Vec::new(), Vec::new(), Vec::new());
    for ipv6 in [false, true] {
        for message in dump_routes(&mut netlink, ipv6)? {
            let Some((route, kind, protocol)) = read_route(&message) else { continue };
            if route.ours && kind == RouteType::Unreachable {
                own_cidrs.push(route.to);
            }
            let link = route.link.and_then(|index| links.iter().find(|link| link.index == index));
            if ipv6 && route.to.prefix_len() == 0 && protocol == RouteProtocol::Ra {
                advertised.extend(link.map(|link| router(&link.name)));
            }
            routes.push(route);
        }
    }
    let (forward_chains, tables) = firewalls()?;
    let strict = links.iter().map(|link| &link.name).filter(|name| is_strict(name)).cloned().collect();
    Ok(Facts {
        release: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        probes: probe::probe(),
        pod_cidrs: if pod_cidrs.is_empty() { own_cidrs } else { pod_cidrs.to_vec() },
        links,
        routes,
        neighbours: neighbours(&mut netlink)?,
        forward_chains,
        tables,
        advertised,
        ipvs_services: ipvs_services(),
        strict,
    })
}

/// What holds is the higher of what is said of a link and of all; 2 is loose.
fn is_strict(link: &str) -> bool {
    let value = |name: &str| sysctl::get(&format!("ipv4/conf/{name}/rp_filter"));
    value(link).max(value("all")).as_deref() == Some("1")
}

fn host_link(link: Link) -> HostLink {
    let tunnel = link.name == TUNNEL && link.vxlan.as_ref().is_some_and(|vxlan| vxlan.id == TUNNEL_ID);
    HostLink {
        ours: is_host_ifname(&link.name) && link.veth || tunnel,
        index: link.index,
        name: link.name,
        kind: link.kind,
        up: link.up,
        master: link.master,
        leads_elsewhere: link.leads_elsewhere,
    }
}

fn router(link: &str) -> Router {
    let value = |name: &str| sysctl::get(&format!("ipv6/conf/{link}/{name}")).unwrap_or_default();
    Router { link: link.to_owned(), accept_ra: value("accept_ra"), forwarding: value("forwarding") }
}

fn dump_routes(netlink: &mut Netlink, ipv6: bool) -> Result<Vec<RouteMessage>, DoctorError> {
    if ipv6 && !sysctl::has_ipv6() {
        return Ok(Vec::new());
    }
    let mut message = RouteMessage::default();
    message.header.address_family = if ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let ask = Request::plain(RouteNetlinkMessage::GetRoute(message), "list the routes");
    let answers = netlink.dump(ask)?.into_iter();
    Ok(answers
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(route) if route.header.table == RouteHeader::RT_TABLE_MAIN => {
                Some(route)
            }
            _ => None,
        })
        .collect())
}

fn read_route(message: &RouteMessage) -> Option<(HostRoute, RouteType, RouteProtocol)> {
    let mut to: IpAddr = match message.header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        _ => Ipv6Addr::UNSPECIFIED.into(),
    };
    let mut link = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => to = (*address).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => to = (*address).into(),
            RouteAttribute::Oif(index) => link = Some(*index),
            _ => {}
        }
    }
    let to = IpNet::new(to, message.header.destination_prefix_length).ok()?;
    let protocol = message.header.protocol;
    let ours = protocol == RouteProtocol::Other(ROUTE_PROTOCOL);
    Some((HostRoute { to, link, ours }, message.header.kind, protocol))
}

/// Those that answered once, or that somebody wrote down.
fn neighbours(netlink: &mut Netlink) -> Result<Vec<(u32, IpAddr)>, DoctorError> {
    let silent = [NeighbourState::Failed, NeighbourState::Incomplete, NeighbourState::Noarp];
    Ok(netlink.neighbours(|state| !silent.contains(&state))?)
}

type Tables = BTreeMap<String, Vec<String>>;

/// Everybody's chains at the forward hook, and all tables, but for ours.
fn firewalls() -> Result<(Vec<ForwardChain>, Tables), DoctorError> {
    let mut chains = Vec::new();
    for (ipv6, table) in [(false, "ip filter"), (true, "ip6 filter")] {
        let Some(filter) = xtables::read(ipv6)? else { continue };
        let accepts = |interface: fn(&xtables::Rule) -> (&String, &String)| {
            let pods = |rule: &&xtables::Rule| {
                let (asked, other) = interface(rule);
                rule.accepts && other.is_empty() && covers_pods(asked, '+')
            };
            filter.forward.iter().find(pods).is_some()
        };
        chains.push(ForwardChain {
            table: table.to_owned(),
            chain: "FORWARD".to_owned(),
            legacy: true,
            ipv4: !ipv6,
            ipv6,
            drops: filter.drops,
            accepts_from_pods: accepts(|rule| (&rule.in_interface, &rule.out_interface)),
            accepts_to_pods: accepts(|rule| (&rule.out_interface, &rule.in_interface)),
            others: filter.chains,
        });
    }
    let mut socket = Socket::open()?;
    let mut tables = Tables::new();
    for table in socket.tables(None)?.items {
        let (ipv4, ipv6) = match table.id.family {
            Family::Inet => (true, true),
            Family::Ip => (true, false),
            Family::Ip6 => (false, true),
            _ => continue,
        };
        if *table.id.name == *TABLE {
            continue;
        }
        let written = table.id.to_string();
        let there = socket.chains(&table.id)?.items;
        let names: Vec<String> = there.iter().map(|chain| chain.name.to_string()).collect();
        for chain in there.iter().filter(|chain| sees_forwarded(chain)) {
            let rules = socket.rules(&table.id, Some(&chain.name))?.items;
            let accepts = |out: bool| {
                let pods = |(name, outgoing): (String, bool)| outgoing == out && covers_pods(&name, '*');
                rules.iter().filter_map(|rule| rule.accepts_all_of()).any(pods)
            };
            chains.push(ForwardChain {
                table: written.clone(),
                chain: chain.name.to_string(),
                legacy: false,
                ipv4,
                ipv6,
                drops: chain.base.as_ref().is_some_and(|base| !base.accept),
                accepts_from_pods: accepts(false),
                accepts_to_pods: accepts(true),
                others: names.clone(),
            });
        }
        tables.insert(written, names);
    }
    Ok((chains, tables))
}

fn sees_forwarded(chain: &ChainInfo) -> bool {
    chain.base.as_ref().is_some_and(|base| base.hook == FORWARD && base.kind == "filter")
}

/// Whether a pattern takes the names of all pods' links.
fn covers_pods(pattern: &str, any: char) -> bool {
    pattern.strip_suffix(any).is_some_and(|prefix| crate::dataplane::VETH_PREFIX.starts_with(prefix))
}

/// The virtual services that IPVS has, where there is IPVS.
fn ipvs_services() -> usize {
    let table = fs::read_to_string("/proc/thread-self/net/ip_vs").unwrap_or_default();
    let protocols = ["TCP ", "UDP ", "SCTP ", "FWM "];
    table.lines().filter(|line| protocols.iter().any(|protocol| line.starts_with(protocol))).count()
}
