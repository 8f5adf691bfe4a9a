//! Properties of the planner and of merging, on random small nodes.

mod host_ports;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use moat_policies::{
    Allow, AllowSet, Element, NamespacedName, PodPrograms, PortClass, PortRange, Program, ProgramId,
    Protocol, SetChange, SetId, SetKind, SetUpdate,
};
use proptest::prelude::*;

use super::adopt::{FoundSet, FoundTable, adopt, fill};
use super::closed::{Limits, Reason, Subject};
use super::concern::Concern;
use super::layout::{LayoutConfig, LocalPod, Table};
use super::model::Model;
use super::op::{Op, Plan};
use super::revoked::Revoked;
use super::state::State;
use super::update::Update;

/// A node as a value: what the engine and the pod network say, each part by a small number.
#[derive(Debug, Clone, Default, PartialEq)]
struct Node {
    /// Elements of each set, by number.
    sets: BTreeMap<u8, BTreeSet<u8>>,
    /// Programs of each pod that the engine knows.
    pods: BTreeMap<u8, (Option<u8>, Option<u8>)>,
    /// The interface of each pod that the pod network knows, by a number that makes it another one.
    local: BTreeMap<u8, u8>,
}

const SETS: u8 = 4;
const PROGRAMS: u8 = 5;

fn program(number: u8) -> Arc<Program> {
    let set = |n: u8| Allow::Set(SetId([n % SETS; 16]));
    let port = |protocol, first, last| PortRange { protocol, first, last };
    let class = |ports: Vec<PortRange>, allow| PortClass { ports, allow };
    let tcp = |n| port(Protocol::Tcp, n, n);
    Arc::new(match number {
        0 => Program::default(),
        1 => Program { every: Some(set(0)), ..Program::default() },
        2 => Program { classes: vec![class(vec![tcp(80)], set(1))], ..Program::default() },
        3 => Program {
            every: Some(set(2)),
            classes: vec![
                class(vec![tcp(1), tcp(3), tcp(5)], set(1)),
                class(vec![port(Protocol::Udp, 0, u16::MAX)], Allow::Everyone),
            ],
            ..Program::default()
        },
        _ => Program {
            classes: vec![class([1, 3, 5, 7].map(tcp).to_vec(), set(0))],
            named: Some(SetId([3; 16])),
            ..Program::default()
        },
    })
}

/// The sets that a program looks into.
fn sets_of(number: u8) -> &'static [u8] {
    match number {
        0 => &[],
        1 => &[0],
        2 => &[1],
        3 => &[1, 2],
        _ => &[0, 3],
    }
}

fn element(set: u8, number: u8) -> Element {
    let address = match number % 2 {
        0 => IpAddr::V4(Ipv4Addr::new(10, 0, 0, number)),
        _ => IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into())),
    };
    Element { address, port: (set == 3).then_some((Protocol::Tcp, 80)) }
}

fn allow_set(set: u8, elements: &BTreeSet<u8>) -> AllowSet {
    let prefixes: &[&str] = if set == 1 { &["10.0.0.0/8", "fd00::/8"] } else { &[] };
    let mut elements: Vec<Element> = elements.iter().map(|&n| element(set, n)).collect();
    elements.sort_unstable();
    AllowSet {
        kind: if set == 3 { SetKind::AddressPorts } else { SetKind::Addresses },
        pods: true,
        prefixes: prefixes.iter().filter_map(|p| p.parse().ok()).collect(),
        elements,
    }
}

fn pod_name(pod: u8) -> NamespacedName {
    NamespacedName::new("default", format!("pod-{pod}"))
}

fn local_pod(pod: u8, number: u8) -> LocalPod {
    LocalPod {
        // An interface of another number is another interface, or the same one with another address.
        ifname: format!("moat{pod}x{}", number / 2),
        pod_mac: [2, 0, 0, 0, 0, pod],
        v4: Some(Ipv4Addr::new(10, 1, pod, number)),
        v6: number.is_multiple_of(3).then(|| Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, pod.into(), number.into())),
    }
}

impl Node {
    fn programs(&self) -> BTreeSet<u8> {
        self.pods.values().flat_map(|(i, e)| [*i, *e]).flatten().collect()
    }

    /// Only the sets that programs look into are on a node.
    fn needed(&self) -> BTreeMap<u8, BTreeSet<u8>> {
        let sets: BTreeSet<u8> = self.programs().into_iter().flat_map(sets_of).copied().collect();
        sets.into_iter().map(|s| (s, self.sets.get(&s).cloned().unwrap_or_default())).collect()
    }

    /// What leads from one node to another, as the engine would say it.
    fn update_to(&self, new: &Node) -> Update {
        let mut update = Update::default();
        let (before, after) = (self.needed(), new.needed());
        for set in before.keys().chain(after.keys()) {
            let change = match (before.get(set), after.get(set)) {
                (None, Some(elements)) => SetChange::Create(Arc::new(allow_set(*set, elements))),
                (Some(_), None) => SetChange::Delete,
                (Some(old), Some(new)) if old != new => {
                    let sorted = |numbers: Vec<u8>| {
                        let mut all: Vec<Element> = numbers.into_iter().map(|n| element(*set, n)).collect();
                        all.sort_unstable();
                        all
                    };
                    SetChange::Update(Arc::new(SetUpdate {
                        add: sorted(new.difference(old).copied().collect()),
                        remove: sorted(old.difference(new).copied().collect()),
                    }))
                }
                _ => continue,
            };
            update.policy.sets.insert(SetId([*set; 16]), change);
        }
        for p in self.programs().difference(&new.programs()) {
            update.policy.programs.insert(ProgramId([*p; 16]), None);
        }
        for p in new.programs().difference(&self.programs()) {
            update.policy.programs.insert(ProgramId([*p; 16]), Some(program(*p)));
        }
        let id = |p: Option<u8>| p.map(|p| ProgramId([p; 16]));
        for pod in self.pods.keys().chain(new.pods.keys()).filter(|p| self.pods.get(p) != new.pods.get(p)) {
            let programs = new.pods.get(pod).map(|&(i, e)| PodPrograms { ingress: id(i), egress: id(e) });
            update.policy.pods.insert(pod_name(*pod), programs);
        }
        for pod in self.local.keys().chain(new.local.keys()).filter(|p| self.local.get(p) != new.local.get(p))
        {
            update.pods.insert(pod_name(*pod), new.local.get(pod).map(|&n| local_pod(*pod, n)));
        }
        update
    }
}

fn node() -> impl Strategy<Value = Node> {
    let programs = (proptest::option::of(0..PROGRAMS), proptest::option::of(0..PROGRAMS));
    (
        proptest::collection::btree_map(
            0..SETS,
            proptest::collection::btree_set(0..8_u8, 0..5),
            0..=SETS as usize,
        ),
        proptest::collection::btree_map(0..4_u8, programs, 0..4),
        proptest::collection::btree_map(0..4_u8, 0..6_u8, 0..4),
    )
        .prop_map(|(sets, pods, local)| Node { sets, pods, local })
}

fn subject() -> impl Strategy<Value = Subject> {
    prop_oneof![
        (0..SETS).prop_map(|n| Subject::Set(SetId([n; 16]))),
        (0..PROGRAMS).prop_map(|n| Subject::Program(ProgramId([n; 16]))),
        (0..4_u8).prop_map(|n| Subject::Pod(pod_name(n))),
    ]
}

fn kernel(ops: &[Op]) -> Model {
    let mut model = Model::default();
    model.carry_out(ops).unwrap();
    model
}

fn state_of(node: &Node) -> State {
    let mut state = State::new(LayoutConfig::default(), Limits::default(), false);
    state.advance(&Node::default().update_to(node));
    state
}

/// What the kernel holds when it holds what a state says.
fn whole(state: &State) -> Model {
    kernel(&fill(state.content()))
}

fn carried_out(model: &mut Model, plan: Plan) {
    for ops in plan.transactions() {
        model.carry_out(&ops).unwrap();
    }
}

fn found(model: &Model) -> BTreeMap<Table, FoundTable> {
    let mut all: BTreeMap<Table, FoundTable> =
        Table::ALL.into_iter().map(|t| (t, FoundTable::default())).collect();
    for ((table, name), (set, elements)) in &model.sets {
        let set = FoundSet { declaration: set.clone(), elements: Some(elements.values().cloned().collect()) };
        all.get_mut(table).unwrap().sets.insert(name.clone(), Some(set));
    }
    for (table, name) in &model.counters {
        all.get_mut(table).unwrap().counters.insert(name.clone());
    }
    for ((table, name), (chain, _)) in &model.chains {
        let base = chain.base.as_ref().map(|base| moat_nfnetlink::nft::BaseInfo {
            hook: match base.hook {
                moat_nfnetlink::nft::Hook::Input => 1,
                moat_nfnetlink::nft::Hook::Forward => 2,
                moat_nfnetlink::nft::Hook::Output => 3,
                moat_nfnetlink::nft::Hook::Postrouting => 4,
                _ => 0,
            },
            priority: base.priority,
            devices: match base.hook {
                moat_nfnetlink::nft::Hook::Ingress(device) => vec![device.as_str().to_owned()],
                _ => Vec::new(),
            },
            accept: base.policy == moat_nfnetlink::nft::Policy::Accept,
            kind: match base.kind {
                moat_nfnetlink::nft::ChainType::Nat => "nat".to_owned(),
                _ => "filter".to_owned(),
            },
        });
        all.get_mut(table).unwrap().chains.insert(name.clone(), base);
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever changes, the plan leads to the tables that the new state asks for, in an order that the kernel accepts.
    #[test]
    fn a_plan_leads_to_what_the_new_state_asks_for(nodes in proptest::collection::vec(node(), 1..5)) {
        let mut before = Node::default();
        let mut state = State::new(LayoutConfig::default(), Limits::default(), false);
        let mut model = whole(&state);
        for node in nodes {
            let update = before.update_to(&node);
            carried_out(&mut model, state.advance(&update));
            prop_assert_eq!(&model, &whole(&state));
            // And a state that came step by step is one that came at once.
            prop_assert_eq!(&model, &whole(&state_of(&node)));
            before = node;
        }
    }

    /// Where somebody looks after connections, only the fast path is another until they have been looked at.
    #[test]
    fn when_connections_follow_the_tables_are_the_same(nodes in proptest::collection::vec(node(), 1..4)) {
        let mut before = Node::default();
        let mut state = State::new(LayoutConfig::default(), Limits::default(), true);
        let mut model = whole(&state);
        for node in nodes {
            carried_out(&mut model, state.advance(&before.update_to(&node)));
            prop_assert_eq!(&model, &whole(&state));
            carried_out(&mut model, state.followed(Revoked::default()));
            prop_assert_eq!(&model, &whole(&state_of(&node)));
            before = node;
        }
    }

    /// Who is allowed more is no reason to judge connections anew, unless something of his is revoked.
    #[test]
    fn an_address_more_is_about_what_is_revoked(number in 0..20_u8, cut in any::<bool>()) {
        let with = |elements: &[u8]| Node {
            sets: [(0, elements.iter().copied().collect())].into(),
            pods: [(1, (Some(1), None))].into(),
            local: [(1, 0)].into(),
        };
        let address = element(0, number).address;
        let mut state = State::new(LayoutConfig::default(), Limits::default(), true);
        let _ = state.advance(&Node::default().update_to(&with(&[])));
        let mut revoked = Revoked::default();
        revoked.looked(&Concern::all(), BTreeSet::from_iter(cut.then_some(address)));
        let _ = state.followed(revoked);
        let _ = state.take_concern();
        let more = with(&[]).update_to(&with(&[number]));
        let forward = |plan: &Plan| plan.commit.iter().any(|op| matches!(op, Op::FlushChain(Table::Inet, _)));
        prop_assert_eq!(forward(&state.advance(&more)), cut);
        prop_assert_eq!(state.take_concern().covers(address, address), cut);
        let less = with(&[number]).update_to(&with(&[]));
        prop_assert_eq!(forward(&state.advance(&less)), !cut, "who is allowed less always is one");
        prop_assert!(state.take_concern().covers(address, address));
        // Until somebody has looked, it is not known what the kernel has revoked itself.
        let _ = state.advance(&more);
        prop_assert!(state.take_concern().covers(address, address));
    }

    #[test]
    fn what_does_not_change_plans_nothing(node in node()) {
        let mut state = state_of(&node);
        prop_assert!(state.advance(&node.update_to(&node)).is_empty());
        prop_assert!(state.advance(&Node::default().update_to(&node)).is_empty(), "all of it once more");
    }

    #[test]
    fn merged_updates_do_what_they_do_one_by_one(nodes in proptest::collection::vec(node(), 3..6)) {
        let mut state = state_of(&nodes[0]);
        let mut model = whole(&state);
        let mut merged = Update::default();
        for pair in nodes.windows(2) {
            merged.merge(pair[0].update_to(&pair[1]));
        }
        carried_out(&mut model, state.advance(&merged));
        prop_assert_eq!(&model, &whole(&state_of(nodes.last().unwrap())));
    }

    /// Whatever is in the tables, they are adopted: afterwards they hold what they should.
    #[test]
    fn any_tables_of_ours_are_adopted(there in node(), wanted in node()) {
        let mut model = whole(&state_of(&there));
        let state = state_of(&wanted);
        let plan = adopt(found(&model), state.content()).unwrap();
        carried_out(&mut model, plan);
        prop_assert_eq!(&model, &whole(&state));
    }

    /// No address that is there is written again.
    #[test]
    fn adoption_writes_no_element_twice(node in node()) {
        let model = whole(&state_of(&node));
        let plan = adopt(found(&model), state_of(&node).content()).unwrap();
        let rules_only = plan.commit.iter().all(|op| matches!(op, Op::FlushTable(_) | Op::AddRules(..)));
        prop_assert!(rules_only && plan.stage.is_empty(), "{:?}", plan);
    }

    /// A pod that the kernel refused has nothing in the tables that lets a packet through, and its next change heals it.
    #[test]
    fn a_refused_pod_is_closed_until_it_changes(node in node()) {
        let update = Node::default().update_to(&node);
        let mut state = state_of(&node);
        let pods = update.policy.pods.keys().chain(update.pods.keys()).cloned().map(Subject::Pod);
        state.close(pods, &Reason::Refused("no".into()));
        let closed = whole(&state);
        let open = ["pods", "self4", "self6", "local4", "local6"];
        for ((_, name), (_, elements)) in &closed.sets {
            prop_assert!(!open.contains(&&**name) || elements.is_empty(), "{name}");
        }
        let mut model = closed;
        carried_out(&mut model, state.advance(&update));
        prop_assert_eq!(&model, &whole(&state_of(&node)));
    }

    /// Sets and chains are there for the pods of the node and nobody else.
    #[test]
    fn nothing_is_there_that_nothing_leads_to(node in node()) {
        let mut known = node;
        let pods: BTreeSet<u8> = known.local.keys().copied().collect();
        known.pods.retain(|pod, _| pods.contains(pod));
        let fixed = whole(&state_of(&Node::default())).strays();
        let strays = whole(&state_of(&known)).strays();
        prop_assert!(strays.is_subset(&fixed), "{:?}", strays.difference(&fixed).collect::<Vec<_>>());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whatever is refused or above a limit, and whenever that changes: the plans lead to what a listing would lead to, and
    /// in the end, when nothing is closed any more, to what the engine says.
    #[test]
    fn closings_come_and_go_step_by_step(
        steps in proptest::collection::vec((node(), proptest::collection::vec(subject(), 0..3)), 1..5),
        limits in (0..3_usize, 0..3_usize, 0..12_usize),
    ) {
        let (classes, prefixes, elements) = limits;
        let mut before = Node::default();
        let mut state = State::new(LayoutConfig::default(), Limits { classes, prefixes, elements }, false);
        for (node, refused) in steps {
            let mut model = whole(&state);
            carried_out(&mut model, state.advance(&before.update_to(&node)));
            prop_assert_eq!(&model, &whole(&state), "after an update");
            state.close(refused, &Reason::Refused("no".into()));
            let mut model = whole(&state);
            for pod in state.closed().keys() {
                prop_assert!(state.local_pods().any(|(name, ..)| name == pod));
            }
            carried_out(&mut model, state.reopen());
            prop_assert_eq!(&model, &whole(&state), "after another try");
            // The same as if it had come at once: limits do not depend on the way.
            let mut at_once = State::new(LayoutConfig::default(), Limits { classes, prefixes, elements }, false);
            at_once.advance(&Node::default().update_to(&node));
            prop_assert_eq!(&model, &whole(&at_once));
            prop_assert_eq!(state.closed(), at_once.closed());
            before = node;
        }
    }

    /// Nothing leads to what is not in the kernel, and no pod that needs it is open.
    #[test]
    fn who_needs_what_is_refused_is_closed(node in node(), refused in proptest::collection::vec(subject(), 1..4)) {
        let mut state = state_of(&node);
        state.close(refused.clone(), &Reason::Refused("no".into()));
        // The model's kernel takes it: nothing refers to what is not there.
        whole(&state);
        let closed = state.closed();
        for (&pod, &(ingress, egress)) in node.pods.iter().filter(|(pod, _)| node.local.contains_key(pod)) {
            let needs = |subject: &Subject| match subject {
                Subject::Pod(name) => *name == pod_name(pod),
                Subject::Program(id) => [ingress, egress].into_iter().flatten().any(|p| ProgramId([p; 16]) == *id),
                Subject::Set(id) => [ingress, egress]
                    .into_iter()
                    .flatten()
                    .any(|p| sets_of(p).iter().any(|s| SetId([*s; 16]) == *id)),
            };
            prop_assert_eq!(closed.contains_key(&pod_name(pod)), refused.iter().any(needs), "pod {}", pod);
        }
    }
}

/// One pod's change costs one element for each set that it is in.
#[test]
fn one_address_is_one_element() {
    let mut node = Node {
        sets: BTreeMap::from([(0, BTreeSet::from([2, 4])), (1, BTreeSet::from([2]))]),
        pods: BTreeMap::from([(0, (Some(1), Some(2))), (1, (Some(1), None))]),
        local: BTreeMap::from([(0, 0), (1, 0)]),
    };
    let before = node.clone();
    let mut state = state_of(&node);
    for set in [0, 1] {
        node.sets.get_mut(&set).unwrap().insert(6);
    }
    let plan = state.advance(&before.update_to(&node));
    assert!(plan.stage.is_empty());
    let sizes: Vec<usize> = plan
        .commit
        .iter()
        .map(|op| match op {
            Op::AddElements(Table::Inet, _, elements) => elements.len(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(sizes, [1, 1]);
}

/// A map's element cannot be changed: it goes and comes back, in one transaction.
#[test]
fn another_verdict_is_a_deletion_and_an_addition() {
    let node = |program| Node {
        pods: BTreeMap::from([(0, (program, Some(0))), (1, (Some(0), Some(0)))]),
        local: BTreeMap::from([(0, 0), (1, 0)]),
        ..Node::default()
    };
    let mut state = state_of(&node(None));
    let plan = state.advance(&node(None).update_to(&node(Some(0))));
    let ops: Vec<(&str, &str)> = plan
        .commit
        .iter()
        .map(|op| match op {
            Op::DeleteElements(_, set, e) if e.len() == 1 => ("delete", &**set.name()),
            Op::AddElements(_, set, e) if e.len() == 1 => ("add", &**set.name()),
            other => panic!("{other:?}"),
        })
        .collect();
    // To it, and its answers.
    let both = |verb| [(verb, "to_pod"), (verb, "answers_from")];
    assert_eq!(ops, [both("delete"), both("add")].concat());
    assert!(plan.stage.is_empty(), "the chain is there already, for the other pod");
    assert_eq!(plan.transactions().len(), 1);
}

/// A packet under way may be led to a new chain by the commit that makes it, and find no rules there.
#[test]
fn a_chain_has_its_rules_before_anything_leads_to_it() {
    let node = |program| Node {
        pods: BTreeMap::from([(0, (Some(program), None))]),
        local: BTreeMap::from([(0, 0)]),
        ..Node::default()
    };
    let mut state = state_of(&node(0));
    let before = whole(&state);
    let advanced = state.advance(&node(0).update_to(&node(1)));
    // The same for who comes to tables that somebody else left there.
    let adopted = adopt(found(&before), state.content()).unwrap();
    for plan in [advanced, adopted] {
        let transactions = plan.transactions();
        assert_eq!(transactions.len(), 2, "{transactions:#?}");
        let makes = |op: &Op| matches!(op, Op::AddChain(_, chain) if chain.base.is_none());
        let fills = |op: &Op| matches!(op, Op::AddRules(..));
        let leads = |op: &Op| matches!(op, Op::AddElements(_, set, _) if &**set.name() == "to_pod");
        assert!(transactions[0].iter().any(makes) && transactions[0].iter().any(fills));
        assert!(!transactions[0].iter().any(leads));
        assert!(transactions[1].iter().any(leads) && !transactions[1].iter().any(makes));
    }
}

/// The kernel puts the content of a new interval set in force later than the rules that look into it.
#[test]
fn an_interval_set_is_there_before_anything_leads_to_it() {
    let node = Node {
        pods: BTreeMap::from([(0, (Some(2), None))]),
        local: BTreeMap::from([(0, 0)]),
        ..Node::default()
    };
    let mut state = state_of(&Node::default());
    let transactions = state.advance(&Node::default().update_to(&node)).transactions();
    assert_eq!(transactions.len(), 2);
    let led = |ops: &[Op]| {
        ops.iter().any(|op| matches!(op, Op::AddElements(_, set, _) if &**set.name() == "to_pod"))
    };
    assert!(!led(&transactions[0]) && led(&transactions[1]));
}
