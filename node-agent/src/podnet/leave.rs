//! Taking the pod network off a node: what is moat's in the node's network namespace, and nothing else.

use std::fmt;

use super::identity::{self, Alias};
use super::links::PodLink;
use super::netlink::Netlink;
use super::netns::Netns;
use super::route::MAIN_TABLE;
use super::uplink::wanted::{NODES_TABLE, Wanted};
use super::uplink::{self, TUNNEL};
use super::{PodNetError, wire};

/// A pod's link that is still there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remaining {
    /// The node's end.
    pub(crate) link: String,
    /// `namespace/name`, where the link tells.
    pub(crate) pod: Option<String>,
}

impl fmt::Display for Remaining {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.pod {
            Some(pod) => write!(f, "{pod} ({})", self.link),
            None => f.write_str(&self.link),
        }
    }
}

impl From<PodLink> for Remaining {
    fn from(pod: PodLink) -> Self {
        let name = match identity::parse(&pod.link.name, &pod.link.alias) {
            Some(Alias::Pod(whose)) => Some(format!("{}/{}", whose.pod_namespace, whose.pod_name)),
            Some(Alias::Closed(_)) | None => None,
        };
        Self { link: pod.link.name, pod: name }
    }
}

/// The pods whose network is moat's, in the network namespace of the calling thread.
pub(crate) fn remaining() -> Result<Vec<Remaining>, PodNetError> {
    Ok(Netlink::open()?.pod_links()?.into_iter().map(Remaining::from).collect())
}

/// Removes pods' links, the tunnel, and routes and rules that bear our number; tells what was there. What cannot be removed keeps
/// nothing else from being removed.
pub(crate) fn leave() -> (Vec<String>, Vec<PodNetError>) {
    let (mut removed, mut errors) = (Vec::new(), Vec::new());
    match Netlink::open() {
        Ok(mut netlink) => {
            if let Err(error) = links(&mut netlink, &mut removed, &mut errors) {
                errors.push(error);
            }
            if let Err(error) = ways(&mut netlink, &mut removed) {
                errors.push(error);
            }
        }
        Err(error) => errors.push(error.into()),
    }
    (removed, errors)
}

fn links(
    netlink: &mut Netlink,
    removed: &mut Vec<String>,
    errors: &mut Vec<PodNetError>,
) -> Result<(), PodNetError> {
    for pod in netlink.pod_links()? {
        match wire::remove(netlink, &pod.link.name) {
            Ok(()) => removed.push(format!("the link of the pod {}", Remaining::from(pod))),
            Err(error) => errors.push(error.into()),
        }
    }
    Ok(())
}

/// Nothing is wanted: so everything that is marked as ours goes.
fn ways(netlink: &mut Netlink, removed: &mut Vec<String>) -> Result<(), PodNetError> {
    let before = seen(netlink)?;
    let followed = uplink::follow(netlink, &Netns::current()?, &Wanted::default());
    let after = seen(netlink)?;
    removed.extend(before.into_iter().filter(|what| !after.contains(what)));
    followed
}

/// What bears our number or name, in words.
fn seen(netlink: &mut Netlink) -> Result<Vec<String>, PodNetError> {
    let mut all = Vec::new();
    for table in [MAIN_TABLE, NODES_TABLE] {
        for ipv6 in [false, true] {
            let routes = netlink.routes_of(ipv6, true, table)?;
            all.extend(routes.iter().map(|route| match table {
                MAIN_TABLE => format!("the route {route}"),
                _ => format!("the route {route} in table {table}"),
            }));
        }
    }
    all.extend(netlink.own_rules()?.iter().map(|from| format!("the rule for what is from {from}")));
    if netlink.link(TUNNEL)?.is_some_and(|link| link.vxlan.is_some()) {
        all.push(format!("the tunnel's device {TUNNEL}"));
    }
    Ok(all)
}
