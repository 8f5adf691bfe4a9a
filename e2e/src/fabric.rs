//! What joins the nodes, and the world outside: a bridge or a router in a namespace of its own.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Stdio;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use moat_policies::{Family, Node};
use tokio::io::AsyncWriteExt as _;

use crate::error::{LabError, Trying as _};
use crate::link::{Links, UPLINK, index_of};
use crate::space::{Space, sysctl};
use crate::topology::{Joined, node_addresses};
use crate::world::WorldHost;

/// The router's address of each family, on all of its links.
const ROUTER: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 168, 244, 254)),
    IpAddr::V6(Ipv6Addr::new(0xfd10, 0x244, 0xffff, 0, 0, 0, 0, 0xfe)),
];
const EVERYWHERE: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
];
/// The hub's end of the world's cable.
const WORLD_PORT: &str = "world";

/// What a strict router does with IPv6; for IPv4 the kernel has a switch.
const STRICT: &str = "table ip6 lab {
    chain prerouting {
        type filter hook prerouting priority -300
        ip6 saddr != fe80::/10 fib saddr . iif oif missing drop
    }
}
";

/// The bridge or the router, and who is on it.
pub(crate) struct Fabric {
    joined: Joined,
    hub: Arc<Space>,
    nodes: Vec<Arc<Space>>,
    world: Option<Arc<Space>>,
    outside: Vec<IpAddr>,
}

impl Fabric {
    /// Lays the cables: to each node, and to the outside world if there is one. On one link, everybody's address is there, and
    /// every node knows the way to the outside hosts, as they know the way to each node's pods. Else, everybody has
    /// a link with the router and nobody else, and the router knows nodes and outside hosts, but no pod. The way to other
    /// nodes' pods is the agents' to find.
    pub(crate) async fn build(nodes: &[Node], world: &[WorldHost], joined: Joined) -> Result<Self, LabError> {
        let hub = Arc::new(space(if joined == Joined::Link { "fabric" } else { "router" })?);
        let strict = joined == Joined::StrictRouter;
        match joined {
            Joined::Link => in_space(&hub, async { Links::open()?.add_bridge().await }).await?,
            Joined::Router | Joined::StrictRouter => in_space(&hub, become_router(strict)).await?,
        }
        let addresses: Vec<Vec<IpAddr>> = nodes.iter().map(node_addresses).collect();
        let outside: Vec<IpAddr> = world.iter().map(|w| w.address).collect();
        let mut own = Self { joined, hub, nodes: Vec::new(), world: None, outside: outside.clone() };
        for (number, (node, addresses_of_it)) in nodes.iter().zip(&addresses).enumerate() {
            let room = Arc::new(space(&node.name)?);
            let forwards = addresses_of_it.clone();
            in_space(&room, async move { forward(&forwards) }).await?;
            let others = addresses.iter().flatten().chain(&outside);
            let others = others.filter(|a| !addresses_of_it.contains(a)).copied().collect();
            own.attach(&room, port_of(number), addresses_of_it.clone(), others, Vec::new()).await?;
            own.nodes.push(room);
        }
        if !outside.is_empty() {
            let room = Arc::new(space("world")?);
            let routes = nodes.iter().flat_map(pod_routes).collect();
            let others = addresses.into_iter().flatten().collect();
            own.attach(&room, WORLD_PORT.into(), outside, others, routes).await?;
            own.world = Some(room);
        }
        Ok(own)
    }

    /// Lays the cable to a namespace and sets up both ends of it. `others` and `routes`: whom it finds on a link that all share,
    /// and what is behind them.
    async fn attach(
        &self,
        room: &Space,
        port: String,
        own: Vec<IpAddr>,
        others: Vec<IpAddr>,
        routes: Vec<(IpNet, IpAddr)>,
    ) -> Result<(), LabError> {
        let netns = room.raw_fd();
        let bridged = self.joined == Joined::Link;
        let (name, behind) = (port.clone(), own.clone());
        let near_end = async move {
            let links = Links::open()?;
            links.add_cable(&name, netns, bridged).await?;
            if bridged { Ok(()) } else { lead_to(&links, &name, &behind).await }
        };
        in_space(&self.hub, near_end).await?;
        if bridged {
            return in_space(room, connect(own, others, routes)).await;
        }
        let router = |family: &IpAddr| ROUTER.into_iter().find(|r| r.is_ipv4() == family.is_ipv4());
        let routers: BTreeSet<IpAddr> = own.iter().filter_map(router).collect();
        let defaults = routers.iter().filter_map(|router| {
            let all = EVERYWHERE.into_iter().find(|all| all.addr().is_ipv4() == router.is_ipv4())?;
            Some((all, *router))
        });
        let defaults = defaults.collect();
        in_space(room, connect(own, routers.into_iter().collect(), defaults)).await
    }

    /// Pulls the cable of a node, by its number, or puts it back.
    pub(crate) async fn plug(&self, number: usize, plugged: bool) -> Result<(), LabError> {
        let port = port_of(number);
        in_space(&self.hub, async move {
            let links = Links::open()?;
            if plugged { links.up(&port).await } else { links.down(&port).await }
        })
        .await
    }

    /// The nodes' namespaces, in the order of the nodes.
    pub(crate) fn nodes(&self) -> &[Arc<Space>] {
        &self.nodes
    }

    /// The namespace of the bridge or the router.
    pub(crate) fn hub(&self) -> &Arc<Space> {
        &self.hub
    }

    /// A place on the link that the first node is on: a namespace, and the name of its link there.
    pub(crate) fn uplink(&self) -> Option<(&Arc<Space>, String)> {
        match self.joined {
            Joined::Link => self.world.as_ref().map(|world| (world, UPLINK.to_owned())),
            Joined::Router | Joined::StrictRouter => Some((&self.hub, port_of(0))),
        }
    }

    /// The addresses of the outside hosts.
    pub(crate) fn outside(&self) -> &[IpAddr] {
        &self.outside
    }

    /// The numbers of the hub's ends of the nodes' cables, in the order of the nodes.
    pub(crate) async fn wires(&self) -> Result<Vec<usize>, LabError> {
        let ports: Vec<String> = (0..self.nodes.len()).map(port_of).collect();
        let numbers = self.hub.run(async move {
            ports.iter().map(|port| Ok(index_of(port)? as usize)).collect::<std::io::Result<Vec<usize>>>()
        });
        numbers.await.flatten().trying(|| "cannot find the fabric's ports".into())
    }

    /// The namespace of all outside hosts.
    pub(crate) fn world(&self) -> Option<&Arc<Space>> {
        self.world.as_ref()
    }
}

/// The bridge's end of a node's cable.
fn port_of(number: usize) -> String {
    format!("node{number}")
}

/// The way to a node's pods: through its address of the same family.
fn pod_routes(node: &Node) -> Vec<(IpNet, IpAddr)> {
    let via = |cidr: &IpNet| {
        let family = Family::of(&cidr.addr());
        node.addresses.iter().copied().find(|a| Family::of(a) == family)
    };
    node.pod_cidrs.iter().filter_map(|cidr| Some((*cidr, via(cidr)?))).collect()
}

/// Makes a node, or the router, pass on what is not for itself.
fn forward(families: &[IpAddr]) -> io::Result<()> {
    sysctl("net.ipv4.ip_forward", "1")?;
    match families.iter().any(IpAddr::is_ipv6) {
        true => sysctl("net.ipv6.conf.all.forwarding", "1"),
        false => Ok(()),
    }
}

async fn become_router(strict: bool) -> io::Result<()> {
    forward(&ROUTER)?;
    // The larger of a link's and of all links' counts.
    sysctl("net.ipv4.conf.all.rp_filter", if strict { "1" } else { "0" })?;
    sysctl("net.ipv4.conf.default.rp_filter", "0")?;
    sysctl("net.ipv6.conf.default.accept_dad", "0")?;
    if strict { nft(STRICT).await } else { Ok(()) }
}

/// The router's end of a cable: its own addresses, and those that are behind it.
async fn lead_to(links: &Links, port: &str, behind: &[IpAddr]) -> io::Result<()> {
    links.up(port).await?;
    for address in ROUTER {
        links.add_address(port, address).await?;
    }
    for address in behind {
        links.add_neighbour_route(port, *address).await?;
    }
    Ok(())
}

/// Loads rules into the namespace that the task runs in.
pub(crate) async fn nft(rules: &str) -> io::Result<()> {
    let mut child = tokio::process::Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| io::Error::new(e.kind(), format!("cannot run nft, of the nftables package: {e}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(rules.as_bytes()).await?;
    }
    let output = child.wait_with_output().await?;
    match output.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!("nft: {}", String::from_utf8_lossy(&output.stderr).trim()))),
    }
}

/// One namespace's end of its cable.
async fn connect(own: Vec<IpAddr>, others: Vec<IpAddr>, routes: Vec<(IpNet, IpAddr)>) -> io::Result<()> {
    let links = Links::open()?;
    links.up("lo").await?;
    if own.iter().any(IpAddr::is_ipv6) {
        // While its link-local address is tentative, which takes 2 s, a router looks for no neighbour on behalf of others.
        sysctl(&format!("net.ipv6.conf.{UPLINK}.accept_dad"), "0")?;
    }
    links.up(UPLINK).await?;
    // Addresses of Node objects need not share a prefix; on this link each is a neighbour all the same.
    for address in own {
        links.add_address(UPLINK, address).await?;
    }
    for address in others {
        links.add_neighbour_route(UPLINK, address).await?;
    }
    for (prefix, via) in routes {
        links.add_route(prefix, via).await?;
    }
    Ok(())
}

fn space(name: &str) -> Result<Space, LabError> {
    Space::new(name).map_err(|source| {
        if source.kind() == std::io::ErrorKind::PermissionDenied {
            LabError::NoNamespaces(source)
        } else {
            LabError::Io { what: format!("cannot make a namespace for {name}"), source }
        }
    })
}

async fn in_space<F>(space: &Space, future: F) -> Result<(), LabError>
where
    F: Future<Output = std::io::Result<()>> + Send + 'static,
{
    let result = space.run(future).await;
    result.flatten().trying(|| format!("cannot set up {}", space.name()))
}
