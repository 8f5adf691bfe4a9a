//! What rtnetlink tells of changes, as far as it can be about what moat made.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use ipnet::IpNet;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::super::links::{Link, attributes, read_link, u16_at, u32_at};
use super::super::netlink::NetlinkError;
use super::super::route::ROUTE_PROTOCOL;

const NEW_LINK: u16 = 16;
const DEL_LINK: u16 = 17;
const NEW_ADDRESS: u16 = 20;
const DEL_ADDRESS: u16 = 21;
const NEW_ROUTE: u16 = 24;
const DEL_ROUTE: u16 = 25;
const NEW_NEIGHBOUR: u16 = 28;
const DEL_NEIGHBOUR: u16 = 29;
const DEL_RULE: u16 = 33;
const NEW_NETCONF: u16 = 80;
const NLM_F_REPLACE: u16 = 0x100;
const RT_SCOPE_LINK: u8 = 253;
const NUD_PERMANENT: u16 = 0x80;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// Links, neighbours, addresses, routes, rules and parameters of both families (`RTNLGRP_*`).
const GROUPS: [u32; 10] = [1, 3, 5, 7, 8, 9, 11, 19, 24, 25];
/// Enough for what happens when a thousand links go at once.
const BUFFER: usize = 4 << 20;
/// So much is read before anything is looked at.
const READ_AT_ONCE: usize = 1024;

/// A change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A link is there, or `None`, is gone.
    Link { index: u32, name: String, link: Option<Link> },
    /// A route of ours is gone, or somebody's route has taken the place of another.
    Route { to: IpNet, link: Option<u32> },
    /// What a neighbour entry says now: its hardware address, if it is permanent.
    Neighbour { link: u32, permanent: Option<Vec<u8>> },
    /// A link has another address.
    Address { link: u32 },
    /// A rule is gone.
    Rule,
    /// A parameter of a link has changed, or of all.
    Parameter { link: Option<u32> },
}

/// The changes in a datagram.
pub(crate) fn read(datagram: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    let mut rest = datagram;
    while let Some(length) = u32_at(rest, 0).map(|length| length as usize)
        && let Some(message) = rest.get(..length).filter(|message| message.len() >= 16)
    {
        events.extend(event(message));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    events
}

fn event(message: &[u8]) -> Option<Event> {
    let (kind, flags) = (u16_at(message, 4)?, u16_at(message, 6)?);
    let body = message.get(16..)?;
    match kind {
        NEW_LINK | DEL_LINK => {
            // A bridge tells of its ports in the same words.
            if *body.first()? != 0 {
                return None;
            }
            // What reads a link that is there reads one that was, too.
            let mut bytes = message.to_vec();
            bytes.get_mut(4..6)?.copy_from_slice(&NEW_LINK.to_ne_bytes());
            let link = read_link(&bytes)?;
            let (index, name) = (link.index, link.name.clone());
            Some(Event::Link { index, name, link: (kind == NEW_LINK).then_some(link) })
        }
        // Not the addresses that a link makes up when it comes up: nothing is led by them.
        NEW_ADDRESS | DEL_ADDRESS if *body.get(3)? < RT_SCOPE_LINK => {
            Some(Event::Address { link: u32_at(body, 4)? })
        }
        NEW_ROUTE | DEL_ROUTE => {
            let ours = *body.get(5)? == ROUTE_PROTOCOL;
            let told = if kind == DEL_ROUTE { ours } else { flags & NLM_F_REPLACE != 0 && !ours };
            if !told {
                return None;
            }
            let family = *body.first()?;
            let mut to: IpAddr = if family == AF_INET { [0; 4].into() } else { [0; 16].into() };
            let mut link = None;
            for (kind, value) in attributes(body.get(12..)?) {
                match kind {
                    1 => to = address(family, value)?,
                    4 => link = u32_at(value, 0),
                    _ => {}
                }
            }
            Some(Event::Route { to: IpNet::new(to, *body.get(1)?).ok()?, link })
        }
        NEW_NEIGHBOUR | DEL_NEIGHBOUR => {
            let there = kind == NEW_NEIGHBOUR && u16_at(body, 8)? & NUD_PERMANENT != 0;
            let mac =
                attributes(body.get(12..)?).find(|(kind, _)| *kind == 2).map(|(_, value)| value.to_vec());
            Some(Event::Neighbour { link: u32_at(body, 4)?, permanent: mac.filter(|_| there) })
        }
        DEL_RULE => Some(Event::Rule),
        NEW_NETCONF => {
            let index = attributes(body.get(4..)?).find(|(kind, _)| *kind == 1)?.1;
            // Below 0: all of them, or those to come.
            Some(Event::Parameter { link: u32_at(index, 0).filter(|index| (*index as i32) > 0) })
        }
        _ => None,
    }
}

fn address(family: u8, value: &[u8]) -> Option<IpAddr> {
    match family {
        AF_INET => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
        AF_INET6 => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
        _ => None,
    }
}

/// Where a route leads.
pub(crate) fn destination(message: &RouteMessage) -> Option<IpNet> {
    let to = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(to)) => Some(IpAddr::V4(*to)),
        RouteAttribute::Destination(RouteAddress::Inet6(to)) => Some(IpAddr::V6(*to)),
        _ => None,
    });
    IpNet::new(to?, message.header.destination_prefix_length).ok()
}

/// A socket that hears of changes.
pub(crate) struct Watch(Socket);

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}

impl Watch {
    /// In the network namespace of the calling thread.
    pub(crate) fn open() -> Result<Self, NetlinkError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            // Without the power for so much, what the system allows: then more is lost, and looked at.
            let _ = socket.set_rx_buf_sz(BUFFER);
            GROUPS.into_iter().try_for_each(|group| socket.add_membership(group))?;
            socket.set_non_blocking(true)?;
            Ok(socket)
        };
        open().map(Self).map_err(|errno| NetlinkError::new("watch links and routes", errno))
    }

    /// Waits for changes, or for something to read from `also`, at most so long. `None`: some were lost.
    pub(crate) fn wait(
        &self,
        also: &impl AsFd,
        at_most: Duration,
    ) -> Result<Option<Vec<Event>>, NetlinkError> {
        let failed = |errno: io::Error| NetlinkError::new("hear of changed links and routes", errno);
        let timeout = Timespec::try_from(at_most).map_err(|error| failed(io::Error::other(error)))?;
        match poll(
            &mut [PollFd::new(&self.0, PollFlags::IN), PollFd::new(also, PollFlags::IN)],
            Some(&timeout),
        ) {
            Ok(0) | Err(Errno::INTR) => return Ok(Some(Vec::new())),
            Ok(_) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
        let mut events = Vec::new();
        while events.len() < READ_AT_ONCE {
            match self.0.recv_from_full() {
                // Not from the kernel: any process may write to a netlink socket.
                Ok((_, sender)) if sender.port_number() != 0 => {}
                Ok((datagram, _)) => events.extend(read(&datagram)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => return Ok(None),
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(Some(events))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(kind: u16, flags: u16, body: &[u8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; 16];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend(body);
        for (kind, value) in attributes {
            bytes.extend((value.len() as u16 + 4).to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(*value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes
    }

    #[test]
    fn of_routes_only_what_takes_one_of_ours_away() {
        let route = |kind, flags, protocol| {
            let body = [AF_INET, 24, 0, 0, 254, protocol, 0, 1, 0, 0, 0, 0];
            read(&message(kind, flags, &body, &[(1, &[10, 2, 0, 0]), (4, &7u32.to_ne_bytes())]))
        };
        let gone = Event::Route { to: "10.2.0.0/24".parse().unwrap(), link: Some(7) };
        assert_eq!(route(DEL_ROUTE, 0, ROUTE_PROTOCOL), std::slice::from_ref(&gone));
        assert_eq!(route(NEW_ROUTE, NLM_F_REPLACE, 3), [gone]);
        assert_eq!(route(DEL_ROUTE, 0, 3), []);
        assert_eq!(route(NEW_ROUTE, NLM_F_REPLACE, ROUTE_PROTOCOL), []);
        assert_eq!(route(NEW_ROUTE, 0, 3), []);
    }

    #[test]
    fn a_neighbour_counts_as_long_as_it_is_permanent() {
        let mac: &[u8] = &[2, 0, 0, 0, 0, 1];
        let neighbour = |kind, state: u16| {
            let mut body = [AF_INET, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0];
            body[4..8].copy_from_slice(&7u32.to_ne_bytes());
            body[8..10].copy_from_slice(&state.to_ne_bytes());
            read(&message(kind, 0, &body, &[(2, mac)]))
        };
        let event = |permanent| [Event::Neighbour { link: 7, permanent }];
        assert_eq!(neighbour(NEW_NEIGHBOUR, NUD_PERMANENT), event(Some(mac.to_vec())));
        assert_eq!(neighbour(NEW_NEIGHBOUR, 2), event(None));
        assert_eq!(neighbour(DEL_NEIGHBOUR, NUD_PERMANENT), event(None));
    }

    #[test]
    fn parameters_of_all_links_have_no_link() {
        let parameter =
            |index: i32| read(&message(NEW_NETCONF, 0, &[2, 0, 0, 0], &[(1, &index.to_ne_bytes())]));
        assert_eq!(parameter(7), [Event::Parameter { link: Some(7) }]);
        assert_eq!(parameter(-1), [Event::Parameter { link: None }]);
        assert_eq!(parameter(-2), [Event::Parameter { link: None }]);
    }

    proptest! {
        #[test]
        fn any_bytes_may_come(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 16..34u16) {
            let _ = read(&bytes);
            let _ = read(&message(kind, 0, &bytes, &[]));
        }
    }
}
