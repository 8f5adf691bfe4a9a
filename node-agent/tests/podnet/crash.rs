//! The agent is killed, at any moment and without a word.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use moat_agent::cni_server::CniServer;
use moat_agent::podnet::{AttachmentKey, PodNet, PodNetConfig, Prepare, read_attachments};

use crate::world::{Bare, Namespace, TestNode, addresses, in_world, node, tcp};

const STATE: &str = "MOAT_TEST_AGENT_STATE";
const CIDRS: [&str; 2] = ["10.1.0.0/27", "fd00:1::/123"];

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Not a test by itself: the process that the test below kills. It is this binary, run for this one name.
#[test]
fn agent_process() {
    let Some(folder) = std::env::var_os(STATE) else { return };
    runtime().block_on(async {
        let folder = std::path::PathBuf::from(folder);
        let config = PodNetConfig { address_rest: Duration::ZERO, ..PodNetConfig::new(&folder) };
        let podnet = PodNet::open(config).unwrap();
        podnet.set_nodes(&node("a", &["192.0.2.1"], &CIDRS), &[]).await.unwrap();
        let server = CniServer::bind(&folder.join("agent.sock")).unwrap();
        server.serve(Arc::new(Bare(podnet)), std::future::pending()).await;
    });
}

/// The process, which is killed at the latest when the test is over.
struct Agent(Child);

impl Agent {
    fn kill(mut self) {
        self.0.kill().unwrap();
        assert_eq!(self.0.wait().unwrap().signal(), Some(9));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_process(node: &TestNode) -> Agent {
    let folder = node.folder.path().to_owned();
    let child = node.ns.run(move || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::agent_process", "--nocapture"])
            .env(STATE, folder)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap()
    });
    let agent = Agent(child);
    let deadline = Instant::now() + Duration::from_secs(20);
    while std::os::unix::net::UnixStream::connect(node.socket()).is_err() {
        assert!(Instant::now() < deadline, "the agent's process does not start");
        thread::yield_now();
    }
    agent
}

/// Agents are killed while pods come and go. Whoever was told that he has an address keeps it, no one else is
/// told the same, and in the end nothing is left that nobody knows.
#[test]
fn killed_at_any_moment_no_address_has_two_owners() {
    in_world(|| {
        let node = TestNode::stopped(node("a", &["192.0.2.1"], &CIDRS));
        let plugin = node.plugin();
        crate::world::plugin_binary();
        let mut living: BTreeMap<String, (Namespace, Vec<IpAddr>)> = BTreeMap::new();
        let mut told = 0;
        for round in 0..20u64 {
            let agent = start_process(&node);
            let answers: Vec<_> = thread::scope(|scope| {
                let adding: Vec<_> = (0..4)
                    .map(|n| {
                        let plugin = &plugin;
                        scope.spawn(move || {
                            let (id, ns) = (format!("r{round}n{n}"), Namespace::new());
                            let answer = plugin.run("ADD", &id, &ns.path);
                            (id, ns, answer)
                        })
                    })
                    .collect();
                let removing: Vec<_> = living
                    .iter()
                    .take(if living.len() > 8 { 4 } else { 0 })
                    .map(|(id, (ns, _))| {
                        let (plugin, path) = (&plugin, &ns.path);
                        scope.spawn(move || {
                            // A DEL without an answer may have been carried out: either way the pod is gone for its runtime.
                            plugin.run("DEL", id, path);
                            id.clone()
                        })
                    })
                    .collect();
                // From before the first record to after the last answer, over the rounds.
                thread::sleep(Duration::from_micros(round * 1500));
                agent.kill();
                let removed: Vec<_> = removing.into_iter().map(|thread| thread.join().unwrap()).collect();
                let added: Vec<_> = adding.into_iter().map(|thread| thread.join().unwrap()).collect();
                vec![(added, removed)]
            });
            for (added, removed) in answers {
                for id in removed {
                    living.remove(&id);
                }
                for (id, ns, answer) in added {
                    if answer.success {
                        told += 1;
                        living.insert(id, (ns, addresses(&answer.ok())));
                    } else {
                        answer.fails_with(11);
                    }
                }
            }
            let mut owners: BTreeMap<IpAddr, &str> = BTreeMap::new();
            for (id, (_, addresses)) in &living {
                for &address in addresses {
                    assert_eq!(owners.insert(address, id), None, "{address} has two owners");
                }
            }
            let recorded = read_attachments(node.folder.path()).unwrap();
            for (id, (_, addresses)) in &living {
                let record = recorded
                    .iter()
                    .find(|a| a.container_id == *id)
                    .unwrap_or_else(|| panic!("{id} forgotten"));
                assert_eq!(&record.addresses().collect::<Vec<_>>(), addresses);
            }
        }
        assert!(told > 0, "every agent was killed before its first answer");
        // The living still talk; what was half-made is gone after GC, and what is left is known.
        let agent = start_process(&node);
        let ids: Vec<&str> = living.keys().map(String::as_str).collect();
        plugin.gc(&ids).ok();
        assert_eq!(node.pod_links().len(), living.len());
        let pods: Vec<_> = living.values().collect();
        for pair in pods.windows(2) {
            tcp(&pair[0].0, &pair[1].0, pair[1].1[0]);
        }
        plugin.gc(&[]).ok();
        assert!(node.pod_links().is_empty());
        assert_eq!(node.ns.sh("ip route show proto 109 | grep -v unreachable || true"), "");
        agent.kill();
    });
}

/// On a full disk no pod comes, but pods go; and what was told before still holds.
#[test]
fn a_full_disk() {
    in_world(|| {
        let mut node = TestNode::alone(&["10.1.0.0/24"]);
        let state_dir = node.state_dir();
        std::fs::create_dir(&state_dir).unwrap();
        let disk = state_dir.clone();
        node.ns.run(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            let mount = |arguments: &[&str]| {
                assert!(Command::new("mount").args(arguments).arg(&disk).status().unwrap().success());
            };
            assert!(Command::new("mount").args(["--make-rprivate", "/"]).status().unwrap().success());
            mount(&["-t", "tmpfs", "-o", "size=64k", "state"]);
        });
        node.start();
        let plugin = node.plugin();
        let (a, b) = (plugin.pod("a"), plugin.pod("b"));
        let fill = format!("cat /dev/zero > {0}/junk 2>/dev/null || test -s {0}/junk", state_dir.display());
        node.ns.sh(&fill);
        let ns = Namespace::new();
        // The file's last page may still take a record or two.
        let mut given = Vec::new();
        let refused = loop {
            let ns = Namespace::new();
            let answer = plugin.run("ADD", &format!("c{}", given.len()), &ns.path);
            if !answer.success {
                break answer;
            }
            given.push((ns, addresses(&answer.ok())));
            assert!(given.len() < 20, "the disk is not full");
        };
        let error = refused.fails_with(5);
        assert!(error["details"].as_str().unwrap().contains("No space left"), "{error}");
        assert_eq!(node.pod_links().len(), 2 + given.len());
        plugin.run("DEL", "a", &a.ns.path).ok();
        assert_eq!(node.pod_links().len(), 1 + given.len());
        tcp(&node.ns, &b.ns, b.addresses[0]);
        // An agent that starts while the disk is full serves the pods that there are.
        node.stop();
        node.start();
        plugin.check("b", &b.ns.path, &b.result).ok();
        plugin.run("ADD", "d", &ns.path).fails_with(5);
        node.ns.sh(&format!("rm {}/junk", state_dir.display()));
        let new = addresses(&plugin.run("ADD", "d", &ns.path).ok());
        assert!(!new.contains(&b.addresses[0]) && given.iter().all(|(_, old)| old != &new));
        let before = node.podnet().attachments();
        node.stop();
        node.start();
        assert_eq!(node.podnet().attachments(), before);
    });
}

/// An agent that dies between the steps of ADD leaves a link that is down; the next ADD of the same container starts
/// afresh, and so does one after GC.
#[test]
fn a_half_made_attachment_is_made_anew() {
    in_world(|| {
        let mut node = TestNode::new(&["10.1.0.0/24"]);
        let plugin = node.plugin();
        let pod = Namespace::new();
        let request = |id: &str| Prepare {
            key: AttachmentKey::new(id, "eth0"),
            network: "moat".into(),
            pod_namespace: "default".into(),
            pod_name: id.into(),
            pod_uid: None,
            netns: pod.path.clone(),
            host_ports: Vec::new(),
        };
        let half = |node: &TestNode, id: &str| {
            let (podnet, request) = (node.podnet().clone(), request(id));
            node.ns.run(move || {
                runtime().block_on(async {
                    let attachment = podnet.reserve(request).await.unwrap();
                    podnet.build(&attachment).await.unwrap();
                    attachment
                })
            })
        };
        let first = half(&node, "a");
        let state = node.ns.sh(&format!("ip -o link show {}", first.host_ifname));
        assert!(state.contains("state DOWN"), "no packet may pass before policy is in force: {state}");
        node.stop();
        node.start();
        assert_eq!(node.podnet().attachments(), std::slice::from_ref(&first));
        plugin.run("ADD", "a", &pod.path).ok();
        assert_eq!(node.pod_links(), [first.host_ifname]);
        plugin.run("DEL", "a", &pod.path).ok();

        half(&node, "b");
        node.stop();
        node.start();
        plugin.gc(&[]).ok();
        assert!(node.pod_links().is_empty() && node.podnet().attachments().is_empty());
        assert!(!pod.sh("ip link").contains("eth0"));
    });
}
