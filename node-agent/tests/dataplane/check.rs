//! The independent reader is no rubber stamp: whatever of a table is changed, it tells.

use moat_agent::check::{self, Limits, Veth};
use serde_json::Value;

use crate::space::privileged;
use crate::verdicts::policy;
use crate::world::{World, name};

/// Programs inline and with a map, prefixes with excepts, named ports, both directions.
const POLICIES: [(&str, &str); 4] = [
    (
        "in",
        "{podSelector: {matchLabels: {app: b}}, ingress: [{from: [{podSelector: {matchLabels: {app: a}}},
          {ipBlock: {cidr: 10.0.1.0/24, except: [10.0.1.16/28]}}, {ipBlock: {cidr: 'fd00:1::/64'}}],
          ports: [{port: 80}, {port: 90, endPort: 99}]}]}",
    ),
    (
        "out",
        "{podSelector: {matchLabels: {app: a}}, policyTypes: [Egress], egress: [
          {to: [{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [a, c, d]}]}}], ports: [{port: web}]},
          {to: [{ipBlock: {cidr: 192.168.0.0/24}}, {podSelector: {matchLabels: {app: b}}}], ports: [{port: 1}, {port: 3},
           {port: 5}, {port: 7, protocol: UDP}, {port: 90}]}]}",
    ),
    ("every", "{podSelector: {matchLabels: {app: c}}, ingress: [{from: [{podSelector: {matchLabels: {app: b}}}]}]}"),
    (
        "nearly-closed",
        "{podSelector: {matchLabels: {app: d}}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {
          matchLabels: {app: c}}}]}]}",
    ),
];

fn differences(w: &World, listing: &Value) -> Option<usize> {
    let ruleset = check::read(&listing.to_string(), "inet", "moat").expect("a table that can be judged");
    let veths: Vec<Veth> = w
        .pods
        .iter()
        .map(|(n, p)| Veth {
            pod: name(n),
            ifname: p.local.ifname.clone(),
            pod_mac: p.local.pod_mac,
            addresses: vec![p.v4.into(), p.v6.into()],
        })
        .collect();
    let report = check::compare(&ruleset, w.cluster.objects(), "node", &veths, Limits::default());
    // What cannot be walked is told, too.
    report.ok().map(|r| r.differences.len())
}

#[test]
fn every_change_of_an_element_or_a_verdict_is_told() {
    privileged(|| {
        let policies: String = POLICIES.iter().map(|(n, spec)| policy(n, spec)).collect();
        let w = World::new(&["a", "b", "c", "d", "e"], &["r", "s"], &policies);
        let listing = w.node.command("nft -j list table inet moat");
        let sound: Value = serde_json::from_str(&listing).expect("JSON");
        assert_eq!(differences(&w, &sound), Some(0));
        let mut mutations = 0;
        let mut told = |mutant: &Value, what: &str| {
            mutations += 1;
            assert_ne!(differences(&w, mutant), Some(0), "{what}");
        };
        let objects = sound["nftables"].as_array().expect("objects");
        for (index, object) in objects.iter().enumerate() {
            for kind in ["set", "map"] {
                let name = object[kind]["name"].as_str().unwrap_or_default();
                // Who forges an address is not a new flow's question; packets ask it elsewhere.
                if name.starts_with("local") {
                    continue;
                }
                let elements = object[kind]["elem"].as_array().map_or(0, Vec::len);
                for element in 0..elements {
                    let mut mutant = sound.clone();
                    let all = mutant["nftables"][index][kind]["elem"].as_array_mut().expect("elements");
                    let gone = all.remove(element);
                    // A pod that no policy selects reaches itself anyhow.
                    if !(name.starts_with("self") && gone.to_string().contains("moate")) {
                        told(&mutant, &format!("without {gone} in {name}"));
                    }
                }
                if kind == "map" {
                    for element in 0..elements {
                        for verdict in [r#"{"drop":null}"#, r#"{"accept":null}"#] {
                            let mut mutant = sound.clone();
                            let verdict: Value = serde_json::from_str(verdict).expect("JSON");
                            let there = &mut mutant["nftables"][index][kind]["elem"][element][1];
                            if *there == verdict {
                                continue;
                            }
                            *there = verdict;
                            told(&mutant, &format!("another verdict in {name}"));
                        }
                    }
                }
            }
            let chain = object["rule"]["chain"].as_str().unwrap_or_default();
            // A program's chains, whole: every rule of them, and what it decides.
            if chain.starts_with("ingress-") || chain.starts_with("egress-") {
                let mut mutant = sound.clone();
                let all = mutant["nftables"].as_array_mut().expect("objects");
                let gone = all.remove(index);
                if gone["rule"]["expr"][1]["goto"]["target"] != "mid-stream" {
                    told(&mutant, &format!("without {gone}"));
                }
            }
        }
        assert!(mutations > 60, "{mutations}");
    });
}
