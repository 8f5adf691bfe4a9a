//! What becomes of readings and attachments.

use super::*;
use moat_policies::{NetworkPolicy, Peer, Peers, Ports, Rule, Selector, SetChange};

fn pod(name: &str, node: &str, address: &str) -> Object {
    Object::Pod(Pod {
        name: NamespacedName::new("shop", name),
        labels: Labels::new(),
        node: Some(node.into()),
        addresses: vec![address.parse().unwrap()],
        ports: vec![],
        host_network: false,
        finished: false,
        uid: None,
    })
}

fn among_themselves() -> Object {
    let all = Peer::Pods { namespaces: moat_policies::NamespaceScope::Own, pods: Selector::everything() };
    Object::Policy(NetworkPolicy {
        name: NamespacedName::new("shop", "among-themselves"),
        subject: Selector::everything(),
        ingress: Some(vec![Rule { peers: Peers::Of(vec![all]), ports: Ports::Any }]),
        egress: None,
    })
}

fn attachment(pod: &str, container: &str, address: &str) -> Attachment {
    Attachment {
        container_id: container.into(),
        ifname: "eth0".into(),
        network: "moat".into(),
        pod_namespace: "shop".into(),
        pod_name: pod.into(),
        pod_uid: None,
        netns: "/proc/self/ns/net".into(),
        host_ifname: AttachmentKey::new(container, "eth0").host_ifname(),
        host_mac: [6; 6],
        pod_mac: [2; 6],
        v4: Some(address.parse().unwrap()),
        v6: None,
        mtu: 1500,
        host_ports: Vec::new(),
    }
}

fn addresses(update: &Update) -> Vec<IpAddr> {
    let sets = update.policy.sets.values().flat_map(|change| match change {
        SetChange::Create(set) => set.elements.clone(),
        SetChange::Update(update) => update.add.clone(),
        SetChange::Delete => vec![],
    });
    sets.map(|e| e.address).collect()
}

fn changes(apply: impl IntoIterator<Item = Object>) -> Changes {
    Changes { apply: apply.into_iter().collect(), ..Changes::default() }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_pod_here_has_the_address_that_it_was_given_and_no_other() {
    let mut desired = Desired::new("here".into(), []);
    let objects =
        || changes([pod("a", "here", "10.0.0.9"), pod("b", "there", "10.0.1.1"), among_themselves()]);
    let start = desired.start(objects());
    assert_eq!(addresses(&start), [address("10.0.1.1")]);
    assert!(start.pods.is_empty());

    let a = attachment("a", "one", "10.0.0.1");
    let update = desired.attach(&a);
    assert_eq!(addresses(&update), [address("10.0.0.1")]);
    assert_eq!(update.pods.len(), 1);
    assert!(desired.read(objects()).is_empty(), "the same reading changes nothing");

    let update = desired.detach(&a.key());
    assert_eq!(update.pods[&a.pod()], None);
    assert!(update.policy.sets.values().any(|c| matches!(c, SetChange::Update(u) if u.remove.len() == 1)));
    assert_eq!(update.moved, [address("10.0.0.1")].into());
}

#[test]
fn who_removes_an_interface_of_this_node_forgets_its_connections_and_nobody_else_need() {
    let mut desired = Desired::new("here".into(), []);
    let node = Object::Node(Node {
        name: "here".into(),
        addresses: vec![address("192.0.2.1")],
        pod_cidrs: vec!["10.0.0.0/24".parse().unwrap()],
    });
    desired.start(changes([node, pod("a", "here", "10.0.0.9"), pod("b", "there", "10.0.1.1")]));
    let a = attachment("a", "one", "10.0.0.1");
    desired.attach(&a);
    assert_eq!(desired.detach(&a.key()).moved, [].into());
    let gone = Changes { delete: vec![Key::Pod(NamespacedName::new("shop", "b"))], ..Changes::default() };
    assert_eq!(desired.read(gone).moved, [address("10.0.1.1")].into());
}

#[test]
fn an_old_interface_that_goes_leaves_the_new_one() {
    let mut desired = Desired::new("here".into(), []);
    desired.start(changes([pod("a", "here", "10.0.0.9"), among_themselves()]));
    let (old, new) = (attachment("a", "old", "10.0.0.1"), attachment("a", "new", "10.0.0.2"));
    desired.attach(&old);
    let update = desired.attach(&new);
    assert_eq!(addresses(&update), [address("10.0.0.2")]);
    assert!(desired.detach(&old.key()).is_empty());
    assert_eq!(desired.detach(&new.key()).pods[&new.pod()], None);
}

#[test]
fn a_state_is_put_over_its_pod_whichever_comes_first_and_goes_again() {
    let (name, elsewhere) = (NamespacedName::new("shop", "b"), address("10.0.1.7"));
    let state = |address| PodStatus {
        name: name.clone(),
        node: None,
        addresses: Vec::from_iter(address),
        finished: false,
        uid: None,
    };
    let states = |state| Changes { states: [(name.clone(), state)].into(), ..Changes::default() };
    let b = || changes([pod("b", "there", "10.0.1.1")]);
    for state_first in [true, false] {
        let mut desired = Desired::new("here".into(), []);
        let readings = [b(), states(Some(state(Some(elsewhere))))];
        let (one, other) = (usize::from(state_first), usize::from(!state_first));
        desired.start(readings[one].clone());
        desired.read(readings[other].clone());
        assert_eq!(desired.objects().pods().get(&name).unwrap().addresses, [elsewhere]);
        let update = desired.read(states(None));
        assert_eq!(update.moved, [elsewhere].into());
        assert_eq!(desired.objects().pods().get(&name).unwrap().addresses, [address("10.0.1.1")]);
        desired.read(states(Some(PodStatus { finished: true, ..state(None) })));
        assert!(!desired.knows(&name, None));
        desired.read(states(None));
        assert!(desired.knows(&name, None));
    }
}

#[test]
fn an_address_moves_when_its_pod_goes_or_is_another() {
    let of = |name: &str, uid: Option<&str>, ip: &str| match pod(name, "there", ip) {
        Object::Pod(pod) => Object::Pod(Pod { uid: uid.map(Into::into), ..pod }),
        other => other,
    };
    let mut desired = Desired::new("here".into(), []);
    let first = address("10.0.1.1");
    assert_eq!(desired.start(changes([of("a", None, "10.0.1.1")])).moved, [].into());
    // Now it says who it is, which it did not before.
    assert_eq!(desired.read(changes([of("a", Some("one"), "10.0.1.1")])).moved, [].into());
    assert_eq!(desired.read(changes([of("a", Some("two"), "10.0.1.1")])).moved, [first].into());
    assert_eq!(desired.read(changes([of("a", Some("two"), "10.0.1.2")])).moved, [first].into());
    // From one pod to another, in one reading.
    let moving = Changes {
        delete: vec![Key::Pod(NamespacedName::new("shop", "a"))],
        ..changes([of("b", None, "10.0.1.2")])
    };
    assert_eq!(desired.read(moving).moved, [address("10.0.1.2")].into());
}

#[test]
fn an_address_of_a_node_does_not_move_with_its_pods() {
    let Object::Pod(pod) = pod("a", "there", "192.0.2.2") else { panic!("a pod") };
    let mut desired = Desired::new("here".into(), []);
    desired.start(changes([Object::Pod(Pod { host_network: true, ..pod })]));
    let gone = Changes { delete: vec![Key::Pod(NamespacedName::new("shop", "a"))], ..Changes::default() };
    assert!(desired.read(gone).is_empty());
}
