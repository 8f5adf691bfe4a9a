//! Policies that nobody would write, one set after the other in the same lab, for pods that come and go: packets and engine
//! agree on all of them, and so the agents got from each set to the next.
//!
//! `MOAT_LAB_SEED` and `MOAT_LAB_ROUNDS` choose others, and more of them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by a panic")]

mod common;

use std::fs;
use std::path::Path;

use common::UpLab;
use serde_json::{Value, json};

/// xorshift64*: all that is asked of it is that a seed gives the same policies again.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let mixed = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(mixed).unwrap() % n
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<'v, T>(&mut self, values: &'v [T]) -> &'v T {
        &values[self.below(values.len())]
    }

    fn several<T>(&mut self, most: usize, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(most + 1)).map(|_| make(self)).collect()
    }
}

const NAMESPACES: [&str; 3] = ["red", "green", "blue"];
const TIERS: [&str; 3] = ["web", "api", "db"];
const BLOCKS: [(&str, &[&str]); 12] = [
    ("0.0.0.0/0", &[]),
    ("0.0.0.0/0", &["10.0.0.0/8", "203.0.113.10/32"]),
    ("::/0", &["fd10::/16"]),
    ("10.244.0.0/16", &[]),
    ("10.244.0.0/16", &["10.244.1.0/24"]),
    ("10.244.2.0/24", &["10.244.2.2/31"]),
    ("10.244.1.0/29", &[]),
    ("192.168.244.0/24", &["192.168.244.2/32"]),
    ("203.0.113.0/24", &[]),
    ("fd10:244::/32", &["fd10:244:0:1::/64"]),
    ("fd10:244:ffff::/64", &[]),
    ("2001:db8::/32", &["2001:db8::20/128"]),
];

fn selector(r: &mut Random, key: &str, values: &[&str]) -> Value {
    match r.below(6) {
        0 => json!({}),
        1 => json!({ "matchLabels": { key: r.pick(values) } }),
        2 => json!({ "matchExpressions": [{ "key": key, "operator": "Exists" }] }),
        3 => json!({ "matchExpressions": [{ "key": "odd", "operator": "DoesNotExist" }] }),
        4 => json!({ "matchExpressions": [{ "key": key, "operator": "NotIn", "values": [r.pick(values)] }] }),
        _ => json!({ "matchExpressions": [
            { "key": key, "operator": "In", "values": [r.pick(values), r.pick(values)] }
        ] }),
    }
}

fn namespaces(r: &mut Random) -> Value {
    selector(r, "kubernetes.io/metadata.name", &NAMESPACES)
}

fn peer(r: &mut Random) -> Value {
    match r.below(5) {
        0 => json!({ "podSelector": selector(r, "tier", &TIERS) }),
        1 => json!({ "namespaceSelector": namespaces(r) }),
        2 => json!({ "namespaceSelector": namespaces(r), "podSelector": selector(r, "tier", &TIERS) }),
        _ => {
            let (cidr, except) = r.pick(&BLOCKS);
            json!({ "ipBlock": { "cidr": cidr, "except": except } })
        }
    }
}

fn port(r: &mut Random) -> Value {
    let protocol = *r.pick(&["TCP", "UDP"]);
    match r.below(6) {
        0 => json!({ "protocol": protocol }),
        1 => json!({ "protocol": protocol, "port": "main" }),
        2 => json!({ "protocol": protocol, "port": 79, "endPort": 81 }),
        3 => json!({ "protocol": protocol, "port": 53, "endPort": 60001 }),
        4 => json!({ "port": 60001 }),
        _ => json!({ "protocol": protocol, "port": r.pick(&[80, 81, 53]) }),
    }
}

fn rule(r: &mut Random, peers: &str) -> Value {
    let mut rule = json!({});
    if !r.one_in(6) {
        rule[peers] = json!(r.several(3, peer));
    }
    if !r.one_in(3) {
        rule["ports"] = json!(r.several(3, port));
    }
    rule
}

fn policy(r: &mut Random, number: usize) -> Value {
    let types = match r.below(4) {
        0 => vec!["Egress"],
        1 => vec!["Ingress", "Egress"],
        _ => vec!["Ingress"],
    };
    let mut spec = json!({ "podSelector": selector(r, "tier", &TIERS), "policyTypes": types });
    if types.contains(&"Ingress") {
        spec["ingress"] = json!(r.several(3, |r| rule(r, "from")));
    }
    if types.contains(&"Egress") {
        spec["egress"] = json!(r.several(3, |r| rule(r, "to")));
    }
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": format!("p{number}"), "namespace": r.pick(&NAMESPACES) }, "spec": spec,
    })
}

/// Pods of every namespace and tier, now and then one less; their ports have the same names and different numbers. One is
/// in its node's network.
fn pods(r: &mut Random) -> Value {
    let mut items = Vec::new();
    for (at, namespace) in NAMESPACES.iter().enumerate() {
        for (number, tier) in TIERS.iter().enumerate() {
            if r.one_in(8) && !items.is_empty() {
                continue;
            }
            let mut labels = json!({ "tier": if r.one_in(5) { r.pick(&TIERS) } else { tier } });
            if r.one_in(4) {
                labels["odd"] = json!("yes");
            }
            let ports = json!([
                { "name": "main", "containerPort": 80 + r.below(2) },
                { "name": "main-udp", "containerPort": 53, "protocol": "UDP" },
            ]);
            items.push(json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": { "name": tier, "namespace": namespace, "labels": labels },
                "spec": {
                    "containers": [{ "name": "c", "image": "none", "ports": ports }],
                    "hostNetwork": (at, number) == (2, 2),
                },
            }));
        }
    }
    list(items)
}

fn list(items: Vec<Value>) -> Value {
    json!({ "apiVersion": "v1", "kind": "List", "items": items })
}

fn write(folder: &Path, name: &str, value: &Value) {
    // As editors do: a new file in the place of the old one.
    let new = folder.join(".new");
    fs::write(&new, serde_json::to_vec_pretty(value).unwrap()).unwrap();
    fs::rename(new, folder.join(name)).unwrap();
}

fn number_from(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|v| v.parse().ok()).unwrap_or(otherwise)
}

#[test]
fn packets_and_engine_agree_on_one_set_of_policies_after_the_other() {
    let (seed, rounds) = (number_from("MOAT_LAB_SEED", 20_261_122), number_from("MOAT_LAB_ROUNDS", 8));
    let folder = tempfile::tempdir().unwrap();
    let world = "203.0.113.10 443/TCP\n203.0.113.20 53/UDP\n2001:db8::10 443/TCP\n2001:db8::20\n";
    fs::write(folder.path().join("world.txt"), world).unwrap();
    let mut r = Random(seed | 1);
    write(folder.path(), "pods.json", &pods(&mut r));
    let lab = UpLab::up(folder.path(), &["--dual-stack"]);
    let (mut allowed, mut denied) = (0, 0);
    for round in 0..rounds {
        let count = 1 + r.below(8);
        let policies = (0..count).map(|number| policy(&mut r, number)).collect();
        let policies = list(policies);
        write(folder.path(), "policies.json", &policies);
        // Every second set of policies meets pods that came, went or have other labels.
        if round % 2 == 1 {
            write(folder.path(), "pods.json", &pods(&mut r));
        }
        let (status, report) = lab.probe(&[]);
        let report = report.unwrap_or_else(|e| panic!("seed {seed}, round {round}: {e}\n{policies:#}"));
        let manifests =
            || fs::read_to_string(folder.path().join("pods.json")).unwrap() + &policies.to_string();
        let differences = common::differences(&report);
        assert!(
            status == 0 && differences.is_empty(),
            "seed {seed}, round {round}: {} differences\n{}\n{}",
            differences.len(),
            differences.join("\n"),
            manifests()
        );
        allowed += report.cells.iter().filter(|c| c.predicted).count();
        denied += report.cells.iter().filter(|c| !c.predicted).count();
    }
    assert!(allowed > 0 && denied > 0, "{allowed} allowed, {denied} denied");
}
