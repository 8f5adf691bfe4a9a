//! Links, addresses and routes of the fabric, by netlink, in the namespace of the thread that runs the task.

use std::io;
use std::net::IpAddr;
use std::os::fd::RawFd;

use ipnet::IpNet;
use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder, new_connection};

/// The link with which a node, or the outside world, is on the fabric.
pub(crate) const UPLINK: &str = "eth0";
const BRIDGE: &str = "fabric";

/// A netlink connection of the namespace that the task runs in.
pub(crate) struct Links {
    handle: Handle,
}

impl Links {
    /// Opens it. Must run on a runtime.
    pub(crate) fn open() -> io::Result<Self> {
        let (connection, handle, _) = new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Sets a link up.
    pub(crate) async fn up(&self, name: &str) -> io::Result<()> {
        let message = LinkUnspec::new_with_name(name).up().build();
        self.handle.link().set(message).execute().await.map_err(|e| failed(format!("set {name} up"), e))
    }

    /// Sets a link down.
    pub(crate) async fn down(&self, name: &str) -> io::Result<()> {
        let message = LinkUnspec::new_with_name(name).down().build();
        self.handle.link().set(message).execute().await.map_err(|e| failed(format!("set {name} down"), e))
    }

    /// Makes the fabric's bridge.
    pub(crate) async fn add_bridge(&self) -> io::Result<()> {
        let message = LinkBridge::new(BRIDGE).build();
        self.handle.link().add(message).execute().await.map_err(|e| failed("add the fabric's bridge", e))
    }

    /// Makes a cable from here, from the bridge if it is to be, to `UPLINK` in another namespace.
    pub(crate) async fn add_cable(&self, port: &str, netns: RawFd, bridged: bool) -> io::Result<()> {
        let far_end = LinkUnspec::new_with_name(UPLINK).setns_by_fd(netns).build();
        let mut cable = LinkVeth::new(port, UPLINK).set_info_data(InfoData::Veth(InfoVeth::Peer(far_end)));
        if bridged {
            cable = cable.controller(index_of(BRIDGE)?);
        }
        self.handle
            .link()
            .add(cable.up().build())
            .execute()
            .await
            .map_err(|e| failed(format!("add the cable {port}"), e))
    }

    /// Gives a link an address of its own alone, usable at once (no duplicate address detection).
    pub(crate) async fn add_address(&self, link: &str, address: IpAddr) -> io::Result<()> {
        let mut request = self.handle.address().add(index_of(link)?, address, length_of(address));
        request.message_mut().header.flags = AddressHeaderFlags::Nodad;
        request.execute().await.map_err(|e| failed(format!("add {address} to {link}"), e))
    }

    /// Says that an address is on a link.
    pub(crate) async fn add_neighbour_route(&self, link: &str, to: IpAddr) -> io::Result<()> {
        let what = || format!("route {to} to {link}");
        let message = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(to, length_of(to))
            .map_err(|e| io::Error::other(format!("{}: {e}", what())))?
            .output_interface(index_of(link)?)
            .scope(if to.is_ipv4() { RouteScope::Link } else { RouteScope::Universe })
            .build();
        self.handle.route().add(message).replace().execute().await.map_err(|e| failed(what(), e))
    }

    /// Says that a prefix is behind somebody on the uplink.
    pub(crate) async fn add_route(&self, to: IpNet, via: IpAddr) -> io::Result<()> {
        let what = || format!("route {to} via {via}");
        let message = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(to.network(), to.prefix_len())
            .and_then(|m| m.gateway(via))
            .map_err(|e| io::Error::other(format!("{}: {e}", what())))?
            .output_interface(index_of(UPLINK)?)
            .build();
        self.handle.route().add(message).replace().execute().await.map_err(|e| failed(what(), e))
    }
}

fn length_of(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The number of a link of the calling thread's namespace.
pub(crate) fn index_of(name: &str) -> io::Result<u32> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    rustix::net::netdevice::name_to_index(&socket, name)
        .map_err(|e| io::Error::new(io::Error::from(e).kind(), format!("no link {name}: {e}")))
}

fn failed(what: impl Into<String>, error: rtnetlink::Error) -> io::Error {
    let what = what.into();
    match error {
        rtnetlink::Error::NetlinkError(message) => {
            let cause = message.to_io();
            io::Error::new(cause.kind(), format!("cannot {what}: {cause}"))
        }
        other => io::Error::other(format!("cannot {what}: {other}")),
    }
}
