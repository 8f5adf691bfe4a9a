//! What the tables say about a flow, without asking the kernel. Pure.
//!
//! The kernel judges the first packet of a connection and carries the rest on. The judge is asked about connections that
//! are there already, and says of each what the kernel would say if it began now: by the same programs and allow sets,
//! which the data plane holds anyhow.

#[cfg(test)]
mod properties;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use moat_policies::{Allow, Direction, Element, NamespacedName, Program, Protocol, SetId};

use super::layout::{DropPoint, DropReason, PodVerdict};
use super::state::State;

/// A connection as `forward` sees its first packet: destinations are translated by then, sources are not yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Who opens it.
    pub source: IpAddr,
    /// Who is to answer.
    pub destination: IpAddr,
    /// The transport protocol's number.
    pub protocol: u8,
    /// The destination's port, where the protocol has ports.
    pub port: Option<u16>,
}

/// What becomes of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ruling {
    /// It may go on.
    Allowed,
    /// Its first packet would be dropped, for this reason.
    Denied(DropPoint),
}

impl Ruling {
    /// Whether it may go on.
    pub fn is_allowed(self) -> bool {
        self == Ruling::Allowed
    }
}

/// Answers questions about one state of the data plane.
#[derive(Debug)]
pub struct Judge<'a> {
    state: &'a State,
    pods: &'a Pods,
}

/// The pods of this node, by each of their addresses.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pods(HashMap<IpAddr, Local>);

#[derive(Debug, Clone)]
struct Local {
    name: NamespacedName,
    egress: Side,
    ingress: Side,
}

/// What decides about a pod in one direction.
#[derive(Debug, Clone)]
enum Side {
    /// Nothing: it is not isolated.
    Open,
    Program(Arc<Program>),
    /// All of it is denied.
    Denied(DropReason),
}

impl Pods {
    /// Those of a state. To be made once for many questions: there may be hundreds of pods.
    pub(crate) fn of(state: &State) -> Self {
        let mut pods = HashMap::new();
        for (name, pod, verdict) in state.local_pods() {
            let side = |direction| match (verdict, direction) {
                // The engine does not know it, and so the tables hold nothing that lets its packets through.
                (None, _) => Side::Denied(DropReason::UnknownPod),
                (Some(PodVerdict::Closed), _) => Side::Denied(DropReason::KernelRefused),
                (Some(PodVerdict::Programs { ingress: id, .. }), Direction::Ingress)
                | (Some(PodVerdict::Programs { egress: id, .. }), Direction::Egress) => match id {
                    None => Side::Open,
                    Some(id) => state.program(id).map_or(Side::Denied(DropReason::Policy), Side::Program),
                },
            };
            let local = Local {
                name: name.clone(),
                egress: side(Direction::Egress),
                ingress: side(Direction::Ingress),
            };
            pods.extend(pod.addresses().map(|address| (address, local.clone())));
        }
        Self(pods)
    }
}

impl<'a> Judge<'a> {
    /// A judge who goes by this state.
    pub(crate) fn new(state: &'a State) -> Self {
        Self { state, pods: state.pods_by_address() }
    }

    /// The pod of this node that has an address.
    pub fn pod(&self, address: IpAddr) -> Option<&'a NamespacedName> {
        self.pods.0.get(&address).map(|local| &local.name)
    }

    /// Whether a flow may go on; `None` where neither end is a pod of this node, so that it is not ours to say.
    ///
    /// Not to be asked about flows of the node itself: they do not pass `forward`, and are always allowed.
    pub fn judge(&self, flow: &Flow) -> Option<Ruling> {
        let (source, destination) = (self.pods.0.get(&flow.source), self.pods.0.get(&flow.destination));
        if source.is_none() && destination.is_none() {
            return None;
        }
        let sides = [
            (Direction::Egress, source.map(|local| &local.egress), flow.destination),
            (Direction::Ingress, destination.map(|local| &local.ingress), flow.source),
        ];
        for (direction, side, peer) in sides {
            let Some(side) = side else { continue };
            let ruling = self.side(direction, side, peer, flow);
            if !ruling.is_allowed() {
                return Some(ruling);
            }
        }
        Some(Ruling::Allowed)
    }

    fn side(&self, direction: Direction, side: &Side, peer: IpAddr, flow: &Flow) -> Ruling {
        // Through a Service a pod may come back to itself; it always reaches itself.
        let itself = flow.source == flow.destination;
        match side {
            Side::Open => Ruling::Allowed,
            Side::Program(program) if itself || self.allows(program, peer, flow) => Ruling::Allowed,
            Side::Program(_) => Ruling::Denied(DropReason::Policy.on(direction)),
            Side::Denied(reason) => Ruling::Denied(reason.on(direction)),
        }
    }

    /// What a program says of a peer, as [`Program`] documents it.
    fn allows(&self, program: &Program, peer: IpAddr, flow: &Flow) -> bool {
        let holds = |allow: &Allow| match allow {
            Allow::Everyone => true,
            Allow::Set(set) => self.holds(*set, &Element { address: peer, port: None }),
        };
        let every = program.every.as_ref().is_some_and(holds);
        let protocol = Protocol::ALL.into_iter().find(|p| p.number() == flow.protocol);
        let Some((protocol, port)) = protocol.zip(flow.port) else { return every };
        let class = program.classes.iter().find(|class| {
            class.ports.iter().any(|r| r.protocol == protocol && (r.first..=r.last).contains(&port))
        });
        let named = |set| self.holds(set, &Element { address: peer, port: Some((protocol, port)) });
        every || class.is_some_and(|class| holds(&class.allow)) || program.named.is_some_and(named)
    }

    fn holds(&self, set: SetId, element: &Element) -> bool {
        self.state.set_holds(set, element)
    }
}
