//! Policies out of an API server: as stored, or closed.
#![allow(clippy::unwrap_used)]

use moat_manifests::StoredPolicy;
use moat_policies::{NamespacedName, NetworkPolicy, Selector};
use serde_json::{Value, json};

fn stored(spec: &Value) -> StoredPolicy {
    let metadata =
        json!({"name": "p", "namespace": "n", "uid": "u", "resourceVersion": "7", "later": {"field": 1}});
    let object = json!({"kind": "NetworkPolicy", "metadata": metadata, "spec": spec, "status": {}});
    serde_json::from_value(object).unwrap()
}

/// What the same manifest is, written by a person.
fn written(spec: &Value) -> NetworkPolicy {
    let metadata = json!({"name": "p", "namespace": "n"});
    let object = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec});
    let bytes = object.to_string().into_bytes();
    let manifests = moat_manifests::decode([("p.json", &*bytes)]).unwrap();
    moat_policies::Objects::from_iter(manifests.objects).policies().values().next().unwrap().clone()
}

fn isolating(subject: Selector, [ingress, egress]: [bool; 2]) -> NetworkPolicy {
    let rules = |there: bool| there.then(Vec::new);
    let name = NamespacedName::new("n", "p");
    NetworkPolicy { name, subject, ingress: rules(ingress), egress: rules(egress) }
}

#[test]
fn a_policy_is_what_it_says() {
    let spec = json!({
        "podSelector": {"matchLabels": {"app": "db"}, "matchExpressions": [{"key": "tier", "operator": "In", "values": ["a"]}]},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {}}, {"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": 80}]}],
    });
    let StoredPolicy { uid, resource_version, policy, refused, warnings } = stored(&spec);
    assert_eq!((uid.as_deref(), resource_version.as_deref()), (Some("u"), Some("7")));
    assert_eq!(policy, written(&spec));
    assert_eq!((refused, warnings), (vec![], vec![]));
    assert_eq!(stored(&Value::Null).policy, written(&Value::Null), "a policy without a spec");
}

#[test]
fn what_older_servers_took_is_meant_as_they_meant_it() {
    let spec = |cidr: &str, except: &str| {
        let block = json!({"cidr": cidr, "except": [except]});
        json!({"policyTypes": ["Egress"], "egress": [{"to": [{"ipBlock": block}]}]})
    };
    let StoredPolicy { policy, refused, warnings, .. } = stored(&spec("10.1.2.3/8", "010.009.0.0/16"));
    assert_eq!(policy, written(&spec("10.0.0.0/8", "10.9.0.0/16")));
    assert_eq!(refused, vec![]);
    let told: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "spec.egress[0].to[0].ipBlock.cidr: the string \"10.1.2.3/8\" is taken as 10.0.0.0/8; write that",
            "spec.egress[0].to[0].ipBlock.except[0]: the string \"010.009.0.0/16\" is taken as 10.9.0.0/16; write that"
        ]
    );
}

#[test]
fn what_is_not_known_lets_nobody_in() {
    let db = Selector::label("app", "db");
    let (ingress, egress, both) = ([true, false], [false, true], [true, true]);
    let rule = json!([{"from": [{"podSelector": {}}]}]);
    let cases = [
        // A field that means something to a newer server: read without it, a rule would admit everybody.
        (
            json!({"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Ingress"], "ingress": [{"form": []}]}),
            "spec.ingress[0].form",
            db.clone(),
            ingress,
        ),
        (
            json!({"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Egress"], "egress": rule, "later": 1}),
            "spec.later",
            db.clone(),
            egress,
        ),
        (
            json!({"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Ingress", "Sideways"], "ingress": rule}),
            "spec.policyTypes[1]",
            db.clone(),
            both,
        ),
        // Without types, nobody knows whether the egress that cannot be read was to be in force.
        (
            json!({"podSelector": {"matchLabels": {"app": "db"}}, "egress": {}}),
            "spec.egress",
            db.clone(),
            both,
        ),
        (
            json!({"podSelector": {"matchLabels": {"app": "db"}, "matchExpressions": [{"key": "a", "operator": "Near", "values": ["b"]}]},
                "policyTypes": ["Ingress"]}),
            "spec.podSelector.matchExpressions[0].operator",
            db.clone(),
            ingress,
        ),
        (
            json!({"podSelector": {"matchLabels": {"app": "db"}, "matchExpressions": [{"key": "a", "operator": "In", "values": ["b"], "later": 1}]},
                "policyTypes": ["Ingress"]}),
            "spec.podSelector.matchExpressions[0].later",
            db.clone(),
            ingress,
        ),
        (
            json!({"podSelector": {"matchLabels": {"app": "db", "x": "not a value"}}, "policyTypes": ["Ingress"]}),
            "spec.podSelector.matchLabels.x",
            db,
            ingress,
        ),
        (
            json!({"podSelector": {"matchLabels": {"app": "db"}, "later": {}}, "policyTypes": ["Ingress"]}),
            "spec.podSelector.later",
            Selector::everything(),
            ingress,
        ),
        (json!("nonsense"), "spec", Selector::everything(), both),
        (
            json!({"policyTypes": ["Egress"], "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/99"}}]}]}),
            "spec.egress[0].to[0].ipBlock.cidr",
            Selector::everything(),
            egress,
        ),
    ];
    for (spec, field, subject, types) in cases {
        let StoredPolicy { policy, refused, .. } = stored(&spec);
        assert_eq!(policy, isolating(subject, types), "{spec}");
        assert_eq!(refused.first().map(|finding| &*finding.field), Some(field), "{spec}");
    }
}

#[test]
fn only_a_name_is_needed() {
    assert!(serde_json::from_value::<StoredPolicy>(json!({"metadata": {"name": "p"}})).is_err());
    let policy: StoredPolicy =
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"}, "strange": 1})).unwrap();
    assert_eq!(policy.policy, isolating(Selector::everything(), [true, true]));
}
