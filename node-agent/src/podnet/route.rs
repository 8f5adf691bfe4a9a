//! Routes, as the kernel has them and takes them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;

use super::messages::{family, full_length};
use super::netlink::{Existing, Netlink, NetlinkError, Request};

/// The mark (`rtm_protocol`) on every route that moat makes in the node's namespace, so that its own can be told from
/// all others. No routing daemon that iproute2 or the kernel names has this number.
pub const ROUTE_PROTOCOL: u8 = 109;

/// A route, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    pub(crate) to: IpNet,
    pub(crate) hop: Hop,
    /// 0: the kernel's default for the family.
    pub(crate) metric: u32,
    /// Which of the node's addresses the node's own packets have; `None`: the kernel chooses.
    pub(crate) source: Option<IpAddr>,
    /// The routing table that it is in.
    pub(crate) table: u32,
}

/// The table that everything is looked up in.
pub(crate) const MAIN_TABLE: u32 = RouteHeader::RT_TABLE_MAIN as u32;

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Hop {
    /// Out of a link, to whoever holds the address there.
    Link(u32),
    /// To a router on a link.
    LinkVia(u32, IpAddr),
    /// To a router; the kernel finds the link.
    Via(IpAddr),
    /// To a router that is said to be on a link, whatever addresses the link has.
    Onlink(u32, IpAddr),
    /// Nowhere: the sender is told so.
    Unreachable,
}

impl Route {
    /// A route of the main table with the family's metric.
    pub(crate) fn new(to: IpNet, hop: Hop) -> Self {
        Self { to, hop, metric: 0, source: None, table: MAIN_TABLE }
    }

    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: family(self.to.addr()),
            destination_prefix_length: self.to.prefix_len(),
            // Ours have small numbers.
            table: self.table as u8,
            flags: match self.hop {
                Hop::Onlink(..) => RouteFlags::Onlink,
                _ => RouteFlags::empty(),
            },
            protocol: RouteProtocol::Other(ROUTE_PROTOCOL),
            scope: match self.hop {
                Hop::Link(_) if self.to.addr().is_ipv4() => RouteScope::Link,
                _ => RouteScope::Universe,
            },
            kind: match self.hop {
                Hop::Unreachable => RouteType::Unreachable,
                _ => RouteType::Unicast,
            },
            ..RouteHeader::default()
        };
        if self.to.prefix_len() > 0 {
            message.attributes.push(RouteAttribute::Destination(route_address(self.to.addr())));
        }
        if self.metric != 0 {
            message.attributes.push(RouteAttribute::Priority(self.metric));
        }
        if let Some(source) = self.source {
            message.attributes.push(RouteAttribute::PrefSource(route_address(source)));
        }
        if let Hop::Link(index) | Hop::LinkVia(index, _) | Hop::Onlink(index, _) = self.hop {
            message.attributes.push(RouteAttribute::Oif(index));
        }
        if let Hop::Via(gateway) | Hop::LinkVia(_, gateway) | Hop::Onlink(_, gateway) = self.hop {
            message.attributes.push(RouteAttribute::Gateway(route_address(gateway)));
        }
        message
    }

    /// Makes the route, or replaces the one of its prefix and metric.
    pub(crate) fn set(&self) -> Request {
        Request::create(
            RouteNetlinkMessage::NewRoute(self.message()),
            Existing::Replace,
            format!("set the route {self}"),
        )
    }

    /// Removes exactly this route.
    pub(crate) fn delete(&self) -> Request {
        Request::plain(RouteNetlinkMessage::DelRoute(self.message()), format!("remove the route {self}"))
    }

    fn read(message: &RouteMessage) -> Option<Self> {
        let (mut to, mut gateway, mut link, mut metric, mut source) = (None, None, None, 0, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => to = ip(address),
                RouteAttribute::Gateway(address) => gateway = ip(address),
                RouteAttribute::Oif(index) => link = Some(*index),
                RouteAttribute::Priority(value) => metric = *value,
                RouteAttribute::PrefSource(address) => source = ip(address),
                _ => {}
            }
        }
        let unspecified = match message.header.address_family {
            AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            _ => return None,
        };
        let to = IpNet::new(to.unwrap_or(unspecified), message.header.destination_prefix_length).ok()?;
        let said = message.header.flags.contains(RouteFlags::Onlink);
        let hop = match (message.header.kind, link, gateway) {
            (RouteType::Unreachable, _, _) => Hop::Unreachable,
            (RouteType::Unicast, Some(link), Some(gateway)) if said => Hop::Onlink(link, gateway),
            (RouteType::Unicast, Some(link), Some(gateway)) => Hop::LinkVia(link, gateway),
            (RouteType::Unicast, Some(link), None) => Hop::Link(link),
            (RouteType::Unicast, None, Some(gateway)) => Hop::Via(gateway),
            _ => return None,
        };
        Some(Self { to, hop, metric, source, table: message.header.table.into() })
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.hop {
            Hop::Link(_) => write!(f, "to {}", self.to),
            Hop::Via(gateway) | Hop::LinkVia(_, gateway) => write!(f, "to {} via {gateway}", self.to),
            Hop::Onlink(_, gateway) => write!(f, "to {} via {gateway} through the tunnel", self.to),
            Hop::Unreachable => write!(f, "unreachable {}", self.to),
        }
    }
}

/// What the kernel says where no route leads somewhere, or one that forbids it.
const NOWHERE: [Errno; 5] =
    [Errno::NETUNREACH, Errno::HOSTUNREACH, Errno::ACCESS, Errno::INVAL, Errno::AFNOSUPPORT];

impl Netlink {
    /// Whether packets for `address` are taken in here.
    pub(crate) fn is_local(&mut self, address: IpAddr) -> Result<bool, NetlinkError> {
        Ok(self.route_to(address)?.is_some_and(|route| route.header.kind == RouteType::Local))
    }

    /// Whether a link leads to whoever has `address`, with no router between.
    pub(crate) fn is_near(&mut self, address: IpAddr) -> Result<bool, NetlinkError> {
        let by_router = |a: &RouteAttribute| matches!(a, RouteAttribute::Gateway(_) | RouteAttribute::Via(_));
        Ok(self.route_to(address)?.is_some_and(|route| {
            route.header.kind == RouteType::Unicast && !route.attributes.iter().any(by_router)
        }))
    }

    fn route_to(&mut self, address: IpAddr) -> Result<Option<RouteMessage>, NetlinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(address);
        message.header.destination_prefix_length = full_length(address);
        message.attributes = vec![RouteAttribute::Destination(route_address(address))];
        let ask =
            Request::plain(RouteNetlinkMessage::GetRoute(message), format!("look up the route to {address}"));
        match self.get(ask) {
            Ok(RouteNetlinkMessage::NewRoute(route)) => Ok(Some(route)),
            Ok(_) => Ok(None),
            Err(error) if NOWHERE.iter().any(|errno| error.is(*errno)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The routes of the main table, of one family: only moat's own, or all.
    pub(crate) fn routes(&mut self, ipv6: bool, own: bool) -> Result<Vec<Route>, NetlinkError> {
        self.routes_of(ipv6, own, MAIN_TABLE)
    }

    /// The same, of another table.
    pub(crate) fn routes_of(
        &mut self,
        ipv6: bool,
        own: bool,
        table: u32,
    ) -> Result<Vec<Route>, NetlinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = if ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        message.header.table = table as u8;
        if own {
            message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
        }
        let answers = self.dump(Request::plain(RouteNetlinkMessage::GetRoute(message), "list the routes"));
        let answers = match answers {
            Ok(answers) => answers,
            // A kernel without IPv6 has no routes of it, and a namespace without any has no such table yet.
            Err(error) if error.is(Errno::OPNOTSUPP) || error.is(Errno::NOENT) => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok(answers
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(message)
                    if u32::from(message.header.table) == table
                        && (!own || message.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)) =>
                {
                    Route::read(message)
                }
                _ => None,
            })
            .collect())
    }
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}
