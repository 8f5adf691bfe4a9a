//! A NetworkPolicy back to its manifest.

use moat_policies::{
    Direction, NamespaceScope, NetworkPolicy, Operator, Peer, Peers, PortMatch, PortRef, Ports, Rule,
    Selector,
};
use serde_json::{Value, json};

/// The manifest that says the same.
pub(crate) fn policy(policy: &NetworkPolicy) -> Value {
    let mut spec = json!({ "podSelector": selector(&policy.subject) });
    let mut types = Vec::new();
    for (direction, field, word) in
        [(Direction::Ingress, "ingress", "Ingress"), (Direction::Egress, "egress", "Egress")]
    {
        if let Some(rules) = policy.rules(direction) {
            types.push(word);
            spec[field] = rules.iter().map(|r| rule(r, direction)).collect();
        }
    }
    spec["policyTypes"] = json!(types);
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "namespace": *policy.name.namespace, "name": *policy.name.name },
        "spec": spec,
    })
}

fn rule(rule: &Rule, direction: Direction) -> Value {
    let mut fields = json!({});
    if let Peers::Of(peers) = &rule.peers {
        let field = if direction == Direction::Ingress { "from" } else { "to" };
        fields[field] = peers.iter().map(peer).collect();
    }
    if let Ports::Of(ports) = &rule.ports {
        fields["ports"] = ports.iter().map(port).collect();
    }
    fields
}

fn peer(peer: &Peer) -> Value {
    match peer {
        Peer::Block(block) => json!({ "ipBlock": { "cidr": block.cidr(), "except": block.except() } }),
        Peer::Pods { namespaces: NamespaceScope::Own, pods } => json!({ "podSelector": selector(pods) }),
        Peer::Pods { namespaces: NamespaceScope::Selected(some), pods } => {
            json!({ "namespaceSelector": selector(some), "podSelector": selector(pods) })
        }
    }
}

fn port(port: &PortMatch) -> Value {
    let mut fields = json!({ "protocol": port.protocol.as_str() });
    match &port.port {
        PortRef::All => {}
        PortRef::Named(name) => fields["port"] = json!(**name),
        PortRef::Range(first, last) => {
            fields["port"] = json!(first);
            if last != first {
                fields["endPort"] = json!(last);
            }
        }
    }
    fields
}

fn selector(selector: &Selector) -> Value {
    let requirement = |r: &moat_policies::Requirement| {
        let operator = match r.operator() {
            Operator::In => "In",
            Operator::NotIn => "NotIn",
            Operator::Exists => "Exists",
            Operator::DoesNotExist => "DoesNotExist",
        };
        let mut fields = json!({ "key": **r.key(), "operator": operator });
        if !r.values().is_empty() {
            fields["values"] = r.values().iter().map(|v| json!(**v)).collect();
        }
        fields
    };
    if selector.is_everything() {
        return json!({});
    }
    json!({ "matchExpressions": selector.requirements().iter().map(requirement).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use moat_policies::Object;

    use super::*;

    #[test]
    fn every_policy_of_the_recipes_comes_back_as_it_was() {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/examples");
        let mut seen = 0;
        for recipe in std::fs::read_dir(examples).unwrap().flatten().filter(|e| e.path().is_dir()) {
            let loaded = moat_manifests::load(&[recipe.path()]).unwrap();
            for object in loaded.objects {
                let Object::Policy(given) = &object else { continue };
                let folder = tempfile::tempdir().unwrap();
                std::fs::write(folder.path().join("p.json"), policy(given).to_string()).unwrap();
                let back = moat_manifests::load(&[folder.path().to_owned()]).unwrap().objects;
                assert_eq!(back, [object]);
                seen += 1;
            }
        }
        assert!(seen > 30, "{seen}");
    }
}
