//! Decides one flow straight from the policies, and says why.
//!
//! Nothing here is shared with the compiler but the objects: property tests hold the two together.
//!
//! ```text
//!   Endpoint ──resolve──▶ Party: a pod with the policies that isolate it, a node, or somebody outside
//!   (Party, Party, traffic) ── for each family that both have ──▶ egress side of the source AND ingress side of the destination
//! ```

mod matching;
mod matrix;
mod party;
mod reasons;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::pods::PodIx;
use crate::{
    Direction, Endpoint, Family, Flow, NamespacedName, NetworkPolicy, Objects, Rule, RuleRef, Traffic,
    UnknownEndpoint, Verdict,
};

use matching::{Target, peers_match, ports_match};
pub use matrix::Matrix;
pub use party::Party;
use party::{Families, Kind, OwnedRule};

impl Objects {
    /// Whether a flow may pass, and why: straight from the policies.
    ///
    /// Reads all pods once, to know whose each address is. Who has many questions asks an [`Evaluator`].
    pub fn evaluate(&self, flow: &Flow) -> Result<Verdict, UnknownEndpoint> {
        Evaluator::new(self).evaluate(flow)
    }
}

/// Answers questions about objects that do not change meanwhile.
///
/// Knows whose each address is. What it finds out about an endpoint is kept in a [`Party`], so that a matrix
/// of n pods looks at each pod's policies once, not n times.
#[derive(Debug)]
pub struct Evaluator<'a> {
    objects: &'a Objects,
    holders: HashMap<IpAddr, Holder<'a>>,
    /// Whether policy decides what a pod may send to its own node.
    judges_to_node: bool,
}

/// Whose an address is.
#[derive(Clone, Copy, Debug)]
enum Holder<'a> {
    /// One pod's.
    Pod(PodIx),
    /// Several pods': then it is nobody's.
    Several,
    /// A node's; `None`: several nodes'.
    Node(Option<&'a Arc<str>>),
}

/// What [`Evaluator::judge`] says: a [`Verdict`] without its reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// Both sides allow it over one and the same family.
    pub allowed: bool,
    /// The source's egress side allows it over some family that both ends have.
    pub egress: bool,
    /// The destination's ingress side allows it over some family that both ends have.
    pub ingress: bool,
}

impl<'a> Evaluator<'a> {
    /// An evaluator of these objects.
    pub fn new(objects: &'a Objects) -> Self {
        Self::who_knows(objects, &objects.pods().in_order())
    }

    /// An evaluator that knows the addresses of all nodes and of these pods, and of no others.
    pub(crate) fn who_knows(objects: &'a Objects, places: &[PodIx]) -> Self {
        let pods = objects.pods();
        let mut holders: HashMap<IpAddr, Holder<'a>> = HashMap::new();
        let mut node_has = |address: IpAddr, node: Option<&'a Arc<str>>| {
            holders
                .entry(address)
                .and_modify(|holder| match holder {
                    Holder::Node(name) if *name != node => *name = None,
                    _ => {}
                })
                .or_insert(Holder::Node(node));
        };
        for node in objects.nodes().values() {
            node.addresses.iter().for_each(|&address| node_has(address, Some(&node.name)));
        }
        for &pod in places.iter().filter(|pod| pods.is_in_host_network(**pod)) {
            pods.addresses(pod).for_each(|address| node_has(address, pods.node(pod)));
        }
        for &pod in places.iter().filter(|pod| !pods.is_in_host_network(**pod)) {
            for address in pods.addresses(pod) {
                holders
                    .entry(address)
                    .and_modify(|holder| {
                        *holder = match holder {
                            Holder::Node(_) => Holder::Pod(pod),
                            Holder::Pod(_) | Holder::Several => Holder::Several,
                        }
                    })
                    .or_insert(Holder::Pod(pod));
            }
        }
        Self { objects, holders, judges_to_node: false }
    }

    /// The same, where a pod's egress policies decide what it may send to its own node, as if that were any address. The API lets
    /// all of it pass. What the node sends to its own pods passes all the same.
    pub fn judging_pods_to_their_node(self) -> Self {
        Self { judges_to_node: true, ..self }
    }

    /// Whether a flow may pass, and why.
    pub fn evaluate(&self, flow: &Flow) -> Result<Verdict, UnknownEndpoint> {
        let (source, destination) = (self.party(&flow.source)?, self.party(&flow.destination)?);
        Ok(self.explain(&source, &destination, flow.traffic, flow.family))
    }

    /// The endpoint that a question is about in the end: an address that a pod holds is that pod.
    pub fn resolve(&self, endpoint: &Endpoint) -> Endpoint {
        match endpoint {
            Endpoint::Address(address) => match self.holders.get(address) {
                Some(Holder::Pod(pod)) => Endpoint::Pod(self.objects.pods().name(*pod)),
                _ => endpoint.clone(),
            },
            Endpoint::Pod(_) => endpoint.clone(),
        }
    }

    /// The addresses that several pods claim, sorted: as a peer such an address is none of them.
    pub fn contested(&self) -> Vec<IpAddr> {
        let several =
            |(address, holder): (&IpAddr, &Holder<'_>)| matches!(holder, Holder::Several).then_some(*address);
        let mut all: Vec<IpAddr> = self.holders.iter().filter_map(several).collect();
        all.sort_unstable();
        all
    }

    /// All that a question needs to know about one end.
    pub fn party(&self, endpoint: &Endpoint) -> Result<Party<'a>, UnknownEndpoint> {
        match endpoint {
            Endpoint::Pod(name) => {
                let pod = self.objects.pods().find(name).ok_or_else(|| UnknownEndpoint(name.clone()))?;
                Ok(self.pod(pod))
            }
            Endpoint::Address(address) => Ok(match self.holders.get(address) {
                Some(Holder::Pod(pod)) => self.pod(*pod),
                Some(Holder::Node(name)) => Party::node(*name, *address),
                Some(Holder::Several) | None => Party::outside(*address),
            }),
        }
    }

    fn pod(&self, place: PodIx) -> Party<'a> {
        let pod = self.objects.pods().pod(place);
        if pod.host_network {
            let name = self.objects.pods().node(place);
            let node = name.and_then(|name| self.objects.nodes().get(name));
            return Party::host_pod(&pod, name, node);
        }
        let mut isolating = [Vec::new(), Vec::new()];
        for policy in self.policies_in(&pod.name.namespace).filter(|p| p.subject.matches(&pod.labels)) {
            for direction in Direction::ALL {
                if policy.rules(direction).is_some() {
                    isolating[direction as usize].push(policy);
                }
            }
        }
        let namespace_labels = self.objects.namespace_labels(&pod.name.namespace);
        let sole = |family| {
            let address = *pod.addresses.iter().find(|a| Family::of(a) == family)?;
            Some((address, matches!(self.holders.get(&address), Some(Holder::Pod(_)))))
        };
        let addresses = Family::ALL.map(sole);
        let mut party = Party::pod(pod, namespace_labels, isolating, addresses);
        party.judged_to_node = self.judges_to_node;
        party
    }

    fn policies_in(&self, namespace: &Arc<str>) -> impl Iterator<Item = &'a NetworkPolicy> {
        let first = NamespacedName::new(namespace.clone(), "");
        self.objects
            .policies()
            .range(first..)
            .take_while(move |(name, _)| name.namespace == *namespace)
            .map(|(_, policy)| policy)
    }

    /// Whether a flow may pass, without saying why.
    pub fn judge(
        &self,
        source: &Party<'a>,
        destination: &Party<'a>,
        traffic: Traffic,
        family: Option<Family>,
    ) -> Judgement {
        Judgement::over(Families::common(source, destination, family), |family, direction| {
            Pair { source, destination, traffic, family }.allows(direction)
        })
    }
}

impl Judgement {
    /// From what each side says over each family.
    fn over(families: Families, mut allows: impl FnMut(Option<Family>, Direction) -> bool) -> Self {
        let mut all = Judgement { allowed: false, egress: false, ingress: false };
        for family in families.iter() {
            let (egress, ingress) = (allows(family, Direction::Egress), allows(family, Direction::Ingress));
            all.egress |= egress;
            all.ingress |= ingress;
            all.allowed |= egress && ingress;
        }
        all
    }
}

/// One question over one family; `family` is `None` where neither end's addresses are known.
#[derive(Clone, Copy)]
struct Pair<'p, 'a> {
    source: &'p Party<'a>,
    destination: &'p Party<'a>,
    traffic: Traffic,
    family: Option<Family>,
}

/// What decides one side over one family.
enum Decision<'a> {
    /// Allowed: one pod talks to itself.
    Itself,
    /// Allowed: a node and a pod on it.
    OwnNode,
    /// Allowed: no policy's subject, because it is a node or a hostNetwork pod.
    HostNetwork,
    /// Allowed: no policy's subject, because it is outside the cluster.
    Outside,
    /// Allowed: no policy selects the pod.
    NotIsolated,
    /// Allowed by this rule.
    Rule(&'a NetworkPolicy, usize),
    /// Denied: no rule allows it.
    NoRule,
}

impl<'p, 'a> Pair<'p, 'a> {
    /// The pod, node or outsider whose side it is, and the other one.
    fn ends(&self, direction: Direction) -> (&'p Party<'a>, &'p Party<'a>) {
        match direction {
            Direction::Ingress => (self.destination, self.source),
            Direction::Egress => (self.source, self.destination),
        }
    }

    fn allows(&self, direction: Direction) -> bool {
        !matches!(self.decide(direction), Decision::NoRule)
    }

    fn decide(&self, direction: Direction) -> Decision<'a> {
        self.without_rules(direction).unwrap_or_else(|| self.by_rules(direction))
    }

    /// What decides a side before any rule is asked; `None`: the rules do.
    fn without_rules(&self, direction: Direction) -> Option<Decision<'a>> {
        let (subject, peer) = self.ends(direction);
        match &subject.kind {
            Kind::Outside => Some(Decision::Outside),
            Kind::Node { .. } => Some(Decision::HostNetwork),
            Kind::Pod { .. } if subject.is_same_pod(peer) => Some(Decision::Itself),
            Kind::Pod { .. } if subject.is_free_to(peer, direction) => Some(Decision::OwnNode),
            Kind::Pod { isolating, .. } => {
                isolating[direction as usize].is_empty().then_some(Decision::NotIsolated)
            }
        }
    }

    /// What the rules of the policies that isolate a pod say: of the subject, they ask for nothing but its ports.
    fn by_rules(&self, direction: Direction) -> Decision<'a> {
        let allows = |owned: &&OwnedRule<'a>| {
            self.port_matches(direction, owned.rule) && self.peer_matches(direction, owned.policy, owned.rule)
        };
        match self.ends(direction).0.rules(direction).iter().find(allows) {
            Some(owned) => Decision::Rule(owned.policy, owned.index),
            None => Decision::NoRule,
        }
    }

    fn peer_matches(&self, direction: Direction, policy: &NetworkPolicy, rule: &Rule) -> bool {
        peers_match(&rule.peers, &policy.name.namespace, self.ends(direction).1, self.family)
    }

    fn port_matches(&self, direction: Direction, rule: &Rule) -> bool {
        let target = Target { destination: self.destination, direction, family: self.family };
        ports_match(&rule.ports, self.traffic, target)
    }
}

/// A rule's reference.
fn rule_ref(policy: &NetworkPolicy, direction: Direction, index: usize) -> RuleRef {
    RuleRef { policy: policy.name.clone(), direction, index }
}
