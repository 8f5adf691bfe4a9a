//! Kernel parameters below `/proc/sys/net`, of the network namespace that the calling thread is in.
//!
//! Some are written under the lock that all changes of links take, and a write that finds the lock taken does not sleep: the
//! kernel has the process call again and again, until the lock is free. A hundred ADDs at once would keep every processor
//! busy with that, and the lock's holder from going on. So what a link needs while pods come is set with the link's
//! other properties, by netlink, or is written by files that take no lock.
//!
//! To find `/proc/sys/net/ipv6` the kernel goes through what it remembers by that name of every network namespace, so a look
//! takes longer the more pods there are. So parameters of one link are read and written by the link's folder, found once.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags, StatVfsMountFlags, open, openat, statvfs};
use rustix::mount::{MountFlags, mount_bind, mount_remount};
use tracing::warn;

/// Why a kernel parameter cannot be set.
#[derive(Debug, thiserror::Error)]
#[error("cannot set {} to {value}; moat needs it, so allow it or set it before", path.display())]
pub struct SysctlError {
    path: PathBuf,
    value: &'static str,
    source: io::Error,
}

/// Lets this process write there where `/proc/sys` is read-only, as in every container that is not privileged: in the container's own
/// mounts alone, and of `/proc/sys` only what is below `net`. Where that is denied, the first parameter that has to be written says so.
pub(crate) fn make_writable() {
    let net = path("");
    if !statvfs(&net).is_ok_and(|net| net.f_flag.contains(StatVfsMountFlags::RDONLY)) {
        return;
    }
    if let Err(error) = mount_bind(&net, &net).and_then(|()| mount_remount(&net, MountFlags::BIND, c"")) {
        warn!("{} is read-only, and stays so: {error}", net.display());
    }
}

/// Sets `net/NAME` to `value`. A parameter that has the value already is not written: `/proc/sys` may be read-only.
pub(crate) fn set(name: &str, value: &'static str) -> Result<(), SysctlError> {
    set_all(&[(name.to_owned(), value)])
}

/// The value of `net/NAME`, where there is such a parameter.
pub(crate) fn get(name: &str) -> Option<String> {
    fs::read_to_string(path(name)).ok().map(|text| text.trim().to_owned())
}

/// Whether the kernel speaks IPv6 at all.
pub(crate) fn has_ipv6() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| path("ipv6/conf").is_dir())
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

/// Sets all of them that have another value.
pub(crate) fn set_all(wanted: &[(String, &'static str)]) -> Result<(), SysctlError> {
    let mut folders = Folders::default();
    wanted.iter().try_for_each(|(name, value)| {
        if folders.get(name).as_deref() == Some(value) {
            return Ok(());
        }
        let written = folders.open(name, OFlags::WRONLY | OFlags::TRUNC);
        let written = written.and_then(|mut file| file.write_all(value.as_bytes()));
        written.map_err(|source| SysctlError { path: path(name), value, source })
    })
}

/// Which of them have another value, in words.
pub(crate) fn drift(wanted: &[(String, &'static str)]) -> Vec<String> {
    let mut folders = Folders::default();
    let mut differs = |(name, value): &(String, &'static str)| {
        let now = folders.get(name)?;
        (now != *value).then(|| format!("the kernel parameter net/{name} is {now}, not {value}"))
    };
    wanted.iter().filter_map(&mut differs).collect()
}

/// Opens the parameter `net/NAME` of each of these names to read it; of those that there are.
pub(crate) fn open_all<'a>(names: impl IntoIterator<Item = &'a str>) -> io::Result<Vec<File>> {
    let mut folders = Folders::default();
    let files = names.into_iter().map(|name| folders.open(name, OFlags::RDONLY));
    files.filter(|file| !matches!(file, Err(error) if error.kind() == io::ErrorKind::NotFound)).collect()
}

/// The folder that was asked for last: parameters of one link come one after the other.
#[derive(Default)]
struct Folders(Option<(PathBuf, OwnedFd)>);

impl Folders {
    fn open(&mut self, name: &str, flags: OFlags) -> io::Result<File> {
        let path = path(name);
        let (Some(folder), Some(file)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let known = self.0.take().filter(|(known, _)| known == folder);
        let known = match known {
            Some(known) => known,
            None => (
                folder.to_owned(),
                open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?,
            ),
        };
        let (_, within) = self.0.insert(known);
        Ok(openat(within, file, flags | OFlags::CLOEXEC, Mode::empty())?.into())
    }

    fn get(&mut self, name: &str) -> Option<String> {
        let mut text = String::new();
        self.open(name, OFlags::RDONLY).and_then(|mut file| file.read_to_string(&mut text)).ok()?;
        Some(text.trim().to_owned())
    }
}
