//! The first process of a node: makes the node's own view of the machine, and runs what a node runs.
//!
//! ```text
//!   keeper ──"cabled"──▶ mounts, address, containerd, images ──"started"──▶ keeper
//!   keeper ──"join"────▶ kubelet, kube-proxy; then reap for ever
//! ```
//!
//! All standard paths are the node's own: /run and /var/lib are empty, /etc and /opt are the machine's with changes that only the
//! node sees.

use std::fs;
use std::io::BufRead as _;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};

use crate::config::CONTAINERD_SOCKET;
use crate::daemon::{Daemon, Running, hold};
use crate::plan::{Node, Plan, text};
use crate::{cgroups, spaces};

/// Kernel settings of the whole machine that a kubelet wants so, and would write: the node sees files in their place.
const TUNABLES: &[(&str, &str)] = &[
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];
/// The reference plugins, as Debian puts them.
const REFERENCE_PLUGINS: &str = "/usr/lib/cni";
const PLUGINS: &str = "/opt/cni/bin";
const PATIENCE: Duration = Duration::from_secs(60);

/// What the keeper says when the cable is there.
pub(crate) const CABLED: &str = "cabled";
/// What the node says when images can be run.
pub(crate) const STARTED: &str = "started";
/// What the keeper says when there is an API server to join.
pub(crate) const JOIN: &str = "join";

/// Runs the node, for ever.
pub(crate) fn run(plan: &Plan, name: &str) -> Result<()> {
    let nodes = plan.nodes();
    let node = nodes.iter().find(|node| node.name == name).context("the plan has no such node")?;
    // How the keeper's command finds it: among the keeper's children, by name.
    rustix::thread::set_name(&std::ffi::CString::new(name)?)?;
    hear(CABLED)?;
    rustix::system::sethostname(name.as_bytes())?;
    mounts(node).with_context(|| format!("cannot make the mounts of {name}"))?;
    spaces::ip(&spaces::node_end(plan, node))?;
    for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"].iter().take(node.addresses.len()) {
        fs::write(Path::new("/proc/sys/net").join(switch), "1").context("cannot let the node forward")?;
    }
    plugins()?;
    let mut all = vec![containerd(node)?];
    import(plan)?;
    println!("{STARTED}");
    hear(JOIN)?;
    all.push(kubelet(plan, node).start()?);
    all.push(kube_proxy(plan, node).start()?);
    hold(all)
}

fn hear(word: &str) -> Result<()> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    if line.trim() != word {
        bail!("expected {word:?} of the keeper, and heard {line:?}");
    }
    Ok(())
}

fn mounts(node: &Node) -> Result<()> {
    // Nothing goes to the keeper, whose mounts are private already, nor to the machine.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let own = |name: &str| -> Result<PathBuf> {
        let folder = node.folder.join(name);
        fs::create_dir_all(&folder)?;
        Ok(folder)
    };
    cgroups::fresh_sys()?;
    mount("proc", "/proc", "proc", MountFlags::empty(), None)?;
    for (tunable, value) in TUNABLES {
        let file = own("tunables")?.join(tunable.replace('/', "."));
        fs::write(&file, value)?;
        mount_bind(&file, Path::new("/proc/sys").join(tunable))?;
    }
    let scratch = own("scratch")?;
    mount("scratch", &scratch, "tmpfs", MountFlags::empty(), None)?;
    for folder in ["etc", "opt"] {
        let (upper, work) = (scratch.join(folder), scratch.join(format!("{folder}.work")));
        fs::create_dir_all(&upper)?;
        fs::create_dir_all(&work)?;
        let layers = format!("lowerdir=/{folder},upperdir={},workdir={}", text(&upper), text(&work));
        let layers = std::ffi::CString::new(layers)?;
        mount("overlay", format!("/{folder}"), "overlay", MountFlags::empty(), Some(layers.as_c_str()))?;
    }
    mount("run", "/run", "tmpfs", MountFlags::empty(), None)?;
    mount_bind(own("var-lib")?, "/var/lib")?;
    mount_bind(own("var-log")?, "/var/log")?;
    fs::create_dir_all("/etc/cni/net.d")?;
    mount_bind(own("cni")?, "/etc/cni/net.d")?;
    fs::create_dir_all(PLUGINS)?;
    fs::write("/etc/hostname", format!("{}\n", node.name))?;
    // Within the node, they go to its containers.
    mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC)?;
    Ok(())
}

/// The reference plugins, where containerd looks for them: as on most machines, and older ones of it do not work without `loopback`.
fn plugins() -> Result<()> {
    let plugins =
        fs::read_dir(REFERENCE_PLUGINS).with_context(|| format!("cannot read {REFERENCE_PLUGINS}"))?;
    for plugin in plugins {
        let plugin = plugin?;
        let to = Path::new(PLUGINS).join(plugin.file_name());
        symlink(plugin.path(), &to).with_context(|| format!("cannot link {}", to.display()))?;
    }
    Ok(())
}

fn containerd(node: &Node) -> Result<Running> {
    let config = format!("--config={}", text(node.config("containerd.toml")));
    let mut running = Daemon::new("containerd", "containerd", [config], node.logs()).start()?;
    running.wait_until(PATIENCE, || UnixStream::connect(CONTAINERD_SOCKET).is_ok())?;
    Ok(running)
}

/// Brings every image archive into the node's containerd: there is no registry to pull from.
fn import(plan: &Plan) -> Result<()> {
    for archive in &plan.images {
        let mut command = Command::new("ctr");
        command.args(["--namespace", "k8s.io", "images", "import"]).arg(archive);
        let output = command.output().context("cannot run ctr, of the package containerd")?;
        if !output.status.success() {
            bail!("ctr cannot import {}: {}", archive.display(), String::from_utf8_lossy(&output.stderr));
        }
    }
    Ok(())
}

fn kubelet(plan: &Plan, node: &Node) -> Daemon {
    let addresses: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
    let arguments = [
        format!("--config={}", text(node.config("kubelet.json"))),
        format!("--kubeconfig={}", text(plan.inner_kubeconfig(&node.name))),
        format!("--hostname-override={}", node.name),
        format!("--node-ip={}", addresses.join(",")),
        "--root-dir=/var/lib/kubelet".into(),
        "--cert-dir=/var/lib/kubelet/pki".into(),
    ];
    Daemon::new("kubelet", plan.kubernetes("kubelet"), arguments, node.logs())
}

fn kube_proxy(plan: &Plan, node: &Node) -> Daemon {
    let config = format!("--config={}", text(node.config("proxy.json")));
    Daemon::new("kube-proxy", plan.kubernetes("kube-proxy"), [config], node.logs())
}
