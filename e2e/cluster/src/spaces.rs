//! Processes in namespaces of their own, and the cables between them.

use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};

use crate::plan::{CONTROL_PLANE, FABRIC_BITS, Node};

/// Starts a program in new namespaces. A thread of its own enters them and ends: this process stays where it is.
pub(crate) fn spawn_in(namespaces: CloneFlags, mut command: Command) -> Result<Child> {
    let thread = thread::spawn(move || {
        unshare(namespaces).context("cannot make namespaces")?;
        command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))
    });
    thread.join().unwrap_or_else(|_| bail!("the thread that makes namespaces panicked"))
}

/// Runs `ip` with a list of commands, in the namespace that this process is in.
pub(crate) fn ip(batch: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]);
    run_ip(command, batch)
}

/// The same, in the network of another process.
pub(crate) fn ip_of(process: u32, batch: &str) -> Result<()> {
    let mut command = Command::new("nsenter");
    command.args(["--target", &process.to_string(), "--net", "ip", "-batch", "-"]);
    run_ip(command, batch)
}

fn run_ip(mut command: Command, batch: &str) -> Result<()> {
    let mut child = command
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run ip, of the package iproute2")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(batch.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("ip refuses: {}\nof:\n{batch}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// The fabric's bridge, with the control plane's address.
pub(crate) fn fabric() -> String {
    format!(
        "link set lo up\n\
         link add fabric type bridge\n\
         address add {CONTROL_PLANE}/{FABRIC_BITS} dev fabric\n\
         link set fabric up\n"
    )
}

/// A node's cable: from the bridge to the network of the node's first process.
pub(crate) fn cable(node: &Node, process: u32) -> String {
    let port = node.port();
    format!(
        "link add {port} type veth peer name eth0 netns {process}\n\
         link set {port} master fabric\n\
         link set {port} up\n"
    )
}

/// A node's end of it. Everything that is nobody's here goes to the fabric, and ends there.
pub(crate) fn node_end(node: &Node) -> String {
    let address = node.address;
    format!(
        "link set lo up\n\
         address add {address}/{FABRIC_BITS} dev eth0\n\
         link set eth0 up\n\
         route add default via {CONTROL_PLANE}\n"
    )
}

/// The ways to the nodes' pods, for one of the nodes, or for the fabric.
pub(crate) fn routes(pod_cidrs: &[(Node, String)], own: Option<&Node>) -> String {
    let others = pod_cidrs.iter().filter(|(node, _)| Some(node) != own);
    others.map(|(node, cidr)| format!("route replace {cidr} via {}\n", node.address)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::plan;

    #[test]
    fn a_node_knows_the_way_to_all_pods_but_its_own() {
        let nodes = plan(3).nodes();
        let cidrs: Vec<_> =
            nodes.iter().enumerate().map(|(n, node)| (node.clone(), format!("10.244.{n}.0/24"))).collect();
        let routes = super::routes(&cidrs, Some(&nodes[1]));
        assert_eq!(
            routes,
            "route replace 10.244.0.0/24 via 192.168.240.11\nroute replace 10.244.2.0/24 via 192.168.240.13\n"
        );
    }

    #[test]
    fn a_cable_has_the_nodes_name_on_the_fabric() {
        let node = &plan(1).nodes()[0];
        assert!(cable(node, 7).starts_with("link add node1 type veth peer name eth0 netns 7\n"));
        assert!(node_end(node).contains("address add 192.168.240.11/24 dev eth0\n"));
    }
}
