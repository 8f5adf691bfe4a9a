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

/// Of each pair of pods that programs decide: A reaches B iff over one family that both have A's node lets the packet
/// out and B's node lets it in.
fn assert_pairs_are_decided_by_both_nodes(objects: &[Object]) {
    let cluster = compiled(objects.to_vec());
    let tables = tables(&cluster);
    let evaluator = Evaluator::new(cluster.objects());
    let decided = |pod: &Pod| table_of(&tables, pod).is_some() && !pod.addresses.is_empty();
    let pods: Vec<Pod> = cluster.objects().pods().iter().filter(decided).collect();
    let pairs = pods.iter().flat_map(|a| pods.iter().map(move |b| (a, b))).filter(|(a, b)| a.name != b.name);
    for (a, b) in pairs {
        let (a_node, b_node) = (table_of(&tables, a).unwrap(), table_of(&tables, b).unwrap());
        let ends = [Endpoint::Pod(a.name.clone()), Endpoint::Pod(b.name.clone())];
        let [a_party, b_party] = ends.each_ref().map(|end| evaluator.party(end).unwrap());
        for traffic in traffics() {
            let mut compiled = Judgement { allowed: false, egress: false, ingress: false };
            for (a_address, b_address) in by_family(a).into_iter().zip(by_family(b)) {
                let (Some(a_address), Some(b_address)) = (a_address, b_address) else { continue };
                let egress = a_node.allows(&a.name, Direction::Egress, b_address, traffic);
                let ingress = b_node.allows(&b.name, Direction::Ingress, a_address, traffic);
                compiled.egress |= egress;
                compiled.ingress |= ingress;
                compiled.allowed |= egress && ingress;
            }
            let judged = evaluator.judge(&a_party, &b_party, traffic, None);
            assert_eq!(compiled, judged, "{} to {} on {traffic}", a.name, b.name);
            let verdict = evaluator.explain(&a_party, &b_party, traffic, None);
            let explained = Judgement {
                allowed: verdict.allowed,
                egress: verdict.egress.allowed,
                ingress: verdict.ingress.allowed,
            };
            assert_eq!(explained, judged, "with reasons: {} to {} on {traffic}", a.name, b.name);
        }
    }
}

/// What the programs say before and after of everything that they decide before.
fn compare(before: Vec<Object>, after: Vec<Object>, check: impl Fn(&Pod, Direction, bool, bool)) {
    let (before, after) = (compiled(before), compiled(after));
    let (before_tables, after_tables) = (tables(&before), tables(&after));
    for_each_verdict(before.objects(), |pod, node, direction, peer, traffic, _, _| {
        let was = before_tables[node].allows(&pod.name, direction, peer, traffic);
        let is = after_tables[node].allows(&pod.name, direction, peer, traffic);
        check(pod, direction, was, is);
    });
}

/// These objects, and a policy of a name that no other has.
fn with_policy(objects: &[Object], policy: &NetworkPolicy) -> Vec<Object> {
    let name = NamespacedName::new(policy.name.namespace.clone(), "one-more");
    objects.iter().cloned().chain([Object::Policy(NetworkPolicy { name, ..policy.clone() })]).collect()
}

/// Whether a policy isolates a pod in a direction.
fn isolates(policy: &NetworkPolicy, pod: &Pod, direction: Direction) -> bool {
    policy.name.namespace == pod.name.namespace
        && policy.subject.matches(&pod.labels)
        && policy.rules(direction).is_some()
}

fn map_policies(objects: &[Object], change: impl Fn(NetworkPolicy) -> Vec<NetworkPolicy>) -> Vec<Object> {
    let changed = |object: &Object| match object {
        Object::Policy(policy) => change(policy.clone()).into_iter().map(Object::Policy).collect(),
        other => vec![other.clone()],
    };
    objects.iter().flat_map(changed).collect()
}

fn assert_step_by_step_equals_scratch(steps: Vec<Step>) {
    let mut cluster = Cluster::new();
    let only: Arc<str> = support::NODES[0].into();
    let mut to_one = Cluster::new().telling(only.clone());
    let mut told: BTreeMap<Arc<str>, NodeTable> = BTreeMap::new();
    for step in steps.into_iter().chain([Step::Commit]) {
        match step {
            Step::Apply(object) => {
                to_one.apply(object.clone());
                cluster.apply(object);
            }
            Step::Delete(object) => {
                to_one.delete(&object.key());
                cluster.delete(&object.key());
            }
            Step::Commit => {
                let deltas = cluster.commit();
                let its: BTreeMap<_, _> = deltas.get_key_value(&only).into_iter().collect();
                assert_eq!(to_one.commit().iter().collect::<BTreeMap<_, _>>(), its, "told to one alone");
                assert_eq!(to_one.state(&only), cluster.state(&only), "state of one alone");
                for (node, delta) in deltas {
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
    #[test]
    fn compile_says_what_evaluate_says(objects in objects()) {
        assert_same_verdicts(&objects);
    }

    #[test]
    fn pairs_of_pods_are_decided_by_both_nodes(objects in objects()) {
        assert_pairs_are_decided_by_both_nodes(&objects);
    }

    #[test]
    fn a_matrix_says_what_each_question_says(objects in objects()) {
        let cluster = compiled(objects);
        let evaluator = Evaluator::new(cluster.objects());
        let pods = cluster.objects().pods().names().map(Endpoint::Pod);
        let ends: Vec<Endpoint> = pods.chain(probes().into_iter().map(Endpoint::Address)).collect();
        let traffics = traffics();
        let mut matrix = Matrix::new(&evaluator, &ends, &traffics).unwrap();
        let parties: Vec<Party<'_>> = ends.iter().map(|end| evaluator.party(end).unwrap()).collect();
        for (i, source) in parties.iter().enumerate() {
            for (j, destination) in parties.iter().enumerate() {
                for (k, &traffic) in traffics.iter().enumerate() {
                    let asked = evaluator.judge(source, destination, traffic, None);
                    prop_assert_eq!(matrix.judge(i, j, k), asked, "{} to {} on {}", &ends[i], &ends[j], traffic);
                }
            }
        }
    }

    #[test]
    fn who_knows_two_addresses_answers_about_them_as_who_knows_all(objects in objects()) {
        let cluster = compiled(objects);
        let (objects, all) = (cluster.objects(), Evaluator::new(cluster.objects()));
        let addresses = objects.pods().iter().flat_map(|p| p.addresses).chain(probes());
        let addresses: Vec<_> = addresses.collect();
        for &a in &addresses {
            for &b in addresses.iter().filter(|b| b.is_ipv4() == a.is_ipv4()) {
                let flow = Flow {
                    source: Endpoint::Address(a),
                    destination: Endpoint::Address(b),
                    traffic: Traffic::Port(Protocol::Tcp, 80),
                    family: Some(Family::of(&a)),
                };
                let few = cluster.evaluator_of(&[a, b]);
                prop_assert_eq!(few.evaluate(&flow), all.evaluate(&flow));
                prop_assert_eq!(few.resolve(&flow.source), all.resolve(&flow.source));
            }
        }
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
    fn a_policy_that_selects_nobody_changes_nothing(objects in objects(), policy in policy()) {
        let nobody = Selector::new(policy.subject.requirements().iter().cloned().chain(Selector::label("is", "nobody").requirements().iter().cloned()));
        let more = with_policy(&objects, &NetworkPolicy { subject: nobody, ..policy });
        prop_assert_eq!(tables(&compiled(objects)), tables(&compiled(more)));
    }

    #[test]
    fn a_policy_more_closes_only_what_nobody_isolated_before(objects in objects(), policy in policy()) {
        let earlier: Vec<NetworkPolicy> = map_policies(&objects, |p| vec![p]).into_iter().filter_map(|o| match o {
            Object::Policy(p) => Some(p),
            _ => None,
        }).collect();
        compare(objects.clone(), with_policy(&objects, &policy), |pod, direction, was, is| {
            let selected = isolates(&policy, pod, direction);
            let isolated = earlier.iter().any(|p| isolates(p, pod, direction));
            assert!(selected || was == is, "{} is none of its subject", pod.name);
            assert!(!isolated || !was || is, "{} was isolated: nothing that was open closes", pod.name);
            assert!(isolated || was, "{} was not isolated", pod.name);
        });
    }

    #[test]
    fn a_policy_without_rules_never_opens_anything(objects in objects(), policy in policy()) {
        let deny = NetworkPolicy { ingress: Some(Vec::new()), egress: Some(Vec::new()), ..policy };
        compare(objects.clone(), with_policy(&objects, &deny), |pod, _, was, is| {
            assert!(was || !is, "{} was closed", pod.name);
        });
    }

    #[test]
    fn a_rule_for_everybody_opens_its_subject(objects in objects(), policy in policy()) {
        let everybody = || Some(vec![Rule { peers: Peers::Any, ports: Ports::Any }]);
        let open = NetworkPolicy { ingress: everybody(), egress: everybody(), ..policy };
        compare(objects.clone(), with_policy(&objects, &open), |pod, direction, _, is| {
            assert!(is || !isolates(&open, pod, direction), "{} is open for {direction}", pod.name);
        });
    }

    #[test]
    fn a_policy_for_each_rule_changes_nothing(objects in objects()) {
        let split = map_policies(&objects, |policy| {
            let of = |ingress, egress| NetworkPolicy { ingress, egress, ..policy.clone() };
            let bare = of(policy.ingress.as_ref().map(|_| Vec::new()), policy.egress.as_ref().map(|_| Vec::new()));
            let ingress = policy.ingress.iter().flatten().map(|rule| of(Some(vec![rule.clone()]), None));
            let egress = policy.egress.iter().flatten().map(|rule| of(None, Some(vec![rule.clone()])));
            let numbered = [bare].into_iter().chain(ingress).chain(egress).enumerate().map(|(i, p)| {
                let name = NamespacedName::new(p.name.namespace.clone(), format!("{}-{i}", p.name.name));
                NetworkPolicy { name, ..p }
            });
            numbered.collect()
        });
        prop_assert_eq!(tables(&compiled(objects)), tables(&compiled(split)));
    }

    #[test]
    fn a_port_range_in_two_parts_changes_nothing(objects in objects()) {
        let split = map_policies(&objects, |mut policy| {
            [&mut policy.ingress, &mut policy.egress].into_iter().flatten().flatten().for_each(split_ports);
            vec![policy]
        });
        prop_assert_eq!(tables(&compiled(objects)), tables(&compiled(split)));
    }

    #[test]
    fn a_namespace_without_labels_is_as_one_that_nobody_describes(objects in objects()) {
        let bare = |o: &Object| matches!(o, Object::Namespace(n) if n.labels.is_empty());
        let fewer: Vec<Object> = objects.iter().filter(|o| !bare(o)).cloned().collect();
        prop_assert_eq!(tables(&compiled(objects)), tables(&compiled(fewer)));
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

/// What is applied and not yet committed is in no node's state, so asking then is a mistake, and found out.
#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "after a commit")]
fn a_state_is_asked_for_after_a_commit() {
    let pod = |name: &str, address: [u8; 4]| {
        Object::Pod(Pod {
            name: NamespacedName::new("a", name),
            labels: Labels::new(),
            node: Some(Arc::from("n1")),
            addresses: vec![address.into()],
            ports: Vec::new(),
            host_network: false,
            finished: false,
            uid: None,
        })
    };
    let mut cluster = compiled([pod("1", [10, 0, 0, 1])]);
    cluster.apply(pod("2", [10, 0, 0, 2]));
    cluster.state("n1");
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

fn split_ports(rule: &mut Rule) {
    let Ports::Of(ports) = &mut rule.ports else { return };
    *ports = std::mem::take(ports)
        .into_iter()
        .flat_map(|entry| match entry.port {
            PortRef::Range(first, last) if first < last => {
                let middle = first + (last - first) / 2;
                let part = |first, last| PortMatch { port: PortRef::Range(first, last), ..entry.clone() };
                vec![part(middle + 1, last), part(first, middle)]
            }
            _ => vec![entry],
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
