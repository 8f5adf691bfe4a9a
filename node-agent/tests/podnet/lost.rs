//! An agent that has lost its state folder, or finds it old or damaged: the pods' links tell what it needs.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use crate::world::{Namespace, TestNode, addresses, in_world, tcp, udp};

const CIDRS: [&str; 2] = ["10.1.0.0/24", "fd00:1::/64"];

fn alias(node: &TestNode, link: &str) -> String {
    node.ns.sh(&format!("ip link show {link} | sed -n 's/^ *alias / /p'"))
}

fn host_end(result: &serde_json::Value) -> String {
    result["interfaces"][0]["name"].as_str().unwrap().to_owned()
}

#[test]
fn a_lost_state_folder_takes_nobodys_network_away() {
    in_world(|| {
        let mut node = TestNode::new(&CIDRS);
        let plugin = node.plugin();
        let (a, b) = (plugin.pod("a"), plugin.pod("b"));
        let before = node.podnet().attachments();
        node.stop();
        fs::remove_dir_all(node.state_dir()).unwrap();
        node.ns.sh("ip route del 10.1.0.1");
        node.start();
        // All but the path of the pod's namespace, which only its runtime knows.
        let mut expected = before.clone();
        expected.iter_mut().for_each(|attachment| attachment.netns = "".into());
        assert_eq!(node.podnet().attachments(), expected);
        tcp(&a.ns, &b.ns, b.addresses[0]);
        udp(&b.ns, &a.ns, a.addresses[1]);
        plugin.run("ADD", "a", &a.ns.path).fails_with(102);
        // The runtime tells it with CHECK, and from then on it is recorded.
        plugin.check("a", &a.ns.path, &a.result).ok();
        plugin.check("b", &b.ns.path, &b.result).ok();
        assert_eq!(node.podnet().attachments(), before);
        let ns = Namespace::new();
        let new = addresses(&plugin.run("ADD", "c", &ns.path).ok());
        assert!(new.iter().all(|address| !a.addresses.contains(address) && !b.addresses.contains(address)));
        plugin.run("DEL", "a", &a.ns.path).ok();
        plugin.gc(&["c"]).ok();
        assert_eq!(node.pod_links().len(), 1);
    });
}

/// Which addresses were released lately is lost, too: so all of them rest, but those that are held.
#[test]
fn after_a_loss_no_address_goes_out_before_it_has_rested() {
    in_world(|| {
        let mut node = TestNode::alone(&["10.1.0.0/24"]);
        node.rest = Duration::from_secs(3600);
        node.start();
        let plugin = node.plugin();
        let (_a, b) = (plugin.pod("a"), plugin.pod("b"));
        plugin.run("DEL", "b", &b.ns.path).ok();
        node.stop();
        fs::remove_dir_all(node.state_dir()).unwrap();
        for _ in 0..2 {
            // And a restart does not make anybody forget it.
            node.start();
            let error = plugin.run("ADD", "c", &b.ns.path).fails_with(11);
            let details = error["details"].as_str().unwrap();
            assert!(
                details.contains("253 rest for 3600 s") && details.contains("the next is free in 3"),
                "{error}"
            );
            let status = plugin.run("STATUS", "x", Path::new("/x")).fails_with(50);
            assert!(status["details"].as_str().unwrap().contains("253 rest"), "{status}");
            node.stop();
        }
    });
}

#[test]
fn what_was_released_rests_also_across_a_start() {
    in_world(|| {
        let mut node = TestNode::alone(&["10.1.0.0/30"]);
        node.rest = Duration::from_secs(3600);
        node.start();
        let plugin = node.plugin();
        let (a, _b) = (plugin.pod("a"), plugin.pod("b"));
        plugin.run("DEL", "a", &a.ns.path).ok();
        for _ in 0..2 {
            let error = plugin.run("ADD", "c", &a.ns.path).fails_with(11);
            let details = error["details"].as_str().unwrap();
            assert!(
                details
                    .contains("all 2 addresses of 10.1.0.0/30 are taken: 1 by pods, and 1 rest for 3600 s"),
                "{error}"
            );
            node.stop();
            node.start();
        }
    });
}

/// With records and alias gone nobody knows whose the link is: it is closed, and its addresses stay with it.
#[test]
fn a_link_of_which_nobody_knows_is_closed_and_keeps_its_addresses() {
    in_world(|| {
        let mut node = TestNode::new(&["10.1.0.0/29", "fd00:1::/64"]);
        let plugin = node.plugin();
        let (a, b) = (plugin.pod("a"), plugin.pod("b"));
        let link = host_end(&a.result);
        assert!(alias(&node, &link).contains(" default/a "), "{}", alias(&node, &link));
        node.stop();
        fs::remove_dir_all(node.state_dir()).unwrap();
        node.ns.sh(&format!("ip link set {link} alias \"$(printf 'somebody \\377')\""));
        for _ in 0..2 {
            node.start();
            let known: Vec<String> =
                node.podnet().attachments().into_iter().map(|a| a.container_id).collect();
            assert_eq!(known, ["b"]);
            assert_eq!(node.pod_links().len(), 2);
            assert!(node.ns.sh(&format!("ip link show {link}")).contains("state DOWN"));
            assert!(alias(&node, &link).contains(" closed 10.1.0.1,fd00:1::1"), "{}", alias(&node, &link));
            // Four are left: none of them is the closed one's, and then there are no more.
            let pods: Vec<Namespace> = (0..4).map(|_| Namespace::new()).collect();
            for (n, ns) in pods.iter().enumerate() {
                let given = addresses(&plugin.run("ADD", &format!("p{n}"), &ns.path).ok());
                assert!(given.iter().all(|address| !a.addresses.contains(address)), "{given:?}");
            }
            let error = plugin.run("ADD", "more", &Namespace::new().path).fails_with(11);
            assert!(error["details"].as_str().unwrap().contains("6 by pods"), "{error}");
            for (n, ns) in pods.iter().enumerate() {
                plugin.run("DEL", &format!("p{n}"), &ns.path).ok();
            }
            // The state file is of no help, with it or without.
            node.stop();
            fs::remove_dir_all(node.state_dir()).unwrap();
        }
        node.start();
        // GC leaves what the runtime still wants; DEL, or a GC that does not list it, sets the addresses free.
        plugin.gc(&["a", "b"]).ok();
        assert_eq!(node.pod_links().len(), 2);
        plugin.run("DEL", "a", &a.ns.path).ok();
        assert_eq!(node.pod_links().len(), 1);
        let free: Vec<IpAddr> = (0..5)
            .map(|n| (format!("q{n}"), Namespace::new()))
            .collect::<Vec<_>>()
            .iter()
            .map(|(id, ns)| addresses(&plugin.run("ADD", id, &ns.path).ok())[0])
            .collect();
        assert!(free.contains(&a.addresses[0]));
        tcp(&node.ns, &b.ns, b.addresses[0]);
    });
}

#[test]
fn a_damaged_alias_is_mended_where_the_records_know_better() {
    in_world(|| {
        let mut node = TestNode::new(&CIDRS);
        let plugin = node.plugin();
        let a = plugin.pod("a");
        let link = host_end(&a.result);
        let good = alias(&node, &link);
        node.ns.sh(&format!("ip link set {link} alias rack-7"));
        let error = plugin.check("a", &a.ns.path, &a.result).fails_with(103);
        assert!(error["details"].as_str().unwrap().contains("alias"), "{error}");
        node.stop();
        node.start();
        assert_eq!(alias(&node, &link), good);
        plugin.check("a", &a.ns.path, &a.result).ok();
    });
}

/// An old state file, as a backup brings it back, says what is no more; the links say what is.
#[test]
fn an_old_state_file_is_corrected_by_the_links() {
    in_world(|| {
        let mut node = TestNode::new(&["10.1.0.0/29"]);
        let plugin = node.plugin();
        let a = plugin.pod("a");
        let file = node.state_dir().join("attachments.journal");
        let old = fs::read(&file).unwrap();
        plugin.run("DEL", "a", &a.ns.path).ok();
        // The address comes round to another.
        let pods: Vec<_> = (0..6).map(|n| plugin.pod(&format!("p{n}"))).collect();
        assert_eq!(pods[5].addresses, a.addresses);
        node.stop();
        fs::write(&file, old).unwrap();
        node.start();
        let mut known: Vec<String> =
            node.podnet().attachments().into_iter().map(|a| a.container_id).collect();
        known.sort();
        assert_eq!(known, ["p0", "p1", "p2", "p3", "p4", "p5"]);
        for pair in pods.windows(2) {
            tcp(&pair[0].ns, &pair[1].ns, pair[1].addresses[0]);
        }
        plugin.run("ADD", "more", &a.ns.path).fails_with(11);
    });
}

/// Of two interfaces of one pod's name the newer comes last, whatever their containers are called and however often an agent
/// starts: who goes through them in order ends with the one that counts.
#[test]
fn of_two_pods_of_one_name_the_newer_comes_last() {
    in_world(|| {
        let mut node = TestNode::new(&["10.1.0.0/24"]);
        let plugin = node.plugin();
        let _pods = ["m", "z", "a"].map(|id| plugin.pod(id));
        for loss in [false, true] {
            node.stop();
            if loss {
                fs::remove_dir_all(node.state_dir()).unwrap();
            }
            node.start();
            let order: Vec<String> =
                node.podnet().attachments().into_iter().map(|a| a.container_id).collect();
            assert_eq!(order, ["m", "z", "a"]);
            let recorded = moat_agent::podnet::read_attachments(&node.state_dir()).unwrap();
            assert_eq!(recorded, node.podnet().attachments());
        }
    });
}
