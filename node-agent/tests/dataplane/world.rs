//! A node with its pods and a world outside, all of it real: namespaces, veths, routes, the data plane.
//!
//! ```text
//!   pod a ──moata──┐
//!   pod b ──moatb──┤ node (up0 192.168.0.1, fd01::1) ──── outside (192.168.0.2, fd01::2; pods of other nodes)
//!   …              ┘
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use moat_agent::check::{self, CompareError, Limits, Report, Ruleset, Veth};
use moat_agent::dataplane::{Config, Dataplane, DropCounters, DropPoint, LocalPod, Update};
use moat_policies::{Cluster, Key, NamespacedName, Object};

use crate::interrupted::uninterrupted;
use crate::probe::{udp_socket, unspecified};
use crate::space::Space;

pub(crate) const NODE_V4: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 1);
pub(crate) const OUTSIDE_V4: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 2);

const NODES: &str = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Node, metadata: {name: node}, spec: {podCIDRs: [10.0.0.0/24, 'fd00::/64']},
   status: {addresses: [{type: InternalIP, address: 192.168.0.1}, {type: InternalIP, address: 'fd01::1'}]}}
- {apiVersion: v1, kind: Node, metadata: {name: other}, spec: {podCIDRs: [10.0.1.0/24, 'fd00:1::/64']},
   status: {addresses: [{type: InternalIP, address: 192.168.0.3}]}}
";

#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) space: Space,
    pub(crate) local: LocalPod,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
}

pub(crate) struct World {
    pub(crate) node: Space,
    pub(crate) outside: Space,
    pub(crate) pods: BTreeMap<String, Pod>,
    /// Pods of other nodes; their addresses are the outside's.
    pub(crate) remote: BTreeMap<String, (Ipv4Addr, Ipv6Addr)>,
    pub(crate) cluster: Cluster,
    pub(crate) dataplane: Option<Dataplane>,
    /// What it was made of.
    pub(crate) manifests: String,
    config: Config,
}

/// `kind: Pod` in namespace `default`, with labels `app: <name>` and `all: pods`.
pub(crate) fn pod_manifest(name: &str, node: &str, ports: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}, all: pods}}}}\n\
         spec: {{nodeName: {node}, containers: [{{name: c, image: i, ports: [{ports}]}}]}}\n"
    )
}

pub(crate) fn objects(text: &str) -> Vec<Object> {
    let manifests = moat_manifests::decode([("test.yaml", text.as_bytes())]);
    manifests.unwrap_or_else(|e| panic!("{e}")).objects
}

impl World {
    /// A world with local pods of these names, pods of the node `other`, and policies.
    pub(crate) fn new(local: &[&str], remote: &[&str], policies: &str) -> Self {
        Self::with(local, remote, policies, Config::default())
    }

    pub(crate) fn with(local: &[&str], remote: &[&str], policies: &str, config: Config) -> Self {
        let mut world = Self::unstarted(local, remote, policies, config);
        world.start(world.whole());
        world
    }

    /// The same, without a data plane yet.
    pub(crate) fn unstarted(local: &[&str], remote: &[&str], policies: &str, config: Config) -> Self {
        let mut text = String::from(NODES);
        local.iter().for_each(|name| text.push_str(&pod_manifest(name, "node", PORTS)));
        remote.iter().for_each(|name| text.push_str(&pod_manifest(name, "other", PORTS)));
        text.push_str(policies);

        let (node, outside) = (Space::new("node"), Space::new("outside"));
        for name in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            node.sysctl(name, "1");
        }
        node.ip(&format!("link add up0 type veth peer name eth0 netns {}", outside.thread()));
        node.ip("addr add 192.168.0.1/24 dev up0");
        node.ip("addr add fd01::1/64 dev up0 nodad");
        node.ip("link set up0 up");
        outside.ip("addr add 192.168.0.2/24 dev eth0");
        outside.ip("addr add fd01::2/64 dev eth0 nodad");
        outside.ip("link set eth0 up");
        node.ip("route add default via 192.168.0.2");
        node.ip("-6 route add default via fd01::2");
        outside.ip("route add 10.0.0.0/24 via 192.168.0.1");
        outside.ip("-6 route add fd00::/64 via fd01::1");

        let mut world = Self {
            node,
            outside,
            pods: BTreeMap::new(),
            remote: BTreeMap::new(),
            cluster: Cluster::new(),
            dataplane: None,
            manifests: text.clone(),
            config,
        };
        for (index, name) in remote.iter().enumerate() {
            let n = 10 + index as u16;
            let (v4, v6) = (Ipv4Addr::new(10, 0, 1, n as u8), Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, n));
            world.outside.ip(&format!("addr add {v4}/32 dev lo"));
            world.outside.ip(&format!("addr add {v6}/128 dev lo nodad"));
            world.remote.insert((*name).to_owned(), (v4, v6));
        }
        for (index, name) in local.iter().enumerate() {
            world.plug(name, 10 + index as u8);
        }
        for (there, to) in world.ends() {
            reaches(&world.node, there, to);
        }
        let node6 = "fd01::1".parse().expect("an address");
        for space in world.pods.values().map(|p| &p.space).chain([&world.outside]) {
            [NODE_V4.into(), node6].into_iter().for_each(|to| reaches(space, &world.node, to));
        }
        let mut all = objects(&text);
        world.address(&mut all);
        world.cluster.reset(all);
        world.cluster.commit();
        world
    }

    /// Everybody that the node talks to, and their addresses.
    fn ends(&self) -> Vec<(&Space, IpAddr)> {
        let mut all: Vec<(&Space, IpAddr)> =
            self.pods.values().flat_map(|p| [(&p.space, p.v4.into()), (&p.space, p.v6.into())]).collect();
        all.push((&self.outside, OUTSIDE_V4.into()));
        all.push((&self.outside, "fd01::2".parse().expect("an address")));
        all
    }

    /// The pod network of one pod.
    fn plug(&mut self, name: &str, n: u8) {
        let space = Space::new(name);
        let (ifname, v4) = (format!("moat{name}"), Ipv4Addr::new(10, 0, 0, n));
        let v6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n.into());
        let (pod_mac, host_mac) = ([2, 0, 0, 0, 0, n], format!("06:00:00:00:00:{n:02x}"));
        let mac = format!("02:00:00:00:00:{n:02x}");
        self.node.ip(&format!(
            "link add {ifname} address {host_mac} type veth peer name eth0 address {mac} netns {}",
            space.thread()
        ));
        space.ip(&format!("addr add {v4}/32 dev eth0"));
        space.ip(&format!("addr add {v6}/128 dev eth0 nodad"));
        self.node.ip(&format!("link set {ifname} up"));
        space.ip("link set eth0 up");
        space.ip("route add 169.254.1.1 dev eth0");
        space.ip("route add default via 169.254.1.1");
        space.ip("-6 route add default via fe80::1 dev eth0");
        space.ip(&format!("neigh replace 169.254.1.1 lladdr {host_mac} dev eth0 nud permanent"));
        space.ip(&format!("-6 neigh replace fe80::1 lladdr {host_mac} dev eth0 nud permanent"));
        self.node.ip(&format!("route add {v4}/32 dev {ifname}"));
        self.node.ip(&format!("-6 route add {v6}/128 dev {ifname}"));
        self.node.ip(&format!("neigh replace {v4} lladdr {mac} dev {ifname} nud permanent"));
        self.node.ip(&format!("-6 neigh replace {v6} lladdr {mac} dev {ifname} nud permanent"));
        let local = LocalPod { ifname, pod_mac, v4: Some(v4), v6: Some(v6) };
        self.pods.insert(name.to_owned(), Pod { space, local, v4, v6 });
    }

    /// Gives pod objects the addresses that the pods have.
    pub(crate) fn address(&self, objects: &mut [Object]) {
        for object in objects {
            let Object::Pod(pod) = object else { continue };
            let held = match self.pods.get(&*pod.name.name) {
                Some(p) => Some((p.v4, p.v6)),
                None => self.remote.get(&*pod.name.name).copied(),
            };
            if let Some((v4, v6)) = held {
                pod.addresses = vec![v4.into(), v6.into()];
            }
        }
    }

    /// What the engine says that changed for this node.
    fn policy(&mut self) -> moat_policies::NodeDelta {
        self.cluster.commit().remove("node").unwrap_or_default()
    }

    pub(crate) fn start(&mut self, first: Update) {
        let config = self.config.clone();
        let dataplane = self.node.run(move || Dataplane::start(config, &first));
        self.dataplane = Some(dataplane.expect("the data plane starts"));
    }

    /// Ends the data plane and starts another, which adopts what is there.
    pub(crate) fn restart(&mut self) {
        self.dataplane = None;
        self.start(self.whole());
    }

    /// The whole state, as the first update of an agent that has just started.
    pub(crate) fn whole(&self) -> Update {
        Update {
            policy: self.cluster.state("node"),
            pods: self.pods.iter().map(|(n, p)| (name(n), Some(p.local.clone()))).collect(),
            ..Update::default()
        }
    }

    pub(crate) fn dataplane(&self) -> &Dataplane {
        self.dataplane.as_ref().expect("the data plane runs")
    }

    /// Applies manifests and waits until the kernel holds what follows from them.
    pub(crate) fn apply(&mut self, text: &str) {
        let mut all = objects(text);
        self.address(&mut all);
        all.into_iter().for_each(|o| self.cluster.apply(o));
        self.submit(BTreeMap::new());
    }

    pub(crate) fn delete_policy(&mut self, policy: &str) {
        self.cluster.delete(&Key::Policy(name(policy)));
        self.submit(BTreeMap::new());
    }

    pub(crate) fn submit(&mut self, pods: BTreeMap<NamespacedName, Option<LocalPod>>) {
        let policy = self.policy();
        self.dataplane()
            .submit(Update { policy, pods, ..Update::default() })
            .wait()
            .expect("the kernel takes it");
    }

    /// Walks a table and compares it with the policies.
    pub(crate) fn compare(&self, ruleset: &Ruleset) -> Result<Report, CompareError> {
        let veths: Vec<Veth> = self
            .pods
            .iter()
            .map(|(n, p)| Veth {
                pod: name(n),
                ifname: p.local.ifname.clone(),
                pod_mac: p.local.pod_mac,
                addresses: vec![p.v4.into(), p.v6.into()],
            })
            .collect();
        let pod_to_node = self.config.layout.pod_to_node;
        check::compare(ruleset, self.cluster.objects(), "node", &veths, Limits::default(), pod_to_node)
    }

    /// What `nft` reads back does what the policies say: an independent party's word.
    pub(crate) fn check(&self) {
        let listing = self.node.command("nft -j list table inet moat");
        let ruleset = check::read(&listing, "inet", "moat").expect("a table that can be judged");
        let report = self.compare(&ruleset).expect("walks");
        let text: Vec<String> = report.differences.iter().map(ToString::to_string).collect();
        assert!(text.is_empty(), "{}\n{}", text.join("\n"), self.node.command("nft list table inet moat"));
        assert!(report.packets > 0);
    }

    /// How many packets were dropped so far, by reason.
    pub(crate) fn drops(&self) -> BTreeMap<DropPoint, u64> {
        self.node.run(|| DropCounters::open().and_then(|mut counters| counters.read()).expect("counters"))
    }

    /// Whose address that is.
    pub(crate) fn v4(&self, name: &str) -> IpAddr {
        match self.pods.get(name) {
            Some(pod) => pod.v4.into(),
            None => self.remote[name].0.into(),
        }
    }

    pub(crate) fn v6(&self, name: &str) -> IpAddr {
        match self.pods.get(name) {
            Some(pod) => pod.v6.into(),
            None => self.remote[name].1.into(),
        }
    }
}

/// Waits until packets come through: a link is not up at once, and for a while it swallows what it is given.
fn reaches(from: &Space, there: &Space, to: IpAddr) {
    let receiver = there.run(move || udp_socket(SocketAddr::new(to, 0)));
    let at = receiver.local_addr().expect("an address");
    receiver.set_nonblocking(false).expect("an option");
    receiver.set_read_timeout(Some(Duration::from_millis(50))).expect("an option");
    let sender = from.run(move || udp_socket(SocketAddr::new(unspecified(to), 0)));
    let mut buffer = [0; 8];
    // Until the link is up, the sender may even be told that there is no route.
    let arrives = |_| {
        let _ = sender.send_to(b"up?", at);
        uninterrupted(|| receiver.recv(&mut buffer)).is_ok()
    };
    assert!((0..200).any(arrives), "nothing gets through to {to}");
}

/// Every pod's container ports.
const PORTS: &str = "{name: web, containerPort: 80}, {name: dns, containerPort: 53, protocol: UDP}";

pub(crate) fn name(pod: &str) -> NamespacedName {
    NamespacedName::new("default", pod)
}
