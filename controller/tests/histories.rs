//! Whatever comes in whatever order, and however slowly an agent reads: what it holds in the end is what policy says of its
//! node, compiled from scratch.
#![allow(clippy::unwrap_used)]

#[path = "../../policies/tests/support/mod.rs"]
#[allow(dead_code, reason = "the engine's tests use the rest")]
mod support;

mod scratch;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use moat_api::{Announced, Attached, Attachments, Change, Hello, LEVEL, Told, update, wire};
use moat_controller::index::{AgentId, Index};
use moat_manifests::Changes;
use moat_policies::{Key, Limits, NamespacedName, NetworkConfig, NodeDelta, Object};
use proptest::prelude::*;
use prost::Message as _;
use tokio::sync::Notify;

use support::{NODES, address, compiled, object};

/// The addresses that nodes may give to their pods; those that pods are described with can be others.
const CIDRS: [&str; 2] = ["10.0.0.0/29", "fd00::/126"];

#[derive(Clone, Debug)]
enum Step {
    Apply(Object),
    Delete(Object),
    /// The agent of a node connects, where it is connected already once more.
    Join(usize),
    Leave(usize),
    /// It reads everything that there is for it, and says whether it is in force.
    Read(usize, bool),
    Attach(usize, NamespacedName, Attached),
    Detach(usize, NamespacedName),
}

fn step() -> impl Strategy<Value = Step> {
    let object =
        (object(), prop::option::of(prop::sample::select(vec!["one", "two"]))).prop_map(|(object, uid)| {
            match object {
                Object::Pod(mut pod) => {
                    pod.uid = uid.map(Into::into);
                    Object::Pod(pod)
                }
                Object::Node(mut node) => {
                    node.pod_cidrs = CIDRS.map(|cidr| cidr.parse().unwrap()).into();
                    Object::Node(node)
                }
                other => other,
            }
        });
    let object = object.boxed();
    let node = 0..NODES.len();
    let pod = (prop::sample::select(vec!["a", "b"]), prop::sample::select(vec!["1", "2", "3"]))
        .prop_map(|(namespace, name)| NamespacedName::new(namespace, name));
    let attached = (prop::option::of(prop::sample::select(vec!["one", "two"])), address())
        .prop_map(|(uid, address)| Attached { uid: uid.map(Into::into), addresses: vec![address] });
    prop_oneof![
        8 => object.clone().prop_map(Step::Apply),
        3 => object.prop_map(Step::Delete),
        2 => node.clone().prop_map(Step::Join),
        1 => node.clone().prop_map(Step::Leave),
        4 => (node.clone(), any::<bool>()).prop_map(|(node, acks)| Step::Read(node, acks)),
        3 => (node.clone(), pod.clone(), attached).prop_map(|(node, pod, attached)| Step::Attach(node, pod, attached)),
        1 => (node, pod).prop_map(|(node, pod)| Step::Detach(node, pod)),
    ]
}

/// An agent without a kernel.
#[derive(Default)]
struct Agent {
    id: Option<AgentId>,
    told: Told,
    attached: BTreeMap<NamespacedName, Attached>,
    number: u64,
    announced: Announced,
    /// What it was told last.
    revision: u64,
}

/// A controller with its agents, and what it ought to know.
struct World {
    index: Index,
    agents: [Agent; NODES.len()],
    described: BTreeMap<Key, Object>,
    /// What the agent of a node has said of its interfaces.
    heard: [Option<BTreeMap<NamespacedName, Attached>>; NODES.len()],
}

impl World {
    fn new() -> Self {
        let index = Index::new(Limits::default());
        Self { index, agents: Default::default(), described: BTreeMap::new(), heard: Default::default() }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Apply(object) => {
                self.described.insert(object.key(), object.clone());
                self.index.read(Changes { apply: vec![object], ..Changes::default() });
            }
            Step::Delete(object) => {
                let key = object.key();
                self.described.remove(&key);
                if let Key::Node(name) = &key
                    && let Some(node) = NODES.iter().position(|node| **node == **name)
                    && self.agents[node].id.is_none()
                {
                    self.heard[node] = None;
                }
                self.index.read(Changes { delete: vec![key], ..Changes::default() });
            }
            Step::Join(node) => self.join(node),
            Step::Leave(node) => {
                if let Some(id) = self.agents[node].id.take() {
                    self.index.leave(id);
                }
            }
            Step::Read(node, acks) => self.read(node, acks),
            Step::Attach(node, pod, attached) => {
                self.agents[node].attached.insert(pod.clone(), attached.clone());
                self.say(node, false, BTreeMap::from([(pod, Some(attached))]));
            }
            Step::Detach(node, pod) => {
                self.agents[node].attached.remove(&pod);
                self.say(node, false, BTreeMap::from([(pod, None)]));
            }
        }
    }

    fn join(&mut self, node: usize) {
        let agent = &mut self.agents[node];
        let hello = hello(node, agent.told.held());
        let hello = Hello::try_from(wire::Hello::from(&hello)).unwrap();
        let before = agent.id.replace(self.index.join(&hello, Arc::new(Notify::new())));
        if let Some(before) = before {
            assert_eq!(self.index.take(before), None, "one agent speaks for a node");
        }
        let pods = self.agents[node].attached.clone().into_iter().map(|(pod, a)| (pod, Some(a))).collect();
        self.say(node, true, pods);
    }

    fn say(&mut self, node: usize, whole: bool, pods: BTreeMap<NamespacedName, Option<Attached>>) {
        let agent = &mut self.agents[node];
        let Some(id) = agent.id else { return };
        agent.number += 1;
        self.index.attached(id, &Attachments { number: agent.number, whole, pods });
        self.heard[node] = Some(agent.attached.clone());
    }

    /// An agent reads, over the wire.
    fn read(&mut self, node: usize, acks: bool) {
        let agent = &mut self.agents[node];
        let Some(id) = agent.id else { return };
        let outgoing = self.index.take(id).unwrap();
        agent.announced = outgoing.announced.unwrap_or(agent.announced);
        if let Some((revision, change)) = outgoing.change {
            let bytes = update(revision, &change).encode_to_vec();
            agent.told.take(wire::Update::decode(&*bytes).unwrap().try_into().unwrap());
            assert_eq!(agent.told.dangling(), None);
            agent.revision = revision;
        }
        if acks {
            let revision = agent.revision;
            self.index.applied(id, &wire::Applied { revision, followed: revision, ..Default::default() });
        }
    }

    /// The objects with the addresses that pods ought to have.
    fn objects(&self) -> Vec<Object> {
        let may_have = |node: &str, address: &IpAddr| {
            let node = self.described.get(&Key::Node(node.into()));
            let Some(Object::Node(node)) = node else { return false };
            node.pod_cidrs.iter().any(|cidr| cidr.contains(address))
        };
        let located = |object: &Object| {
            let Object::Pod(pod) = object else { return object.clone() };
            let mut pod = pod.clone();
            let node = pod.node.clone().unwrap_or_default();
            let heard =
                NODES.iter().position(|name| **name == *node).and_then(|node| self.heard[node].as_ref());
            if let Some(heard) = heard.filter(|_| !pod.host_network) {
                let attached = heard.get(&pod.name);
                let attached = attached.filter(|a| a.uid.is_none() || pod.uid.is_none() || a.uid == pod.uid);
                let addresses = attached.map(|a| a.addresses.clone()).unwrap_or_default();
                pod.addresses = addresses.into_iter().filter(|address| may_have(&node, address)).collect();
            }
            Object::Pod(pod)
        };
        self.described.values().map(located).collect()
    }

    fn check(&mut self) {
        let cluster = compiled(self.objects());
        for (node, name) in NODES.into_iter().enumerate() {
            assert_eq!(self.agents[node].told, scratch::told(&cluster, name), "on {name}");
        }
    }
}

proptest! {
    #[test]
    fn what_an_agent_holds_is_what_policy_says_from_scratch(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        steps.into_iter().for_each(|step| world.step(step));
        // Those that are away come back with what they held, and everybody reads to the end.
        (0..NODES.len()).filter(|node| world.agents[*node].id.is_none()).collect::<Vec<_>>().into_iter().for_each(|node| world.join(node));
        for _ in 0..2 {
            (0..NODES.len()).for_each(|node| world.read(node, true));
        }
        world.check();
        for agent in &world.agents {
            let all = Announced { number: agent.number, gone: agent.number };
            prop_assert_eq!(agent.announced, all, "everybody has said that it is in force");
        }
        for state in world.index.agents() {
            prop_assert!(state.current);
        }
    }
}

#[test]
fn an_agent_that_holds_everything_is_told_how_the_network_is_to_be_and_nothing_else() {
    let mut world = World::new();
    for object in support_objects() {
        world.step(Step::Apply(object));
    }
    world.step(Step::Join(0));
    world.step(Step::Read(0, true));
    world.step(Step::Leave(0));
    world.join(0);
    let (_, change) = world.index.take(world.agents[0].id.unwrap()).unwrap().change.unwrap();
    let (config, fingerprint) = (Some(NetworkConfig::default()), Some("".into()));
    assert_eq!(change, Change { policy: NodeDelta::default(), config, fingerprint, ..Change::default() });
}

fn hello(node: usize, held: moat_api::Held) -> Hello {
    let (version, life) = (String::new(), format!("the agent of {node}").into());
    Hello { level: LEVEL, node: NODES[node].into(), version, held, announces_only: false, life }
}

fn support_objects() -> Vec<Object> {
    let text = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDR: 10.0.0.0/29}}
- {apiVersion: v1, kind: Pod, metadata: {name: web, namespace: a, uid: one}, spec: {nodeName: n1, containers: [{name: c, image: i}]}, status: {podIPs: [{ip: 10.0.0.1}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: api, namespace: a, uid: two}, spec: {nodeName: n2, containers: [{name: c, image: i}]}, status: {podIPs: [{ip: 10.0.0.9}]}}
- {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: all, namespace: a}, spec: {podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}}
";
    moat_manifests::decode([("objects.yaml", text.as_bytes())]).unwrap().objects
}
