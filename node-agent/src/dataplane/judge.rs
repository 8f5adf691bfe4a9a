//! What the tables say about a flow, without asking the kernel. Pure.
//!
//! The kernel judges the first packet of a connection and carries the rest on. The judge is asked about connections that
//! are there already, and says of each what the kernel would say if it began now: by the same programs and allow sets,
//! which the data plane holds anyhow.

#[cfg(test)]
mod properties;

use std::collections::HashMap;
use std::net::IpAddr;

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
    /// The pods of this node, by each of their addresses.
    local: HashMap<IpAddr, Local<'a>>,
}

#[derive(Debug)]
struct Local<'a> {
    name: &'a NamespacedName,
    /// `None`: the engine does not know it, and so the tables hold nothing that lets its packets through.
    verdict: Option<PodVerdict>,
}

impl<'a> Judge<'a> {
    /// A judge who goes by this state.
    pub(crate) fn new(state: &'a State) -> Self {
        let local = state
            .local_pods()
            .flat_map(|(name, pod, verdict)| {
                pod.addresses().map(move |address| (address, Local { name, verdict }))
            })
            .collect();
        Self { state, local }
    }

    /// The pod of this node that has an address.
    pub fn pod(&self, address: IpAddr) -> Option<&'a NamespacedName> {
        self.local.get(&address).map(|local| local.name)
    }

    /// Whether a flow may go on; `None` where neither end is a pod of this node, so that it is not ours to say.
    ///
    /// Not to be asked about flows of the node itself: they do not pass `forward`, and are always allowed.
    pub fn judge(&self, flow: &Flow) -> Option<Ruling> {
        let (source, destination) = (self.local.get(&flow.source), self.local.get(&flow.destination));
        if source.is_none() && destination.is_none() {
            return None;
        }
        let sides =
            [(Direction::Egress, source, flow.destination), (Direction::Ingress, destination, flow.source)];
        for (direction, local, peer) in sides {
            let Some(local) = local else { continue };
            let ruling = self.side(direction, local, peer, flow);
            if !ruling.is_allowed() {
                return Some(ruling);
            }
        }
        Some(Ruling::Allowed)
    }

    fn side(&self, direction: Direction, local: &Local<'_>, peer: IpAddr, flow: &Flow) -> Ruling {
        let id = match (local.verdict, direction) {
            (None, _) => return Ruling::Denied(DropReason::UnknownPod.on(direction)),
            (Some(PodVerdict::Closed), _) => return Ruling::Denied(DropReason::KernelRefused.on(direction)),
            (Some(PodVerdict::Programs { ingress, .. }), Direction::Ingress) => ingress,
            (Some(PodVerdict::Programs { egress, .. }), Direction::Egress) => egress,
        };
        // Through a Service a pod may come back to itself; it always reaches itself.
        let itself = flow.source == flow.destination;
        match id.map(|id| self.state.program(id)) {
            None => Ruling::Allowed,
            Some(Some(program)) if itself || self.allows(program, peer, flow) => Ruling::Allowed,
            Some(_) => Ruling::Denied(DropReason::Policy.on(direction)),
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
