//! The kernel's side of the way to other nodes: reading what is there, and making the difference.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use moat_policies::Node;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourHeader, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleHeader, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;

use super::super::attachment::format_mac;
use super::super::links::{Link, Vxlan};
use super::super::messages;
use super::super::netlink::{Existing, Netlink, NetlinkError, Request};
use super::super::netns::Netns;
use super::super::route::{MAIN_TABLE, ROUTE_PROTOCOL, Route};
use super::super::{PodNetError, sysctl};
use super::wanted::{self, NODES_TABLE, Seen, Tunnel, Wanted};
use super::{Mode, TUNNEL, TUNNEL_ID};
use crate::dataplane::TUNNEL_PORT;

/// Before `main`, behind the node's own addresses.
const RULE_PRIORITY: u32 = 10_109;

/// What `local` sees around it.
pub(crate) fn see(
    netlink: &mut Netlink,
    local: &Node,
    others: &[Node],
    mode: Mode,
) -> Result<Seen, NetlinkError> {
    let addresses = netlink.addresses()?;
    let index =
        addresses.iter().find(|(_, address)| local.addresses.contains(address)).map(|(index, _)| *index);
    let links = netlink.links()?;
    let mtu = links.iter().find(|link| Some(link.index) == index).map(|link| link.mtu);
    let mut seen = Seen { held: addresses.into_iter().map(|(_, a)| a).collect(), mtu, ..Seen::default() };
    if mode == Mode::Auto {
        for &address in others.iter().flat_map(|node| &node.addresses) {
            if netlink.is_near(address)? {
                seen.near.insert(address);
            }
        }
    }
    Ok(seen)
}

/// Makes the kernel have what is wanted, and of what is marked as ours nothing else.
pub(crate) fn follow(netlink: &mut Netlink, node: &Netns, wanted: &Wanted) -> Result<(), PodNetError> {
    let mut errors = Vec::new();
    let tunnel = match &wanted.tunnel {
        Some(tunnel) => match ready(netlink, node, tunnel, wanted) {
            Ok(index) => Some(index),
            Err(error) => {
                errors.push(error);
                None
            }
        },
        None => None,
    };
    errors.extend(route(netlink, &wanted.routes(tunnel))?.into_iter().map(PodNetError::Kernel));
    errors.extend(rules(netlink, &wanted.rules)?.into_iter().map(PodNetError::Kernel));
    if let Some(index) = tunnel {
        // What nothing leads to any more.
        errors.extend(forget_ends(netlink, index, wanted)?.into_iter().map(PodNetError::Kernel));
    } else if wanted.tunnel.is_none() && netlink.link(TUNNEL)?.is_some_and(|link| link.vxlan.is_some()) {
        netlink.apply(vec![messages::delete_link(TUNNEL)])?;
    }
    PodNetError::collect(errors)
}

fn route(netlink: &mut Netlink, wanted: &[Route]) -> Result<Vec<NetlinkError>, NetlinkError> {
    let mut present = Vec::new();
    for table in [MAIN_TABLE, NODES_TABLE] {
        present.extend(netlink.routes_of(false, true, table)?);
        present.extend(netlink.routes_of(true, true, table)?);
    }
    let plan = wanted::plan(wanted, &present);
    let set = plan.set.iter().map(Route::set);
    let requests = set.chain(plan.remove.iter().map(Route::delete)).collect();
    Ok(refused(netlink, requests, |error| error.is(Errno::SRCH)))
}

fn rules(netlink: &mut Netlink, wanted: &BTreeSet<IpNet>) -> Result<Vec<NetlinkError>, NetlinkError> {
    let present = netlink.own_rules()?;
    let add = wanted.iter().filter(|from| !present.contains(*from)).map(|from| {
        let message = RouteNetlinkMessage::NewRule(rule(*from));
        Request::create(
            message,
            Existing::Refuse,
            format!("look up what {from} sends in table {NODES_TABLE}"),
        )
    });
    let remove = present.iter().filter(|from| !wanted.contains(*from)).map(|from| {
        let message = RouteNetlinkMessage::DelRule(rule(*from));
        Request::plain(message, format!("remove the rule from {from}"))
    });
    let requests = add.chain(remove).collect();
    Ok(refused(netlink, requests, |error| error.is(Errno::EXIST) || error.is(Errno::NOENT)))
}

/// Sees to it that the tunnel's device is there, knows its ends and is up; returns its index.
fn ready(netlink: &mut Netlink, node: &Netns, tunnel: &Tunnel, wanted: &Wanted) -> Result<u32, PodNetError> {
    let expected = Vxlan { id: TUNNEL_ID, port: TUNNEL_PORT, local: Some(tunnel.local), learning: false };
    let there = netlink.link(TUNNEL)?;
    if there.as_ref().is_some_and(|link| link.vxlan.as_ref() != Some(&expected)) {
        netlink.apply(vec![messages::delete_link(TUNNEL)])?;
    }
    let mut link = match there.filter(|link| link.vxlan.as_ref() == Some(&expected)) {
        Some(link) => link,
        None => {
            netlink.apply(vec![create(tunnel)])?;
            netlink.link(TUNNEL)?.unwrap_or_default()
        }
    };
    if link.mac != tunnel.mac || link.mtu != tunnel.mtu {
        netlink.apply(vec![messages::set_mac_and_mtu(link.index, TUNNEL, tunnel.mac, tunnel.mtu)])?;
    }
    if !link.up {
        netlink.apply(vec![messages::no_made_up_address(link.index, TUNNEL)])?;
    }
    let ipv6 = wanted.ways.keys().any(|(_, to)| !to.addr().is_ipv4());
    node.run(|| sysctl::set_all(&sysctl::of_tunnel(TUNNEL, ipv6)))??;
    if !link.up {
        netlink.apply(vec![messages::set_up(link.index, TUNNEL)])?;
        link.up = true;
    }
    let known = ends(netlink, &link)?;
    let mut requests = Vec::new();
    for (&mac, &end) in wanted.forwarding.iter().filter(|(mac, end)| known.forwarding.get(*mac) != Some(end))
    {
        requests.push(behind(link.index, mac, end));
    }
    for (&address, &mac) in
        wanted.neighbours.iter().filter(|(address, mac)| known.neighbours.get(*address) != Some(mac))
    {
        requests.push(messages::permanent_neighbour(link.index, address, mac));
    }
    netlink.apply(requests)?;
    Ok(link.index)
}

/// What the tunnel's device knows.
#[derive(Debug, Default)]
struct Ends {
    neighbours: BTreeMap<IpAddr, [u8; 6]>,
    forwarding: BTreeMap<[u8; 6], IpAddr>,
}

fn ends(netlink: &mut Netlink, link: &Link) -> Result<Ends, NetlinkError> {
    Ok(Ends {
        neighbours: netlink.neighbours_of(link.index)?,
        forwarding: netlink.forwarding_of(link.index)?,
    })
}

fn forget_ends(
    netlink: &mut Netlink,
    index: u32,
    wanted: &Wanted,
) -> Result<Vec<NetlinkError>, NetlinkError> {
    let mut requests = Vec::new();
    for (address, mac) in netlink.neighbours_of(index)? {
        if !wanted.neighbours.contains_key(&address) {
            requests.push(messages::no_neighbour(index, address, mac));
        }
    }
    for (mac, end) in netlink.forwarding_of(index)? {
        if !wanted.forwarding.contains_key(&mac) {
            requests.push(not_behind(index, mac, end));
        }
    }
    Ok(refused(netlink, requests, |error| error.is(Errno::NOENT)))
}

/// Carries requests out; returns what was refused, but for what does not matter.
fn refused(
    netlink: &mut Netlink,
    requests: Vec<Request>,
    harmless: impl Fn(&NetlinkError) -> bool,
) -> Vec<NetlinkError> {
    let results = netlink.apply_each(requests);
    results.into_iter().filter_map(Result::err).filter(|error| !harmless(error)).collect()
}

fn create(tunnel: &Tunnel) -> Request {
    let local = match tunnel.local {
        IpAddr::V4(v4) => InfoVxlan::Local(v4),
        IpAddr::V6(v6) => InfoVxlan::Local6(v6),
    };
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(TUNNEL.to_owned()),
        LinkAttribute::Address(tunnel.mac.to_vec()),
        LinkAttribute::Mtu(tunnel.mtu),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(vec![
                InfoVxlan::Id(TUNNEL_ID),
                local,
                InfoVxlan::Port(TUNNEL_PORT),
                // Who is where is told, and nobody's frame changes it.
                InfoVxlan::Learning(false),
            ])),
        ]),
    ];
    let action = format!("create the tunnel's device {TUNNEL}");
    Request::create(RouteNetlinkMessage::NewLink(message), Existing::Refuse, action)
}

fn behind(index: u32, mac: [u8; 6], end: IpAddr) -> Request {
    let action = format!("lead {} through the tunnel to {end}", format_mac(mac));
    Request::create(RouteNetlinkMessage::NewNeighbour(forwarding(index, mac, end)), Existing::Replace, action)
}

fn not_behind(index: u32, mac: [u8; 6], end: IpAddr) -> Request {
    let action = format!("lead {} no more through the tunnel to {end}", format_mac(mac));
    Request::plain(RouteNetlinkMessage::DelNeighbour(forwarding(index, mac, end)), action)
}

/// An entry of the device's forwarding database.
fn forwarding(index: u32, mac: [u8; 6], end: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header = NeighbourHeader {
        family: AddressFamily::Bridge,
        ifindex: index,
        state: NeighbourState::Permanent,
        flags: NeighbourFlags::Own,
        ..NeighbourHeader::default()
    };
    let end = messages::neighbour_address(end);
    message.attributes =
        vec![NeighbourAttribute::LinkLayerAddress(mac.to_vec()), NeighbourAttribute::Destination(end)];
    message
}

fn rule(from: IpNet) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header = RuleHeader {
        family: messages::family(from.addr()),
        src_len: from.prefix_len(),
        action: RuleAction::ToTable,
        ..RuleHeader::default()
    };
    message.attributes = vec![
        RuleAttribute::Source(from.addr()),
        RuleAttribute::Priority(RULE_PRIORITY),
        RuleAttribute::Table(NODES_TABLE),
        RuleAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL)),
    ];
    message
}

impl Netlink {
    /// The rules that bear our number: what they are from.
    pub(crate) fn own_rules(&mut self) -> Result<BTreeSet<IpNet>, NetlinkError> {
        let mut rules = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RuleMessage::default();
            message.header.family = family;
            let answers =
                match self.dump(Request::plain(RouteNetlinkMessage::GetRule(message), "list the rules")) {
                    Ok(answers) => answers,
                    // A kernel without IPv6 has no rules of it.
                    Err(error) if error.is(Errno::OPNOTSUPP) || error.is(Errno::AFNOSUPPORT) => continue,
                    Err(error) => return Err(error),
                };
            for answer in answers {
                let RouteNetlinkMessage::NewRule(message) = answer else { continue };
                let own = RuleAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL));
                let from = message.attributes.iter().find_map(|attribute| match attribute {
                    RuleAttribute::Source(from) => Some(*from),
                    _ => None,
                });
                let from = from.and_then(|from| IpNet::new(from, message.header.src_len).ok());
                rules.extend(from.filter(|_| message.attributes.contains(&own)));
            }
        }
        Ok(rules)
    }

    /// The permanent neighbours on a link.
    fn neighbours_of(&mut self, index: u32) -> Result<BTreeMap<IpAddr, [u8; 6]>, NetlinkError> {
        let ask = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        let answers = self.dump(Request::plain(ask, "list the neighbours"))?;
        let of = |message: &NeighbourMessage| {
            let permanent = message.header.state == NeighbourState::Permanent;
            let address = messages::neighbour_of(message);
            Some((address?, mac_of(message)?)).filter(|_| permanent && message.header.ifindex == index)
        };
        Ok(answers.iter().filter_map(|answer| of(neighbour(answer)?)).collect())
    }

    /// The forwarding database of a VXLAN device.
    fn forwarding_of(&mut self, index: u32) -> Result<BTreeMap<[u8; 6], IpAddr>, NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        let ask = Request::plain(RouteNetlinkMessage::GetNeighbour(message), "list what the tunnel leads to");
        let of = |message: &NeighbourMessage| {
            let end = message.attributes.iter().find_map(|attribute| match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
                NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                    let v4 = || <[u8; 4]>::try_from(&bytes[..]).map(IpAddr::from);
                    <[u8; 16]>::try_from(&bytes[..]).map(IpAddr::from).or_else(|_| v4()).ok()
                }
                _ => None,
            });
            Some((mac_of(message)?, end?)).filter(|_| message.header.ifindex == index)
        };
        Ok(self.dump(ask)?.iter().filter_map(|answer| of(neighbour(answer)?)).collect())
    }
}

fn neighbour(answer: &RouteNetlinkMessage) -> Option<&NeighbourMessage> {
    match answer {
        RouteNetlinkMessage::NewNeighbour(message) => Some(message),
        _ => None,
    }
}

fn mac_of(message: &NeighbourMessage) -> Option<[u8; 6]> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(mac) => mac[..].try_into().ok(),
        _ => None,
    })
}
