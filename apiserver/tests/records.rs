//! What is taken of an object as the API server sends it.
#![allow(clippy::unwrap_used)]

use moat_apiserver::{Kind, PolicyNote, Record, Said};
use moat_manifests::StoredPolicy;
use moat_policies::{Namespace, Node, Object, Pod};
use serde_json::{Value, json};

fn said<K: Kind>(object: Value) -> Said {
    K::said(serde_json::from_value::<Record<K>>(object).unwrap())
}

/// What a manifest says that has only what matters.
fn written(object: &Value) -> Object {
    let bytes = object.to_string().into_bytes();
    moat_manifests::decode([("o.json", &*bytes)]).unwrap().objects.remove(0)
}

#[test]
fn a_pod_is_what_a_manifest_of_it_is() {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "db-0", "namespace": "shop", "uid": "b6a2", "labels": {"app": "db", "empty": ""},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": "1", "controller": true}],
        },
        "spec": {
            "nodeName": "n1",
            "initContainers": [
                {"name": "once", "image": "i", "ports": [{"containerPort": 1}]},
                {"name": "beside", "image": "i", "restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 2, "protocol": "UDP"}]},
            ],
            "containers": [{"name": "c", "image": "i", "ports": [{"name": "sql", "containerPort": 5432, "protocol": "TCP"}]}],
        },
        "status": {"phase": "Running", "hostIP": "192.0.2.1", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
    });
    let expected = written(&pod);
    let mut sent = pod.clone();
    // What else the API server sends decides nothing.
    sent["metadata"]["resourceVersion"] = json!("17");
    sent["metadata"]["managedFields"] = json!([{"manager": "kubelet", "fieldsV1": {"f:status": {}}}]);
    sent["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    sent["spec"]["later"] = json!({"field": [1, 2.5, null]});
    sent["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
    assert_eq!(said::<Pod>(sent), Said { version: "17".into(), object: expected, note: None });
}

#[test]
fn a_pod_of_its_nodes_network_and_one_that_is_done() {
    let spec =
        |host: bool| json!({"hostNetwork": host, "containers": [{"name": "c", "image": "i", "ports": null}]});
    let pod = |host: bool, status: Value| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "n"}, "spec": spec(host), "status": status});
    for pod in [
        pod(
            true,
            json!({"phase": "Running", "hostIP": "192.0.2.1", "hostIPs": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}]}),
        ),
        pod(false, json!({"phase": "Failed", "podIP": "10.0.0.1"})),
        pod(false, json!({"phase": "Pending"})),
        pod(false, json!({})),
    ] {
        let expected = written(&pod);
        assert_eq!(said::<Pod>(pod).object, expected);
    }
}

#[test]
fn namespaces_and_nodes() {
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n", "labels": {"a": "b"}}});
    assert_eq!(said::<Namespace>(namespace.clone()).object, written(&namespace));
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"},
        "spec": {"podCIDR": "10.0.1.0/24", "podCIDRs": ["10.0.1.0/24", "fd00:1::/64"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}, {"type": "Hostname", "address": "n1"}, {"type": "ExternalIP", "address": "2001:db8::1"}]},
    });
    assert_eq!(said::<Node>(node.clone()).object, written(&node));
    let bare = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n2"}});
    assert_eq!(said::<Node>(bare.clone()).object, written(&bare));
}

#[test]
fn a_policy_comes_with_what_there_is_to_be_said_about_it() {
    let policy = |spec: Value| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "spec": spec,
               "metadata": {"name": "p", "namespace": "n", "uid": "u", "resourceVersion": "3"}})
    };
    let good = said::<StoredPolicy>(policy(json!({"policyTypes": ["Ingress"]})));
    assert_eq!((&*good.version, good.note), ("3", None));
    let bad = said::<StoredPolicy>(policy(json!({"policyTypes": ["Ingress"], "ingress": [{"form": []}]})));
    let PolicyNote { uid, version, refused, warnings } = *bad.note.unwrap();
    assert_eq!((uid.as_deref(), &*version), (Some("u"), "3"));
    assert_eq!(refused[0].to_string(), "spec.ingress[0].form: no such field; did you mean from?");
    assert_eq!(warnings, []);
}
