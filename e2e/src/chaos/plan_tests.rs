//! A seed is a plan, and every step of it can be done.

use std::path::Path;

use super::*;

fn stage() -> Stage {
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/examples/three-tier-web");
    let objects = moat_manifests::load(&[recipe]).unwrap().objects;
    let (nodes, _) = crate::topology::nodes(&objects, 2, crate::Families::V4).unwrap();
    let placed = crate::topology::place(&objects, &nodes, &Default::default()).unwrap();
    let mut all: Objects = objects.into_iter().chain(nodes.into_iter().map(Object::Node)).collect();
    placed.iter().for_each(|p| all.insert(Object::Pod(p.pod.clone())));
    let pods = all.pods().names().collect();
    Stage { objects: all, pods, ports: vec![(Protocol::Tcp, 8080), (Protocol::Udp, 60001)] }
}

fn steps(seed: u64, kinds: &[FaultKind], count: usize) -> Vec<Step> {
    let mut plan = Plan::new(seed, kinds, stage());
    std::iter::repeat_with(|| plan.next()).take(count * 2).flatten().take(count).collect()
}

#[test]
fn the_same_seed_is_the_same_plan_and_another_is_another() {
    let twice = [7, 7].map(|seed| steps(seed, &FaultKind::ALL, 300));
    assert_eq!(twice[0].len(), 300);
    assert_eq!(twice[0], twice[1]);
    assert_ne!(twice[0], steps(8, &FaultKind::ALL, 300));
    // In whichever order they are named.
    let (some, other) = ([FaultKind::Pods, FaultKind::Kills], [FaultKind::Kills, FaultKind::Pods]);
    assert_eq!(steps(7, &some, 50), steps(7, &other, 50));
}

#[test]
fn only_what_was_asked_for_goes_wrong() {
    let kills = steps(1, &[FaultKind::Kills], 100);
    assert!(kills.iter().all(|s| matches!(s.fault, Fault::Kill { .. })));
    let pods = steps(1, &[FaultKind::Pods], 100);
    assert!(pods.iter().all(|s| matches!(s.fault, Fault::Pods { kill_after: None, .. })));
    assert_eq!(steps(1, &[], 100), []);
}

#[test]
fn what_goes_was_there_and_what_comes_was_not() {
    for seed in 0..20 {
        let Stage { mut objects, .. } = stage();
        for Step { fault, .. } in steps(seed, &FaultKind::ALL, 400) {
            match fault {
                Fault::Policy(policy) => objects.insert(Object::Policy(policy)),
                Fault::NoPolicy(name) => {
                    assert!(objects.policies().contains_key(&name), "seed {seed}: no policy {name}");
                    objects.remove(&Key::Policy(name));
                }
                Fault::Pods { gone, come, .. } => {
                    assert!(gone.is_some() || come.is_some());
                    if let (Some(gone), Some(come)) = (&gone, &come) {
                        assert_eq!(gone.node, come.node, "seed {seed}: one in the other's place");
                    }
                    if let Some(gone) = gone {
                        assert!(objects.pods().contains(&gone.name), "seed {seed}: no pod {}", gone.name);
                        objects.remove(&Key::Pod(gone.name));
                    }
                    if let Some(come) = come {
                        assert!(!objects.pods().contains(&come.name), "seed {seed}: {} twice", come.name);
                        objects.insert(Object::Pod(come));
                    }
                }
                Fault::Kill { node } | Fault::Edit { node, .. } | Fault::Cut { node, .. } => {
                    assert!(objects.nodes().contains_key(&node));
                }
            }
        }
    }
}
