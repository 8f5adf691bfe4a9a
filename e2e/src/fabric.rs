//! The link that joins the nodes, and the world outside: a bridge in a namespace of its own.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use moat_policies::{Family, Node};

use crate::error::{LabError, Trying as _};
use crate::link::{Links, UPLINK, index_of};
use crate::space::{Space, sysctl};
use crate::topology::node_addresses;
use crate::world::WorldHost;

/// The bridge and who is on it.
pub(crate) struct Fabric {
    bridge: Arc<Space>,
    nodes: Vec<Arc<Space>>,
    world: Option<Arc<Space>>,
}

impl Fabric {
    /// Lays the cables: to each node, and to the outside world if there is one. Everybody's address is on the link, and every node
    /// knows the way to the outside hosts, as they know the way to each node's pods. The way to other nodes' pods is the agents' to find.
    pub(crate) async fn build(nodes: &[Node], world: &[WorldHost]) -> Result<Self, LabError> {
        let bridge = Arc::new(space("fabric")?);
        in_space(&bridge, async { Links::open()?.add_bridge().await }).await?;
        let node_addresses: Vec<Vec<IpAddr>> = nodes.iter().map(node_addresses).collect();
        let outside: Vec<IpAddr> = world.iter().map(|w| w.address).collect();
        let mut rooms = Vec::with_capacity(nodes.len());
        for (number, (node, own)) in nodes.iter().zip(&node_addresses).enumerate() {
            let room = Arc::new(space(&node.name)?);
            cable(&bridge, port_of(number), &room).await?;
            let others = node_addresses.iter().flatten().chain(&outside);
            let others: Vec<IpAddr> = others.filter(|a| !own.contains(a)).copied().collect();
            let own = own.clone();
            let wired = async move {
                sysctl("net.ipv4.ip_forward", "1")?;
                if own.iter().any(IpAddr::is_ipv6) {
                    sysctl("net.ipv6.conf.all.forwarding", "1")?;
                }
                connect(own, others, Vec::new()).await
            };
            in_space(&room, wired).await?;
            rooms.push(room);
        }
        let world = if outside.is_empty() {
            None
        } else {
            let room = Arc::new(space("world")?);
            cable(&bridge, "world".into(), &room).await?;
            let routes = nodes.iter().flat_map(pod_routes).collect();
            let others = node_addresses.into_iter().flatten().collect();
            in_space(&room, connect(outside, others, routes)).await?;
            Some(room)
        };
        Ok(Self { bridge, nodes: rooms, world })
    }

    /// Pulls the cable of a node, by its number, or puts it back.
    pub(crate) async fn plug(&self, number: usize, plugged: bool) -> Result<(), LabError> {
        let port = port_of(number);
        in_space(&self.bridge, async move {
            let links = Links::open()?;
            if plugged { links.up(&port).await } else { links.down(&port).await }
        })
        .await
    }

    /// The nodes' namespaces, in the order of the nodes.
    pub(crate) fn nodes(&self) -> &[Arc<Space>] {
        &self.nodes
    }

    /// The namespace of the bridge.
    pub(crate) fn bridge(&self) -> &Arc<Space> {
        &self.bridge
    }

    /// The numbers of the bridge's ends of the nodes' cables, in the order of the nodes.
    pub(crate) async fn wires(&self) -> Result<Vec<usize>, LabError> {
        let ports: Vec<String> = (0..self.nodes.len()).map(port_of).collect();
        let numbers = self.bridge.run(async move {
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

async fn cable(bridge: &Space, port: String, to: &Space) -> Result<(), LabError> {
    let netns = to.raw_fd();
    in_space(bridge, async move { Links::open()?.add_cable(&port, netns).await }).await
}

/// One namespace's end of its cable.
async fn connect(own: Vec<IpAddr>, others: Vec<IpAddr>, routes: Vec<(IpNet, IpAddr)>) -> std::io::Result<()> {
    let links = Links::open()?;
    links.up("lo").await?;
    if own.iter().any(IpAddr::is_ipv6) {
        // While its link-local address is tentative, which takes 2 s, a router looks for no neighbour on behalf of others.
        sysctl(&format!("net.ipv6.conf.{UPLINK}.accept_dad"), "0")?;
    }
    links.up(UPLINK).await?;
    // Addresses of Node objects need not share a prefix; on this link each is a neighbour all the same.
    for address in own {
        links.add_address(address, if address.is_ipv4() { 32 } else { 128 }).await?;
    }
    for address in others {
        links.add_neighbour_route(address).await?;
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
