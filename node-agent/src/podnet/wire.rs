//! The wire between a pod and its node: making the veth pair and both of its ends, and taking it away.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use moat_cni::failpoint;
use rustix::io::Errno;
use tracing::warn;

use super::PodNetError;
use super::attachment::{Attachment, GATEWAY_V4, GATEWAY_V6};
use super::identity;
use super::messages::{self, End, full_length};
use super::netlink::{Existing, Netlink, NetlinkError, Request};
use super::netns::Netns;
use super::route::{Hop, Route};
use super::settle::Closed;
use super::sysctl;

/// The loopback interface, in every namespace: the kernel makes it before all others.
const LOOPBACK: u32 = 1;

/// How long the kernel may take to notice that both ends of a pair are up.
const READY_WITHIN: Duration = Duration::from_secs(5);

/// The gateway of an address's family.
pub(crate) fn gateway(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => IpAddr::V4(GATEWAY_V4),
        IpAddr::V6(_) => IpAddr::V6(GATEWAY_V6),
    }
}

/// `address` alone in its prefix.
pub(crate) fn host_prefix(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

/// The routes of the pod's end: to the gateway, and through it to everything.
pub(crate) fn pod_routes(index: u32, address: IpAddr) -> Vec<Route> {
    let gateway = gateway(address);
    let everything = match address {
        IpAddr::V4(_) => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
    };
    let default = IpNet::new_assert(everything, 0);
    let mut routes = Vec::with_capacity(2);
    if address.is_ipv4() {
        // IPv6 takes a link-local gateway as it is; IPv4 wants to see that it is on the link.
        routes.push(Route::new(host_prefix(gateway), Hop::Link(index)));
    }
    routes.push(Route::new(default, Hop::LinkVia(index, gateway)));
    routes
}

/// The node's route to a pod's address.
pub(crate) fn host_route(index: u32, address: IpAddr) -> Route {
    debug_assert_eq!(host_prefix(address).prefix_len(), full_length(address));
    Route::new(host_prefix(address), Hop::Link(index))
}

/// Makes the pair and the pod's end of it. The node's end exists afterwards under its final name, and is down. Returns a socket
/// in the pod's namespace.
///
/// It is born in the pod's namespace, because there the name it shall have is free or the runtime is mistaken;
/// the other way round, two pods' ends would meet under one name in the node's namespace.
pub(crate) fn build(attachment: &Attachment, pod: &Netns, node: &Netns) -> Result<Netlink, PodNetError> {
    pod.run(|| build_inside(attachment, node))?
}

/// Writes to the node's end whose it is, and sets its kernel parameters. Returns its index.
pub(crate) fn prepare_node_end(
    netlink: &mut Netlink,
    attachment: &Attachment,
    node: &Netns,
) -> Result<u32, PodNetError> {
    let name = attachment.host_ifname.as_str();
    let mut requests: Vec<Request> = alias(attachment).into_iter().collect();
    requests.push(parameters(name));
    let link = netlink.link_after(requests, name)?.ok_or_else(|| PodNetError::LinkGone(name.to_owned()))?;
    set_files(attachment, node)?;
    Ok(link.index)
}

/// Writes to the node's end whose it is.
pub(crate) fn mark(netlink: &mut Netlink, attachment: &Attachment) -> Result<(), NetlinkError> {
    netlink.apply(alias(attachment).into_iter().collect())
}

fn alias(attachment: &Attachment) -> Option<Request> {
    let alias = identity::of(attachment);
    if alias.is_none() {
        warn!(
            pod = %attachment.pod(),
            "its names are too long for a link's alias: should the state folder be lost, the pod is closed"
        );
    }
    alias.map(|alias| messages::set_alias(&attachment.host_ifname, &alias))
}

/// The kernel parameters of the node's end that netlink sets.
fn parameters(name: &str) -> Request {
    messages::set_parameters(name, &sysctl::of_host_end_by_number(), sysctl::has_ipv6())
}

/// The others.
fn set_files(attachment: &Attachment, node: &Netns) -> Result<(), PodNetError> {
    // On a thread that is sure to be in the node's namespace, where the link's parameters are.
    let (name, ipv6) = (&attachment.host_ifname, attachment.v6.is_some());
    Ok(node.run(|| sysctl::set_all(&sysctl::of_host_end_by_file(name, ipv6)))??)
}

/// Sets a link down for good of which nobody knows whose it is, and writes to it which addresses it may hold.
pub(crate) fn close(netlink: &mut Netlink, closed: &Closed) -> Result<(), NetlinkError> {
    netlink.apply(vec![
        messages::set_alias(&closed.link, &identity::closed(&closed.link, &closed.addresses)),
        messages::set_down(closed.index, &closed.link),
    ])
}

/// Makes of the node's end what it was.
pub(crate) fn mend_node_end(
    netlink: &mut Netlink,
    attachment: &Attachment,
    node: &Netns,
) -> Result<(), PodNetError> {
    let index = prepare_node_end(netlink, attachment, node)?;
    let name = attachment.host_ifname.as_str();
    netlink.apply(vec![messages::set_mac_and_mtu(index, name, attachment.host_mac, attachment.mtu)])?;
    Ok(connect(netlink, index, attachment)?)
}

/// Makes of the pod's end what it was. A default route is made only where there is none of its family: a later plugin may
/// have made another.
pub(crate) fn mend_pod_end(attachment: &Attachment, pod: &Netns) -> Result<(), PodNetError> {
    pod.run(|| {
        let name = attachment.ifname.as_str();
        let mut netlink = Netlink::open()?;
        let index = index_of(&mut netlink, name)?;
        sysctl::set_all(&sysctl::of_pod_end(name, attachment.v6.is_some()))?;
        let mut requests = vec![messages::set_mac_and_mtu(index, name, attachment.pod_mac, attachment.mtu)];
        for address in attachment.addresses() {
            requests.push(messages::add_address(index, address, Existing::Replace));
        }
        requests.push(messages::set_up(index, name));
        for address in attachment.addresses() {
            requests.push(messages::permanent_neighbour(index, gateway(address), attachment.host_mac));
            let present = netlink.routes(address.is_ipv6(), false)?;
            let has_default = present.iter().any(|route| route.to.prefix_len() == 0);
            let routes = pod_routes(index, address).into_iter();
            let missing = routes.filter(|route| route.to.prefix_len() > 0 || !has_default);
            requests.extend(missing.map(|route| route.set()));
        }
        Ok(netlink.apply(requests)?)
    })?
}

fn build_inside(attachment: &Attachment, node: &Netns) -> Result<Netlink, PodNetError> {
    use std::os::fd::AsFd;
    let name = attachment.ifname.as_str();
    let mut netlink = Netlink::open()?;
    let pod_end = End { name, mac: attachment.pod_mac };
    let host_end = End { name: &attachment.host_ifname, mac: attachment.host_mac };
    let pair = messages::create_veth(&pod_end, &host_end, node.as_fd(), attachment.mtu);
    let link = netlink.link_after(vec![pair], name).map_err(|error| exists(error, attachment))?;
    failpoint::reach("veth made");
    let index = link.ok_or_else(|| PodNetError::LinkGone(name.to_owned()))?.index;
    sysctl::set_all(&sysctl::of_pod_end(name, attachment.v6.is_some()))?;
    let mut requests = Vec::with_capacity(12);
    if sysctl::has_ipv6() {
        requests.push(messages::no_made_up_address(index, name));
    }
    // A pod reaches itself by its own address over the loopback interface.
    requests.push(messages::set_up(LOOPBACK, "lo"));
    requests.extend(
        attachment.addresses().map(|address| messages::add_address(index, address, Existing::Refuse)),
    );
    requests.push(messages::set_up(index, name));
    for address in attachment.addresses() {
        requests.push(messages::permanent_neighbour(index, gateway(address), attachment.host_mac));
        requests.extend(pod_routes(index, address).iter().map(Route::set));
    }
    netlink.apply(requests)?;
    Ok(netlink)
}

/// The kernel says that one of the two names is taken. The node's end has a name of its own, and whatever had it was
/// removed before; so it is the pod's.
fn exists(error: NetlinkError, attachment: &Attachment) -> PodNetError {
    if error.is(Errno::EXIST) {
        PodNetError::InterfaceExists(attachment.key())
    } else {
        PodNetError::Kernel(error)
    }
}

/// Waits until the pod's end sends and takes packets; `pod` is a socket in its namespace.
///
/// Two things the kernel does in its own time: it was set up before the node's end was, so it learns of its carrier a moment
/// after the node's end is up, and swallows until then what the pod sends; and an IPv6 address gets its local
/// route from a work queue, even where no duplicate address detection is asked for.
pub(crate) fn wait_until_ready(pod: &mut Netlink, attachment: &Attachment) -> Result<(), PodNetError> {
    if is_ready(pod, attachment)? {
        return Ok(());
    }
    pod.watch()?;
    let deadline = Instant::now() + READY_WITHIN;
    while !is_ready(pod, attachment)? {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(PodNetError::NotReady(attachment.key()));
        }
        pod.wait(left)?;
    }
    Ok(())
}

fn is_ready(netlink: &mut Netlink, attachment: &Attachment) -> Result<bool, PodNetError> {
    // On kernels since 6.8 the question itself makes the kernel look at the carrier.
    match netlink.link(&attachment.ifname)? {
        None => return Err(PodNetError::LinkGone(attachment.ifname.clone())),
        Some(link) if !link.running => return Ok(false),
        Some(_) => {}
    }
    for address in attachment.addresses() {
        if !netlink.is_local(address)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Sets the node's end up, whose index this is, and leads the pod's addresses to it. Doing it again changes nothing.
pub(crate) fn connect(
    netlink: &mut Netlink,
    index: u32,
    attachment: &Attachment,
) -> Result<(), NetlinkError> {
    let mut requests = Vec::with_capacity(5);
    requests.push(messages::set_up(index, &attachment.host_ifname));
    requests.extend(lead(index, attachment));
    netlink.apply(requests)
}

/// The node's routes and neighbours of a pod.
pub(crate) fn lead(index: u32, attachment: &Attachment) -> impl Iterator<Item = Request> + '_ {
    attachment.addresses().flat_map(move |address| {
        [host_route(index, address).set(), messages::permanent_neighbour(index, address, attachment.pod_mac)]
    })
}

/// Removes the node's end and with it the pod's, and their routes and neighbours. Fine where there is none.
pub(crate) fn remove(netlink: &mut Netlink, host_ifname: &str) -> Result<(), NetlinkError> {
    match netlink.apply(vec![messages::delete_link(host_ifname)]) {
        Err(error) if error.is(Errno::NODEV) => Ok(()),
        other => other,
    }
}

fn index_of(netlink: &mut Netlink, name: &str) -> Result<u32, PodNetError> {
    match netlink.link(name)? {
        Some(link) => Ok(link.index),
        None => Err(PodNetError::LinkGone(name.to_owned())),
    }
}
