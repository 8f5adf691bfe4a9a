//! Kernel parameters below `/proc/sys/net`, of the network namespace that the calling thread is in.
//!
//! Some are written under the lock that all changes of links take, and a write that finds the lock taken does not sleep: the
//! kernel has the process call again and again, until the lock is free. A hundred ADDs at once would keep every processor
//! busy with that, and the lock's holder from going on. So what a link needs while pods come is set with the link's
//! other properties, by netlink, or is written by files that take no lock.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Why a kernel parameter cannot be set.
#[derive(Debug, thiserror::Error)]
#[error("cannot set {} to {value}; moat needs it, so allow it or set it before", path.display())]
pub struct SysctlError {
    path: PathBuf,
    value: &'static str,
    source: io::Error,
}

/// Sets `net/NAME` to `value`. A parameter that has the value already is not written: `/proc/sys` may be read-only.
pub(crate) fn set(name: &str, value: &'static str) -> Result<(), SysctlError> {
    if get(name).as_deref() == Some(value) {
        return Ok(());
    }
    let path = path(name);
    fs::write(&path, value).map_err(|source| SysctlError { path, value, source })
}

/// The value of `net/NAME`, where there is such a parameter.
pub(crate) fn get(name: &str) -> Option<String> {
    fs::read_to_string(path(name)).ok().map(|text| text.trim().to_owned())
}

/// Whether the kernel speaks IPv6 at all.
pub(crate) fn has_ipv6() -> bool {
    path("ipv6/conf").is_dir()
}

/// Where `net/NAME` is.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new("/proc/sys/net").join(name)
}

/// Lets the node route IPv4 between its pods and its links.
pub(crate) fn forward_ipv4() -> Result<(), SysctlError> {
    set("ipv4/ip_forward", "1")
}

/// Lets the node route IPv6 between its pods and its links.
pub(crate) fn forward_ipv6() -> Result<(), SysctlError> {
    if get("ipv6/conf/all/forwarding").as_deref() == Some("1") {
        return Ok(());
    }
    // A router does not listen to router advertisements unless told so with a 2; without this the node would
    // lose the default route that it has learnt by them.
    for link in fs::read_dir(path("ipv6/conf")).into_iter().flatten().flatten() {
        let name = format!("ipv6/conf/{}/accept_ra", link.file_name().to_string_lossy());
        if get(&name).as_deref() == Some("1") {
            set(&name, "2")?;
        }
    }
    set("ipv6/conf/all/forwarding", "1")
}

/// What the host end of a pod needs for IPv4, with the number that netlink knows it by (`IPV4_DEVCONF_*`) and its value.
const V4_OF_HOST_END: [(&str, u16, bool); 4] = [
    // The agent's own chain on the link pins the pod's addresses for both families, at a lower price than this one's.
    ("rp_filter", 8, false),
    ("forwarding", 1, true),
    // The pod knows its gateway's hardware address; nothing is to be answered in somebody else's name.
    ("proxy_arp", 3, false),
    ("accept_redirects", 4, false),
];

/// The parameters of a host end that netlink sets, each with its number and value.
pub(crate) fn of_host_end_by_number() -> Vec<(u16, u32)> {
    V4_OF_HOST_END.iter().map(|&(_, number, value)| (number, u32::from(value))).collect()
}

/// What the host end of a pod needs besides that before it comes up, each with its value. `forwarding` and `disable_ipv6` take
/// the lock; a new link of a node that forwards has both right, so as a rule they are only read.
///
/// A pod without IPv6 has a link with IPv6 all the same. No address is on it, and the pod's chain lets no IPv6 packet through.
pub(crate) fn of_host_end_by_file(name: &str, ipv6: bool) -> Vec<(String, &'static str)> {
    if !has_ipv6() {
        return Vec::new();
    }
    // What comes from a pod never configures the node.
    let mut wanted = vec![("accept_ra", "0"), ("accept_redirects", "0")];
    if ipv6 {
        wanted.extend([("disable_ipv6", "0"), ("forwarding", "1")]);
    }
    wanted.into_iter().map(|(parameter, value)| (format!("ipv6/conf/{name}/{parameter}"), value)).collect()
}

/// All that the host end of a pod needs, each with its value.
pub(crate) fn of_host_end(name: &str, ipv6: bool) -> Vec<(String, &'static str)> {
    let v4 = V4_OF_HOST_END.iter().map(|&(parameter, _, value)| {
        (format!("ipv4/conf/{name}/{parameter}"), if value { "1" } else { "0" })
    });
    v4.chain(of_host_end_by_file(name, ipv6)).collect()
}

/// What the tunnel's device needs before it comes up, each with its value.
pub(crate) fn of_tunnel(name: &str, ipv6: bool) -> Vec<(String, &'static str)> {
    let mut wanted = vec![
        (format!("ipv4/conf/{name}/forwarding"), "1"),
        (format!("ipv4/conf/{name}/proxy_arp"), "0"),
        (format!("ipv4/conf/{name}/accept_redirects"), "0"),
        // What another node answers in its own name may come this way, though packets to it go by another; and on a link without
        // an address the kernel is strict even where it is told to be loose. Who may bring what through the tunnel is decided by
        // a chain that looks closer than this would.
        (format!("ipv4/conf/{name}/rp_filter"), "0"),
    ];
    if !has_ipv6() {
        return wanted;
    }
    // Another node's pods configure this one as little as its own do.
    wanted.push((format!("ipv6/conf/{name}/accept_ra"), "0"));
    wanted.push((format!("ipv6/conf/{name}/accept_redirects"), "0"));
    if ipv6 {
        wanted.push((format!("ipv6/conf/{name}/disable_ipv6"), "0"));
        wanted.push((format!("ipv6/conf/{name}/forwarding"), "1"));
    }
    wanted
}

/// Of what the host end of a pod needs, that of whose change the kernel tells nobody.
pub(crate) fn without_events(name: &str, ipv6: bool) -> Vec<(String, &'static str)> {
    let told = ["rp_filter", "forwarding", "proxy_arp"];
    let mut wanted = of_host_end(name, ipv6);
    wanted.retain(|(name, _)| !told.iter().any(|told| name.ends_with(told)));
    wanted
}

/// What the pod's end needs before it comes up, each with its value.
pub(crate) fn of_pod_end(name: &str, ipv6: bool) -> Vec<(String, &'static str)> {
    if !has_ipv6() {
        return Vec::new();
    }
    // Its address and routes are given; it need not ask for a router.
    let mut wanted = vec![(format!("ipv6/conf/{name}/accept_ra"), "0")];
    if ipv6 {
        // Some runtimes turn IPv6 off in every new namespace.
        wanted.push((format!("ipv6/conf/{name}/disable_ipv6"), "0"));
    }
    wanted
}

/// Sets all of them.
pub(crate) fn set_all(wanted: &[(String, &'static str)]) -> Result<(), SysctlError> {
    wanted.iter().try_for_each(|(name, value)| set(name, value))
}

/// Which of them have another value, in words.
pub(crate) fn drift(wanted: &[(String, &'static str)]) -> Vec<String> {
    let differs = |(name, value): &(String, &'static str)| {
        let now = get(name)?;
        (now != *value).then(|| format!("the kernel parameter net/{name} is {now}, not {value}"))
    };
    wanted.iter().filter_map(differs).collect()
}
