//! What ADD and DEL cost without policy: the real plugin, the agent's server and pod network, the real kernel and disk.
//!
//! ```text
//! cargo bench -p moat-agent --bench cni_add
//! ```
//!
//! A figure is the wall time of the plugin's process, from its start to its end, as a runtime sees it, with as
//! many pods attached as a full node has. Where the reference plugins `ptp` and `host-local` are in
//! `~/.cache/moat/bin`, they are measured in turns with ours, on a node of their own.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on ends by panicking")]

#[path = "../tests/podnet/world.rs"]
#[allow(dead_code, reason = "shared with the tests, which use more of it")]
mod world;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use world::{Namespace, TestNode, in_world};

/// Pods on the node besides the one that is measured.
const PRESENT: usize = 100;
const ROUNDS: usize = 200;

fn main() {
    in_world(|| {
        let reference = reference();
        println!("{PRESENT} pods present, {ROUNDS} rounds; milliseconds");
        println!("{:<34} {:>8} {:>8} {:>8} {:>8}", "", "ADD p50", "ADD p99", "DEL p50", "DEL p99");
        let (v4, v6) = ("10.1.0.0/24", "fd00:1::/64");
        for (family, cidrs) in [("IPv4", &[v4][..]), ("IPv6", &[v6][..]), ("dual stack", &[v4, v6][..])] {
            // The reference waits for duplicate address detection in IPv6, as we need not: that would compare nothing else.
            measure(family, cidrs, reference.as_deref().filter(|_| family == "IPv4"));
        }
        if reference.is_none() {
            println!("ptp and host-local are not in the cache of tools: no comparison");
        }
    });
}

fn measure(family: &str, cidrs: &[&str], reference: Option<&Path>) {
    let node = TestNode::new(cidrs);
    let plugin = node.plugin();
    let present: Vec<_> = (0..PRESENT).map(|n| plugin.pod(&format!("present{n}"))).collect();
    let other = Namespace::new();
    let state = tempfile::tempdir().unwrap();
    let ptp = |command: &str, id: &str, netns: &Path| {
        let folder = reference?;
        Some(timed(|| run_reference(&other, folder, cidrs, state.path(), command, id, netns)))
    };
    for (n, pod) in present.iter().enumerate() {
        // The reference's interface has another name, so one namespace serves both.
        ptp("ADD", &format!("present{n}"), &pod.ns.path);
    }
    let mut ours = [Vec::new(), Vec::new()];
    let mut theirs = [Vec::new(), Vec::new()];
    for n in 0..ROUNDS {
        let (id, ns, reference_ns) = (format!("measured{n}"), Namespace::new(), Namespace::new());
        for (which, command) in ["ADD", "DEL"].into_iter().enumerate() {
            ours[which].push(timed(|| {
                plugin.run(command, &id, &ns.path).ok();
            }));
            theirs[which].extend(ptp(command, &id, &reference_ns.path));
        }
    }
    print(&format!("moat, {family}"), ours);
    if reference.is_some() {
        print(&format!("ptp with host-local, {family}"), theirs);
    }
    let podnet = node.podnet().clone();
    // Inside the agent, without the plugin's process and the socket.
    let inside = node.ns.run(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut times = [Vec::new(), Vec::new()];
        for n in 0..ROUNDS {
            let pod = Namespace::new();
            let key = moat_agent::podnet::AttachmentKey::new(format!("inside{n}"), "eth0");
            let request = moat_agent::podnet::Prepare {
                key: key.clone(),
                network: "moat".into(),
                pod_namespace: "default".into(),
                pod_name: "inside".into(),
                pod_uid: None,
                netns: pod.path.clone(),
            };
            times[0].push(timed(|| {
                runtime.block_on(async {
                    let attachment = podnet.prepare(request).await.unwrap();
                    podnet.activate(&attachment).await.unwrap();
                });
            }));
            times[1].push(timed(|| {
                runtime.block_on(podnet.remove(&key)).unwrap();
            }));
        }
        times
    });
    print(&format!("  of it inside the agent, {family}"), inside);
}

fn timed(work: impl FnOnce()) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed()
}

fn print(what: &str, times: [Vec<Duration>; 2]) {
    let [add, del] = times.map(|mut times| {
        times.sort();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
        (at(50), at(99))
    });
    println!("{what:<34} {:>8.2} {:>8.2} {:>8.2} {:>8.2}", add.0, add.1, del.0, del.1);
}

/// The folder with the reference plugins, if they are there.
fn reference() -> Option<PathBuf> {
    let cache = std::env::var_os("MOAT_CACHE")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/moat")))?;
    let folder = cache.join("bin");
    ["ptp", "host-local"].iter().all(|name| folder.join(name).is_file()).then_some(folder)
}

fn run_reference(
    node: &Namespace,
    folder: &Path,
    cidrs: &[&str],
    state: &Path,
    command: &str,
    id: &str,
    netns: &Path,
) {
    let ranges: Vec<Value> = cidrs.iter().map(|cidr| json!([{ "subnet": cidr }])).collect();
    let routes: Vec<Value> = cidrs
        .iter()
        .map(|cidr| json!({ "dst": if cidr.contains(':') { "::/0" } else { "0.0.0.0/0" } }))
        .collect();
    let config = json!({
        "cniVersion": "1.0.0", "name": "reference", "type": "ptp",
        "ipam": {"type": "host-local", "ranges": ranges, "routes": routes, "dataDir": state},
    });
    let (folder, id, netns) = (folder.to_owned(), id.to_owned(), netns.to_owned());
    let command = command.to_owned();
    let output = node.run(move || {
        let mut child = Command::new(folder.join("ptp"))
            .env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", id)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "ref0")
            .env("CNI_PATH", folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
