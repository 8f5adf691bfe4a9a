//! The independent reader is no rubber stamp: whatever of a table is changed, it tells.

use moat_agent::check;
use serde_json::{Value, json};

use crate::space::privileged;
use crate::verdicts::policy;
use crate::world::World;

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
    // What cannot be walked is told, too.
    w.compare(&ruleset).ok().map(|r| r.differences.len())
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
                // Who forges an address is not a new flow's question, and what counts decides nothing; packets ask both
                // elsewhere.
                if name.starts_with("local") || name.starts_with("drops-") {
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
                            // What only keeps connections from being picked up in mid-stream is asked by packets elsewhere.
                            let opens =
                                there["goto"]["target"] == "open-ingress" && verdict.get("accept").is_some();
                            if *there == verdict || opens {
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
                let expressions = gone["rule"]["expr"].as_array().expect("expressions");
                let target = expressions.last().expect("a verdict")["goto"]["target"].as_str();
                if !target.is_some_and(|t| t.starts_with("mid-stream")) {
                    told(&mutant, &format!("without {gone}"));
                }
            }
        }
        assert!(mutations > 60, "{mutations}");
    });
}

/// The command, as an operator calls it: its exit status and what it prints.
#[test]
fn the_command_says_equal_different_or_cannot_say() {
    privileged(|| {
        let w = World::new(&["a", "b"], &[], &policy(POLICIES[0].0, POLICIES[0].1));
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name).to_str().expect("text").to_owned();
        std::fs::write(path("cluster.yaml"), &w.manifests).expect("written");
        let mut journal = String::from("{\"moat\":\"attachments\",\"version\":1}\n");
        for (name, pod) in &w.pods {
            let mac = pod.local.pod_mac.map(|b| format!("{b:02x}")).join(":");
            let attachment = json!({"container_id": name, "ifname": "eth0", "network": "moat", "pod_namespace": "default",
                "pod_name": name, "netns": "/none", "host_ifname": pod.local.ifname, "host_mac": mac, "pod_mac": mac,
                "v4": pod.v4, "v6": pod.v6, "mtu": 1500});
            journal.push_str(&format!("{}\n", json!({"attached": attachment})));
        }
        std::fs::write(path("attachments.journal"), journal).expect("written");
        let listing = w.node.command("nft -j list table inet moat");
        std::fs::write(path("sound.json"), &listing).expect("written");
        std::fs::write(path("other.json"), listing.replacen(r#"{"accept": null}"#, r#"{"drop": null}"#, 1))
            .expect("written");
        std::fs::write(path("nonsense.json"), "nonsense").expect("written");

        let check = |manifests: &str, dump: Option<&str>, search: &str| {
            let mut arguments = vec!["check", "--node", "node", "--manifests"]
                .into_iter()
                .map(str::to_owned)
                .collect::<Vec<_>>();
            arguments.extend([path(manifests), "--state-dir".to_owned(), path("")]);
            arguments.extend(dump.into_iter().flat_map(|d| ["--dump".to_owned(), path(d)]));
            let search = search.to_owned();
            w.node.run(move || {
                let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_moat-agent"));
                let output = command.args(arguments).env("PATH", search).output().expect("runs");
                let text = [output.stdout, output.stderr].concat();
                (output.status.code(), String::from_utf8(text).expect("text"))
            })
        };
        let search = std::env::var("PATH").expect("a search path");
        let (status, text) = check("cluster.yaml", None, &search);
        assert!(status == Some(0) && text.contains("2 pods") && text.contains("0 differences"), "{text}");
        assert_eq!(check("cluster.yaml", Some("sound.json"), "").0, Some(0), "a dump needs no nft");
        let (status, text) = check("cluster.yaml", Some("other.json"), &search);
        assert!(status == Some(1) && text.contains("the kernel's table drops it"), "{text}");
        let (status, text) = check("cluster.yaml", Some("nonsense.json"), &search);
        assert!(status == Some(2) && text.contains("nft -j list table"), "{text}");
        let (status, text) = check("cluster.yaml", None, "/nowhere");
        assert!(status == Some(2) && text.contains("install nftables"), "{text}");
        let (status, text) = check("missing.yaml", None, &search);
        assert!(status == Some(2) && text.contains("missing.yaml"), "{text}");
    });
}
