//! Compares what a table does with packets with what the policies say about their flows.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use moat_policies::{
    Direction, Endpoint, Evaluator, Family, NamespacedName, Node, Object, Objects, Party, Protocol, Traffic,
    UnknownEndpoint,
};

use super::ruleset::Ruleset;
use super::sample::{self, Limits, Payload};
use super::walk::{Outcome, Packet, WalkError, walk, walk_from};
use crate::dataplane::PodToNode;

/// The chain that judges answers, while connections that are there already are judged anew. Tables of older layouts have none.
const ANSWERS: &str = "answers";

/// The interface that packets from and to everywhere else go through. No pod's begins so.
const UPLINK: &str = "uplink0";

/// A pod on the node, as the pod network knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Veth {
    /// The pod.
    pub pod: NamespacedName,
    /// The host end's name.
    pub ifname: String,
    /// The hardware address of the pod's end.
    pub pod_mac: [u8; 6],
    /// The addresses that the pod really has.
    pub addresses: Vec<IpAddr>,
}

/// A packet that the table treats differently from what the policies say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Who sends it.
    pub source: String,
    /// Who it is for.
    pub destination: String,
    /// What it carries.
    pub traffic: String,
    /// Whether the policies let it pass.
    pub allowed: bool,
    /// The chains it went through in the table, which decides otherwise.
    pub path: Vec<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (say, does) = if self.allowed { ("allow", "drops") } else { ("deny", "passes") };
        let Difference { source, destination, traffic, path, .. } = self;
        write!(
            f,
            "{source} -> {destination} {traffic}: the policies {say} it, the kernel's table {does} it"
        )?;
        write!(f, " ({})", path.join(" > "))
    }
}

/// Why a table cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// The table cannot be walked.
    #[error(transparent)]
    Walk(#[from] WalkError),
    /// A pod is not among the objects.
    #[error(transparent)]
    Unknown(#[from] UnknownEndpoint),
}

/// What a comparison found.
#[derive(Debug, Default)]
pub struct Report {
    /// How many pods of the node were looked at.
    pub pods: usize,
    /// How many packets were walked.
    pub packets: usize,
    /// Those that the table treats differently, the first of each pair of ends.
    pub differences: Vec<Difference>,
    /// Ports of the node that do not lead where pods have asked for, a line each.
    pub host_ports: Vec<String>,
}

/// Walks the table for every pod of the node in `veths`, both directions, a sample of peers and every port edge, and
/// compares with the policies.
pub fn compare(
    ruleset: &Ruleset,
    objects: &Objects,
    node: &str,
    veths: &[Veth],
    limits: Limits,
    pod_to_node: PodToNode,
) -> Result<Report, CompareError> {
    // To the engine, a node that has no addresses is an address like any other.
    let mut nameless = objects.clone();
    if let Some(local) = objects.nodes().get(node) {
        nameless.insert(Object::Node(Node { addresses: Vec::new(), ..local.clone() }));
    }
    let to_node = match pod_to_node {
        PodToNode::Allow => Evaluator::new(objects),
        PodToNode::Policy => Evaluator::new(&nameless),
    };
    let comparison = Comparison {
        ruleset,
        objects,
        evaluator: Evaluator::new(objects),
        to_node,
        node,
        local: veths.iter().flat_map(|v| v.addresses.iter().map(move |a| (*a, v))).collect(),
        limits,
    };
    let mut report = Report { pods: veths.len(), ..Report::default() };
    for veth in veths {
        for &address in &veth.addresses {
            for direction in Direction::ALL {
                comparison.pod(veth, address, direction, &mut report)?;
            }
        }
    }
    Ok(report)
}

struct Comparison<'a> {
    ruleset: &'a Ruleset,
    objects: &'a Objects,
    evaluator: Evaluator<'a>,
    /// Who judges what pods send to this node.
    to_node: Evaluator<'a>,
    node: &'a str,
    local: BTreeMap<IpAddr, &'a Veth>,
    limits: Limits,
}

/// Where a peer is, seen from the node.
enum Place<'a> {
    /// The node itself: its packets are not forwarded.
    OwnNode,
    /// A pod of the node.
    Local(&'a Veth),
    /// Everywhere else.
    Beyond,
}

impl<'a> Comparison<'a> {
    fn pod(
        &self,
        veth: &Veth,
        address: IpAddr,
        direction: Direction,
        report: &mut Report,
    ) -> Result<(), CompareError> {
        let family = Family::of(&address);
        let Some(pod) = self.objects.pods().get(&veth.pod) else {
            // Nobody knows the pod: it has no network at all.
            let peers: Vec<IpAddr> = self.local.keys().copied().filter(|a| Family::of(a) == family).collect();
            let payload = Payload { traffic: Traffic::Port(Protocol::Tcp, 80), port: Some(80) };
            return peers
                .iter()
                .filter(|p| **p != address)
                .try_for_each(|&peer| self.judge(veth, address, direction, peer, &[payload], None, report));
        };
        let subject = party(&self.evaluator, address)?;
        let payloads = sample::payloads(self.objects, &pod, direction, family, self.limits);
        for peer in sample::peers(self.objects, &pod, direction, family, self.limits) {
            self.judge(veth, address, direction, peer, &payloads, Some(&subject), report)?;
        }
        Ok(())
    }

    fn place(&self, address: IpAddr) -> Option<Place<'a>> {
        if let Some(veth) = self.local.get(&address) {
            return Some(Place::Local(veth));
        }
        if self.objects.nodes().get(self.node).is_some_and(|n| n.addresses.contains(&address)) {
            return Some(Place::OwnNode);
        }
        // A pod that is to be on this node but has no interface yet: nothing comes from its address.
        let pod = match self.evaluator.resolve(&Endpoint::Address(address)) {
            Endpoint::Pod(name) => self.objects.pods().get(&name),
            Endpoint::Address(_) => None,
        };
        let absent = pod.is_some_and(|p| !p.host_network && p.node.as_deref() == Some(self.node));
        (!absent).then_some(Place::Beyond)
    }

    #[allow(clippy::too_many_arguments, reason = "one question, in its parts")]
    fn judge(
        &self,
        veth: &Veth,
        address: IpAddr,
        direction: Direction,
        peer: IpAddr,
        payloads: &[Payload],
        subject: Option<&Party<'a>>,
        report: &mut Report,
    ) -> Result<(), CompareError> {
        let Some(place) = self.place(peer) else { return Ok(()) };
        let evaluator = match (&place, direction) {
            (Place::OwnNode, Direction::Egress) => &self.to_node,
            _ => &self.evaluator,
        };
        let own;
        let subject = match subject {
            Some(_) => {
                own = party(evaluator, address)?;
                Some(&own)
            }
            None => None,
        };
        let other = party(evaluator, peer)?;
        let (hook, peer_ifname) = match (&place, direction) {
            (Place::OwnNode, Direction::Egress) => ("input", ""),
            (Place::OwnNode, Direction::Ingress) => ("output", ""),
            (Place::Local(v), _) => ("forward", v.ifname.as_str()),
            (Place::Beyond, _) => ("forward", UPLINK),
        };
        for payload in payloads {
            let allowed = subject.is_some_and(|subject| {
                let family = Some(Family::of(&address));
                let (source, destination) = match direction {
                    Direction::Ingress => (&other, subject),
                    Direction::Egress => (subject, &other),
                };
                let judgement = evaluator.judge(source, destination, payload.traffic, family);
                match (&place, direction) {
                    // This node decides both sides.
                    (Place::Local(v), _) => self.objects.pods().contains(&v.pod) && judgement.allowed,
                    (_, Direction::Ingress) => judgement.ingress,
                    (_, Direction::Egress) => judgement.egress,
                }
            });
            let peer_mac = if let Place::Local(v) = &place { v.pod_mac } else { [0; 6] };
            let ends = [(veth.ifname.as_str(), veth.pod_mac, address), (peer_ifname, peer_mac, peer)];
            let [(iif, ether, source), (oif, _, destination)] = match direction {
                Direction::Egress => ends,
                Direction::Ingress => [ends[1], ends[0]],
            };
            let packet = Packet {
                iif: iif.to_owned(),
                ether,
                oif: oif.to_owned(),
                source,
                destination,
                protocol: number(payload),
                port: payload.port,
                answer: false,
            };
            let mut outcomes = vec![walk(self.ruleset, hook, &packet)?];
            if hook == "forward" && self.ruleset.chains.contains_key(ANSWERS) {
                outcomes.push(walk_from(self.ruleset, ANSWERS, &packet.answer())?);
            }
            report.packets += outcomes.len();
            let wrong = outcomes.into_iter().find(|outcome| outcome.accepted != allowed);
            if let Some(Outcome { path, .. }) = wrong {
                report.differences.push(Difference {
                    source: self.name(source),
                    destination: self.name(destination),
                    traffic: payload.traffic.to_string(),
                    allowed,
                    path,
                });
                // One of each pair of ends says it; the other ports would only repeat it.
                break;
            }
        }
        Ok(())
    }

    fn name(&self, address: IpAddr) -> String {
        match self.local.get(&address) {
            Some(veth) => format!("{} ({address})", veth.pod),
            None => match self.evaluator.resolve(&Endpoint::Address(address)) {
                Endpoint::Pod(name) => format!("{name} ({address})"),
                Endpoint::Address(address) => address.to_string(),
            },
        }
    }
}

fn party<'a>(evaluator: &Evaluator<'a>, address: IpAddr) -> Result<Party<'a>, CompareError> {
    Ok(evaluator.party(&Endpoint::Address(address))?)
}

fn number(payload: &Payload) -> u8 {
    match payload.traffic {
        Traffic::Port(protocol, _) => protocol.number(),
        Traffic::Other(number) => number,
    }
}
