//! What is refused, and in which words: file, document, line, field path and reason.

// Helpers outside #[test] functions unwrap what the test wrote itself.
#![allow(clippy::unwrap_used)]

use moat_manifests::{Error, decode};

/// The errors of one file, one a line.
fn errors(text: &str) -> Vec<String> {
    match decode([("test.yaml", text.as_bytes())]) {
        Ok(manifests) => panic!("not refused: {text}\n{manifests:?}"),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

/// Of one document with one error: the field path and the reason.
#[track_caller]
fn refusal(text: &str) -> (String, String) {
    let errors = match decode([("test.yaml", text.as_bytes())]) {
        Ok(manifests) => panic!("not refused: {text}\n{manifests:?}"),
        Err(errors) => errors.into_iter().collect::<Vec<_>>(),
    };
    match &errors[..] {
        [Error::Field { field, reason, .. }] => (field.clone(), reason.clone()),
        other => panic!("{text}: {other:?}"),
    }
}

#[track_caller]
fn check(text: &str, field: &str, reason: &str) {
    let found = refusal(text);
    assert_eq!(found.0, field, "{text}: {}", found.1);
    assert!(found.1.contains(reason), "{text}: {:?} lacks {reason:?}", found.1);
}

fn policy(spec: &str) -> String {
    format!("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p}}\nspec: {spec}\n")
}

#[test]
fn policies() {
    for (spec, field, reason) in [
        ("{podselector: {}}", "spec.podselector", "no such field; did you mean podSelector?"),
        ("{ingress: [{form: []}]}", "spec.ingress[0].form", "no such field; did you mean from?"),
        ("{ingress: [{to: []}]}", "spec.ingress[0].to", "no such field"),
        ("{egress: [{from: []}]}", "spec.egress[0].from", "no such field"),
        (
            "{ingress: [{from: [{podselector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}]}",
            "spec.ingress[0].from[0].podselector",
            "no such field",
        ),
        ("{podSelector: {matchlabels: {a: b}}}", "spec.podSelector.matchlabels", "did you mean matchLabels?"),
        ("{whatever: 1}", "spec.whatever", "no such field"),
        ("[]", "spec", "must be an object, not a list"),
        ("{ingress: {}}", "spec.ingress", "must be a list, not an object"),
        ("{ingress: [x]}", "spec.ingress[0]", "must be an object, not the string \"x\""),
        ("{ingress: [{from: {}}]}", "spec.ingress[0].from", "must be a list"),
        ("{policyTypes: Ingress}", "spec.policyTypes", "must be a list"),
        ("{policyTypes: [ingress]}", "spec.policyTypes[0]", "\"ingress\" is not one of Ingress, Egress"),
        ("{policyTypes: [Ingress, Egress, Ingress]}", "spec.policyTypes", "more than two"),
    ] {
        check(&policy(spec), field, reason);
    }
}

#[test]
fn peers() {
    for (peer, field, reason) in [
        ("{}", "", "must hold podSelector, namespaceSelector or ipBlock"),
        ("null", "", "must hold podSelector"),
        ("{podSelector: }", "", "must hold podSelector"),
        ("{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}", "", "both ipBlock and a selector"),
        ("{ipBlock: {cidr: 10.0.0.0/8}, namespaceSelector: {}}", "", "both ipBlock and a selector"),
        ("{ipBlock: {}}", ".ipBlock.cidr", "missing, and required"),
        ("{ipBlock: {cidr: ''}}", ".ipBlock.cidr", "is not a CIDR"),
        ("{ipBlock: {cidr: 10.0.0.1}}", ".ipBlock.cidr", "is not a CIDR"),
        (
            "{ipBlock: {cidr: 10.0.0.1/8}}",
            ".ipBlock.cidr",
            "bits beyond its prefix; write 10.0.0.0/8 or 10.0.0.1/32",
        ),
        ("{ipBlock: {cidr: 010.0.0.0/8}}", ".ipBlock.cidr", "leading zeros"),
        ("{ipBlock: {cidr: 10.0.0.0/33}}", ".ipBlock.cidr", "is not a CIDR"),
        ("{ipBlock: {cidr: '::ffff:10.0.0.0/104'}}", ".ipBlock.cidr", "IPv4-mapped"),
        ("{ipBlock: {cidr: 10}}", ".ipBlock.cidr", "must be a string"),
        (
            "{ipBlock: {cidr: 10.0.0.0/16, except: [10.0.0.0/8]}}",
            ".ipBlock.except[0]",
            "10.0.0.0/8 must lie strictly inside the cidr 10.0.0.0/16",
        ),
        ("{ipBlock: {cidr: 10.0.0.0/16, except: [10.0.0.0/16]}}", ".ipBlock.except[0]", "strictly inside"),
        (
            "{ipBlock: {cidr: 10.0.0.0/16, except: [10.0.1.0/24, 10.1.0.0/24]}}",
            ".ipBlock.except[1]",
            "strictly inside",
        ),
        (
            "{ipBlock: {cidr: 10.0.0.0/16, except: ['2001:db8::/64']}}",
            ".ipBlock.except[0]",
            "strictly inside",
        ),
        ("{ipBlock: {cidr: 10.0.0.0/16, except: [10.0.0.1/24]}}", ".ipBlock.except[0]", "bits beyond"),
        ("{ipBlock: {cidr: 10.0.0.0/16, except: 10.0.1.0/24}}", ".ipBlock.except", "must be a list"),
        ("{ipBlock: {cidr: 10.0.0.0/16, excepts: []}}", ".ipBlock.excepts", "did you mean except?"),
    ] {
        for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
            check(
                &policy(&format!("{{{direction}: [{{}}, {{{peers}: [{{podSelector: {{}}}}, {peer}]}}]}}")),
                &format!("spec.{direction}[1].{peers}[1]{field}"),
                reason,
            );
        }
    }
}

#[test]
fn selectors() {
    for (selector, field, reason) in [
        ("{matchLabels: {'a b': c}}", ".matchLabels[\"a b\"]", "letters, digits"),
        ("{matchLabels: {-a: c}}", ".matchLabels.-a", "start and end"),
        ("{matchLabels: {X.Y/a: c}}", ".matchLabels[\"X.Y/a\"]", "before its '/'"),
        ("{matchLabels: {a: 'b c'}}", ".matchLabels.a", "the value \"b c\""),
        ("{matchLabels: {a: -b}}", ".matchLabels.a", "the value"),
        (
            "{matchLabels: {a: yes}}",
            ".matchLabels.a",
            "must be a string; put it in quotes, not the boolean true",
        ),
        ("{matchLabels: {a: 1}}", ".matchLabels.a", "not the number 1"),
        ("{matchLabels: {a: 012}}", ".matchLabels.a", "put it in quotes"),
        ("{matchLabels: {a: 08}}", ".matchLabels.a", "put it in quotes"),
        ("{matchLabels: {a: 1_000}}", ".matchLabels.a", "put it in quotes"),
        ("{matchLabels: {a: [b]}}", ".matchLabels.a", "must be a string, not a list"),
        ("{matchLabels: [a]}", ".matchLabels", "must be an object"),
        (
            "{matchExpressions: [{key: a, operator: in, values: [b]}]}",
            ".matchExpressions[0].operator",
            "\"in\" is not one of In, NotIn, Exists, DoesNotExist",
        ),
        (
            "{matchExpressions: [{key: a, operator: Gt, values: ['1']}]}",
            ".matchExpressions[0].operator",
            "is not one of",
        ),
        ("{matchExpressions: [{key: a, values: [b]}]}", ".matchExpressions[0].operator", "missing"),
        ("{matchExpressions: [{operator: Exists}]}", ".matchExpressions[0].key", "missing"),
        ("{matchExpressions: [{key: '', operator: Exists}]}", ".matchExpressions[0].key", "has no name"),
        ("{matchExpressions: [{key: a, operator: In}]}", ".matchExpressions[0].values", "at least one value"),
        (
            "{matchExpressions: [{key: a, operator: NotIn, values: []}]}",
            ".matchExpressions[0].values",
            "at least one value",
        ),
        (
            "{matchExpressions: [{key: a, operator: Exists, values: [b]}]}",
            ".matchExpressions[0].values",
            "no value",
        ),
        (
            "{matchExpressions: [{key: a, operator: DoesNotExist, values: [b]}]}",
            ".matchExpressions[0].values",
            "no value",
        ),
        (
            "{matchExpressions: [{key: a, operator: In, values: [b, 'c d']}]}",
            ".matchExpressions[0].values[1]",
            "the value",
        ),
        (
            "{matchExpressions: [{key: a, operator: In, value: [b], values: [b]}]}",
            ".matchExpressions[0].value",
            "did you mean values?",
        ),
        ("{matchExpressions: {key: a}}", ".matchExpressions", "must be a list"),
    ] {
        check(&policy(&format!("{{podSelector: {selector}}}")), &format!("spec.podSelector{field}"), reason);
        check(
            &policy(&format!("{{egress: [{{to: [{{namespaceSelector: {selector}}}]}}]}}")),
            &format!("spec.egress[0].to[0].namespaceSelector{field}"),
            reason,
        );
    }
}

#[test]
fn ports() {
    for (port, field, reason) in [
        ("{port: 0}", ".port", "between 1 and 65535"),
        ("{port: 70000}", ".port", "70000 must lie between 1 and 65535"),
        ("{port: -1}", ".port", "between 1 and 65535"),
        ("{port: 80.5}", ".port", "without leading zeros, point or exponent, or a port's name"),
        ("{port: true}", ".port", "not the boolean true"),
        ("{port: '80'}", ".port", "a number stands without quotes"),
        ("{port: 0080}", ".port", "without leading zeros"),
        ("{port: 010}", ".port", "without leading zeros"),
        ("{port: 10, endPort: 012}", ".endPort", "without leading zeros"),
        ("{port: ''}", ".port", "1 to 15"),
        ("{port: HTTP}", ".port", "lower-case"),
        ("{port: a--b}", ".port", "two '-'"),
        ("{port: web-}", ".port", "start or end"),
        ("{port: sixteen-letters-}", ".port", "1 to 15"),
        ("{port: 80, endPort: 79}", ".endPort", "79 must not lie below port 80"),
        ("{port: 80, endPort: 65536}", ".endPort", "between 1 and 65535"),
        ("{port: 80, endPort: '90'}", ".endPort", "must be a whole number, without quotes"),
        ("{port: 80, endPort: x}", ".endPort", "must be a whole number"),
        ("{port: http, endPort: 90}", ".endPort", "not with a name"),
        ("{endPort: 90}", ".endPort", "needs a port"),
        ("{protocol: tcp, port: 80}", ".protocol", "\"tcp\" is not one of TCP, UDP, SCTP"),
        ("{protocol: ICMP}", ".protocol", "is not one of"),
        ("{protocol: ''}", ".protocol", "is not one of"),
        ("{protocol: 6}", ".protocol", "must be a string"),
        ("{ports: 80}", ".ports", "did you mean port?"),
        ("80", "", "must be an object, not the number 80"),
    ] {
        check(
            &policy(&format!("{{ingress: [{{ports: [{{port: 1}}, {port}]}}]}}")),
            &format!("spec.ingress[0].ports[1]{field}"),
            reason,
        );
    }
}

#[test]
fn metadata() {
    let long = "a".repeat(254);
    for (metadata, field, reason) in [
        ("{}", "metadata.name", "missing, and required"),
        ("{generateName: p-}", "metadata.generateName", "give the object one"),
        ("{name: ''}", "metadata.name", "lower-case"),
        ("{name: Upper}", "metadata.name", "lower-case"),
        ("{name: a_b}", "metadata.name", "lower-case"),
        ("{name: a..b}", "metadata.name", "lower-case"),
        ("{name: 1}", "metadata.name", "put it in quotes"),
        (&format!("{{name: {long}}}"), "metadata.name", "at most 253"),
        ("{name: p, namespace: a.b}", "metadata.namespace", "lower-case"),
        ("{name: p, namespace: Up}", "metadata.namespace", "lower-case"),
        ("{name: p, labels: {a: 'b c'}}", "metadata.labels.a", "the value"),
        ("{name: p, labels: {'a/b/c': d}}", "metadata.labels[\"a/b/c\"]", "one '/' only"),
        ("{name: p, labels: [a]}", "metadata.labels", "must be an object"),
        ("{name: p, annotations: {'a b': x}}", "metadata.annotations[\"a b\"]", "letters, digits"),
        ("{name: p, annotations: {a: 1}}", "metadata.annotations.a", "put it in quotes"),
        ("{name: p, lables: {}}", "metadata.lables", "did you mean labels?"),
        ("web", "metadata", "must be an object"),
    ] {
        check(
            &format!("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {metadata}\n"),
            field,
            reason,
        );
    }
    check("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n", "metadata", "missing");
    check(&(policy("{}") + "status: {}\n"), "status", "no such field");
    check("{apiVersion: v1, kind: Namespace, metadata: {name: a.b}}", "metadata.name", "lower-case");
    check(
        "{apiVersion: v1, kind: Namespace, metadata: {name: a, namespace: b}}",
        "metadata.namespace",
        "no namespace",
    );
}

fn pod(spec: &str, rest: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec: {spec}\n{rest}")
}

#[test]
fn pods() {
    let container = |rest: &str| format!("{{containers: [{{name: c, image: i, {rest}}}]}}");
    for (spec, field, reason) in [
        ("{}".to_string(), "spec.containers", "at least one container"),
        ("{containers: []}".into(), "spec.containers", "at least one container"),
        (
            "{hostNetwork: true, containers: [{name: c, image: i, ports: [{containerPort: 80, hostPort: 81}]}]}".into(),
            "spec.containers[0].ports[0].hostPort",
            "must be the containerPort, 80",
        ),
        ("{containers: [{image: i}]}".into(), "spec.containers[0].name", "missing"),
        ("{containers: [{name: c}]}".into(), "spec.containers[0].image", "missing"),
        ("{containers: [{name: C, image: i}]}".into(), "spec.containers[0].name", "lower-case"),
        (
            "{containers: [{name: c, image: i}, {name: c, image: i}]}".into(),
            "spec.containers[1].name",
            "another container",
        ),
        (
            "{hostNetwork: 'true', containers: [{name: c, image: i}]}".into(),
            "spec.hostNetwork",
            "true or false",
        ),
        ("{nodeName: A, containers: [{name: c, image: i}]}".into(), "spec.nodeName", "lower-case"),
        (
            "{restartPolicy: never, containers: [{name: c, image: i}]}".into(),
            "spec.restartPolicy",
            "is not one of Always, OnFailure, Never",
        ),
        (container("ports: [{name: http}]"), "spec.containers[0].ports[0].containerPort", "missing"),
        (container("ports: [{containerPort: 0}]"), "spec.containers[0].ports[0].containerPort", "between"),
        (
            container("ports: [{containerPort: '80'}]"),
            "spec.containers[0].ports[0].containerPort",
            "without quotes",
        ),
        (
            container("ports: [{containerPort: 80, hostPort: 70000}]"),
            "spec.containers[0].ports[0].hostPort",
            "between",
        ),
        (
            container("ports: [{containerPort: 80, protocol: tcp}]"),
            "spec.containers[0].ports[0].protocol",
            "TCP, UDP, SCTP",
        ),
        (
            container("ports: [{containerPort: 80, name: Web}]"),
            "spec.containers[0].ports[0].name",
            "lower-case",
        ),
        (
            container("ports: [{containerPort: 80, name: a}, {containerPort: 81, name: a}]"),
            "spec.containers[0].ports[1].name",
            "another port",
        ),
        (container("restartPolicy: Sometimes"), "spec.containers[0].restartPolicy", "is not one of"),
    ] {
        check(&pod(&spec, ""), field, reason);
    }
    for (status, field, reason) in [
        ("{podIPs: [{ip: 10.0.0.1}, {ip: 10.0.0.2}]}", "status.podIPs[1].ip", "a second IPv4 address"),
        ("{podIPs: [{ip: 10.0.0.01}]}", "status.podIPs[0].ip", "leading zeros"),
        ("{podIPs: [{ip: '::ffff:10.0.0.1'}]}", "status.podIPs[0].ip", "IPv4-mapped"),
        ("{podIPs: [{}]}", "status.podIPs[0].ip", "missing"),
        ("{podIPs: [10.0.0.1]}", "status.podIPs[0]", "must be an object"),
        ("{podIP: 10.0.0.300}", "status.podIP", "is not an IP address"),
        ("{podIP: 10.0.0.2, podIPs: [{ip: 10.0.0.1}]}", "status.podIP", "is not the first of podIPs"),
        ("{phase: Done}", "status.phase", "is not one of Pending, Running, Succeeded, Failed, Unknown"),
    ] {
        check(&pod(&container("tty: true"), &format!("status: {status}")), field, reason);
    }
    check("{apiVersion: v1, kind: Pod, metadata: {name: p}}", "spec", "missing");
}

#[test]
fn nodes() {
    let node = |rest: &str| format!("{{apiVersion: v1, kind: Node, metadata: {{name: n1}}, {rest}}}");
    for (rest, field, reason) in [
        ("spec: {podCIDRs: [10.0.0.1/24]}", "spec.podCIDRs[0]", "bits beyond"),
        ("spec: {podCIDRs: [10.0.0.0/24, 10.0.1.0/24]}", "spec.podCIDRs[1]", "a second IPv4 CIDR"),
        (
            "spec: {podCIDR: 10.0.0.0/24, podCIDRs: [10.0.1.0/24]}",
            "spec.podCIDR",
            "is not the first of podCIDRs",
        ),
        (
            "status: {addresses: [{type: InternalIP, address: n1}]}",
            "status.addresses[0].address",
            "is not an IP address",
        ),
        ("status: {addresses: [{address: 10.0.0.1}]}", "status.addresses[0].type", "missing"),
        (
            "status: {addresses: [{type: Internal, address: 10.0.0.1}]}",
            "status.addresses[0].type",
            "is not one of",
        ),
    ] {
        check(&node(rest), field, reason);
    }
}

#[test]
fn workloads() {
    let pods = "spec: {containers: [{name: c, image: i}]}";
    let deployment = |spec: &str| {
        format!("{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: d}}, spec: {{{spec}}}}}")
    };
    let template = format!("template: {{metadata: {{labels: {{a: b}}}}, {pods}}}");
    for (text, field, reason) in [
        (deployment(&template), "spec.selector", "missing"),
        (deployment(&format!("selector: {{}}, {template}")), "spec.selector", "must not be empty"),
        (
            deployment(&format!("selector: {{matchLabels: {{a: c}}}}, {template}")),
            "spec.selector",
            "does not select the pods of the template: a=c",
        ),
        (
            deployment(&format!("replicas: -1, selector: {{matchLabels: {{a: b}}}}, {template}")),
            "spec.replicas",
            "not be negative",
        ),
        (
            deployment(&format!("replicas: '2', selector: {{matchLabels: {{a: b}}}}, {template}")),
            "spec.replicas",
            "without quotes",
        ),
        (deployment("selector: {matchLabels: {a: b}}"), "spec.template", "missing"),
        (
            deployment(&format!(
                "selector: {{matchLabels: {{a: b}}}}, {}",
                template.replace("spec: {", "spec: {restartPolicy: Never, ")
            )),
            "spec.template.spec.restartPolicy",
            "must be Always in a Deployment",
        ),
        (
            format!("{{apiVersion: batch/v1, kind: Job, metadata: {{name: j}}, spec: {{{template}}}}}"),
            "spec.template.spec.restartPolicy",
            "must be OnFailure or Never in a Job",
        ),
        (
            format!(
                "{{apiVersion: batch/v1, kind: Job, metadata: {{name: {}}}, spec: {{{}}}}}",
                "a".repeat(64),
                template.replace("spec: {", "spec: {restartPolicy: Never, ")
            ),
            "metadata.name",
            "at most 63",
        ),
        (
            "{apiVersion: batch/v1, kind: CronJob, metadata: {name: j}, spec: {schedule: x}}".to_string(),
            "spec.jobTemplate",
            "missing",
        ),
        (
            format!(
                "{{apiVersion: batch/v1, kind: CronJob, metadata: {{name: {}}}, spec: {{jobTemplate: {{spec: {{{}}}}}}}}}",
                "a".repeat(53),
                template.replace("spec: {", "spec: {restartPolicy: Never, ")
            ),
            "metadata.name",
            "at most 52",
        ),
    ] {
        check(&text, field, reason);
    }
}

#[test]
fn kinds() {
    for (text, field, reason) in [
        ("{apiVersion: v1}", "kind", "missing, and required"),
        ("{kind: Pod}", "apiVersion", "missing, and required"),
        ("{apiVersion: v1, kind: ''}", "kind", "must not be empty"),
        ("{apiVersion: v1, kind: 3}", "kind", "must be a string"),
        ("just text", "the document", "must be a Kubernetes object, not the string \"just text\""),
        ("[1]", "the document", "must be a Kubernetes object, not a list"),
        ("{apiVersion: v1, kind: Podd}", "kind", "v1 has no Podd"),
        ("{apiVersion: v2, kind: Pod}", "apiVersion", "it is in v1"),
        (
            "{apiVersion: extensions/v1beta1, kind: NetworkPolicy}",
            "apiVersion",
            "it is in networking.k8s.io/v1",
        ),
        (
            "{apiVersion: networking.k8s.io/v2, kind: NetworkPolicy}",
            "apiVersion",
            "it is in networking.k8s.io/v1",
        ),
        ("{apiVersion: networking.k8s.io/v1, kind: Networkpolicy}", "kind", "has no Networkpolicy"),
        (
            "{apiVersion: policy.networking.k8s.io/v1alpha1, kind: AdminNetworkPolicy}",
            "kind",
            "verdicts would be wrong",
        ),
        (
            "{apiVersion: crd.projectcalico.org/v1, kind: GlobalNetworkPolicy}",
            "kind",
            "verdicts would be wrong",
        ),
        ("{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy}", "kind", "verdicts would be wrong"),
        (
            "{apiVersion: crd.antrea.io/v1beta1, kind: ClusterNetworkPolicy}",
            "kind",
            "verdicts would be wrong",
        ),
        ("{apiVersion: v1, kind: List, items: {}}", "items", "must be a list"),
        ("{apiVersion: v1, kind: PodList, items: {}}", "items", "must be a list"),
        ("{apiVersion: v1, kind: List, items: [3]}", "items[0]", "must be a Kubernetes object"),
        ("{apiVersion: v1, kind: List, items: [{kind: Pod}]}", "items[0].apiVersion", "missing"),
        ("{apiVersion: v1, kind: PodList, items: [{metadata: {name: a}}]}", "items[0].spec", "missing"),
        (
            "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicyList, items: [{metadata: {name: a}, spec: {x: 1}}]}",
            "items[0].spec.x",
            "no such field",
        ),
    ] {
        check(text, field, reason);
    }
}

#[test]
fn duplicate_keys_anywhere() {
    check(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec:\n  podSelector: {}\n  ingress: []\n  podSelector: {}\n",
        "spec.podSelector",
        "there twice, before at line 5",
    );
    check(
        "{apiVersion: v1, kind: ConfigMap, data: {a: x, b: y, a: z}}",
        "data.a",
        "there twice, before at line 1",
    );
    let json = r#"{"apiVersion":"v1","kind":"ConfigMap","data":{"a":"x","a":"y"}}"#;
    let errors = decode([("x.json", json.as_bytes())]).unwrap_err();
    assert_eq!(errors.to_string(), "x.json, document 1 (line 1): data.a: there twice");
}

#[test]
fn text_that_is_no_manifest() {
    let deep = "[".repeat(150) + &"]".repeat(150);
    let bomb: String = (0..8).fold("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".into(), |text, i| {
        text + &format!("a{}: &a{} [{}]\n", i + 1, i + 1, vec![format!("*a{i}"); 10].join(","))
    });
    let heavy = format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), ["*a"; 70].join(","));
    for (bytes, reason) in [
        (b"a: [1\n".as_slice(), "test.yaml, document 1 (line 1): not YAML: "),
        (b"a: b: c\n", "test.yaml, document 1 (line 1): not YAML: mapping values are not allowed"),
        (b"# fine\na: 1\n b: 2\n", "test.yaml, document 1 (line 3): not YAML: "),
        (b"", "test.yaml: empty"),
        (b"\xef\xbb\xbf \n\n", "test.yaml: empty"),
        (b"\x7fELF\x02\x01\0\0", "test.yaml: not a manifest: byte 6 is NUL"),
        (b"a: \xff\xfe", "test.yaml: not a manifest: byte 3 is not UTF-8"),
        (b"a: \x07", "not YAML"),
        (deep.as_bytes(), "nested deeper than 100 levels"),
        (bomb.as_bytes(), "aliases stand for more than 100000 values"),
        (heavy.as_bytes(), "aliases stand for more than 64 MiB of text"),
        (b"a: *nobody\n", "not YAML"),
        (b"a: {{ .Values.a }}\nb: [\n", "a Helm template must be rendered first"),
    ] {
        let errors = decode([("test.yaml", bytes)]).unwrap_err().to_string();
        assert!(errors.contains(reason), "{errors:?} lacks {reason:?}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
    }
    let json = "{\"apiVersion\": \"v1\",\n \"kind\": oops}";
    let errors = decode([("x.json", json.as_bytes())]).unwrap_err();
    assert_eq!(errors.to_string(), "x.json, document 1 (line 2): not JSON: expected value");
    let deep = "{\"a\":".repeat(200) + "1" + &"}".repeat(200);
    let errors = decode([("x.json", deep.as_bytes())]).unwrap_err();
    assert!(errors.to_string().contains("recursion limit exceeded"), "{errors}");
}

#[test]
fn a_file_that_is_too_long() {
    let long = vec![b'\n'; (64 << 20) + 1];
    let errors = decode([("test.yaml", &long[..])]).unwrap_err();
    assert_eq!(errors.to_string(), "test.yaml: longer than 64 MiB; split it");
}

#[test]
fn the_same_object_twice_names_both_places() {
    let a = "# one\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n{apiVersion: v1, kind: Namespace, metadata: {name: b}}\n";
    let b = "\n\n{apiVersion: v1, kind: Namespace, metadata: {name: a}}\n";
    let errors = decode([("a.yaml", a.as_bytes()), ("b.yaml", b.as_bytes())]).unwrap_err();
    assert_eq!(
        errors.to_string(),
        "b.yaml, document 1 (line 3): Namespace a is there already: a.yaml, document 1 (line 2)"
    );
    // A pod of the name that a workload's pod has.
    let deployment = "{apiVersion: apps/v1, kind: Deployment, metadata: {name: d}, spec: {selector: {matchLabels: {a: b}}, \
                      template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}";
    let pod = pod("{containers: [{name: c, image: i}]}", "").replace("name: p", "name: d-0");
    let errors = decode([("d.yaml", deployment.as_bytes()), ("p.yaml", pod.as_bytes())]).unwrap_err();
    assert_eq!(
        errors.to_string(),
        "d.yaml, document 1 (line 1): Pod default/d-0 is there already: p.yaml, document 1 (line 1)"
    );
    // Names are the namespace's: the same one in another is another object.
    let elsewhere = policy("{}").replace("name: p", "name: p, namespace: x");
    assert!(decode([("p.yaml", (policy("{}") + "---\n" + &elsewhere).as_bytes())]).is_ok());
    let default = policy("{}").replace("name: p", "name: p, namespace: default");
    assert!(decode([("p.yaml", (policy("{}") + "---\n" + &default).as_bytes())]).is_err());
}

#[test]
fn all_errors_of_all_documents_are_told() {
    let text = "\
# A file with something wrong in each document.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: Bad_Name
spec:
  ingress:
  - from:
    - ipBlock:
        cidr: 10.0.0.0/16
        except:
        - 10.0.0.0/8
    ports:
    - port: 0
      protocol: tcp
---
a: [
---
apiVersion: v1
kind: Pod
metadata: {name: p}
spec: {}
";
    assert_eq!(
        errors(text),
        [
            "test.yaml, document 1 (line 5): metadata.name: \"Bad_Name\" must consist of lower-case letters, digits, '-' and '.', and each part between dots start and end with a letter or digit",
            "test.yaml, document 1 (line 12): spec.ingress[0].from[0].ipBlock.except[0]: 10.0.0.0/8 must lie strictly inside the cidr 10.0.0.0/16",
            "test.yaml, document 1 (line 15): spec.ingress[0].ports[0].protocol: \"tcp\" is not one of TCP, UDP, SCTP",
            "test.yaml, document 1 (line 14): spec.ingress[0].ports[0].port: 0 must lie between 1 and 65535",
            "test.yaml, document 2 (line 17): not YAML: unclosed bracket '['",
            "test.yaml, document 3 (line 22): spec.containers: a pod needs at least one container",
        ]
        .map(String::from)
    );
}
