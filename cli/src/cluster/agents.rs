//! What the agents of a cluster's nodes say: `moat drops` and `moat flows`, run in their pods.
//!
//! An agent tells only who has its socket, and that is on its node. So the command that is in the agent's image is run there, by
//! an exec as `kubectl exec` makes one: whoever may do that may ask.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::{Result, anyhow, bail, ensure};
use futures_util::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, AttachParams, AttachedProcess, ListParams};
use kube::client::UpgradeConnectionError;
use kube::{Client, ResourceExt as _};
use moat_cni::protocol::Command;
use moat_cni::stream::Event;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};

use super::{Cluster, NAMESPACE, explain};
use crate::agents::Order;
use crate::output;

/// Where `moat` is in the agent's image.
const MOAT: &str = "/usr/bin/moat";

/// Where the agent listens in its pod.
const SOCKET: &str = "/run/moat/agent.sock";

/// The container that the agent runs in.
const CONTAINER: &str = "agent";

/// How soon an agent that has gone is looked for again.
const AGAIN: Duration = Duration::from_secs(1);

/// What this needs.
const EXEC: &str = "run moat in the agents' pods (get and create pods/exec in moat-system)";

/// Asks the agents of these nodes; without any, of the node that `pod` is on. As with sockets, one that cannot be asked is told of,
/// and it is an error when none can.
pub(crate) fn ask(
    cluster: &Cluster,
    nodes: &[String],
    pod: Option<&str>,
    command: &Command,
) -> Result<Receiver<Event>> {
    let (runtime, client) = cluster.connect()?;
    let nodes = match (nodes, pod) {
        ([], Some(pod)) => vec![runtime.block_on(node_of(&client, pod))?],
        _ => nodes.to_vec(),
    };
    let mut followed = Vec::new();
    for node in &nodes {
        match runtime.block_on(open(&client, node, command)) {
            Ok(process) => followed.push((node.clone(), process)),
            Err(error) if nodes.len() == 1 => return Err(error),
            Err(error) => output::warn(format_args!("{node}: {error:#}")),
        }
    }
    ensure!(!followed.is_empty(), "no agent can be asked");
    let (sender, receiver) = channel();
    let command = command.clone();
    std::thread::spawn(move || {
        let all = followed
            .into_iter()
            .map(|(node, process)| pass_on(client.clone(), node, command.clone(), process, sender.clone()));
        runtime.block_on(join_all(all));
    });
    Ok(receiver)
}

/// The node that a pod is on.
async fn node_of(client: &Client, pod: &str) -> Result<String> {
    let (namespace, name) = pod.split_once('/').unwrap_or(("default", pod));
    let found = Api::<Pod>::namespaced(client.clone(), namespace).get_opt(name).await;
    let found = found.map_err(|error| explain(&error, "get pods"))?;
    let Some(found) = found else { bail!("the cluster has no pod {pod}") };
    let node = found.spec.and_then(|spec| spec.node_name);
    node.ok_or_else(|| anyhow!("the pod {pod} is on no node yet"))
}

/// Begins to ask the agent of a node.
async fn open(client: &Client, node: &str, command: &Command) -> Result<AttachedProcess> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let on_node = ListParams::default()
        .labels("app.kubernetes.io/name=moat-agent")
        .fields(&format!("spec.nodeName={node}"));
    let there = pods.list(&on_node).await.map_err(|error| explain(&error, "list pods in moat-system"))?;
    let living = there.items.into_iter().find(|pod| pod.metadata.deletion_timestamp.is_none());
    let Some(pod) = living else {
        bail!(
            "no moat-agent runs on a node {node:?}; kubectl get pods -n {NAMESPACE} -o wide shows where they do"
        )
    };
    // Its standard input ends when we do: else what was begun there would go on for nobody.
    let params = AttachParams::default().container(CONTAINER).stdin(true);
    let words = words(command);
    pods.exec(&pod.name_any(), words, &params).await.map_err(|error| refused(&error))
}

/// Why nothing can be run in an agent's pod. A 403 comes as an answer to the change of protocol, or as one of the API's own.
fn refused(error: &kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) if status.code == 403 => not_permitted(),
        kube::Error::UpgradeConnection(UpgradeConnectionError::ProtocolSwitch(code))
            if code.as_u16() == 403 =>
        {
            not_permitted()
        }
        _ => explain(error, EXEC),
    }
}

fn not_permitted() -> anyhow::Error {
    anyhow!(
        "not permitted: this needs to {EXEC}; who may do that can do there whatever an agent can, so no role of moat's \
         allows it: ask whoever looks after the nodes"
    )
}

fn words(command: &Command) -> Vec<&'static str> {
    let (subcommand, follow) = match command {
        Command::Drops(drops) => ("drops", drops.follow),
        _ => ("flows", false),
    };
    let mut words = vec![MOAT, subcommand, "--socket", SOCKET, "--json"];
    if follow {
        words.extend(["--follow", "--while-stdin"]);
    }
    words
}

/// Passes on what an agent says until it ends, or nobody listens. One that is followed and goes is waited for.
async fn pass_on(client: Client, node: String, command: Command, first: AttachedProcess, to: Sender<Event>) {
    let follow = matches!(&command, Command::Drops(drops) if drops.follow);
    let (mut process, mut order) = (first, Order::default());
    loop {
        match read(&mut process, &mut order, &to).await {
            Ok(true) if follow => {}
            Ok(_) => return,
            Err(error) if !follow => return output::warn(format_args!("{node}: {error:#}")),
            Err(_) => {}
        }
        order.broke();
        output::note(format_args!("the agent of {node} has gone; waiting for it"));
        process = loop {
            tokio::time::sleep(AGAIN).await;
            if let Ok(process) = open(&client, &node, &command).await {
                break process;
            }
        };
    }
}

/// Reads to the end; `false`: nobody listens any more.
async fn read(process: &mut AttachedProcess, order: &mut Order, to: &Sender<Event>) -> Result<bool> {
    let (Some(out), Some(mut err), Some(status)) =
        (process.stdout(), process.stderr(), process.take_status())
    else {
        bail!("the exec has no output")
    };
    let events = async {
        let mut lines = BufReader::new(out).lines();
        while let Some(line) = lines.next_line().await? {
            let event: Event = serde_json::from_str(&line)?;
            if order.is_new(&event) && to.send(event).is_err() {
                return Ok(false);
            }
        }
        Ok::<bool, anyhow::Error>(true)
    };
    let mut said = String::new();
    let (events, _) = tokio::join!(events, err.read_to_string(&mut said));
    let goes_on = events?;
    let status = if goes_on { status.await } else { None };
    match status {
        Some(status) if status.status.as_deref() == Some("Failure") => {
            let said = said.trim().trim_start_matches("error: ");
            let why = if said.is_empty() { status.message.unwrap_or_default() } else { said.to_owned() };
            bail!("{why}")
        }
        _ => Ok(goes_on),
    }
}

#[cfg(test)]
mod tests {
    use moat_cni::protocol::{Drops, Flows};

    use super::*;

    #[test]
    fn who_may_not_run_anything_there_is_not_sent_for_a_role_that_does_not_allow_it() {
        let status = kube::core::Status { code: 403, ..kube::core::Status::success() };
        let switch = UpgradeConnectionError::ProtocolSwitch;
        let [forbidden, unknown] = [403, 401].map(|code| code.try_into().expect("a status"));
        for error in [kube::Error::Api(status.boxed()), kube::Error::UpgradeConnection(switch(forbidden))] {
            let said = refused(&error).to_string();
            assert!(said.contains("get and create pods/exec") && !said.contains("moat-viewer"), "{said}");
        }
        let said = refused(&kube::Error::UpgradeConnection(switch(unknown))).to_string();
        assert!(!said.contains("not permitted"), "{said}");
    }

    #[test]
    fn what_is_run_in_the_pod() {
        let drops = words(&Command::Drops(Drops { follow: true })).join(" ");
        assert_eq!(drops, "/usr/bin/moat drops --socket /run/moat/agent.sock --json --follow --while-stdin");
        let flows = words(&Command::Flows(Flows {})).join(" ");
        assert_eq!(flows, "/usr/bin/moat flows --socket /run/moat/agent.sock --json");
    }
}
