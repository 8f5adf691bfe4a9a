//! `moat reach` as it is run.

// Helpers outside #[test] functions unwrap what the test wrote itself.
#![allow(clippy::unwrap_used)]

mod common;

use common::{golden, moat, moat_with};
use serde_json::Value;

#[test]
fn answers_and_exit_status() {
    for (question, allowed) in [
        ("shop/web shop/api-0 --port 8080/TCP", true),
        ("shop/web shop/api-0 --port 8080", true),
        ("shop/web shop/api-0 --port http", true),
        ("shop/web shop/api-0 --port 9090/tcp", false),
        ("shop/web shop/api-0 --port 8080/UDP", false),
        ("shop/web shop/api-0 --port icmp", false),
        ("shop/api-0 shop/web --port 8080", false),
        ("pod/web pod/api-1 -n shop --port 8080", true),
        ("web api-1 -n shop --port 8080", true),
        ("pod/web deploy/api -n shop --port http", true),
        ("pod/web deployments/api -n shop --port admin", false),
        ("ops/job/backup shop/deploy/api --port admin", true),
        ("deploy/api deploy/api -n shop --port 80", false),
        ("shop/api-0 shop/api-0 --port 80", true),
        // Addresses: outside, the node's, a pod's.
        ("203.0.113.9 shop/web --port 8080", true),
        ("203.0.113.200 shop/web --port 8080", false),
        ("shop/web 192.0.2.1 --port 443", false),
        ("172.16.0.1 shop/web --port 1", true),
        ("10.1.1.2 shop/api-0 --port 8080", true),
        ("::ffff:10.1.1.2 shop/api-0 --port 8080", true),
        ("192.0.2.1 198.51.100.1 --port 1", true),
        // The web pod's node reaches it; its own side is no policy's business.
        ("ops/exporter shop/web --port 1", true),
        ("ops/exporter shop/api-0 --port 9090", false),
        // Over IPv6 only.
        ("2001:db8:9::1 shop/web --port 8080", true),
        ("2001:db9::1 shop/web --port 8080", false),
    ] {
        let run = moat(&format!("reach {question} -f shop"));
        assert_eq!(run.status, i32::from(!allowed), "{question}: {}{}", run.stdout, run.stderr);
        let word = if allowed { ": allowed" } else { ": denied" };
        assert!(run.stdout.lines().next().unwrap().ends_with(word), "{question}: {}", run.stdout);
        let json = moat(&format!("reach {question} -f shop -o json"));
        assert_eq!(json.status, run.status);
        let json: Value = serde_json::from_str(&json.stdout).unwrap();
        assert_eq!(json["allowed"], allowed, "{question}");
        // Over one family, or an unknown one, the answer is both sides'.
        assert_eq!(
            allowed,
            json["egress"]["allowed"] == true && json["ingress"]["allowed"] == true,
            "{question}"
        );
    }
}

#[test]
fn texts() {
    for (file, question) in [
        ("reach-allowed.txt", "shop/web shop/api-0 --port 8080/TCP"),
        ("reach-denied-port.txt", "shop/web shop/api-0 --port 9090/TCP"),
        ("reach-denied-peer.txt", "192.0.2.1 shop/web --port 8080"),
        ("reach-workload.txt", "deploy/api pod/web -n shop --port 8080"),
        ("reach-own-node.txt", "ops/exporter 10.1.1.2 --port 8080"),
        ("reach-no-rule.txt", "shop/web 192.0.2.1 --port 443"),
        ("reach-denied.json", "192.0.2.1 shop/web --port 8080 -o json"),
        ("reach-workload.json", "pod/web deploy/api -n shop --port http -o json"),
    ] {
        golden(file, &moat(&format!("reach {question} -f shop")).stdout);
    }
}

#[test]
fn an_answer_that_families_differ_in_shows_both() {
    let dual = "{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: shop}, spec: {containers: [{name: c, image: i}]}, \
                status: {podIPs: [{ip: 10.1.1.3}, {ip: '2001:db8:1::3'}]}}";
    let run = moat_with(&["reach", "shop/a", "shop/web", "--port", "8080", "-f", "shop", "-f", "-"], dual);
    assert_eq!(run.status, 0);
    golden("reach-families.txt", &run.stdout);
}

#[test]
fn what_is_not_understood_is_told_with_what_to_do() {
    for (question, text) in [
        (
            "shop/wep shop/api-0 --port 80",
            "error: no pod shop/wep; there is shop/api-0, shop/api-1, shop/web",
        ),
        ("shop/old shop/api-0 --port 80", "error: no pod shop/old; there is shop/"),
        ("web shop/api-0 --port 80", "error: no pod default/web; there is shop/web"),
        ("deploy/api shop/web --port 80", "error: no Deployment default/api; there is shop/api"),
        ("sts/db shop/web --port 80", "error: no StatefulSet default/db; there are none at all"),
        ("a/b/c shop/web --port 80", "b is no kind that has pods"),
        ("a/b/c/d shop/web --port 80", "too many parts"),
        ("shop/ shop/web --port 80", "names nobody"),
        ("shop/web shop/api-0 --port https", "shop/api-0 has no port https/TCP; it has http/TCP, admin/TCP"),
        ("shop/web 192.0.2.1 --port http", "192.0.2.1 is no pod, so it has no port names; write a number"),
        ("shop/web shop/api-0 --port 0", "0 is not a port: 1 to 65535"),
        ("shop/web shop/api-0 --port 80/ICMP", "\"ICMP\" is not one of TCP, UDP, SCTP"),
        ("shop/web shop/api-0", "--port <PORT>"),
        ("shop/web --port 80", "<B>"),
    ] {
        let run = moat(&format!("reach {question} -f shop"));
        assert_eq!((run.status, &*run.stdout), (2, ""), "{question}");
        assert!(run.stderr.contains(text), "{question}: {}", run.stderr);
    }
    let run = moat("reach shop/web shop/api-0 --port 80");
    assert_eq!(run.status, 2);
    assert!(run.stderr.contains("--filename <PATH>"), "{}", run.stderr);
}

#[test]
fn a_workload_without_pods_is_an_error() {
    let none = "{apiVersion: apps/v1, kind: Deployment, metadata: {name: none}, spec: {replicas: 0, selector: {matchLabels: {a: b}}, \
                template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}";
    let run = moat_with(&["reach", "deploy/none", "192.0.2.1", "--port", "80", "-f", "-"], none);
    assert_eq!(run.status, 2);
    assert!(run.stderr.contains("Deployment default/none has no pods"), "{}", run.stderr);
}

#[test]
fn an_address_that_is_not_known_is_noted_where_it_may_matter() {
    let run = moat("reach shop/api-0 shop/web --port 8080 -f shop");
    assert_eq!(run.status, 1);
    assert!(run.stderr.contains("note: the address of shop/api-0 is not known"), "{}", run.stderr);
    let run = moat("reach ops/backup-0 shop/api-0 --port 8080 -f shop");
    assert_eq!(run.status, 1);
    assert!(!run.stderr.contains("is not known"), "{}", run.stderr);
}

#[test]
fn an_address_that_several_pods_claim_is_no_end_of_a_question() {
    let twin = "{apiVersion: v1, kind: Pod, metadata: {name: twin, namespace: shop}, spec: {containers: [{name: c, image: i}]}, \
                status: {podIP: 10.1.1.2}}";
    for (source, destination) in [("10.1.1.2", "192.0.2.1"), ("192.0.2.1", "10.1.1.2")] {
        let run = moat_with(&["reach", source, destination, "--port", "80", "-f", "shop", "-f", "-"], twin);
        assert_eq!((run.status, &*run.stdout), (2, ""));
        assert!(run.stderr.contains("error: several pods claim 10.1.1.2"), "{}", run.stderr);
    }
}

#[test]
fn help_teaches() {
    for (words, examples) in
        [("--help", "Examples:"), ("reach --help", "moat reach deploy/web"), ("matrix --help", "jq")]
    {
        let run = moat(words);
        assert_eq!(run.status, 0);
        assert!(run.stdout.contains(examples), "{}", run.stdout);
    }
}

#[test]
fn policy_decides_what_a_pod_sends_to_its_node_where_that_is_asked_for() {
    // Who may, and what is not about that, stays as it is.
    for (question, by_default, by_policy) in [
        ("shop/web 172.16.0.1 --port 10250", true, false),
        ("shop/web ops/exporter --port metrics", true, false),
        ("shop/web 2001:db8::1 --port icmp", true, false),
        ("172.16.0.1 shop/web --port 1", true, true),
        ("ops/exporter shop/web --port 1", true, true),
        ("shop/api-0 172.16.0.1 --port 10250", true, true),
        ("shop/web shop/api-0 --port http", true, true),
        ("shop/web 192.0.2.1 --port 443", false, false),
    ] {
        for (flag, allowed) in [("allow", by_default), ("policy", by_policy)] {
            let run = moat(&format!("reach {question} -f shop --pod-to-node {flag}"));
            assert_eq!(run.status, i32::from(!allowed), "{question}, {flag}: {}{}", run.stdout, run.stderr);
        }
        assert_eq!(moat(&format!("reach {question} -f shop")).status, i32::from(!by_default), "{question}");
    }
    let run = moat("reach shop/web 172.16.0.1 --port 10250 -f shop --pod-to-node policy");
    golden("reach-pod-to-node.txt", &run.stdout);
    let run = moat("matrix --port 9100 -f shop --pod-to-node policy");
    golden("matrix-pod-to-node.txt", &run.stdout);
}
