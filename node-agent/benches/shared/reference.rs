//! Nodes whose pods are made by the reference plugins: Debian's package containernetworking-plugins, without any policy.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::world::{self, Namespace};

/// Where Debian puts the reference plugins.
const REFERENCE: &str = "/usr/lib/cni";

/// A node with one of the reference plugins and `host-local`.
pub(crate) struct Reference {
    pub(crate) node: Namespace,
    plugin: &'static str,
    config: Value,
    _state: tempfile::TempDir,
}

/// Whether the reference plugins are here; says how they would be, where they are not.
pub(crate) fn is_here() -> bool {
    let here = ["ptp", "bridge", "host-local"].iter().all(|name| Path::new(REFERENCE).join(name).exists());
    if !here {
        println!(
            "no {REFERENCE}/ptp and bridge to compare with: `cargo xtask setup` installs containernetworking-plugins"
        );
    }
    here
}

impl Reference {
    /// In the namespace of a node that has its links, the plugin `ptp` or `bridge` with addresses out of these prefixes.
    pub(crate) fn at(node: Namespace, plugin: &'static str, cidrs: &[&str]) -> Self {
        let state = tempfile::tempdir().unwrap();
        let ranges: Vec<Value> = cidrs.iter().map(|cidr| json!([{ "subnet": cidr }])).collect();
        let everything = |cidr: &&str| if cidr.contains(':') { "::/0" } else { "0.0.0.0/0" };
        let routes: Vec<Value> = cidrs.iter().map(|cidr| json!({ "dst": everything(cidr) })).collect();
        let mut config = json!({
            "cniVersion": "1.0.0", "name": "reference", "type": plugin,
            "ipam": {"type": "host-local", "ranges": ranges, "routes": routes, "dataDir": state.path()},
        });
        if plugin == "bridge" {
            config["isGateway"] = true.into();
        }
        Self { node, plugin, config, _state: state }
    }

    /// Runs a command about the interface eth0 of the container `id` in the namespace at `netns`; its answer.
    pub(crate) fn run(&self, command: &str, id: &str, netns: &Path) -> Value {
        let mut process = Command::new(PathBuf::from(REFERENCE).join(self.plugin));
        process
            .env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", id)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", REFERENCE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = world::spawn_in(&self.node.path, process);
        child.stdin.take().unwrap().write_all(self.config.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }
}
