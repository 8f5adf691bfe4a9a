//! Processes in namespaces of their own, and the cables between them.

use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};

use crate::plan::{Node, Plan, fabric_bits};

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

/// The fabric's bridge, with the control plane's addresses.
pub(crate) fn fabric(plan: &Plan) -> String {
    let addresses = addresses(&plan.control_plane(), "fabric");
    format!("link set lo up\nlink add fabric type bridge\n{addresses}link set fabric up\n")
}

/// Usable at once, without looking for duplicates.
fn addresses(own: &[IpAddr], link: &str) -> String {
    own.iter()
        .map(|address| match address {
            IpAddr::V4(_) => format!("address add {address}/{} dev {link}\n", fabric_bits(*address)),
            IpAddr::V6(_) => format!("address add {address}/{} dev {link} nodad\n", fabric_bits(*address)),
        })
        .collect()
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
pub(crate) fn node_end(plan: &Plan, node: &Node) -> String {
    let addresses = addresses(&node.addresses, "eth0");
    let control_plane = plan.control_plane();
    let defaults: String = control_plane.iter().map(|via| format!("route add default via {via}\n")).collect();
    format!("link set lo up\n{addresses}link set eth0 up\n{defaults}")
}

/// The ways to the nodes' pods, for one of the nodes, or for the fabric.
pub(crate) fn routes(pod_cidrs: &[(Node, Vec<String>)], own: Option<&Node>) -> String {
    let others = pod_cidrs.iter().filter(|(node, _)| Some(node) != own);
    let ways = others.flat_map(|(node, cidrs)| {
        cidrs.iter().filter_map(|cidr| {
            let via = node.addresses.iter().find(|address| address.is_ipv6() == cidr.contains(':'))?;
            Some(format!("route replace {cidr} via {via}\n"))
        })
    });
    ways.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::plan;

    #[test]
    fn a_node_knows_the_way_to_all_pods_but_its_own() {
        let nodes = plan(3).nodes();
        let cidrs: Vec<_> = nodes
            .iter()
            .enumerate()
            .map(|(n, node)| (node.clone(), vec![format!("10.244.{n}.0/24")]))
            .collect();
        let routes = super::routes(&cidrs, Some(&nodes[1]));
        assert_eq!(
            routes,
            "route replace 10.244.0.0/24 via 192.168.240.11\nroute replace 10.244.2.0/24 via 192.168.240.13\n"
        );
    }

    #[test]
    fn a_cable_has_the_nodes_name_on_the_fabric() {
        let plan = Plan { dual_stack: true, ..plan(1) };
        let node = &plan.nodes()[0];
        assert!(cable(node, 7).starts_with("link add node1 type veth peer name eth0 netns 7\n"));
        let end = node_end(&plan, node);
        assert!(end.contains("address add 192.168.240.11/24 dev eth0\n"), "{end}");
        assert!(end.contains("address add fd10:240::11/64 dev eth0 nodad\n"), "{end}");
        assert!(end.contains("route add default via fd10:240::1\n"), "{end}");
    }
}
