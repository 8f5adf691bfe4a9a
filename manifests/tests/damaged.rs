//! Damaged input: refused or read, but always answered.

use moat_manifests::decode;
use proptest::prelude::*;

const MANIFEST: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: shop, labels: {a/b: 'c'}}
spec:
  podSelector:
    matchExpressions: [{key: app, operator: In, values: [x, y]}]
  ingress:
  - from:
    - ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 10.2.0.0/16]}
    - namespaceSelector: {}
      podSelector: &sel {matchLabels: {a: b}}
    ports: [{port: 80, endPort: 90}, {port: http, protocol: UDP}]
  egress: [{to: [{podSelector: *sel}]}]
---
{\"apiVersion\": \"apps/v1\", \"kind\": \"Deployment\", \"metadata\": {\"name\": \"d\"}, \"spec\": {\"replicas\": 2,
 \"selector\": {\"matchLabels\": {\"a\": \"b\"}}, \"template\": {\"metadata\": {\"labels\": {\"a\": \"b\"}},
 \"spec\": {\"containers\": [{\"name\": \"c\", \"image\": \"i\", \"ports\": [{\"containerPort\": 80, \"name\": \"http\"}]}]}}}}
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: c, image: i}]}, status: {podIPs: [{ip: '::1'}]}}
- {apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDRs: [10.0.0.0/24]}}
";

/// Bytes that mean something to YAML, JSON or the fields above.
const TELLING: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "-",
    "\n",
    "\n---\n",
    "\n...\n",
    " ",
    "\t",
    "'",
    "\"",
    "|",
    ">",
    "&a ",
    "*a",
    "<<: ",
    "!!int ",
    "!x ",
    "? ",
    "#",
    "%",
    "~",
    "null",
    "true",
    "0",
    "-1",
    "99999999999999999999",
    "1e400",
    ".nan",
    "\\",
    "\u{0}",
    "\u{feff}",
    "\u{85}",
    "é",
    "🦀",
    "/",
    "0x",
    "List",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn damage_is_answered(
        cuts in prop::collection::vec((any::<prop::sample::Index>(), 0..20_usize, prop::sample::select(TELLING)), 0..6),
        tail in any::<prop::sample::Index>(),
        truncate in any::<bool>(),
        json in any::<bool>(),
    ) {
        let mut text: Vec<char> = MANIFEST.chars().collect();
        for (at, length, insert) in cuts {
            let at = at.index(text.len() + 1);
            let end = (at + length).min(text.len());
            text.splice(at..end, insert.chars());
        }
        if truncate {
            text.truncate(tail.index(text.len() + 1));
        }
        let text: String = text.into_iter().collect();
        let file = if json { "x.json" } else { "x.yaml" };
        if let Err(errors) = decode([(file, text.as_bytes())]) {
            // Every error is one line and names its file.
            for error in errors.iter() {
                let line = error.to_string();
                prop_assert!(line.starts_with(file), "{line}");
                prop_assert!(!line.contains('\n'), "{line:?}");
            }
        }
    }

    #[test]
    fn noise_is_answered(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode([("x.yaml", &bytes[..])]);
    }
}

/// Unknown names are compared with the known ones, and each error holds its path: neither may cost the square of
/// what is read.
#[test]
fn very_long_names_cost_what_they_are_long() {
    let long = |i: usize| format!("{}{i}", "x".repeat(200_000));
    let unknown: Vec<String> = (0..20).map(|i| format!("{:?}: 1", long(i))).collect();
    let pod = format!(
        r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "a"}}, "spec": {{{}, "containers": []}}}}"#,
        unknown.join(", ")
    );
    let twice = format!(
        r#"{{"apiVersion": "v1", "kind": "ConfigMap", {:?}: {{{}}}}}"#,
        long(0),
        vec![r#""a": 1"#; 30_000].join(", ")
    );
    for (text, told) in [(pod, 1), (twice, 10_000)] {
        let errors = decode([("x.json", text.as_bytes())]).unwrap_err();
        assert_eq!(errors.iter().count(), told);
        assert!(errors.iter().all(|e| e.to_string().len() < 300));
    }
}
