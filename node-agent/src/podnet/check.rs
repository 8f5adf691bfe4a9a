//! Does a pod's network still look as it was made?

use std::net::IpAddr;

use super::PodNetError;
use super::attachment::{Attachment, format_mac};
use super::netlink::Netlink;
use super::netns::{Netns, NetnsError};
use super::route::Hop;
use super::wire;

/// What is not as it was made, one sentence each. Empty: all is well. Default routes are compared
/// for `gateways` only: a later plugin may have made others.
pub(crate) fn drift(
    netlink: &mut Netlink,
    attachment: &Attachment,
    gateways: &[IpAddr],
) -> Result<Vec<String>, PodNetError> {
    let mut drift = Vec::new();
    node_side(netlink, attachment, &mut drift)?;
    let pod = match Netns::open(&attachment.netns) {
        Ok(pod) => pod,
        Err(NetnsError::Missing(path)) => {
            drift.push(format!("the pod's network namespace {} is gone", path.display()));
            return Ok(drift);
        }
        Err(error) => return Err(error.into()),
    };
    let inside = pod.run(|| {
        let mut drift = Vec::new();
        pod_side(&mut Netlink::open()?, attachment, gateways, &mut drift)?;
        Ok::<_, PodNetError>(drift)
    })??;
    drift.extend(inside);
    Ok(drift)
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
    if !link.up {
        drift.push(format!("the node's end {name} is down"));
    }
    if link.mac != attachment.host_mac {
        drift.push(format!(
            "the node's end {name} has another hardware address than {}",
            format_mac(attachment.host_mac)
        ));
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
    gateways: &[IpAddr],
    drift: &mut Vec<String>,
) -> Result<(), PodNetError> {
    let name = &attachment.ifname;
    let Some(link) = netlink.link(name)? else {
        drift.push(format!("the pod has no interface {name}"));
        return Ok(());
    };
    if !link.up {
        drift.push(format!("the pod's interface {name} is down"));
    }
    if link.mac != attachment.pod_mac {
        drift.push(format!(
            "the pod's interface {name} has another hardware address than {}",
            format_mac(attachment.pod_mac)
        ));
    }
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
        let default = Hop::LinkVia(link.index, gateway);
        if gateways.contains(&gateway) && !routes.iter().any(|r| r.to.prefix_len() == 0 && r.hop == default) {
            drift.push(format!("the pod has no default route by {gateway}"));
        }
    }
    Ok(())
}
