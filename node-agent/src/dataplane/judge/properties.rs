//! The judge says what `evaluate` says straight from the policies, on random small clusters.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use moat_policies::{Evaluator, NamespacedName, NodeDelta, PodPrograms, Reason, Traffic};
use proptest::prelude::*;

use super::*;
use crate::dataplane::closed::{self, Limits, Subject};
use crate::dataplane::layout::{LayoutConfig, LocalPod};
use crate::dataplane::update::Update;

#[path = "../../../../policies/tests/support/mod.rs"]
#[allow(dead_code, reason = "shared with the engine's tests, which use more of it")]
mod support;

use support::{NODES, compiled, for_each_verdict, objects};

fn local(addresses: impl IntoIterator<Item = IpAddr>) -> LocalPod {
    let mut pod = LocalPod { ifname: "moatx".to_owned(), pod_mac: [2; 6], v4: None, v6: None };
    for address in addresses {
        match address {
            IpAddr::V4(a) => pod.v4 = Some(a),
            IpAddr::V6(a) => pod.v6 = Some(a),
        }
    }
    pod
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_judge_says_what_the_policies_say(objects in objects()) {
        let cluster = compiled(objects);
        let contested: BTreeSet<IpAddr> = Evaluator::new(cluster.objects()).contested().into_iter().collect();
        let mut nodes = BTreeMap::new();
        for node in NODES {
            let policy = cluster.state(node);
            let here = cluster.objects().pods().iter().filter(|pod| policy.pods.contains_key(&pod.name));
            let pods: BTreeMap<_, _> =
                here.map(|pod| (pod.name, Some(local(pod.addresses.into_iter())))).collect();
            let mut state = State::new(LayoutConfig::default(), Limits::default(), false);
            state.advance(&Update { policy, pods, ..Update::default() });
            nodes.insert(node, state);
        }
        let judges: BTreeMap<_, _> = nodes.iter().map(|(node, state)| (*node, Judge::new(state))).collect();
        let mut wrong = None;
        for_each_verdict(cluster.objects(), |pod, node, direction, peer, traffic, verdict, _| {
            let own = pod.addresses.iter().copied().find(|a| a.is_ipv4() == peer.is_ipv4());
            let Some(own) = own.filter(|own| !contested.contains(own) && !contested.contains(&peer)) else { return };
            let beside = |reason: &Reason| matches!(reason, Reason::OwnNode | Reason::Itself);
            if beside(&verdict.egress.reason) || beside(&verdict.ingress.reason) {
                return;
            }
            let (source, destination) = match direction {
                Direction::Ingress => (peer, own),
                Direction::Egress => (own, peer),
            };
            let (protocol, port) = match traffic {
                Traffic::Port(protocol, port) => (protocol.number(), Some(port)),
                Traffic::Other(number) => (number, None),
            };
            let judge = &judges[node];
            // Each node judges its own pods' sides.
            let allowed = (judge.pod(source).is_none() || verdict.egress.allowed)
                && (judge.pod(destination).is_none() || verdict.ingress.allowed);
            let flow = Flow { source, destination, protocol, port };
            let ruling = judge.judge(&flow);
            if ruling.map(Ruling::is_allowed) != Some(allowed) {
                wrong.get_or_insert(format!("{flow:?} on {node}: {ruling:?}, but the policies say {verdict:?}"));
            }
        });
        prop_assert!(wrong.is_none(), "{}", wrong.unwrap_or_default());
    }
}

/// A pod that the engine does not know, or no longer, has no connections; and those that pass by this node are not its.
#[test]
fn unknown_pods_are_denied_and_strangers_are_not_judged() {
    let (a, b) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
    let name = NamespacedName::new("shop", "a");
    let mut state = State::new(LayoutConfig::default(), Limits::default(), false);
    state.advance(&Update { pods: [(name.clone(), Some(local([a.into()])))].into(), ..Update::default() });
    let flow = |source: Ipv4Addr, destination: Ipv4Addr| Flow {
        source: source.into(),
        destination: destination.into(),
        protocol: 1,
        port: None,
    };
    let judge = |state: &State, flow| Judge::new(state).judge(&flow);
    let unknown = |direction| Some(Ruling::Denied(DropReason::UnknownPod.on(direction)));
    assert_eq!(judge(&state, flow(a, b)), unknown(Direction::Egress));
    assert_eq!(judge(&state, flow(b, a)), unknown(Direction::Ingress));
    assert_eq!(judge(&state, flow(b, b)), None);
    let policy = NodeDelta { pods: [(name, Some(PodPrograms::default()))].into(), ..NodeDelta::default() };
    let update = Update { policy, ..Update::default() };
    state.advance(&update);
    assert_eq!(judge(&state, flow(a, b)), Some(Ruling::Allowed));
    let pods = update.policy.pods.keys().chain(update.pods.keys()).cloned().map(Subject::Pod);
    state.close(pods, &closed::Reason::Refused("no".into()));
    assert_eq!(
        judge(&state, flow(a, b)),
        Some(Ruling::Denied(DropReason::KernelRefused.on(Direction::Egress)))
    );
}
