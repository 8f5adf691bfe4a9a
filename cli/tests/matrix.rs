//! `moat matrix` as it is run.

// Helpers outside #[test] functions unwrap what the test wrote itself.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::io::Read;
use std::process::{Command, Stdio};

use common::{golden, moat, moat_with, tests};
use serde_json::Value;

#[test]
fn json_has_every_ordered_pair_of_distinct_pods_for_every_port() {
    let run = moat("matrix -f shop --port 8080/TCP --port 53/UDP --port icmp -o json");
    assert_eq!(run.status, 0, "{}", run.stderr);
    let json: Value = serde_json::from_str(&run.stdout).unwrap();
    let verdicts = json["verdicts"].as_array().unwrap();
    let names: BTreeSet<&str> = verdicts.iter().map(|v| v["source"].as_str().unwrap()).collect();
    let rows = ["ops/backup-0", "ops/exporter", "shop/api-0", "shop/api-1", "shop/web"];
    assert!(names.iter().eq(&rows), "{names:?}");
    assert_eq!(verdicts.len(), 5 * 4 * 3);
    let mut cells = BTreeSet::new();
    for v in verdicts {
        assert_eq!(v.as_object().unwrap().len(), 7);
        assert_ne!(v["source"], v["destination"]);
        let both = v["egress"] == true && v["ingress"] == true;
        assert_eq!(v["allowed"], both, "{v}");
        cells.insert((
            v["source"].to_string(),
            v["destination"].to_string(),
            v["protocol"].to_string(),
            v["port"].to_string(),
        ));
    }
    assert_eq!(cells.len(), verdicts.len());
    golden("matrix.json", &run.stdout);
}

#[test]
fn text_is_a_table_a_port() {
    let run = moat("matrix -f shop --port 8080 --port 9090/TCP");
    assert_eq!(run.status, 0);
    assert_eq!(run.stderr, "note: passed over 1 Service: they decide no verdict\n");
    golden("matrix.txt", &run.stdout);
    assert!(!run.stdout.contains('\x1b'));
}

#[test]
fn manifests_come_from_standard_input_too() {
    let text = std::fs::read_to_string(tests().join("shop/cluster.yaml")).unwrap();
    let both =
        moat_with(&["matrix", "-f", "-", "-f", "shop/policies.yaml", "--port", "80", "-o", "json"], &text);
    let folder = moat("matrix -f shop --port 80 -o json");
    assert_eq!((both.status, both.stdout), (0, folder.stdout));
}

#[test]
fn an_address_that_two_pods_claim_is_warned_of() {
    let pods = ["a", "b"].map(|name| {
        format!("{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{containers: [{{name: c, image: i}}]}}, status: {{podIP: 10.0.0.1}}}}\n---\n")
    });
    let run = moat_with(&["matrix", "-f", "-", "--port", "80"], &pods.concat());
    assert_eq!(run.status, 0);
    assert_eq!(
        run.stderr,
        "warning: default/a, default/b all claim 10.0.0.1; no selector finds any of them by it\n"
    );
}

#[test]
fn an_input_that_is_wrong_has_no_answer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.yaml");
    let bad = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec:\n  ingress:\n  - form: []\n    ports: [{port: 0}]\n";
    std::fs::write(&path, bad).unwrap();
    let path = path.to_str().unwrap();
    let run = moat(&format!("matrix -f shop -f {path} --port 80 -o json"));
    assert_eq!((run.status, &*run.stdout), (2, ""));
    assert_eq!(
        run.stderr,
        format!(
            "error: 2 problems in the input, so there is no answer:\n\
             \x20 {path}, document 1 (line 6): spec.ingress[0].form: no such field; did you mean from?\n\
             \x20 {path}, document 1 (line 7): spec.ingress[0].ports[0].port: 0 must lie between 1 and 65535\n"
        )
    );
    for (words, text) in [
        ("matrix -f nowhere --port 80", "nowhere: No such file or directory"),
        ("matrix -f shop/policies.yaml --port 80", "no pods in the input"),
        ("matrix -f shop --port http", "--port http/TCP: a name is another number on each pod"),
        ("matrix -f shop", "--port <PORT>"),
    ] {
        let run = moat(words);
        assert_eq!((run.status, &*run.stdout), (2, ""), "{words}");
        assert!(run.stderr.contains(text), "{words}: {}", run.stderr);
    }
    let run = moat_with(&["matrix", "-f", "-", "--port", "80"], "");
    assert_eq!(run.status, 2);
    assert!(run.stderr.contains("stdin: empty; nothing was piped in"), "{}", run.stderr);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    // Enough pods that the answer does not fit in a pipe.
    let pods: String = (0..100)
        .map(|i| format!("{{apiVersion: v1, kind: Pod, metadata: {{name: p{i}}}, spec: {{containers: [{{name: c, image: i}}]}}}}\n---\n"))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pods.yaml");
    std::fs::write(&path, pods).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_moat"))
        .args(["matrix", "--port", "80", "-o", "json", "-f"])
        .arg(&path)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut start = [0; 10];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut start).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap()), (Some(0), String::new()));
}
