//! What an agent of an earlier release left in its state folder is read, and its pods stay in force.
//!
//! `state-1/` is such a folder: a and b have interfaces, and c had one.

use std::os::unix::net::UnixStream;

use crate::node::{Node, until};
use crate::space::{Space, privileged};

const JOURNAL: &str = include_str!("state-1/attachments.journal");

#[test]
fn the_state_of_an_earlier_release_is_read() {
    privileged(|| {
        let mut node = Node::new(&[], "", &[]);
        node.kill();
        let mut text = String::from(
            "{apiVersion: v1, kind: Node, metadata: {name: node}, spec: {podCIDRs: [10.0.0.0/24, 'fd00::/64']},
             status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}}\n",
        );
        for pod in ["a", "b", "c"] {
            text.push_str(&format!(
                "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {pod}, labels: {{app: {pod}}}}},
                 spec: {{nodeName: node, containers: [{{name: c, image: i}}]}}}}\n"
            ));
        }
        node.write("node.yaml", &text);
        // The interfaces that the file tells of, as they are on a node whose agent is replaced.
        let pods = [("moateec63afc466", "01", "26720"), ("moat2cfb9f7bd7d", "02", "26730")];
        let mut journal = JOURNAL.to_owned();
        let spaces: Vec<Space> = pods
            .iter()
            .map(|(ifname, n, process)| {
                let space = Space::new("pod");
                // Their pods live on, here in threads of this process.
                let lives = format!("/proc/{}/task/{}/ns/net", std::process::id(), space.thread());
                journal = journal.replace(&format!("/proc/{process}/ns/net"), &lives);
                node.space.ip(&format!(
                    "link add {ifname} address 06:6d:0a:00:00:{n} type veth peer name eth0 address \
                     02:6d:0a:00:00:{n} netns {}",
                    space.thread()
                ));
                node.space.ip(&format!("link set {ifname} up"));
                space
            })
            .collect();
        std::fs::write(node.dir.path().join("state/attachments.journal"), journal).unwrap();
        node.launch();
        until("the agent serves", || {
            assert_eq!(node.ended(), None, "{}", node.log());
            UnixStream::connect(node.run_dir().join("agent.sock")).is_ok()
        });
        let listing = node.space.command("nft -s list map inet moat to_pod");
        for (ifname, ..) in pods {
            assert!(listing.contains(&format!("\"{ifname}\" : accept")), "{listing}{}", node.log());
        }
        // c's address is not the next one's: it has been given out, and a and b have theirs.
        node.add("c");
        let address = node.pods["c"].address.to_string();
        assert!(!["10.0.0.1", "10.0.0.2", "10.0.0.3"].contains(&address.as_str()), "{address}");
        drop(spaces);
    });
}
