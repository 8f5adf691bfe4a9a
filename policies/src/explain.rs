//! Verdicts in plain words.
//!
//! One sentence a side, without a full stop, as a person would say it:
//! `shop/api is isolated for ingress by shop/default-deny; nearest: shop/api-from-web ingress[0] allows
//! 8080/TCP, not 9090/TCP`. The command line and the drop log print the same words.

use std::fmt::Write as _;
use std::sync::Arc;

use crate::{
    Candidate, Direction, Endpoint, Flow, Miss, NamespaceScope, NamespacedName, Peer, Peers, PortMatch,
    PortRef, Ports, Reason, Side, Traffic, Verdict,
};

/// How many policies a sentence names before it counts the rest.
const NAMED: usize = 4;

impl Verdict {
    /// The whole verdict in one sentence: what decided it.
    ///
    /// `flow` is the question. Endpoints print as the question names them.
    pub fn explain(&self, flow: &Flow) -> String {
        match (self.allowed, self.egress.allowed, self.ingress.allowed) {
            (true, ..) => {
                format!("{}; {}", self.egress.explain(flow), self.ingress.explain(flow))
            }
            (false, false, true) => self.egress.explain(flow),
            (false, true, false) => self.ingress.explain(flow),
            (false, true, true) => {
                "each side allows it, but over different address families; no one connection passes both"
                    .into()
            }
            (false, false, false) if self.egress.reason == Reason::NoCommonFamily => {
                self.egress.explain(flow)
            }
            (false, false, false) => {
                format!("{}; {}", self.egress.explain(flow), self.ingress.explain(flow))
            }
        }
    }
}

impl Side {
    /// This side in one sentence. `flow` is the question; endpoints print as it names them.
    pub fn explain(&self, flow: &Flow) -> String {
        let direction = self.direction;
        let (subject, peer) = match direction {
            Direction::Ingress => (&flow.destination, &flow.source),
            Direction::Egress => (&flow.source, &flow.destination),
        };
        match &self.reason {
            Reason::Itself => format!("{subject} always reaches itself"),
            Reason::OwnNode => format!("{subject} and its own node ({peer}) always reach each other"),
            Reason::HostNetwork => {
                format!("{subject} is a node, or a pod in its node's network: no policy applies to it")
            }
            Reason::Outside => format!("{subject} is outside the cluster: no policy applies to it"),
            Reason::NotIsolated => format!("no policy isolates {subject} for {direction}"),
            Reason::Rule { by, .. } => format!("{by} allows it"),
            Reason::NoRule { isolating, candidates } => {
                let mut text = format!("{subject} is isolated for {direction} by {}", names(isolating));
                match candidates.first() {
                    Some(nearest) => {
                        let _ = write!(text, "; nearest: {}", nearest.explain(flow.traffic, peer));
                    }
                    None if isolating.len() == 1 => {
                        let _ = write!(text, ", which has no {direction} rule");
                    }
                    None => {
                        let _ = write!(text, ", none of which has an {direction} rule");
                    }
                }
                text
            }
            Reason::NoCommonFamily => {
                format!("{} and {} have no address family in common", flow.source, flow.destination)
            }
        }
    }
}

impl Candidate {
    /// What the rule allows instead, for a question about this traffic with this peer.
    pub fn explain(&self, traffic: Traffic, peer: &Endpoint) -> String {
        let preposition = match self.rule.direction {
            Direction::Ingress => "from",
            Direction::Egress => "to",
        };
        match &self.miss {
            Miss::Port { allows } => format!("{} allows {allows}, not {traffic}", self.rule),
            Miss::Peer { allows } => {
                format!("{} allows it {preposition} {allows}, not {preposition} {peer}", self.rule)
            }
            Miss::PeerAndPort { peers, ports } => {
                format!("{} allows {ports} {preposition} {peers}", self.rule)
            }
        }
    }
}

/// A list of policies; a long one is counted.
fn names(policies: &[NamespacedName]) -> String {
    let mut text = policies.iter().take(NAMED).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if policies.len() > NAMED {
        let _ = write!(text, " and {} more", policies.len() - NAMED);
    }
    text
}

/// What `from`/`to` of a policy in this namespace allows.
pub(crate) fn peers_text(peers: &Peers, namespace: &Arc<str>) -> String {
    match peers {
        Peers::Any => "everybody".into(),
        Peers::Of(list) => list.iter().map(|p| peer_text(p, namespace)).collect::<Vec<_>>().join(", or "),
    }
}

fn peer_text(peer: &Peer, namespace: &Arc<str>) -> String {
    match peer {
        Peer::Block(block) => format!("addresses in {block}"),
        Peer::Pods { namespaces, pods } => {
            let pods = match pods.is_everything() {
                true => "all pods".to_string(),
                false => format!("pods {pods}"),
            };
            match namespaces {
                NamespaceScope::Own => format!("{pods} in namespace {namespace}"),
                NamespaceScope::Selected(all) if all.is_everything() => format!("{pods} in all namespaces"),
                NamespaceScope::Selected(some) => format!("{pods} in namespaces {some}"),
            }
        }
    }
}

/// What `ports` allows.
pub(crate) fn ports_text(ports: &Ports) -> String {
    match ports {
        Ports::Any => "every port".into(),
        Ports::Of(entries) => entries.iter().map(port_text).collect::<Vec<_>>().join(", "),
    }
}

fn port_text(entry: &PortMatch) -> String {
    let protocol = entry.protocol;
    match &entry.port {
        PortRef::All => format!("every {protocol} port"),
        PortRef::Range(first, last) if first == last => format!("{first}/{protocol}"),
        PortRef::Range(first, last) => format!("{first}-{last}/{protocol}"),
        PortRef::Named(name) => format!("{name}/{protocol}"),
    }
}
