//! Random small clusters, and a node that holds what it is told.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use moat_policies::*;
use proptest::prelude::*;
use proptest::sample::select;

/// The nodes that pods are on.
pub const NODES: [&str; 2] = ["n1", "n2"];

/// What a node holds after the changes it was told: checks that each of them can be applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeTable {
    pub pods: BTreeMap<NamespacedName, PodPrograms>,
    pub programs: BTreeMap<ProgramId, Arc<Program>>,
    pub sets: BTreeMap<SetId, AllowSet>,
}

impl NodeTable {
    pub fn of(delta: NodeDelta) -> Self {
        let mut table = Self::default();
        table.apply(delta);
        table
    }

    pub fn apply(&mut self, delta: NodeDelta) {
        for (id, change) in delta.sets {
            match change {
                SetChange::Create(set) => {
                    assert!(self.sets.insert(id, (*set).clone()).is_none(), "{id} created twice")
                }
                SetChange::Delete => assert!(self.sets.remove(&id).is_some(), "{id} deleted, was not there"),
                SetChange::Update(update) => {
                    let set = self.sets.get_mut(&id).expect("only a set that is there is updated");
                    assert!(!update.add.is_empty() || !update.remove.is_empty());
                    for gone in &update.remove {
                        let place = set.elements.binary_search(gone).expect("what goes was there");
                        set.elements.remove(place);
                    }
                    for new in &update.add {
                        let place = set.elements.binary_search(new).expect_err("what comes was not there");
                        set.elements.insert(place, *new);
                    }
                }
            }
        }
        for (id, change) in delta.programs {
            match change {
                Some(program) => assert!(self.programs.insert(id, program).is_none(), "{id} added twice"),
                None => assert!(self.programs.remove(&id).is_some(), "{id} deleted, was not there"),
            }
        }
        for (name, change) in delta.pods {
            match change {
                Some(programs) => {
                    self.pods.insert(name, programs);
                }
                None => assert!(self.pods.remove(&name).is_some(), "{name} deleted, was not there"),
            }
        }
        self.check();
    }

    /// Nothing refers to what is not there, and nothing is there that nobody needs.
    fn check(&self) {
        let mut programs: Vec<ProgramId> =
            self.pods.values().flat_map(|p| [p.ingress, p.egress]).flatten().collect();
        programs.sort_unstable();
        programs.dedup();
        assert!(programs.iter().eq(self.programs.keys()), "programs are those of the pods");
        let allow = |allow: &Allow| match allow {
            Allow::Everyone => None,
            Allow::Set(id) => Some((*id, SetKind::Addresses)),
        };
        let mut sets = BTreeMap::new();
        for program in self.programs.values() {
            sets.extend(program.every.iter().filter_map(allow));
            sets.extend(program.classes.iter().filter_map(|c| allow(&c.allow)));
            sets.extend(program.named.map(|id| (id, SetKind::AddressPorts)));
            for class in &program.classes {
                assert!(!class.ports.is_empty());
                assert_ne!(Some(class.allow), program.every, "a class like every is none");
                for pair in class.ports.windows(2) {
                    assert!(pair[0] < pair[1]);
                    let apart = pair[0].protocol != pair[1].protocol
                        || u32::from(pair[0].last) + 1 < u32::from(pair[1].first);
                    assert!(apart, "disjoint and not adjacent");
                }
            }
            assert!(program.classes.windows(2).all(|p| p[0].ports < p[1].ports && p[0].allow != p[1].allow));
        }
        assert!(sets.keys().eq(self.sets.keys()), "sets are those of the programs");
        for (id, kind) in sets {
            let set = &self.sets[&id];
            assert_eq!(set.kind, kind);
            assert!(set.pods || set.elements.is_empty());
            assert!(set.elements.windows(2).all(|p| p[0] < p[1]));
            assert!(set.elements.iter().all(|e| e.port.is_some() == (kind == SetKind::AddressPorts)));
        }
    }

    /// What the programs say of a packet between a pod here and a peer, as [`Program`] documents it.
    pub fn allows(&self, pod: &NamespacedName, direction: Direction, peer: IpAddr, traffic: Traffic) -> bool {
        let programs = self.pods[pod];
        let id = match direction {
            Direction::Ingress => programs.ingress,
            Direction::Egress => programs.egress,
        };
        let Some(id) = id else { return true };
        let program = &self.programs[&id];
        let holds = |allow: &Allow| match allow {
            Allow::Everyone => true,
            Allow::Set(id) => {
                let set = &self.sets[id];
                set.prefixes.iter().any(|p| p.contains(&peer))
                    || set.elements.binary_search(&Element { address: peer, port: None }).is_ok()
            }
        };
        let Traffic::Port(protocol, port) = traffic else { return program.every.as_ref().is_some_and(holds) };
        let class = program.classes.iter().find(|class| {
            class.ports.iter().any(|r| r.protocol == protocol && (r.first..=r.last).contains(&port))
        });
        let named = program.named.is_some_and(|id| {
            let key = Element { address: peer, port: Some((protocol, port)) };
            self.sets[&id].elements.binary_search(&key).is_ok()
        });
        named || class.map(|c| &c.allow).or(program.every.as_ref()).is_some_and(holds)
    }
}

/// What every node has been told.
pub fn tables(cluster: &Cluster) -> BTreeMap<&'static str, NodeTable> {
    NODES.into_iter().map(|node| (node, NodeTable::of(cluster.state(node)))).collect()
}

pub fn compiled(objects: impl IntoIterator<Item = Object>) -> Cluster {
    let mut cluster = Cluster::new();
    cluster.reset(objects);
    cluster.commit();
    cluster
}

fn text(choices: &'static [&'static str]) -> impl Strategy<Value = Arc<str>> {
    select(choices).prop_map(Arc::from)
}

fn labels() -> impl Strategy<Value = Labels> {
    prop::collection::btree_map(text(&["app", "tier"]), text(&["x", "y"]), 0..=2).prop_map(Labels::from_iter)
}

fn selector() -> impl Strategy<Value = Selector> {
    let keys = &["app", "tier"][..];
    let requirement = prop_oneof![
        4 => (text(keys), prop::collection::vec(text(&["x", "y"]), 1..=2))
            .prop_map(|(k, v)| Requirement::new(k, Operator::In, v)),
        1 => (text(keys), text(&["x", "y"])).prop_map(|(k, v)| Requirement::new(k, Operator::NotIn, [v])),
        1 => text(keys).prop_map(|k| Requirement::new(k, Operator::Exists, [])),
        1 => text(keys).prop_map(|k| Requirement::new(k, Operator::DoesNotExist, [])),
    ];
    prop::collection::vec(requirement.prop_map(Result::unwrap), 0..=2).prop_map(Selector::new)
}

fn namespace_selector() -> impl Strategy<Value = Selector> {
    prop_oneof![
        3 => selector(),
        1 => text(&["a", "b", "c"]).prop_map(|name| Selector::label(NAMESPACE_NAME_LABEL, name)),
    ]
}

/// Addresses that are few enough for pods, blocks and the outside to meet.
pub fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (1u8..=9).prop_map(|n| IpAddr::from([10, 0, 0, n])),
        (1u16..=5).prop_map(|n| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, n])),
    ]
}

fn block() -> impl Strategy<Value = Block> {
    let net = prop_oneof![
        Just("0.0.0.0/0"),
        Just("10.0.0.0/29"),
        Just("10.0.0.4/30"),
        Just("10.0.0.8/32"),
        Just("::/0"),
        Just("fd00::/126")
    ];
    let inner = select(vec![
        "10.0.0.2/31",
        "10.0.0.4/32",
        "10.0.0.6/32",
        "10.0.0.0/30",
        "fd00::2/127",
        "fd00::1/128",
    ]);
    (net, prop::collection::vec(inner, 0..=2)).prop_map(|(cidr, except)| {
        let cidr: IpNet = cidr.parse().unwrap();
        let except = except.into_iter().map(|e| e.parse::<IpNet>().unwrap());
        Block::new(cidr, except.filter(|e| cidr.contains(e) && *e != cidr)).unwrap()
    })
}

fn peers() -> impl Strategy<Value = Peers> {
    let scope =
        prop_oneof![Just(NamespaceScope::Own), namespace_selector().prop_map(NamespaceScope::Selected)];
    let peer = prop_oneof![
        3 => (scope, selector()).prop_map(|(namespaces, pods)| Peer::Pods { namespaces, pods }),
        1 => block().prop_map(Peer::Block),
    ];
    prop_oneof![
        1 => Just(Peers::Any),
        5 => prop::collection::vec(peer, 1..=2).prop_map(Peers::Of),
    ]
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![3 => Just(Protocol::Tcp), 2 => Just(Protocol::Udp), 1 => Just(Protocol::Sctp)]
}

const PORTS: [u16; 8] = [1, 2, 80, 81, 82, 100, 65534, 65535];

fn ports() -> impl Strategy<Value = Ports> {
    let port = prop_oneof![
        1 => Just(PortRef::All),
        2 => select(&PORTS[..]).prop_map(|p| PortRef::Range(p, p)),
        2 => (select(&PORTS[..]), select(&PORTS[..])).prop_map(|(a, b)| PortRef::Range(a.min(b), a.max(b))),
        3 => text(&["http", "dns"]).prop_map(PortRef::Named),
    ];
    let port = (protocol(), port).prop_map(|(protocol, port)| PortMatch { protocol, port });
    prop_oneof![
        1 => Just(Ports::Any),
        3 => prop::collection::vec(port, 1..=3).prop_map(Ports::Of),
    ]
}

pub fn rule() -> impl Strategy<Value = Rule> {
    (peers(), ports()).prop_map(|(peers, ports)| Rule { peers, ports })
}

fn rules() -> impl Strategy<Value = Option<Vec<Rule>>> {
    prop::option::weighted(0.7, prop::collection::vec(rule(), 0..=2))
}

pub fn policy() -> impl Strategy<Value = NetworkPolicy> {
    (text(&["a", "b"]), text(&["p1", "p2", "p3"]), selector(), rules(), rules()).prop_map(
        |(namespace, name, subject, ingress, egress)| NetworkPolicy {
            name: NamespacedName { namespace, name },
            subject,
            ingress,
            egress,
        },
    )
}

fn container_port() -> impl Strategy<Value = ContainerPort> {
    (prop::option::of(text(&["http", "dns"])), protocol(), select(vec![80u16, 81, 100]))
        .prop_map(|(name, protocol, port)| ContainerPort { name, protocol, port })
}

fn pod() -> impl Strategy<Value = Pod> {
    let name = (text(&["a", "b", "c"]), text(&["1", "2", "3"]));
    let addresses = prop::collection::vec(address(), 0..=2).prop_map(|addresses| {
        let mut one_a_family = BTreeMap::new();
        for a in addresses {
            one_a_family.insert(a.is_ipv4(), a);
        }
        one_a_family.into_values().collect()
    });
    let kind = prop_oneof![8 => Just((false, false)), 1 => Just((true, false)), 1 => Just((false, true))];
    (
        name,
        labels(),
        prop::option::weighted(0.8, text(&NODES)),
        addresses,
        prop::collection::vec(container_port(), 0..=2),
        kind,
    )
        .prop_map(|((namespace, name), labels, node, addresses, ports, (host_network, finished))| Pod {
            name: NamespacedName { namespace, name },
            labels,
            node,
            addresses,
            ports,
            host_network,
            finished,
            uid: None,
        })
}

/// A node whose addresses pods and blocks may have, too.
fn node() -> impl Strategy<Value = Node> {
    (text(&NODES), prop::collection::vec(address(), 0..=2)).prop_map(|(name, addresses)| Node {
        name,
        addresses,
        pod_cidrs: Vec::new(),
    })
}

pub fn object() -> impl Strategy<Value = Object> {
    prop_oneof![
        2 => (text(&["a", "b", "c"]), labels()).prop_map(|(name, labels)| Object::Namespace(Namespace { name, labels })),
        1 => node().prop_map(Object::Node),
        6 => pod().prop_map(Object::Pod),
        5 => policy().prop_map(Object::Policy),
    ]
}

/// Objects with a key each of their own.
pub fn objects() -> impl Strategy<Value = Vec<Object>> {
    prop::collection::vec(object(), 1..=16).prop_map(|objects| {
        let by_key: BTreeMap<Key, Object> = objects.into_iter().map(|o| (o.key(), o)).collect();
        by_key.into_values().collect()
    })
}

/// Every address that pods, blocks and their edges can make a difference for.
pub fn probes() -> Vec<IpAddr> {
    let v4 = (0..=10).map(|n| IpAddr::from([10, 0, 0, n]));
    let v6 = (0..=6).map(|n| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, n]));
    let outside = [IpAddr::from([192, 0, 2, 1]), IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1])];
    v4.chain(v6).chain(outside).collect()
}

/// Every port next to the edge of a range, of every protocol, and a protocol without ports.
pub fn traffics() -> Vec<Traffic> {
    let ports = [0u16, 1, 2, 3, 79, 80, 81, 82, 83, 99, 100, 101, 65533, 65534, 65535];
    Protocol::ALL
        .into_iter()
        .flat_map(|protocol| ports.map(|port| Traffic::Port(protocol, port)))
        .chain([Traffic::Other(1), Traffic::Other(253)])
        .collect()
}

/// The table of the node that a pod is on, if its programs decide anything: hostNetwork pods have none.
pub fn table_of<'t>(tables: &'t BTreeMap<&'static str, NodeTable>, pod: &Pod) -> Option<&'t NodeTable> {
    tables.get(pod.node.as_deref()?).filter(|_| !pod.host_network)
}

/// The address of each family, IPv4 first.
pub fn by_family(pod: &Pod) -> [Option<IpAddr>; 2] {
    Family::ALL.map(|family| pod.addresses.iter().copied().find(|a| Family::of(a) == family))
}

/// Calls `check` with each (pod on a node, direction, peer address, traffic) that programs decide, and what
/// `evaluate` says of it.
pub fn for_each_verdict(
    objects: &Objects,
    mut check: impl FnMut(&Pod, &'static str, Direction, IpAddr, Traffic, &Verdict, bool),
) {
    for pod in &objects.pods().iter().filter(|p| !p.host_network).collect::<Vec<_>>() {
        let Some(node) = pod.node.as_deref().and_then(|n| NODES.into_iter().find(|m| *m == n)) else {
            continue;
        };
        for peer in probes() {
            // The pod needs an address of that family that is its own.
            let own = pod.addresses.iter().any(|a| a.is_ipv4() == peer.is_ipv4());
            if !own || pod.addresses.contains(&peer) {
                continue;
            }
            for traffic in traffics() {
                for direction in Direction::ALL {
                    let (here, there) = (Endpoint::Pod(pod.name.clone()), Endpoint::Address(peer));
                    let (source, destination) = match direction {
                        Direction::Ingress => (there, here),
                        Direction::Egress => (here, there),
                    };
                    let flow = Flow { source, destination, traffic, family: Some(Family::of(&peer)) };
                    let verdict = objects.evaluate(&flow).unwrap();
                    let side = match direction {
                        Direction::Ingress => &verdict.ingress,
                        Direction::Egress => &verdict.egress,
                    };
                    // Programs know neither; the data plane lets both pass before it comes to them.
                    if matches!(side.reason, Reason::OwnNode | Reason::Itself) {
                        continue;
                    }
                    check(pod, node, direction, peer, traffic, &verdict, side.allowed);
                }
            }
        }
    }
}
