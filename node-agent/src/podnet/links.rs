//! Links as the kernel tells them, read attribute by attribute: what others wrote into one (an alias may hold any bytes) must not
//! keep us from reading the rest.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourMessage, NeighbourState};
use rustix::io::Errno;

use super::attachment::{IFNAME_PREFIX, is_host_ifname};
use super::messages;
use super::netlink::{Netlink, NetlinkError, Request};
use super::route::Hop;

/// `nlmsghdr`, then `ifinfomsg`.
const HEADERS: usize = 16 + 16;
const RTM_NEWLINK: u16 = 16;
const IFF_UP: u32 = 1;
const IF_OPER_UP: u8 = 6;
/// The type bits of an attribute's number.
const ATTRIBUTE: u16 = 0x3fff;

/// A link, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mac: Vec<u8>,
    pub(crate) mtu: u32,
    /// Somebody set it up.
    pub(crate) up: bool,
    /// It passes packets: it is up, its peer is, and the kernel has noticed.
    pub(crate) running: bool,
    pub(crate) veth: bool,
    /// What it carries, where it is a VXLAN tunnel's.
    pub(crate) vxlan: Option<Vxlan>,
    /// What kind of virtual link it is; empty for a real one.
    pub(crate) kind: String,
    /// The index of the bridge that it is a port of, or 0.
    pub(crate) master: u32,
    /// Its other end is in another network namespace.
    pub(crate) leads_elsewhere: bool,
    /// What somebody wrote to it; empty where nobody did.
    pub(crate) alias: Vec<u8>,
}

/// What makes a VXLAN device the one that it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Vxlan {
    pub(crate) id: u32,
    pub(crate) port: u16,
    /// The address that its frames come from.
    pub(crate) local: Option<IpAddr>,
    /// Whether the frames that come tell it who is where.
    pub(crate) learning: bool,
}

/// A link that looks like a pod's, and the addresses that the node leads to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PodLink {
    pub(crate) link: Link,
    /// By routes of ours, permanent neighbours, and the hardware address that we give.
    pub(crate) addresses: BTreeSet<IpAddr>,
}

impl Netlink {
    /// The link `name`, if there is one.
    pub(crate) fn link(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        match self.get_bytes(look_at(name)) {
            Ok(answer) => Ok(read_link(&answer)),
            Err(error) if error.is(Errno::NODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Carries the requests out, and says what the link `name` is after that: all with one call of the kernel.
    pub(crate) fn link_after(
        &mut self,
        mut requests: Vec<Request>,
        name: &str,
    ) -> Result<Option<Link>, NetlinkError> {
        let mut link = None;
        requests.push(look_at(name));
        self.apply_and_read(requests, |answer| link = read_link(answer).or(link.take()))?;
        Ok(link)
    }

    /// All links.
    pub(crate) fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let message = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self.dump_bytes(Request::plain(message, "list the links"))?;
        Ok(answers.iter().filter_map(|answer| read_link(answer)).collect())
    }

    /// The links that look like a pod's, the oldest first, with what the kernel knows of their addresses.
    pub(crate) fn pod_links(&mut self) -> Result<Vec<PodLink>, NetlinkError> {
        let mut links: Vec<PodLink> = self
            .links()?
            .into_iter()
            .filter(|link| link.veth && is_host_ifname(&link.name))
            .map(|link| PodLink { addresses: from_mac(&link.mac).into_iter().collect(), link })
            .collect();
        if links.is_empty() {
            return Ok(links);
        }
        links.sort_by_key(|pod| pod.link.index);
        let mut known: Vec<(u32, IpAddr)> = self.neighbours(|state| state == NeighbourState::Permanent)?;
        for ipv6 in [false, true] {
            let routes = self.routes(ipv6, true)?;
            known.extend(routes.into_iter().filter_map(|route| match route.hop {
                Hop::Link(index) => Some((index, route.to.addr())),
                _ => None,
            }));
        }
        for (index, address) in known {
            if let Ok(at) = links.binary_search_by_key(&index, |pod| pod.link.index) {
                links[at].addresses.insert(address);
            }
        }
        Ok(links)
    }

    /// The neighbours of a wanted state, each with the index of its link.
    pub(crate) fn neighbours(
        &mut self,
        wanted: impl Fn(NeighbourState) -> bool,
    ) -> Result<Vec<(u32, IpAddr)>, NetlinkError> {
        let message = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        let answers = self.dump(Request::plain(message, "list the neighbours"))?;
        Ok(answers
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewNeighbour(message) if wanted(message.header.state) => {
                    messages::neighbour_of(message).map(|address| (message.header.ifindex, address))
                }
                _ => None,
            })
            .collect())
    }
}

fn look_at(name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
    Request::plain(RouteNetlinkMessage::GetLink(message), format!("look at the link {name}"))
}

/// The IPv4 address that a host end's hardware address was made of.
fn from_mac(mac: &[u8]) -> Option<IpAddr> {
    match *mac {
        [0x06, 0x6d, a, b, c, d] => Some(IpAddr::from([a, b, c, d])),
        _ => None,
    }
}

/// A link in a message of the kernel.
pub(crate) fn read_link(message: &[u8]) -> Option<Link> {
    if u16_at(message, 4)? != RTM_NEWLINK {
        return None;
    }
    let mut link =
        Link { index: u32_at(message, 20)?, up: u32_at(message, 24)? & IFF_UP != 0, ..Link::default() };
    for (kind, value) in attributes(message.get(HEADERS..)?) {
        match kind {
            1 => link.mac = value.to_vec(),
            3 => link.name = text(value),
            4 => link.mtu = u32_at(value, 0).unwrap_or_default(),
            16 => link.running = value.first() == Some(&IF_OPER_UP),
            // Within what kind of link it is, the first attribute is the kind's name.
            18 => {
                link.kind = attributes(value)
                    .find(|(kind, _)| *kind == 1)
                    .map(|(_, value)| text(value))
                    .unwrap_or_default();
                link.veth = link.kind == "veth";
                let data = attributes(value).find(|(kind, _)| *kind == 2);
                link.vxlan = data.filter(|_| link.kind == "vxlan").map(|(_, data)| read_vxlan(data));
            }
            10 => link.master = u32_at(value, 0).unwrap_or_default(),
            37 => link.leads_elsewhere = true,
            20 => link.alias = value.strip_suffix(b"\0").unwrap_or(value).to_vec(),
            _ => {}
        }
    }
    debug_assert!(!link.name.starts_with(IFNAME_PREFIX) || link.name.len() < 16);
    Some(link)
}

/// The parameters of a VXLAN device (`IFLA_VXLAN_*`).
fn read_vxlan(data: &[u8]) -> Vxlan {
    let mut vxlan = Vxlan::default();
    for (kind, value) in attributes(data) {
        match kind {
            1 => vxlan.id = u32_at(value, 0).unwrap_or_default(),
            4 => vxlan.local = <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
            7 => vxlan.learning = value != [0],
            15 => vxlan.port = u16_at(value, 0).map_or(0, u16::from_be),
            17 => vxlan.local = <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
            _ => {}
        }
    }
    vxlan
}

/// The attributes one after another; ends at the first that is none.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let value = bytes.get(4..length)?;
        let kind = u16_at(bytes, 2)? & ATTRIBUTE;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(b"\0").unwrap_or(value)).into_owned()
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
impl PodLink {
    /// The link of an attachment as ADD leaves it.
    pub(crate) fn of(a: &super::Attachment, index: u32) -> Self {
        let link = Link {
            index,
            name: a.host_ifname.clone(),
            mtu: a.mtu,
            up: true,
            veth: true,
            alias: super::identity::of(a).expect("its names are short").into_bytes(),
            ..Link::default()
        };
        Self { link, addresses: a.addresses().collect() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; HEADERS];
        bytes[4..6].copy_from_slice(&RTM_NEWLINK.to_ne_bytes());
        bytes[20..24].copy_from_slice(&7u32.to_ne_bytes());
        bytes[24..28].copy_from_slice(&IFF_UP.to_ne_bytes());
        for (kind, value) in attributes {
            bytes.extend((value.len() as u16 + 4).to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(*value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    #[test]
    fn an_alias_of_any_bytes_does_not_hide_its_link() {
        let kind = [9, 0, 1, 0, b'v', b'e', b't', b'h', 0, 0, 0, 0];
        let bytes = message(&[
            (3, b"moat0123456789a\0"),
            (20, b"\xff\xfe\0"),
            (4, &1450u32.to_ne_bytes()),
            (18, &kind),
            (16, &[IF_OPER_UP]),
            (1, &[6, 0x6d, 10, 1, 0, 5]),
        ]);
        let expected = Link {
            index: 7,
            name: "moat0123456789a".into(),
            mac: vec![6, 0x6d, 10, 1, 0, 5],
            mtu: 1450,
            up: true,
            running: true,
            veth: true,
            kind: "veth".into(),
            alias: b"\xff\xfe".to_vec(),
            ..Link::default()
        };
        assert_eq!(read_link(&bytes), Some(expected));
        assert_eq!(from_mac(&[6, 0x6d, 10, 1, 0, 5]), "10.1.0.5".parse().ok());
    }

    proptest! {
        #[test]
        fn any_bytes_may_come(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_link(&bytes);
            let mut link = message(&[]);
            link.extend(&bytes);
            prop_assert_eq!(read_link(&link).map(|link| link.index), Some(7));
        }
    }
}
