//! What the agent holds: a real one, that protects the pods of its node; told by a real controller, or from a folder itself.
//!
//! ```text
//! cargo xtask bench memory           (cargo bench -p moat-agent --bench memory)
//! ```
//!
//! A hundred thousand pods on forty other nodes, in four hundred files of many documents; 250 pods of this node, added by the
//! real plugin; a policy for each namespace, and one that lets all pods of the cluster in, so that one allow set holds every
//! address. All of it twice: once with a controller that reads the folder and tells the agent over its socket what its pods need.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on ends by panicking")]

#[path = "../tests/podnet/world.rs"]
#[allow(dead_code, reason = "shared with the tests, which use more of it")]
mod netns;
#[path = "../tests/agent/world.rs"]
#[allow(dead_code, reason = "shared with the tests, which use more of it")]
mod world;

use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use netns::{binary, in_world};
use world::{Pod, World};

const PEERS: usize = 100_000;
const NODES: usize = 40;
const NAMESPACES: usize = 100;
const FILES: usize = 400;
const PODS: usize = 250;
/// The pods of this node are in the first of the namespaces.
const NAMESPACES_HERE: usize = 10;
/// How long nothing changes while the processor time is counted.
const REST: Duration = Duration::from_secs(10);

fn main() {
    in_world(|| {
        println!("{:<52} {:>9} {:>12} {:>11}", "", "ready ms", "resident MB", "at most MB");
        println!("told by a controller");
        measure(true);
        println!("from a folder");
        measure(false);
    });
}

fn measure(told: bool) {
    let mut world = World::new();
    let controller = told.then(|| Controller::start(&mut world));
    let took = start(&mut world);
    row("no pods, no peers", &world, Some(took));
    rest(&world);
    drop((world, controller));

    let mut world = World::new();
    write_cluster(&world);
    let controller = told.then(|| Controller::start(&mut world));
    let took = start(&mut world);
    row("100,000 peers elsewhere, no pod here yet", &world, Some(took));
    let pods: Vec<Pod> = (0..PODS).map(|n| world.add_in(&here(n), &format!("here-{n}"))).collect();
    row("250 pods added", &world, None);
    rest(&world);
    world.kill();
    let took = start(&mut world);
    row("started anew, 250 pods and 100,000 peers there", &world, Some(took));
    let kernel = world.node.sh("nft list table inet moat | wc -c");
    println!("    the table as nft prints it: {} bytes", kernel.trim());
    rest(&world);
    drop((world, pods, controller));
}

/// A real controller, beside the node.
struct Controller {
    process: Child,
    _folder: tempfile::TempDir,
}

impl Controller {
    /// Starts one that reads the node's folder, for the agent to follow.
    fn start(world: &mut World) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let endpoint = format!("unix:{}", folder.path().join("controller.sock").display());
        let mut command = Command::new(binary("moat-controller"));
        command.arg("--manifests").arg(world.manifests()).args(["--listen", &endpoint]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        world.follows = Some(endpoint);
        let process = world.node.run(move || command.spawn().unwrap());
        Self { process, _folder: folder }
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        // It has nothing that would have to be kept.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// How long it took.
fn start(world: &mut World) -> Duration {
    let begin = Instant::now();
    world.start_ready();
    begin.elapsed()
}

fn row(what: &str, world: &World, took: Option<Duration>) {
    let mb = |field: &str| world.memory(field) as f64 / 1024.0;
    let took = took.map(|took| format!("{:.0}", took.as_secs_f64() * 1e3)).unwrap_or_default();
    println!("{what:<52} {took:>9} {:>12.1} {:>11.1}", mb("VmRSS"), mb("VmHWM"));
}

/// What the agent does while nothing happens.
fn rest(world: &World) {
    let before = world.ticks();
    thread::sleep(REST);
    println!(
        "    at rest for {REST:?}: {} clock ticks, {:.1} MB",
        world.ticks() - before,
        world.memory("VmRSS") as f64 / 1024.0
    );
}

fn here(n: usize) -> String {
    format!("team-{}", n % NAMESPACES_HERE)
}

fn write_cluster(world: &World) {
    for node in 0..NODES {
        world.write(
            &format!("node-{node}.yaml"),
            &format!(
                "{{apiVersion: v1, kind: Node, metadata: {{name: node-{node}}}, spec: {{podCIDR: 10.{}.0.0/16}}, \
                 status: {{addresses: [{{type: InternalIP, address: 192.0.2.{}}}]}}}}\n",
                node + 16,
                node + 10
            ),
        );
    }
    for n in 0..PODS {
        world.write(&format!("here-{n}.yaml"), &World::pod_text_in(&here(n), &format!("here-{n}")));
    }
    for file in 0..FILES {
        let pods = PEERS / FILES;
        let text: String = (file * pods..(file + 1) * pods).map(peer).collect();
        world.write(&format!("pods-{file}.yaml"), &text);
    }
    for n in 0..NAMESPACES {
        world.write(
            &format!("team-{n}.yaml"),
            &format!(
                "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: team-{n}\n  labels: {{team: team-{n}}}\n---\n\
                 apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: among-themselves, namespace: \
                 team-{n}}}\nspec:\n  podSelector: {{}}\n  policyTypes: [Ingress, Egress]\n  ingress: [{{from: \
                 [{{podSelector: {{}}}}]}}]\n  egress: [{{to: [{{podSelector: {{}}}}]}}]\n"
            ),
        );
    }
    world.write(
        "everybody.yaml",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: everybody, namespace: team-0}\nspec:\n  \
         podSelector: {}\n  ingress: [{from: [{namespaceSelector: {}}], ports: [{port: 80}]}]\n",
    );
}

/// One pod of another node, as somebody would write it who keeps what the cluster says.
fn peer(n: usize) -> String {
    let (node, namespace, app) = (n % NODES, n % NAMESPACES, n / NAMESPACES % 20);
    let of_node = n / NODES;
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: app-{app}-5d8f7c{app:02}-{n:05x}\n  namespace: team-{namespace}\n  \
         labels:\n    app: app-{app}\n    pod-template-hash: 5d8f7c{app:02}\n    tier: backend\nspec:\n  nodeName: node-{node}\n  \
         containers:\n  - name: main\n    image: registry.example/app-{app}:1.2.3\n    ports:\n    - {{name: http, \
         containerPort: 8080}}\nstatus:\n  phase: Running\n  podIP: 10.{}.{}.{}\n  podIPs: [{{ip: 10.{}.{}.{}}}]\n",
        node + 16,
        of_node / 250,
        of_node % 250 + 1,
        node + 16,
        of_node / 250,
        of_node % 250 + 1,
    )
}
