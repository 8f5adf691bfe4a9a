//! What holds of every cluster: the compiler says what `evaluate` says, however the objects came.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use moat_policies::*;
use proptest::prelude::*;
use support::*;

/// One step in a cluster's life.
#[derive(Clone, Debug)]
enum Step {
    Apply(Object),
    Delete(Object),
    Commit,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => object().prop_map(Step::Apply),
        2 => object().prop_map(Step::Delete),
        2 => Just(Step::Commit),
    ];
    prop::collection::vec(step, 1..40)
}

fn assert_same_verdicts(objects: &[Object]) {
    let cluster = compiled(objects.to_vec());
    let tables = tables(&cluster);
    for_each_verdict(cluster.objects(), |pod, node, direction, peer, traffic, verdict, evaluated| {
        let compiled = tables[node].allows(&pod.name, direction, peer, traffic);
        assert_eq!(compiled, evaluated, "{} {direction} {peer} {traffic}\n{verdict:#?}", pod.name);
    });
}

fn assert_step_by_step_equals_scratch(steps: Vec<Step>) {
    let mut cluster = Cluster::new();
    let mut told: BTreeMap<Arc<str>, NodeTable> = BTreeMap::new();
    for step in steps.into_iter().chain([Step::Commit]) {
        match step {
            Step::Apply(object) => cluster.apply(object),
            Step::Delete(object) => cluster.delete(&object.key()),
            Step::Commit => {
                for (node, delta) in cluster.commit() {
                    told.entry(node).or_default().apply(delta);
                }
                let scratch = compiled(cluster.objects().clone().into_objects());
                for (node, expected) in tables(&scratch) {
                    assert_eq!(told.get(node).unwrap_or(&NodeTable::default()), &expected, "told to {node}");
                }
                assert_eq!(tables(&cluster), tables(&scratch), "state");
                assert!(cluster.commit().is_empty(), "a second commit has nothing to tell");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn compile_says_what_evaluate_says(objects in objects()) {
        assert_same_verdicts(&objects);
    }

    #[test]
    fn step_by_step_equals_from_scratch(steps in steps()) {
        assert_step_by_step_equals_scratch(steps);
    }

    #[test]
    fn the_order_of_objects_never_matters(objects in objects().prop_flat_map(|o| (Just(o.clone()), Just(o).prop_shuffle()))) {
        let (one, other) = objects;
        prop_assert_eq!(tables(&compiled(one)), tables(&compiled(other)));
    }

    #[test]
    fn what_comes_and_goes_leaves_nothing_behind(keep in objects(), passing in objects()) {
        let mut cluster = compiled(keep.clone());
        passing.iter().for_each(|o| cluster.apply(o.clone()));
        cluster.commit();
        cluster.reset(keep.clone());
        cluster.commit();
        prop_assert_eq!(tables(&cluster), tables(&compiled(keep)));
    }

    #[test]
    fn a_rule_more_never_closes_anything(objects in objects(), which in any::<prop::sample::Index>(), rule in rule()) {
        let mut more = objects.clone();
        let mut policies: Vec<&mut NetworkPolicy> = more
            .iter_mut()
            .filter_map(|o| match o {
                Object::Policy(p) if p.ingress.is_some() || p.egress.is_some() => Some(p),
                _ => None,
            })
            .collect();
        prop_assume!(!policies.is_empty());
        let place = which.index(policies.len());
        let policy = &mut *policies[place];
        policy.ingress.as_mut().or(policy.egress.as_mut()).unwrap().push(rule);
        let before = compiled(objects);
        let (before_tables, after) = (tables(&before), tables(&compiled(more)));
        for_each_verdict(before.objects(), |pod, node, direction, peer, traffic, _, _| {
            let was = before_tables[node].allows(&pod.name, direction, peer, traffic);
            let is = after[node].allows(&pod.name, direction, peer, traffic);
            assert!(!was || is, "{} {direction} {peer} {traffic} was open", pod.name);
        });
    }

    #[test]
    fn a_policy_under_a_second_name_changes_nothing(objects in objects()) {
        let copies = objects.iter().filter_map(|o| match o {
            Object::Policy(p) => {
                let name = NamespacedName::new(p.name.namespace.clone(), format!("{}-again", p.name.name));
                Some(Object::Policy(NetworkPolicy { name, ..p.clone() }))
            }
            _ => None,
        });
        let twice: Vec<Object> = objects.iter().cloned().chain(copies).collect();
        prop_assert_eq!(tables(&compiled(objects)), tables(&compiled(twice)));
    }

    #[test]
    fn a_block_in_two_halves_changes_nothing(objects in objects()) {
        let halves: Vec<Object> = objects.iter().cloned().map(|o| match o {
            Object::Policy(mut p) => {
                [&mut p.ingress, &mut p.egress].into_iter().flatten().flatten().for_each(split_blocks);
                Object::Policy(p)
            }
            other => other,
        }).collect();
        prop_assert_eq!(tables(&compiled(objects)), tables(&compiled(halves)));
    }

    #[test]
    fn labels_under_other_names_change_nothing(objects in objects()) {
        let renamed: Vec<Object> = objects.iter().cloned().map(rename_labels).collect();
        let (one, other) = (compiled(objects), compiled(renamed));
        let (one_tables, other_tables) = (tables(&one), tables(&other));
        for_each_verdict(one.objects(), |pod, node, direction, peer, traffic, _, _| {
            assert_eq!(
                one_tables[node].allows(&pod.name, direction, peer, traffic),
                other_tables[node].allows(&pod.name, direction, peer, traffic)
            );
        });
    }
}

fn split_blocks(rule: &mut Rule) {
    let Peers::Of(peers) = &mut rule.peers else { return };
    *peers = std::mem::take(peers)
        .into_iter()
        .flat_map(|peer| match peer {
            Peer::Block(block) if block.cidr().prefix_len() < block.cidr().max_prefix_len() => {
                let halves = block.cidr().subnets(block.cidr().prefix_len() + 1).unwrap();
                halves
                    // An except that is a half takes that half away.
                    .filter(|half| !block.except().contains(half))
                    .map(|half| {
                        let inside = block.except().iter().filter(|e| half.contains(*e));
                        Peer::Block(Block::new(half, inside.copied()).unwrap())
                    })
                    .collect()
            }
            other => vec![other],
        })
        .collect();
}

fn rename_labels(object: Object) -> Object {
    let name = |text: &Arc<str>| -> Arc<str> {
        if &**text == NAMESPACE_NAME_LABEL { text.clone() } else { Arc::from(format!("the-{text}")) }
    };
    let labels = |labels: &Labels| -> Labels { labels.iter().map(|(k, v)| (name(k), name(v))).collect() };
    let selector = |selector: &Selector| {
        Selector::new(selector.requirements().iter().map(|r| {
            let by_name = &**r.key() == NAMESPACE_NAME_LABEL;
            let values = r.values().iter().map(|v| if by_name { v.clone() } else { name(v) });
            Requirement::new(name(r.key()), r.operator(), values).unwrap()
        }))
    };
    let rules = |rules: &mut Option<Vec<Rule>>| {
        for rule in rules.iter_mut().flatten() {
            let Peers::Of(peers) = &mut rule.peers else { continue };
            for peer in peers {
                if let Peer::Pods { namespaces, pods } = peer {
                    *pods = selector(pods);
                    if let NamespaceScope::Selected(namespaces) = namespaces {
                        *namespaces = selector(namespaces);
                    }
                }
            }
        }
    };
    match object {
        Object::Namespace(mut n) => {
            n.labels = labels(&n.labels);
            Object::Namespace(n)
        }
        Object::Pod(mut p) => {
            p.labels = labels(&p.labels);
            Object::Pod(p)
        }
        Object::Policy(mut p) => {
            p.subject = selector(&p.subject);
            rules(&mut p.ingress);
            rules(&mut p.egress);
            Object::Policy(p)
        }
        node => node,
    }
}
