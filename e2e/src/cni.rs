//! What a container runtime does: `moat-cni`, by the environment and stdin of the CNI specification.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use moat_policies::NamespacedName;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::error::LabError;
use crate::space::Space;

/// "Try again later" in the specification's table of error codes.
const TRY_AGAIN: u64 = 11;
/// For how long a runtime would.
const PATIENCE: Duration = Duration::from_secs(10);
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// One pod's attachment to the network of its node.
#[derive(Clone, Debug)]
pub(crate) struct Sandbox {
    pub(crate) pod: NamespacedName,
    pub(crate) netns: PathBuf,
    /// The node's namespace, in which runtimes run their plugins.
    pub(crate) node: Arc<Space>,
    pub(crate) agent_socket: PathBuf,
    pub(crate) program: PathBuf,
}

#[derive(Deserialize)]
struct AddResult {
    #[serde(default)]
    ips: Vec<ResultIp>,
}

#[derive(Deserialize)]
struct ResultIp {
    address: IpNet,
}

#[derive(Deserialize)]
struct ErrorResult {
    code: u64,
    msg: String,
    #[serde(default)]
    details: String,
}

impl Sandbox {
    /// ADD: the pod's addresses.
    pub(crate) async fn add(&self) -> Result<Vec<IpAddr>, LabError> {
        let result: AddResult = serde_json::from_slice(&self.run("ADD").await?)
            .map_err(|e| self.failed("ADD", format!("its result is not the specification's: {e}")))?;
        if result.ips.is_empty() {
            return Err(self.failed("ADD", "its result holds no address"));
        }
        Ok(result.ips.into_iter().map(|ip| ip.address.addr()).collect())
    }

    /// DEL.
    pub(crate) async fn del(&self) -> Result<(), LabError> {
        self.run("DEL").await.map(drop)
    }

    async fn run(&self, command: &'static str) -> Result<Vec<u8>, LabError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.run_once(command).await.map_err(|e| self.failed(command, e.to_string()))?;
            if output.status.success() {
                return Ok(output.stdout);
            }
            let said = serde_json::from_slice::<ErrorResult>(&output.stdout);
            if said.as_ref().is_ok_and(|e| e.code == TRY_AGAIN) && Instant::now() < deadline {
                tokio::time::sleep(TRY_AGAIN_AFTER).await;
                continue;
            }
            let what = match said {
                Ok(e) if e.details.is_empty() => format!("{} (code {})", e.msg, e.code),
                Ok(e) => format!("{}: {} (code {})", e.msg, e.details, e.code),
                Err(_) => format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)),
            };
            return Err(self.failed(command, what));
        }
    }

    async fn run_once(&self, command: &'static str) -> std::io::Result<std::process::Output> {
        let config = serde_json::to_vec(&network_config(&self.agent_socket))?;
        let mut process = Command::new(&self.program);
        process
            .env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", self.container_id())
            .env("CNI_NETNS", &self.netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", self.arguments())
            .env("CNI_PATH", self.program.parent().unwrap_or(Path::new("/")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let run = async move {
            let mut child = process.spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(&config).await?;
            }
            child.wait_with_output().await
        };
        self.node.run(run).await?
    }

    fn container_id(&self) -> String {
        format!("lab_{}_{}", self.pod.namespace, self.pod.name)
    }

    fn arguments(&self) -> String {
        let (NamespacedName { namespace, name }, id) = (&self.pod, self.container_id());
        format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};\
             K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID={id}"
        )
    }

    fn failed(&self, command: &'static str, what: impl Into<String>) -> LabError {
        LabError::Cni { command, pod: self.pod.to_string(), what: what.into() }
    }
}

fn network_config(agent_socket: &Path) -> Value {
    json!({ "cniVersion": "1.1.0", "name": "moat", "type": "moat-cni", "agentSocket": agent_socket })
}
