//! ADD as the runtime asks for it: the plugin's process, from its start to its end, for pods that the API server knows and that peers
//! on other nodes are told of.
//!
//! The pods are bound to a node and wait for a Secret that never comes, so the kubelet asks for no interface itself.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::{Value, json};

use super::figures;
use crate::api::Kind;
use crate::suites::{NodeView, Stage, pod};

/// Each gets several interfaces, one after the other.
const PODS: usize = 20;
const PLUGIN: &str = "/opt/cni/bin/moat-cni";
const FOLDER: &str = "/etc/cni/net.d";
/// Where containerd keeps pods' networks, and agents in containers see them.
const NETWORKS: &str = "/run/netns";

/// Adds so many interfaces, one at a time.
pub(super) fn run(stage: &Stage, count: usize) -> Result<()> {
    let node = stage.field.node("node1")?;
    // Sets on the two other nodes hold the newcomers' addresses, so ADD waits for both of them.
    stage.start_mute(&[
        pod("server-2", "node2", &[("role", "server")]),
        pod("server-3", "node3", &[("role", "server")]),
    ])?;
    let from = json!([{ "podSelector": { "matchLabels": { "role": "new" } } }]);
    let servers = json!({ "matchLabels": { "role": "server" } });
    stage.policy(
        "in",
        json!({ "podSelector": servers, "policyTypes": ["Ingress"], "ingress": [{ "from": from }] }),
    )?;
    let to = json!([{ "podSelector": servers }]);
    let out = json!({ "podSelector": { "matchLabels": { "role": "new" } }, "policyTypes": ["Ingress", "Egress"], "egress": [{ "to": to }] });
    stage.policy("out", out)?;
    let pods: Vec<Value> = (0..PODS).map(|number| waiting(&format!("new-{number}"))).collect();
    let mut made = Vec::new();
    for pod in &pods {
        made.push(stage.field.api.create(Kind::POD, &stage.namespace, pod)?.object);
    }
    let runtime = Runtime::of(node)?;
    let mut times = Vec::new();
    for number in 0..count {
        stage.field.interrupt.check()?;
        let pod = &made[number % PODS];
        let container = format!("moat-bench-{}-{number}", std::process::id());
        runtime
            .shell(&format!("touch {NETWORKS}/{container} && unshare --net={NETWORKS}/{container} true"))?;
        let added = runtime.plugin("ADD", &container, pod);
        let removed = runtime.plugin("DEL", &container, pod).map(|_| ());
        runtime.shell(&format!("umount {NETWORKS}/{container} && rm {NETWORKS}/{container}"))?;
        times.push(added?);
        removed?;
    }
    println!(
        "{count} interfaces of {PODS} pods, with peers on two other nodes; to reach: p50 25 ms, p99 100 ms"
    );
    figures::head("ADD through the controller, milliseconds");
    figures::row("the plugin's process, start to end", &mut times);
    Ok(())
}

fn waiting(name: &str) -> Value {
    let mut object = pod(name, "node1", &[("role", "new")]);
    object["spec"]["volumes"] = json!([{ "name": "never", "secret": { "secretName": "never" } }]);
    object["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "never", "mountPath": "/never" }]);
    object
}

/// What the container runtime of a node does: a thread in the node's mounts and network that starts the plugin.
struct Runtime {
    jobs: mpsc::Sender<Job>,
    config: Vec<u8>,
}

struct Job {
    command: Command,
    input: Vec<u8>,
    done: mpsc::Sender<Result<(Output, Duration)>>,
}

impl Runtime {
    fn of(node: &NodeView) -> Result<Self> {
        let (jobs, todo) = mpsc::channel::<Job>();
        let (report, there) = mpsc::channel();
        let process = node.process;
        thread::spawn(move || {
            let _ = report.send(enter(process));
            for mut job in todo {
                let _ = job.done.send(start_to_end(&mut job.command, &job.input));
            }
        });
        there.recv().context("the thread in the node ended")??;
        let mut own = Self { jobs, config: Vec::new() };
        own.config = own.configuration()?;
        Ok(own)
    }

    fn run(&self, command: Command, input: Vec<u8>) -> Result<(Output, Duration)> {
        let (done, came) = mpsc::channel();
        let what = format!("{command:?}");
        self.jobs.send(Job { command, input, done }).ok().context("the thread in the node ended")?;
        let (output, took) = came.recv().context("the thread in the node ended")??;
        if !output.status.success() {
            let (out, err) =
                (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            bail!("{what} failed ({}): {out}{err}", output.status);
        }
        Ok((output, took))
    }

    fn shell(&self, line: &str) -> Result<Output> {
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        Ok(self.run(command, Vec::new())?.0)
    }

    /// What the plugin is given, made of the node's list of plugins as the runtime makes it.
    fn configuration(&self) -> Result<Vec<u8>> {
        let output = self.shell(&format!("cat {FOLDER}/*moat.conflist"))?;
        let list: Value =
            serde_json::from_slice(&output.stdout).context("moat's configuration is no JSON")?;
        let mut plugin = list["plugins"][0].clone();
        for field in ["cniVersion", "name"] {
            plugin[field] = list[field].clone();
        }
        Ok(serde_json::to_vec(&plugin)?)
    }

    /// Calls the plugin for a pod, and says how long it took.
    fn plugin(&self, verb: &str, container: &str, pod: &Value) -> Result<Duration> {
        let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default().to_owned();
        let arguments = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={container};K8S_POD_UID={}",
            text("namespace"),
            text("name"),
            text("uid")
        );
        let mut command = Command::new(PLUGIN);
        let variables: [(&str, OsString); 6] = [
            ("CNI_COMMAND", verb.into()),
            ("CNI_CONTAINERID", container.into()),
            ("CNI_NETNS", format!("{NETWORKS}/{container}").into()),
            ("CNI_IFNAME", "eth0".into()),
            ("CNI_PATH", "/opt/cni/bin".into()),
            ("CNI_ARGS", arguments.into()),
        ];
        command.envs(variables);
        Ok(self.run(command, self.config.clone())?.1)
    }
}

/// Brings the calling thread into a node.
fn enter(process: i32) -> Result<()> {
    let open = |kind: &str| std::fs::File::open(format!("/proc/{process}/ns/{kind}"));
    let (mounts, network, processes) = (open("mnt")?, open("net")?, open("pid")?);
    // A thread that shares its working directory with others may not change its mounts.
    unshare(CloneFlags::CLONE_FS).context("cannot part from the other threads")?;
    setns(network, CloneFlags::CLONE_NEWNET).context("cannot enter the node's network")?;
    // For what it starts: the node's /proc knows only the node's processes.
    setns(processes, CloneFlags::CLONE_NEWPID).context("cannot enter the node's processes")?;
    setns(mounts, CloneFlags::CLONE_NEWNS).context("cannot enter the node's mounts")
}

fn start_to_end(command: &mut Command, input: &[u8]) -> Result<(Output, Duration)> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let began = Instant::now();
    let mut child =
        command.spawn().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input)?;
    }
    let output = child.wait_with_output()?;
    Ok((output, began.elapsed()))
}
