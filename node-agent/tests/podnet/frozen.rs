//! A state folder as version 1 left it, frozen: an upgrade must not lose anybody's address.

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use moat_agent::podnet::read_attachments;

use crate::world::{Namespace, TestNode, addresses, in_world, tcp, udp};

/// Pods `a` and `b`, a third that is gone, an address that rests, and a record that a crash cut off.
const STATE_1: &str = include_str!("state-1/attachments.journal");

/// The links of version 1 said nothing in their aliases, so all that is known is in the file.
#[test]
fn a_state_folder_of_version_1_is_taken_over() {
    in_world(|| {
        let mut node = TestNode::alone(&["10.1.0.0/29", "fd00:1::/125"]);
        node.start();
        let plugin = node.plugin();
        let (a, gone, b) = (plugin.pod("a"), plugin.pod("gone"), plugin.pod("b"));
        plugin.run("DEL", "gone", &gone.ns.path).ok();
        let now = node.podnet().attachments();
        node.stop();
        for link in node.pod_links() {
            node.ns.sh(&format!("ip link set {link} alias ''"));
        }
        let path = |pod: &Namespace| pod.path.to_str().unwrap().to_owned();
        let state = STATE_1.replace("/run/netns/a", &path(&a.ns)).replace("/run/netns/b", &path(&b.ns));
        fs::write(node.state_dir().join("attachments.journal"), state).unwrap();
        node.rest = Duration::from_secs(3600);
        node.start();
        assert_eq!(node.podnet().attachments(), now, "what the old file says is what this release makes");
        assert_eq!(read_attachments(&node.state_dir()).unwrap(), now);
        let text = fs::read_to_string(node.state_dir().join("attachments.journal")).unwrap();
        assert!(text.starts_with(r#"{"moat":"attachments","version":2"#), "{text}");
        for pod in [&a, &b] {
            plugin.check(&pod.id, &pod.ns.path, &pod.result).ok();
        }
        for (&from, &to) in a.addresses.iter().zip(&b.addresses) {
            tcp(&a.ns, &b.ns, to);
            udp(&b.ns, &a.ns, from);
        }
        // Six addresses of each family: two are held, and one rests since before the upgrade. What is given is none of these.
        let held: Vec<IpAddr> = [&a, &gone, &b].into_iter().flat_map(|pod| pod.addresses.clone()).collect();
        let others = ["c", "d", "e"].map(|id| (id, Namespace::new()));
        for (id, ns) in &others {
            let new = addresses(&plugin.run("ADD", id, &ns.path).ok());
            assert!(new.iter().all(|address| !held.contains(address)), "{id}: {new:?}");
        }
        plugin.run("ADD", "more", &gone.ns.path).fails_with(11);
        plugin.run("DEL", "a", &a.ns.path).ok();
        assert_eq!(node.pod_links().len(), 4);
    });
}
