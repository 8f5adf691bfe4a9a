//! What a node knows of its links: who is where, and which way leads to whom. No frame of a pod may change it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage};

use super::frame::Mac;

/// Neighbours by link and address, and routes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    node: usize,
    neighbours: BTreeMap<(u32, IpAddr), Mac>,
    routes: BTreeSet<Way>,
}

/// A route: its table, where it leads to, by which router and which link.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    table: u8,
    to: String,
    router: Option<String>,
    link: Option<u32>,
    /// Not of a table: the kernel was told to go another way to one address, as by a redirect.
    exception: bool,
}

/// Reads it, of the namespace that the task runs in.
pub(super) async fn read(node: usize) -> io::Result<State> {
    Ok(State { node, neighbours: neighbours().await?, routes: routes().await? })
}

/// What is other than before, in words. A neighbour that a node has just looked for itself is none.
pub(super) fn changes(before: &State, after: &State) -> Vec<String> {
    let moved = |(key, mac): (&(u32, IpAddr), &Mac)| {
        let old = before.neighbours.get(key)?;
        (old != mac).then(|| format!("node-{}: {} moved", before.node + 1, key.1))
    };
    let gone = |(key, _): (&(u32, IpAddr), &Mac)| {
        let gone = !after.neighbours.contains_key(key);
        gone.then(|| format!("node-{}: {} is forgotten", before.node + 1, key.1))
    };
    let moved = after.neighbours.iter().filter_map(moved);
    let way = |what| move |way: &Way| format!("node-{}: {what} route to {}", before.node + 1, way.to);
    let new = after.routes.difference(&before.routes).map(way("a new"));
    let lost = before.routes.difference(&after.routes).map(way("no more"));
    moved.chain(before.neighbours.iter().filter_map(gone)).chain(new).chain(lost).collect()
}

/// The hardware address that all neighbours of a pod have: its node's.
pub(super) async fn only_neighbour() -> io::Result<Mac> {
    let all = neighbours().await?;
    all.into_values().next().ok_or_else(|| io::Error::other("a pod without a neighbour"))
}

/// Those of all tables, and the exceptions to them that somebody's message made.
async fn routes() -> io::Result<BTreeSet<Way>> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let mut ways = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        for exception in [false, true] {
            let mut ask = RouteMessage::default();
            ask.header.address_family = family;
            if exception {
                ask.header.flags = RouteFlags::Cloned;
            }
            let all: Vec<_> = handle
                .route()
                .get(ask)
                .execute()
                .try_collect()
                .await
                .map_err(|e| io::Error::other(e.to_string()))?;
            ways.extend(all.iter().filter_map(|message| way(message, exception)));
        }
    }
    connection.abort();
    Ok(ways)
}

/// A route in a message of the kernel. An exception with a size is about a path's MTU, which any router may tell of.
fn way(message: &RouteMessage, exception: bool) -> Option<Way> {
    let (mut to, mut router, mut link, mut size) = (None, None, None, false);
    for attribute in &message.attributes {
        match attribute {
            // The kernel's own, which come some time after their links.
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) if v6.is_unicast_link_local() => {
                return None;
            }
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) if v6.is_multicast() => return None,
            RouteAttribute::Destination(address) => to = Some(format!("{address:?}")),
            RouteAttribute::Gateway(address) => router = Some(format!("{address:?}")),
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Metrics(_) => size = true,
            _ => {}
        }
    }
    let to = format!("{}/{}", to.unwrap_or_default(), message.header.destination_prefix_length);
    let wanted = !exception || (router.is_some() && !size);
    wanted.then_some(Way { table: message.header.table, to, router, link, exception })
}

async fn neighbours() -> io::Result<BTreeMap<(u32, IpAddr), Mac>> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let all: Vec<_> = handle
        .neighbours()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(|e| io::Error::other(e.to_string()))?;
    connection.abort();
    let entry = |message: rtnetlink::packet_route::neighbour::NeighbourMessage| {
        let (mut at, mut mac) = (None, None);
        for attribute in message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => at = Some(IpAddr::V4(v4)),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => at = Some(IpAddr::V6(v6)),
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = Mac::try_from(bytes.as_slice()).ok(),
                _ => {}
            }
        }
        // Those of multicast addresses are made and forgotten as the kernel likes.
        let at = at.filter(|address| !address.is_multicast())?;
        Some(((message.header.ifindex, at), mac?))
    };
    Ok(all.into_iter().filter_map(entry).collect())
}
