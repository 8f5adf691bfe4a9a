//! What is read, and what becomes of it.

// Helpers outside #[test] functions unwrap what the test wrote itself.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use moat_manifests::{Manifests, WorkloadKind, decode, load};
use moat_policies::{
    Direction, NamespaceScope, NamespacedName, NetworkPolicy, Object, Peer, Peers, Pod, PortRef, Ports,
    Protocol,
};

fn read(text: &str) -> Manifests {
    decode([("test.yaml", text.as_bytes())]).unwrap_or_else(|e| panic!("{e}"))
}

fn name(text: &str) -> NamespacedName {
    let (namespace, name) = text.split_once('/').unwrap();
    NamespacedName::new(namespace, name)
}

fn pods(manifests: &Manifests) -> Vec<&Pod> {
    manifests.objects.iter().filter_map(|o| if let Object::Pod(p) = o { Some(p) } else { None }).collect()
}

fn pod_names(manifests: &Manifests) -> Vec<String> {
    pods(manifests).iter().map(|p| p.name.to_string()).collect()
}

fn policy(spec: &str) -> NetworkPolicy {
    let text = format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
    );
    match read(&text).objects.remove(0) {
        Object::Policy(policy) => policy,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_example_is_read_and_holds_no_unknown_field() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/examples");
    let mut count = 0;
    for folder in std::fs::read_dir(examples).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()) {
        let manifests = load(std::slice::from_ref(&folder)).unwrap_or_else(|e| panic!("{e}"));
        let unknown = manifests.warnings.iter().find(|w| w.reason.starts_with("no such field"));
        assert_eq!(unknown, None, "{folder:?}");
        assert!(!manifests.objects.is_empty(), "{folder:?}");
        count += 1;
    }
    assert!(count >= 10);
}

#[test]
fn policy_types_that_are_missing_follow_the_rules() {
    for (spec, ingress, egress) in [
        ("{}", Some(0), None),
        ("", Some(0), None),
        ("{podSelector: {}, policyTypes: []}", Some(0), None),
        ("{ingress: []}", Some(0), None),
        ("{egress: []}", Some(0), None),
        ("{egress: [{}]}", Some(0), Some(1)),
        ("{ingress: [{}, {}]}", Some(2), None),
        ("{policyTypes: [Egress]}", None, Some(0)),
        ("{policyTypes: [Egress], ingress: [{}]}", None, Some(0)),
        ("{policyTypes: [Ingress, Egress]}", Some(0), Some(0)),
        ("{policyTypes: [Ingress, Ingress]}", Some(0), None),
    ] {
        let policy = policy(spec);
        let count = |d| policy.rules(d).map(<[_]>::len);
        assert_eq!((count(Direction::Ingress), count(Direction::Egress)), (ingress, egress), "{spec}");
        assert!(policy.subject.is_everything(), "{spec}");
    }
}

#[test]
fn null_is_missing() {
    let policy = policy("{podSelector: , ingress: [{from: , ports: ~}, null], policyTypes: null}");
    let rules = policy.rules(Direction::Ingress).unwrap();
    assert_eq!(rules.len(), 2);
    assert!(rules.iter().all(|r| r.peers == Peers::Any && r.ports == Ports::Any));
    let text = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec:\n  ingress:\n  -\n";
    let warnings: Vec<String> = read(text).warnings.iter().map(|w| w.field.clone()).collect();
    assert_eq!(warnings, ["spec.ingress[0]"]);
}

#[test]
fn peers_and_ports() {
    let policy = policy(
        "{ingress: [{from: [{podSelector: {}}, {namespaceSelector: {matchLabels: {a: b}}}, \
         {ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}], ports: [{}, {port: 80}, {port: http, protocol: UDP}, \
         {port: 1, endPort: 9, protocol: SCTP}, null]}]}",
    );
    let rule = &policy.rules(Direction::Ingress).unwrap()[0];
    let (Peers::Of(peers), Ports::Of(ports)) = (&rule.peers, &rule.ports) else { panic!("{rule:?}") };
    assert!(
        matches!(&peers[0], Peer::Pods { namespaces: NamespaceScope::Own, pods } if pods.is_everything())
    );
    assert!(matches!(&peers[1], Peer::Pods { namespaces: NamespaceScope::Selected(s), pods }
        if s.to_string() == "a=b" && pods.is_everything()));
    assert!(matches!(&peers[2], Peer::Block(b) if b.to_string() == "10.0.0.0/8 except 10.1.0.0/16"));
    let seen: Vec<(Protocol, PortRef)> = ports.iter().map(|p| (p.protocol, p.port.clone())).collect();
    assert_eq!(
        seen,
        [
            (Protocol::Tcp, PortRef::All),
            (Protocol::Tcp, PortRef::Range(80, 80)),
            (Protocol::Udp, PortRef::Named(Arc::from("http"))),
            (Protocol::Sctp, PortRef::Range(1, 9)),
            (Protocol::Tcp, PortRef::All),
        ]
    );
}

const POD: &str = "apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  nodeName: n1
  initContainers:
  - {name: setup, image: i, ports: [{name: never, containerPort: 1}]}
  - {name: mesh, image: i, restartPolicy: Always, ports: [{name: mesh, containerPort: 15001}]}
  containers:
  - {name: a, image: i, ports: [{name: http, containerPort: 80}, {containerPort: 53, protocol: UDP}]}
  - {name: b, image: i, ports: [{name: http, containerPort: 8080}]}
status:
  phase: Running
  podIP: 10.0.0.1
  podIPs: [{ip: 10.0.0.1}, {ip: '2001:db8::1'}]
";

#[test]
fn a_pod() {
    let manifests = read(POD);
    let pod = pods(&manifests)[0];
    assert_eq!(pod.name, name("default/web"));
    assert_eq!(pod.node.as_deref(), Some("n1"));
    assert_eq!(pod.addresses.len(), 2);
    assert!(!pod.host_network && !pod.finished);
    let ports: Vec<(Option<&str>, u16)> = pod.ports.iter().map(|p| (p.name.as_deref(), p.port)).collect();
    assert_eq!(ports, [(Some("mesh"), 15001), (Some("http"), 80), (None, 53), (Some("http"), 8080)]);
    assert_eq!(pod.ports[2].protocol, Protocol::Udp);
}

#[test]
fn pods_that_have_finished() {
    for (phase, finished) in [("Pending", false), ("Unknown", false), ("Succeeded", true), ("Failed", true)] {
        let manifests = read(&POD.replace("Running", phase));
        assert_eq!(pods(&manifests)[0].finished, finished, "{phase}");
        assert_eq!(manifests.to_objects().pods().is_empty(), finished, "{phase}");
    }
}

#[test]
fn a_host_network_pods_address_is_its_hosts() {
    let text = POD
        .replace("nodeName: n1", "nodeName: n1\n  hostNetwork: true")
        .replace("podIP: 10.0.0.1\n  podIPs: [{ip: 10.0.0.1}, {ip: '2001:db8::1'}]", "hostIP: 172.16.0.1");
    let manifests = read(&text);
    let pod = pods(&manifests)[0];
    assert!(pod.host_network);
    assert_eq!(pod.addresses, ["172.16.0.1".parse::<std::net::IpAddr>().unwrap()]);
}

#[test]
fn nodes_and_namespaces() {
    let manifests = read(
        "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: a}}}\n---\n\
         apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {podCIDR: 10.1.0.0/24}\nstatus: {addresses: \
         [{type: Hostname, address: n1}, {type: InternalIP, address: 172.16.0.1}, {type: ExternalIP, address: '2001:db8::1'}]}",
    );
    let [Object::Namespace(namespace), Object::Node(node)] = &manifests.objects[..] else {
        panic!("{manifests:?}")
    };
    assert_eq!((&*namespace.name, &*namespace.labels["team"]), ("shop", "a"));
    assert_eq!(node.pod_cidrs, ["10.1.0.0/24".parse::<ipnet::IpNet>().unwrap()]);
    assert_eq!(
        node.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["172.16.0.1", "2001:db8::1"]
    );
}

/// A workload with this much in its spec, beside selector and template.
fn workload(kind: &str, name: &str, spec: &str) -> String {
    let (version, restart) = match kind {
        "Job" | "CronJob" => ("batch/v1", "Never"),
        _ => ("apps/v1", "Always"),
    };
    let template = format!(
        "template: {{metadata: {{labels: {{app: x}}}}, spec: {{restartPolicy: {restart}, containers: [{{name: c, image: i}}]}}}}"
    );
    let spec = match kind {
        "Job" => format!("{{{template}}}"),
        "CronJob" => format!("{{schedule: '* * * * *', jobTemplate: {{spec: {{{template}}}}}}}"),
        _ => format!("{{{spec}selector: {{matchLabels: {{app: x}}}}, {template}}}"),
    };
    format!(
        "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n---\n"
    )
}

#[test]
fn a_workload_stands_for_two_pods_at_most() {
    for (kind, spec, expected) in [
        ("Deployment", "", &["shop/x-0"][..]),
        ("Deployment", "replicas: 0, ", &[]),
        ("Deployment", "replicas: 1, ", &["shop/x-0"]),
        ("Deployment", "replicas: 9, ", &["shop/x-0", "shop/x-1"]),
        ("StatefulSet", "replicas: 2, ", &["shop/x-0", "shop/x-1"]),
        ("ReplicaSet", "replicas: 2, ", &["shop/x-0", "shop/x-1"]),
        ("DaemonSet", "", &["shop/x-0"]),
        ("Job", "", &["shop/x-0"]),
        ("CronJob", "", &["shop/x-0"]),
    ] {
        let manifests = read(&workload(kind, "x", spec));
        assert_eq!(pod_names(&manifests), expected, "{kind} {spec}");
        let [workload] = &manifests.workloads[..] else { panic!() };
        assert_eq!(workload.kind.as_str(), kind);
        assert_eq!(workload.pods.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
        assert!(pods(&manifests).iter().all(|p| &*p.labels["app"] == "x" && p.node.is_none()));
    }
}

#[test]
fn a_daemon_set_has_a_pod_on_each_node() {
    let node = |name: &str| format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n---\n");
    let manifests = read(&(workload("DaemonSet", "x", "") + &node("n2") + &node("n1") + &node("n3")));
    let seen: Vec<(String, &str)> =
        pods(&manifests).iter().map(|p| (p.name.to_string(), p.node.as_deref().unwrap())).collect();
    assert_eq!(seen, [("shop/x-0".into(), "n1"), ("shop/x-1".into(), "n2"), ("shop/x-2".into(), "n3")]);
}

#[test]
fn pods_have_the_labels_that_their_controller_adds() {
    let labels = |text: &str, pod: usize| {
        let manifests = read(text);
        pods(&manifests)[pod].labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>()
    };
    assert_eq!(
        labels(&workload("StatefulSet", "db", "replicas: 2, "), 1),
        ["app=x", "apps.kubernetes.io/pod-index=1", "statefulset.kubernetes.io/pod-name=db-1"]
    );
    assert_eq!(
        labels(&workload("Job", "once", ""), 0),
        ["app=x", "batch.kubernetes.io/job-name=once", "job-name=once"]
    );
}

#[test]
fn a_workload_whose_pods_are_there_stands_for_those() {
    let owned = |kind: &str, owner: &str| {
        format!(
            "ownerReferences: [{{apiVersion: apps/v1, kind: {kind}, name: {owner}, uid: u, controller: true}}]"
        )
    };
    let replica_set = workload("ReplicaSet", "x-abc", "")
        .replace("namespace: shop}", &format!("namespace: shop, {}}}", owned("Deployment", "x")));
    let pod = POD
        .replace("name: web,", &format!("name: x-abc-1, namespace: shop, {},", owned("ReplicaSet", "x-abc")));
    let manifests = read(&(workload("Deployment", "x", "replicas: 3, ") + &replica_set + &pod));
    assert_eq!(pod_names(&manifests), ["shop/x-abc-1"]);
    for (kind, full_name) in [(WorkloadKind::Deployment, "shop/x"), (WorkloadKind::ReplicaSet, "shop/x-abc")]
    {
        assert_eq!(manifests.workload(kind, &name(full_name)).unwrap().pods, [name("shop/x-abc-1")]);
    }
    // Without the pods, the Deployment stands for its own and the ReplicaSet for none.
    let manifests = read(&(workload("Deployment", "x", "replicas: 3, ") + &replica_set));
    assert_eq!(pod_names(&manifests), ["shop/x-0", "shop/x-1"]);
}

#[test]
fn lists_hold_objects() {
    let item =
        |kind: &str| format!("{kind}metadata: {{name: NAME}}, spec: {{containers: [{{name: c, image: i}}]}}");
    let list = format!(
        "apiVersion: v1\nkind: List\nmetadata: {{resourceVersion: ''}}\nitems:\n- {{{}}}\n- apiVersion: v1\n  kind: PodList\n  items:\n  - {{{}}}\n",
        item("apiVersion: v1, kind: Pod, ").replace("NAME", "a"),
        item("").replace("NAME", "b"),
    );
    assert_eq!(pod_names(&read(&list)), ["default/a", "default/b"]);
    for empty in ["kind: List\nitems: []", "kind: PodList\nitems: null", "kind: PodList"] {
        assert_eq!(pod_names(&read(&format!("apiVersion: v1\n{empty}\n"))), [""; 0], "{empty}");
    }
}

#[test]
fn json_is_read_one_value_after_the_other() {
    let pod = |name: &str| {
        format!(
            r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"{name}"}},"spec":{{"containers":[{{"name":"c","image":"i"}}]}}}}"#
        )
    };
    let text = format!("{}\n{}{}", pod("a"), pod("b"), pod("c"));
    for file in ["x.json", "x.yaml", "stdin"] {
        let manifests = decode([(file, text.as_bytes())]).unwrap();
        assert_eq!(pod_names(&manifests), ["default/a", "default/b", "default/c"], "{file}");
    }
    // YAML that begins like JSON.
    assert_eq!(pod_names(&read(&format!("{}\n---\n{}\n", pod("a"), pod("b")))), ["default/a", "default/b"]);
}

#[test]
fn documents_may_be_empty_and_be_marked_in_every_way() {
    let text = format!(
        "\u{feff}# nothing\n---\n%YAML 1.2\n---\n{POD}...\n---\n# nothing\n--- # comment\n\n---\n{}",
        POD.replace("web", "two")
    );
    assert_eq!(pod_names(&read(&text)), ["default/web", "default/two"]);
    assert_eq!(read("# nothing\n").objects, []);
    assert_eq!(read("---\n---\n").objects, []);
    assert_eq!(pod_names(&read(&POD.replace('\n', "\r\n"))), ["default/web"]);
}

#[test]
fn anchors_and_merges_are_expanded() {
    let text = "apiVersion: v1\nkind: List\nitems:\n- &a\n  apiVersion: v1\n  kind: Pod\n  metadata: {name: a}\n  spec: &s {containers: [{name: c, image: i}]}\n- <<: *a\n  metadata: {name: b}\n  spec: *s\n";
    assert_eq!(pod_names(&read(text)), ["default/a", "default/b"]);
}

#[test]
fn kinds_without_use_are_counted() {
    let text = "{apiVersion: v1, kind: Service, metadata: {name: a}}\n---\n{apiVersion: v1, kind: Service}\n---\n\
                {apiVersion: rbac.authorization.k8s.io/v1, kind: Role}\n---\n{apiVersion: example.com/v1, kind: AllowList, spec: {}}";
    let skipped: Vec<(String, usize)> = read(text).skipped.into_iter().collect();
    assert_eq!(skipped, [("AllowList".into(), 1), ("Role".into(), 1), ("Service".into(), 2)]);
}

#[test]
fn documents_may_be_as_deep_as_schemas_are() {
    let deep = (0..97).fold("x".to_string(), |inner, _| format!("{{a: {inner}}}"));
    let text = format!("apiVersion: example.com/v1\nkind: Schema\nspec: {deep}\n");
    assert_eq!(read(&text).skipped.len(), 1);
    let block: String = (0..98).map(|i| format!("{}a:\n", " ".repeat(i))).collect();
    assert_eq!(
        read(&format!(
            "apiVersion: example.com/v1\nkind: Schema\nspec:\n {}",
            block.replace('\n', "\n ").trim_end()
        ))
        .skipped
        .len(),
        1
    );
}

#[test]
fn unknown_fields_outside_of_policies_are_warnings() {
    let manifests = read(&POD.replace("nodeName: n1", "nodeName: n1\n  hostNetwrk: true"));
    let texts: Vec<String> = manifests.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        ["test.yaml, document 1 (line 6): spec.hostNetwrk: no such field; did you mean hostNetwork?"]
    );
}

#[test]
fn rules_that_are_not_in_force_are_warned_of() {
    let text = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec:\n  policyTypes: [Egress]\n  ingress: [{}]\n";
    let warnings = read(text).warnings;
    assert_eq!(
        warnings[0].to_string(),
        "test.yaml, document 1 (line 6): spec.ingress: has no effect, because spec.policyTypes leaves it out"
    );
}

#[test]
fn folders_are_read_in_order_and_hold_other_files_too() {
    let folder = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("b.yml", &POD.replace("web", "b"));
    write("a.yaml", &POD.replace("web", "a"));
    write("sub/c.yaml", &POD.replace("web", "c"));
    write("README.md", "not: [yaml");
    write(".hidden.yaml", "not: [yaml");
    write("..data/d.yaml", POD);
    let manifests = load(&[folder.path().to_path_buf()]).unwrap();
    assert_eq!(pod_names(&manifests), ["default/a", "default/b", "default/c"]);
    // A file that is named itself may have any name.
    std::fs::write(folder.path().join("odd.txt"), POD).unwrap();
    assert_eq!(pod_names(&load(&[folder.path().join("odd.txt")]).unwrap()), ["default/web"]);
    let missing = load(&[PathBuf::from("/nowhere/x.yaml"), PathBuf::from("/nowhere/y.yaml")]).unwrap_err();
    assert_eq!(
        missing.to_string(),
        "/nowhere/x.yaml: No such file or directory\n/nowhere/y.yaml: No such file or directory"
    );
}

#[test]
fn states_are_put_over_pods() {
    let state = |name: &str, rest: &str| {
        format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop}}\n{rest}\n---\n")
    };
    let states = state(
        "x-0",
        "spec: {nodeName: n2}\nstatus: {phase: Running, hostIP: 172.16.0.2, podIPs: [{ip: 10.9.0.1}]}",
    )
    .replace("{name", "{uid: one, name")
        + &state("x-1", "status: {phase: Succeeded}")
        + &state("stranger", "status: {podIP: 10.9.0.9}");
    let states = moat_manifests::decode_pod_status([("s.yaml", states.as_bytes())]).unwrap();
    let mut manifests = read(&workload("Deployment", "x", "replicas: 2, "));
    manifests.overlay(&states);
    let [first, second] = pods(&manifests)[..] else { panic!() };
    assert_eq!((first.node.as_deref(), first.addresses.len(), first.finished), (Some("n2"), 1, false));
    assert_eq!((second.node.as_deref(), second.addresses.len(), second.finished), (None, 0, true));
    assert_eq!((first.uid.as_deref(), second.uid.as_deref()), (Some("one"), None));
    let wrong = moat_manifests::decode_pod_status([(
        "s.yaml",
        "apiVersion: v1\nkind: Node\nmetadata: {name: x}\n".as_bytes(),
    )]);
    assert!(wrong.is_err());
}
