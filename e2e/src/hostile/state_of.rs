//! What a node knows of its links: who is where. No frame of a pod may change it.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute};

use super::frame::Mac;

/// Neighbours by link and address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    node: usize,
    neighbours: BTreeMap<(u32, IpAddr), Mac>,
}

/// Reads it, of the namespace that the task runs in.
pub(super) async fn read(node: usize) -> io::Result<State> {
    Ok(State { node, neighbours: neighbours().await? })
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
    moved.chain(before.neighbours.iter().filter_map(gone)).collect()
}

/// The hardware address that all neighbours of a pod have: its node's.
pub(super) async fn only_neighbour() -> io::Result<Mac> {
    let all = neighbours().await?;
    all.into_values().next().ok_or_else(|| io::Error::other("a pod without a neighbour"))
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
