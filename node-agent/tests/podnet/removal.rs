//! Pods that go while no agent runs, and what the next agent makes of it.

use std::fs;
use std::time::Duration;

use moat_cni::note;

use crate::world::{Namespace, TestNode, addresses, in_world, tcp};

#[test]
fn a_pod_goes_without_an_agent() {
    in_world(|| {
        let mut node = TestNode::new(&["10.1.0.0/24", "fd00:1::/64"]);
        let plugin = node.plugin();
        let (a, b) = (plugin.pod("a"), plugin.pod("b"));
        node.stop();
        for _ in 0..2 {
            plugin.run("DEL", "a", &a.ns.path).ok();
            assert_eq!(node.pod_links().len(), 1);
            assert!(!a.ns.sh("ip link").contains("eth0"), "both ends are gone");
        }
        let notes = note::folder(&node.socket());
        assert_eq!(note::read_all(&notes).unwrap().len(), 1);
        node.start();
        assert!(note::read_all(&notes).unwrap().is_empty(), "worked off");
        let known: Vec<String> = node.podnet().attachments().into_iter().map(|a| a.container_id).collect();
        assert_eq!(known, ["b"]);
        tcp(&node.ns, &b.ns, b.addresses[0]);
        assert_eq!(addresses(&plugin.run("ADD", "a", &a.ns.path).ok())[0].to_string(), "10.1.0.3");
    });
}

/// The plugin died between its note and the link: the agent does the rest before anything else.
#[test]
fn a_note_is_worked_off_to_its_end() {
    in_world(|| {
        let mut node = TestNode::new(&["10.1.0.0/24"]);
        let plugin = node.plugin();
        let a = plugin.pod("a");
        node.stop();
        let mut dying = plugin.clone();
        dying.die_at = Some("note left");
        assert!(!dying.run("DEL", "a", &a.ns.path).success);
        assert_eq!(node.pod_links().len(), 1, "the link is still there");
        node.start();
        assert!(node.pod_links().is_empty() && node.podnet().attachments().is_empty());
    });
}

/// A note that was left behind is about one link, not about one that a container of the same name got later.
#[test]
fn an_old_note_does_not_remove_the_new_container_of_its_name() {
    in_world(|| {
        let mut node = TestNode::new(&["10.1.0.0/24"]);
        let plugin = node.plugin();
        let a = plugin.pod("a");
        node.stop();
        plugin.run("DEL", "a", &a.ns.path).ok();
        let notes = note::folder(&node.socket());
        let name = note::read_all(&notes).unwrap()[0].0.clone();
        let old = fs::read(notes.join(&name)).unwrap();
        node.start();
        // The container's name is used again, and the note comes back from wherever it was.
        let again = plugin.pod("a");
        for boot in [None, Some("another boot")] {
            let mut note: serde_json::Value = serde_json::from_slice(&old).unwrap();
            if let Some(boot) = boot {
                // Even with the new link's index, where that is of another boot of the machine.
                let index = node.ns.sh(&format!("ip -o link show {name} | cut -d: -f1"));
                note["link"] = index.trim().parse::<u32>().unwrap().into();
                note["boot"] = boot.into();
            }
            node.stop();
            fs::create_dir_all(&notes).unwrap();
            fs::write(notes.join(&name), note.to_string()).unwrap();
            node.start();
            plugin.check("a", &again.ns.path, &again.result).ok();
            tcp(&node.ns, &again.ns, again.addresses[0]);
            assert!(note::read_all(&notes).unwrap().is_empty(), "and it is dropped");
        }
        // ADD takes an old note back as well.
        plugin.run("DEL", "a", &again.ns.path).ok();
        fs::write(notes.join(&name), &old).unwrap();
        plugin.run("ADD", "a", &again.ns.path).ok();
        assert!(note::read_all(&notes).unwrap().is_empty());
    });
}

/// Damaged notes are dropped and said; they keep no agent from starting.
#[test]
fn a_damaged_note_is_dropped() {
    in_world(|| {
        let mut node = TestNode::new(&["10.1.0.0/24"]);
        let plugin = node.plugin();
        let a = plugin.pod("a");
        node.stop();
        let notes = note::folder(&node.socket());
        fs::create_dir_all(&notes).unwrap();
        let link = a.result["interfaces"][0]["name"].as_str().unwrap();
        fs::write(notes.join(link), "{\"container_id\":").unwrap();
        node.start();
        plugin.check("a", &a.ns.path, &a.result).ok();
        assert!(note::read_all(&notes).unwrap().is_empty());
    });
}

/// An agent that starts and a plugin that removes meet at every point of both: whoever comes first, the pod is gone in the end
/// and nothing of it is left.
#[test]
fn an_agent_that_starts_meets_a_pod_that_goes() {
    in_world(|| {
        let mut node = TestNode::alone(&["10.1.0.0/24"]);
        node.rest = Duration::ZERO;
        for round in 0..30u64 {
            node.start();
            let plugin = node.plugin();
            let a = plugin.pod("a");
            node.stop();
            let path = a.ns.path.clone();
            let going = {
                let plugin = plugin.clone();
                std::thread::spawn(move || {
                    // From long before the agent listens to after it, over the rounds.
                    std::thread::sleep(Duration::from_micros(round * 150));
                    plugin.run("DEL", "a", &path).ok();
                })
            };
            node.start();
            going.join().unwrap();
            let left = node.podnet().clone();
            // As the agent does once it listens.
            node.ns.run(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                runtime.block_on(async {
                    for key in left.noted().await.unwrap() {
                        left.remove(&key).await.unwrap();
                    }
                });
            });
            assert!(node.pod_links().is_empty(), "round {round}");
            assert!(node.podnet().attachments().is_empty(), "round {round}");
            assert!(note::read_all(&note::folder(&node.socket())).unwrap().is_empty(), "round {round}");
            node.stop();
            drop(Namespace::new());
        }
    });
}
