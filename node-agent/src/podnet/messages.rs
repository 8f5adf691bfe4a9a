//! What the pod network asks of rtnetlink about links, addresses and neighbours, and what it reads of the answers.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::DefaultNla;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeader, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags,
    LinkHeader, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourHeader, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::attachment::format_mac;
use super::netlink::{Existing, Netlink, NetlinkError, Request};

const AF_INET: u16 = 2;
const IFLA_INET_CONF: u16 = 1;

/// One end of a veth pair to be.
pub(crate) struct End<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: [u8; 6],
}

/// A veth pair: one end in the namespace of the socket, the other in `peer_netns`. Both are down.
///
/// With one queue each way. Not told how many, the kernel makes one for each processor and takes all but one away again, and
/// waits for all processors at that, twice, while nobody else can change any link.
pub(crate) fn create_veth(end: &End<'_>, peer: &End<'_>, peer_netns: BorrowedFd<'_>, mtu: u32) -> Request {
    let mut other = LinkMessage::default();
    other.attributes = vec![
        LinkAttribute::IfName(peer.name.to_owned()),
        LinkAttribute::Address(peer.mac.to_vec()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::NetNsFd(peer_netns.as_raw_fd()),
        LinkAttribute::NumTxQueues(1),
        LinkAttribute::NumRxQueues(1),
    ];
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(end.name.to_owned()),
        LinkAttribute::Address(end.mac.to_vec()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::NumTxQueues(1),
        LinkAttribute::NumRxQueues(1),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
        ]),
    ];
    let action = format!("create the veth pair {} and {}", end.name, peer.name);
    Request::create(RouteNetlinkMessage::NewLink(message), Existing::Refuse, action)
}

/// No link-local address made up by the kernel: nobody needs one here, and each costs duplicate address
/// detection and multicast reports when the link comes up.
pub(crate) fn no_made_up_address(index: u32, name: &str) -> Request {
    let mut message = link_message(index);
    message.attributes = vec![LinkAttribute::AfSpecUnspec(vec![no_address()])];
    Request::plain(
        RouteNetlinkMessage::SetLink(message),
        format!("turn off the link-local address of {name}"),
    )
}

fn no_address() -> AfSpecUnspec {
    AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)])
}

/// Sets kernel parameters of a link for IPv4, each by its number (`IPV4_DEVCONF_*`), and turns the link-local address
/// off where there is IPv6.
pub(crate) fn set_parameters(name: &str, v4: &[(u16, u32)], ipv6: bool) -> Request {
    let mut message = LinkMessage::default();
    let mut families = vec![AfSpecUnspec::Other(DefaultNla::new(AF_INET, parameters(v4)))];
    families.extend(ipv6.then(no_address));
    message.attributes = vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::AfSpecUnspec(families)];
    let action = format!("set the kernel parameters of {name}");
    Request::plain(RouteNetlinkMessage::SetLink(message), action)
}

/// `IFLA_INET_CONF` as the kernel takes it: an attribute for each. (It tells them otherwise: as an array of all.)
fn parameters(values: &[(u16, u32)]) -> Vec<u8> {
    let header = |bytes: &mut Vec<u8>, kind: u16, length: usize| {
        bytes.extend((length as u16 + 4).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
    };
    let mut bytes = Vec::with_capacity(4 + 8 * values.len());
    header(&mut bytes, IFLA_INET_CONF, 8 * values.len());
    for (kind, value) in values {
        header(&mut bytes, *kind, 4);
        bytes.extend(value.to_ne_bytes());
    }
    bytes
}

/// Sets a link up.
pub(crate) fn set_up(index: u32, name: &str) -> Request {
    let mut message = link_message(index);
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    Request::plain(RouteNetlinkMessage::SetLink(message), format!("set {name} up"))
}

/// Sets a link down.
pub(crate) fn set_down(index: u32, name: &str) -> Request {
    let mut message = link_message(index);
    message.header.change_mask = LinkFlags::Up;
    Request::plain(RouteNetlinkMessage::SetLink(message), format!("set {name} down"))
}

/// Writes a text to a link, for whoever looks at it.
pub(crate) fn set_alias(name: &str, alias: &str) -> Request {
    let mut message = LinkMessage::default();
    message.attributes =
        vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::IfAlias(alias.to_owned())];
    Request::plain(RouteNetlinkMessage::SetLink(message), format!("write to {name} whose it is"))
}

/// Gives a link its hardware address and its MTU.
pub(crate) fn set_mac_and_mtu(index: u32, name: &str, mac: [u8; 6], mtu: u32) -> Request {
    let mut message = link_message(index);
    message.attributes = vec![LinkAttribute::Address(mac.to_vec()), LinkAttribute::Mtu(mtu)];
    let action = format!("set the hardware address of {name} to {} and its MTU to {mtu}", format_mac(mac));
    Request::plain(RouteNetlinkMessage::SetLink(message), action)
}

/// Removes the link `name`, and with it its peer and their routes and neighbours.
pub(crate) fn delete_link(name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
    Request::plain(RouteNetlinkMessage::DelLink(message), format!("remove the link {name}"))
}

/// `address`, alone in its prefix, on a link.
pub(crate) fn add_address(index: u32, address: IpAddr, existing: Existing) -> Request {
    let mut message = AddressMessage::default();
    message.header = AddressHeader {
        family: family(address),
        prefix_len: full_length(address),
        scope: AddressScope::Universe,
        index,
        ..AddressHeader::default()
    };
    // Duplicate address detection would hold the address back for two seconds, and there is nobody on the link to ask.
    let flags = AddressFlags::Nodad | AddressFlags::Noprefixroute;
    message.attributes = vec![
        AddressAttribute::Address(address),
        AddressAttribute::Local(address),
        AddressAttribute::Flags(flags),
    ];
    Request::create(RouteNetlinkMessage::NewAddress(message), existing, format!("give the pod {address}"))
}

/// A neighbour entry that never ages and is never asked for.
pub(crate) fn permanent_neighbour(index: u32, address: IpAddr, mac: [u8; 6]) -> Request {
    let mut message = neighbour_message(index, address);
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
    let action = format!("set the neighbour {address} to {}", format_mac(mac));
    Request::create(RouteNetlinkMessage::NewNeighbour(message), Existing::Replace, action)
}

/// No entry for a neighbour any more.
pub(crate) fn no_neighbour(index: u32, address: IpAddr, mac: [u8; 6]) -> Request {
    let action = format!("forget the neighbour {address} at {}", format_mac(mac));
    Request::plain(RouteNetlinkMessage::DelNeighbour(neighbour_message(index, address)), action)
}

impl Netlink {
    /// All addresses, each with the index of its link.
    pub(crate) fn addresses(&mut self) -> Result<Vec<(u32, IpAddr)>, NetlinkError> {
        let message = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = self.dump(Request::plain(message, "list the addresses"))?;
        Ok(answers
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewAddress(message) => {
                    let address = message.attributes.iter().find_map(|attribute| match attribute {
                        AddressAttribute::Local(address) => Some(*address),
                        _ => None,
                    });
                    let address = address.or_else(|| {
                        message.attributes.iter().find_map(|attribute| match attribute {
                            AddressAttribute::Address(address) => Some(*address),
                            _ => None,
                        })
                    });
                    Some((message.header.index, address?))
                }
                _ => None,
            })
            .collect())
    }

    /// The hardware address that a permanent neighbour entry gives `address`, if there is such an entry.
    pub(crate) fn permanent_neighbour(
        &mut self,
        index: u32,
        address: IpAddr,
    ) -> Result<Option<Vec<u8>>, NetlinkError> {
        let message = RouteNetlinkMessage::GetNeighbour(neighbour_message(index, address));
        match self.get(Request::plain(message, format!("look at the neighbour {address}"))) {
            Ok(RouteNetlinkMessage::NewNeighbour(message)) => {
                let mac = message.attributes.into_iter().find_map(|attribute| match attribute {
                    NeighbourAttribute::LinkLayerAddress(mac) => Some(mac),
                    _ => None,
                });
                Ok(mac.filter(|_| message.header.state == NeighbourState::Permanent))
            }
            Ok(_) => Ok(None),
            Err(error) if error.is(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn link_message(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header = LinkHeader { index, ..LinkHeader::default() };
    message
}

fn neighbour_message(index: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header =
        NeighbourHeader { family: family(address), ifindex: index, ..NeighbourHeader::default() };
    message.attributes = vec![NeighbourAttribute::Destination(neighbour_address(address))];
    message
}

pub(crate) fn neighbour_address(address: IpAddr) -> NeighbourAddress {
    match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    }
}

/// Whom a message about a neighbour is about.
pub(crate) fn neighbour_of(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    })
}

pub(crate) fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// The length of the prefix that holds one address.
pub(crate) fn full_length(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}
