//! The reasons of a verdict: which policies isolate, which rule allowed, or what each rule lacked.

use super::party::Families;
use super::{Decision, Evaluator, Pair, Party, rule_ref};
use crate::explain::{peers_text, ports_text};
use crate::{Candidate, Direction, Family, Miss, NamespacedName, Reason, Side, Traffic, Verdict};

impl<'a> Evaluator<'a> {
    /// Whether a flow may pass, and why.
    pub fn explain(
        &self,
        source: &Party<'a>,
        destination: &Party<'a>,
        traffic: Traffic,
        family: Option<Family>,
    ) -> Verdict {
        let families = Families::common(source, destination, family);
        let pairs: Vec<Pair<'_, 'a>> =
            families.iter().map(|family| Pair { source, destination, traffic, family }).collect();
        let passes = |p: &&Pair<'_, 'a>| p.allows(Direction::Egress) && p.allows(Direction::Ingress);
        // Both sides are explained over the family that passes, where there is one.
        let passing = pairs.iter().find(passes);
        let side = |direction| {
            let allowing = passing.or_else(|| pairs.iter().find(|p| p.allows(direction)));
            Side { direction, allowed: allowing.is_some(), reason: reason(direction, allowing, &pairs) }
        };
        Verdict {
            allowed: passing.is_some(),
            egress: side(Direction::Egress),
            ingress: side(Direction::Ingress),
            families: families.iter().flatten().collect(),
        }
    }
}

fn reason<'a>(direction: Direction, allowing: Option<&Pair<'_, 'a>>, pairs: &[Pair<'_, 'a>]) -> Reason {
    let Some(pair) = allowing.or_else(|| pairs.first()) else {
        return Reason::NoCommonFamily;
    };
    let isolating = || -> Vec<NamespacedName> {
        pair.ends(direction).0.isolating(direction).iter().map(|p| p.name.clone()).collect()
    };
    match pair.decide(direction) {
        Decision::Itself => Reason::Itself,
        Decision::OwnNode => Reason::OwnNode,
        Decision::HostNetwork => Reason::HostNetwork,
        Decision::Outside => Reason::Outside,
        Decision::NotIsolated => Reason::NotIsolated,
        Decision::Rule(policy, index) => {
            Reason::Rule { isolating: isolating(), by: rule_ref(policy, direction, index) }
        }
        Decision::NoRule => {
            Reason::NoRule { isolating: isolating(), candidates: candidates(direction, pairs) }
        }
    }
}

/// Every rule that could have allowed it, the nearest first: only the port is wrong, only the peer is, both are.
fn candidates(direction: Direction, pairs: &[Pair<'_, '_>]) -> Vec<Candidate> {
    let Some(first) = pairs.first() else { return Vec::new() };
    let mut all = Vec::new();
    for policy in first.ends(direction).0.isolating(direction) {
        for (index, rule) in policy.rules(direction).unwrap_or_default().iter().enumerate() {
            let peer = pairs.iter().any(|p| p.peer_matches(direction, policy, rule));
            let port = pairs.iter().any(|p| p.port_matches(direction, rule));
            let peers = || peers_text(&rule.peers, &policy.name.namespace).into();
            let ports = || ports_text(&rule.ports).into();
            let miss = match (peer, port) {
                (true, false) => Miss::Port { allows: ports() },
                (false, true) => Miss::Peer { allows: peers() },
                // Both match, but never over one and the same family: the peer is what differs between families.
                (true, true) => Miss::Peer { allows: peers() },
                (false, false) => Miss::PeerAndPort { peers: peers(), ports: ports() },
            };
            all.push(Candidate { rule: rule_ref(policy, direction, index), miss });
        }
    }
    all.sort_by_key(|c| match c.miss {
        Miss::Port { .. } => 0,
        Miss::Peer { .. } => 1,
        Miss::PeerAndPort { .. } => 2,
    });
    all
}
