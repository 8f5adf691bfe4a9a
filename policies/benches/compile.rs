//! How long the compiler takes, and what it holds: `cargo bench -p moat-policies --bench compile`.
//!
//! Prints for each shape: objects decoded → first commit (one thread), the most memory that the process ever had
//! (VmHWM; a process of its own for each shape; the decoded objects and all deltas are in it), and how long one pod
//! takes to come and to go.

use std::hint::black_box;
use std::net::IpAddr;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use moat_policies::*;

const NODES: usize = 100;

struct Shape {
    name: &'static str,
    to_reach: &'static str,
    objects: fn() -> Vec<Object>,
    /// A pod that is not among them.
    pod: fn(usize) -> Pod,
}

fn pod(n: usize, namespace: &str, label: &str) -> Pod {
    let [_, a, b, c] = (n as u32).to_be_bytes();
    Pod {
        name: NamespacedName::new(namespace, format!("pod-{n}")),
        labels: [(Arc::from("app"), Arc::from(label))].into(),
        node: Some(Arc::from(format!("node-{}", n % NODES))),
        addresses: vec![IpAddr::from([10, a, b, c])],
        ports: vec![ContainerPort { name: None, protocol: Protocol::Tcp, port: 80 }],
        host_network: false,
        finished: false,
        uid: None,
    }
}

fn namespace(name: &str) -> Object {
    Object::Namespace(Namespace { name: Arc::from(name), labels: Labels::new() })
}

fn from_label(namespace: &str, name: &str, subject: Selector, peer: Selector) -> Object {
    let peer = Peer::Pods { namespaces: NamespaceScope::Own, pods: peer };
    Object::Policy(NetworkPolicy {
        name: NamespacedName::new(namespace, name),
        subject,
        ingress: Some(vec![Rule { peers: Peers::Of(vec![peer]), ports: Ports::Any }]),
        egress: None,
    })
}

fn default_deny(namespace: &str) -> Object {
    Object::Policy(NetworkPolicy {
        name: NamespacedName::new(namespace, "default-deny"),
        subject: Selector::everything(),
        ingress: Some(vec![]),
        egress: Some(vec![]),
    })
}

fn app(label: &str) -> Selector {
    Selector::label("app", label)
}

fn many_namespaces() -> Vec<Object> {
    (0..25_000)
        .flat_map(|n| {
            let ns = format!("ns-{n}");
            let labels = ["a", "a", "b", "b"];
            let pods: Vec<Object> = (0..4).map(|i| Object::Pod(pod(n * 4 + i, &ns, labels[i]))).collect();
            let policies = ["a", "b"].map(|l| from_label(&ns, &format!("self-{l}"), app(l), app(l)));
            [namespace(&ns), default_deny(&ns)].into_iter().chain(pods).chain(policies)
        })
        .collect()
}

fn big_namespaces() -> Vec<Object> {
    (0..100)
        .flat_map(|n| {
            let ns = format!("ns-{n}");
            let pods: Vec<Object> =
                (0..1000).map(|i| Object::Pod(pod(n * 1000 + i, &ns, &format!("l{}", i % 100)))).collect();
            let policies: Vec<Object> = (0..100)
                .map(|l| {
                    let label = format!("l{l}");
                    from_label(&ns, &format!("self-{l}"), app(&label), app(&label))
                })
                .collect();
            [namespace(&ns), default_deny(&ns)].into_iter().chain(pods).chain(policies)
        })
        .collect()
}

fn one_label() -> Vec<Object> {
    let pods = (0..10_000).map(|i| Object::Pod(pod(i, "one", "x")));
    let policies = (0..10_000).map(|i| from_label("one", &format!("policy-{i}"), app("x"), app("x")));
    [namespace("one")].into_iter().chain(pods).chain(policies).collect()
}

fn a_label_each() -> Vec<Object> {
    let pods = (0..10_000).map(|i| Object::Pod(pod(i, "one", &format!("l{i}"))));
    let policies = (0..10_000).map(|i| {
        from_label(
            "one",
            &format!("policy-{i}"),
            app(&format!("l{i}")),
            app(&format!("l{}", (i + 1) % 10_000)),
        )
    });
    [namespace("one")].into_iter().chain(pods).chain(policies).collect()
}

const SHAPES: [Shape; 4] = [
    Shape {
        name: "25,000 namespaces x 4 pods, 75k policies",
        to_reach: "1.0 s, 400 MB",
        objects: many_namespaces,
        pod: |n| pod(200_000 + n, &format!("ns-{}", n % 25_000), "a"),
    },
    Shape {
        name: "100 namespaces x 1,000 pods, 10,100 policies",
        to_reach: "0.5 s, 250 MB",
        objects: big_namespaces,
        pod: |n| pod(200_000 + n, &format!("ns-{}", n % 100), &format!("l{}", n / 100 % 100)),
    },
    Shape {
        name: "10k pods of one label, 10k policies select all",
        to_reach: "0.3 s, 100 MB",
        objects: one_label,
        pod: |n| pod(200_000 + n, "one", "x"),
    },
    Shape {
        name: "10k pods, a label and a policy each",
        to_reach: "0.3 s, 100 MB",
        objects: a_label_each,
        pod: |n| pod(200_000 + n, "one", &format!("l{}", n % 10_000)),
    },
];

const ROUNDS: usize = 5;

fn main() -> ExitCode {
    // `cargo bench` hands over `--bench`; a number is our own call for one shape.
    if let Some(shape) = std::env::args().nth(1).and_then(|a| a.parse::<usize>().ok()) {
        one_shape(&SHAPES[shape]);
        return ExitCode::SUCCESS;
    }
    println!(
        "{:<48} {:>15} {:>9} {:>9} {:>9}  {:>20}  {:>20}",
        "full build, one thread",
        "to reach",
        "median",
        "on CPU",
        "memory",
        "pod added p50/p99",
        "pod removed p50/p99"
    );
    for shape in 0..SHAPES.len() {
        let this = std::env::current_exe().expect("a running program has a path");
        let status = Command::new(this).arg(shape.to_string()).status();
        if !status.is_ok_and(|s| s.success()) {
            return ExitCode::FAILURE;
        }
    }
    wide_changes();
    ExitCode::SUCCESS
}

fn one_shape(shape: &Shape) {
    let mut times = Vec::new();
    let mut memory = 0;
    let mut steps = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let objects = (shape.objects)();
        let start_cpu = on_cpu();
        let start = Instant::now();
        let mut cluster = Cluster::new();
        cluster.reset(objects);
        let deltas = cluster.commit();
        times.push((start.elapsed(), on_cpu() - start_cpu));
        black_box(&deltas);
        if round == 0 {
            memory = most_memory();
        }
        drop(deltas);
        steps = one_pod(&mut cluster, shape.pod);
    }
    times.sort_unstable();
    println!(
        "{:<48} {:>15} {:>7.3} s {:>7.3} s {:>6} MB  {:>20}  {:>20}",
        shape.name,
        shape.to_reach,
        times[ROUNDS / 2].0.as_secs_f64(),
        times[ROUNDS / 2].1.as_secs_f64(),
        memory / 1_000,
        percentiles(steps.0),
        percentiles(steps.1),
    );
}

/// How long this thread has been on a CPU: what `median` would be on a machine with nothing else to do.
fn on_cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(stat.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0))
}

/// `VmHWM` of this process, in kB.
fn most_memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches("kB").trim().parse().unwrap_or(0)
}

fn one_pod(cluster: &mut Cluster, pod: fn(usize) -> Pod) -> (Vec<Duration>, Vec<Duration>) {
    let (mut added, mut removed) = (Vec::new(), Vec::new());
    for n in 0..2_000 {
        let pod = pod(n);
        let key = Key::Pod(pod.name.clone());
        let start = Instant::now();
        cluster.apply(Object::Pod(pod));
        black_box(cluster.commit());
        added.push(start.elapsed());
        let start = Instant::now();
        cluster.delete(&key);
        black_box(cluster.commit());
        removed.push(start.elapsed());
    }
    (added, removed)
}

fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
    format!("{:.1}/{:.1} us", at(0.5), at(0.99))
}

fn timed(name: &str, cluster: &mut Cluster, change: impl Fn(&mut Cluster, usize)) {
    let times = (0..21)
        .map(|n| {
            let start = Instant::now();
            change(cluster, n);
            black_box(cluster.commit());
            start.elapsed()
        })
        .collect();
    println!("{name:<80} p50/p99 {}", percentiles(times));
}

/// Changes that touch much: one namespace's label that 10k policies ask for, and one policy that selects all.
fn wide_changes() {
    println!();
    for pods in [10, 100, 1_000] {
        // 10k policies, each with a peer of its own in the namespaces with `team=red`.
        let mut cluster = Cluster::new();
        cluster.apply(namespace("source"));
        for i in 0..pods {
            cluster.apply(Object::Pod(pod(i, "source", &format!("l{i}"))));
        }
        for i in 0..10_000 {
            let label = format!("s{i}");
            cluster.apply(Object::Pod(pod(100_000 + i, "shop", &label)));
            let peer = Peer::Pods {
                namespaces: NamespaceScope::Selected(Selector::label("team", "red")),
                pods: app(&format!("l{}", i % pods)),
            };
            cluster.apply(Object::Policy(NetworkPolicy {
                name: NamespacedName::new("shop", format!("policy-{i}")),
                subject: app(&label),
                ingress: Some(vec![Rule { peers: Peers::Of(vec![peer]), ports: Ports::Any }]),
                egress: None,
            }));
        }
        cluster.commit();
        timed(
            &format!("a namespace's label changes: 10k policies ask for it, {pods} pods in it"),
            &mut cluster,
            |c, n| {
                let team = if n % 2 == 0 { "red" } else { "blue" };
                let labels = [(Arc::from("team"), Arc::from(team))].into();
                c.apply(Object::Namespace(Namespace { name: Arc::from("source"), labels }));
            },
        );
    }
    for labels in [1, 1_000, 100_000] {
        let mut cluster = Cluster::new();
        for i in 0..100_000 {
            cluster.apply(Object::Pod(pod(i, "one", &format!("l{}", i % labels))));
        }
        cluster.commit();
        timed(
            &format!("one policy selects all 100k pods ({labels} kinds of labels)"),
            &mut cluster,
            |c, n| {
                if n % 2 == 0 {
                    c.apply(default_deny("one"));
                } else {
                    c.delete(&Key::Policy(NamespacedName::new("one", "default-deny")));
                }
            },
        );
    }
}
