//! Does a pod's network still look as it was made? And if not, mending it.

use std::net::IpAddr;
use std::path::Path;

use super::PodNetError;
use super::attachment::{Attachment, format_mac};
use super::identity;
use super::links::Link;
use super::netlink::Netlink;
use super::netns::{Netns, NetnsError};
use super::route::Hop;
use super::sysctl;
use super::wire;

/// Which default routes a pod should have: a later plugin may have made others.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Defaults<'a> {
    /// By these gateways, as far as they are ours: what the runtime says that ADD answered.
    By(&'a [IpAddr]),
    /// Any, of each family: all that is known without the runtime's word.
    Any,
}

/// What is not as it was made, one sentence each. Empty: all is well. Without a `netns` only the node's side is looked at.
pub(crate) fn drift(
    netlink: &mut Netlink,
    node: &Netns,
    attachment: &Attachment,
    netns: Option<&Path>,
    defaults: Defaults<'_>,
) -> Result<Vec<String>, PodNetError> {
    let mut drift = Vec::new();
    node_side(netlink, attachment, &mut drift)?;
    let (name, ipv6) = (&attachment.host_ifname, attachment.v6.is_some());
    drift.extend(node.run(|| sysctl::drift(&sysctl::of_host_end(name, ipv6)))?);
    let Some(netns) = netns else { return Ok(drift) };
    let pod = match Netns::open(netns) {
        Ok(pod) => pod,
        Err(NetnsError::Missing(path)) => {
            drift.push(format!("the pod's network namespace {} is gone", path.display()));
            return Ok(drift);
        }
        Err(error) => return Err(error.into()),
    };
    let inside = pod.run(|| {
        let mut drift = Vec::new();
        pod_side(&mut Netlink::open()?, attachment, defaults, &mut drift)?;
        drift.extend(sysctl::drift(&sysctl::of_pod_end(&attachment.ifname, ipv6)));
        Ok::<_, PodNetError>(drift)
    })??;
    drift.extend(inside);
    Ok(drift)
}

/// Makes of both ends what they were. Without a `netns`, of the node's only.
pub(crate) fn mend(
    netlink: &mut Netlink,
    node: &Netns,
    attachment: &Attachment,
    netns: Option<&Path>,
) -> Result<(), PodNetError> {
    wire::mend_node_end(netlink, attachment, node)?;
    match netns {
        Some(netns) => wire::mend_pod_end(attachment, &Netns::open(netns)?),
        None => Ok(()),
    }
}

/// How an end differs from what it was made as.
fn end(what: &str, link: &Link, mac: [u8; 6], mtu: u32, drift: &mut Vec<String>) {
    if !link.up {
        drift.push(format!("{what} is down"));
    }
    if link.mac != mac {
        drift.push(format!("{what} has another hardware address than {}", format_mac(mac)));
    }
    if link.mtu != mtu {
        drift.push(format!("{what} has the MTU {}, not {mtu}", link.mtu));
    }
}

fn node_side(
    netlink: &mut Netlink,
    attachment: &Attachment,
    drift: &mut Vec<String>,
) -> Result<(), PodNetError> {
    let name = &attachment.host_ifname;
    let Some(link) = netlink.link(name)? else {
        drift.push(format!("the node's end {name} is gone"));
        return Ok(());
    };
    end(&format!("the node's end {name}"), &link, attachment.host_mac, attachment.mtu, drift);
    if identity::of(attachment).is_some_and(|alias| alias.as_bytes() != link.alias) {
        drift.push(format!("the alias of the node's end {name} does not say whose it is"));
    }
    for address in attachment.addresses() {
        let routes = netlink.routes(address.is_ipv6(), true)?;
        let wanted = wire::host_route(link.index, address);
        if !routes.iter().any(|route| route.to == wanted.to && route.hop == wanted.hop) {
            drift.push(format!("the node has no route to {address} by {name}"));
        }
        if netlink.permanent_neighbour(link.index, address)?.as_deref() != Some(&attachment.pod_mac) {
            drift.push(format!("the node has no permanent neighbour {address} on {name}"));
        }
    }
    Ok(())
}

fn pod_side(
    netlink: &mut Netlink,
    attachment: &Attachment,
    defaults: Defaults<'_>,
    drift: &mut Vec<String>,
) -> Result<(), PodNetError> {
    let name = &attachment.ifname;
    let Some(link) = netlink.link(name)? else {
        drift.push(format!("the pod has no interface {name}"));
        return Ok(());
    };
    end(&format!("the pod's interface {name}"), &link, attachment.pod_mac, attachment.mtu, drift);
    let present = netlink.addresses()?;
    for address in attachment.addresses() {
        if !present.contains(&(link.index, address)) {
            drift.push(format!("the pod's interface {name} does not have {address}"));
        }
        let gateway = wire::gateway(address);
        if netlink.permanent_neighbour(link.index, gateway)?.as_deref() != Some(&attachment.host_mac) {
            drift.push(format!("the pod has no permanent neighbour {gateway}"));
        }
        let routes = netlink.routes(address.is_ipv6(), false)?;
        let ours = Hop::LinkVia(link.index, gateway);
        let mut present = routes.iter().filter(|route| route.to.prefix_len() == 0);
        let missing = match defaults {
            Defaults::By(gateways) => gateways.contains(&gateway) && !present.any(|route| route.hop == ours),
            Defaults::Any => present.next().is_none(),
        };
        if missing {
            drift.push(format!("the pod has no default route by {gateway}"));
        }
    }
    Ok(())
}
