//! Which agents are asked: a lab's, this node's, those at given sockets, or those of a cluster's nodes.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::bail;
use moat_cni::protocol::Command;
use moat_cni::stream::{Event, Events, StreamError};
use moat_lab::LabError;

use crate::cluster::{self, Cluster};
use crate::output::{self, Format};

/// Where the agent of a node listens, unless it was told otherwise.
const NODE: &str = "/run/moat/agent.sock";

/// The lab that is meant where none is named.
const LAB: &str = "lab";

/// How soon an agent that has gone is looked for again.
const AGAIN: Duration = Duration::from_millis(500);

/// Whom to ask, and how to print the answers.
#[derive(Clone, clap::Args)]
pub(crate) struct Agents {
    /// A lab that is up; without this and --socket, the lab `lab` if it is up, else this node's agent
    #[arg(long, value_name = "NAME", conflicts_with = "socket")]
    lab: Option<String>,
    /// The agent that listens at this socket; may be given more than once
    #[arg(long, value_name = "PATH")]
    socket: Vec<PathBuf>,
    /// The agent of this node of a cluster; may be given more than once
    #[arg(long, value_name = "NODE", conflicts_with_all = ["lab", "socket"])]
    node: Vec<String>,
    #[command(flatten)]
    cluster: Cluster,
    /// Only what is from or to this pod. Where neither a lab is up nor an agent listens here: of the agent of the pod's node
    #[arg(long, value_name = "NAMESPACE/POD", value_parser = pod)]
    pub(crate) pod: Option<String>,
    /// Output format; JSON is one object a line
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
    /// The same as --output json
    #[arg(long)]
    json: bool,
}

/// One agent: what it is called, and where it listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Agent {
    pub(crate) name: String,
    pub(crate) socket: PathBuf,
}

fn pod(text: &str) -> Result<String, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => Ok(text.to_owned()),
        _ => Err("a pod is NAMESPACE/NAME, as in shop/api-0".to_owned()),
    }
}

impl Agents {
    /// How to print.
    pub(crate) fn format(&self) -> Format {
        if self.json { Format::Json } else { self.output }
    }

    /// Asks them all at once and hands over what they say as it comes. An agent that cannot be asked is told of; it is an error
    /// when none can.
    pub(crate) fn ask(&self, command: &Command) -> anyhow::Result<Receiver<Event>> {
        let pod = self.pod.as_deref();
        if !self.node.is_empty() || (pod.is_some() && self.cluster.is_named()) {
            return cluster::agents::ask(&self.cluster, &self.node, pod, command);
        }
        match self.find() {
            // A node's agent, or a lab, is nearer than a cluster that somebody else may have meant.
            Err(_) if pod.is_some() && self.lab.is_none() && self.cluster.is_there() => {
                cluster::agents::ask(&self.cluster, &[], pod, command)
            }
            found => ask(&found?, command),
        }
    }

    /// Finds those that are on this machine.
    fn find(&self) -> anyhow::Result<Vec<Agent>> {
        if !self.socket.is_empty() {
            let named = |path: &PathBuf| Agent { name: path.display().to_string(), socket: path.clone() };
            return Ok(self.socket.iter().map(named).collect());
        }
        let lab = self.lab.as_deref();
        match moat_lab::sockets(lab.unwrap_or(LAB)) {
            Ok(nodes) => Ok(nodes.into_iter().map(|(name, socket)| Agent { name, socket }).collect()),
            Err(LabError::NotUp(_)) if lab.is_none() && Path::new(NODE).exists() => {
                Ok(vec![Agent { name: "this node".to_owned(), socket: NODE.into() }])
            }
            Err(LabError::NotUp(_)) if lab.is_none() => bail!(
                "no lab is up and no agent listens at {NODE}: name a node of a cluster with --node NAME or one of its pods with \
                 --pod NAMESPACE/POD, make a lab with `moat lab up -f DIR`, or say where an agent listens with --socket PATH"
            ),
            Err(error) => Err(error.into()),
        }
    }
}

/// Asks all agents at once.
fn ask(agents: &[Agent], command: &Command) -> anyhow::Result<Receiver<Event>> {
    let (sender, receiver) = channel();
    let mut opened = 0;
    let mut refused = None;
    for agent in agents {
        match Events::open(&agent.socket, command.clone()) {
            Ok(events) => {
                opened += 1;
                let (agent, command, sender) = (agent.clone(), command.clone(), sender.clone());
                std::thread::spawn(move || pass_on(&agent, command, events, &sender));
            }
            Err(error) if agents.len() == 1 => return Err(error.into()),
            Err(error) => {
                output::warn(format_args!("{}: {error}", agent.name));
                refused = Some(error);
            }
        }
    }
    match refused {
        Some(error) if opened == 0 => Err(error.into()),
        _ => Ok(receiver),
    }
}

/// What an agent has told so far, by the times of its events (RFC 3339: they sort as text).
#[derive(Debug, Default)]
pub(crate) struct Order {
    newest: String,
    /// The newest from before the last break.
    told: String,
}

impl Order {
    /// Whether it was not told before: after a break an agent tells its last events once more.
    pub(crate) fn is_new(&mut self, event: &Event) -> bool {
        let time = match event {
            Event::Drop(dropped) => &dropped.time,
            Event::Unlogged(unlogged) => &unlogged.time,
            _ => return true,
        };
        if *time <= self.told {
            return false;
        }
        if *time > self.newest {
            self.newest.clone_from(time);
        }
        true
    }

    /// The connection broke off.
    pub(crate) fn broke(&mut self) {
        self.told.clone_from(&self.newest);
    }
}

/// Passes an agent's events on until they end, or nobody listens. One that is followed and goes is waited for: agents
/// are restarted.
fn pass_on(agent: &Agent, command: Command, mut events: Events, to: &Sender<Event>) {
    let follow = matches!(&command, Command::Drops(drops) if drops.follow);
    let mut order = Order::default();
    loop {
        for event in events.by_ref() {
            let event = match event {
                Ok(event) => event,
                Err(StreamError::Broken(_)) if follow => break,
                Err(error) => {
                    output::warn(format_args!("{}: {:#}", agent.name, anyhow::Error::new(error)));
                    return;
                }
            };
            if !order.is_new(&event) {
                continue;
            }
            if to.send(event).is_err() {
                return;
            }
        }
        if !follow {
            return;
        }
        order.broke();
        output::note(format_args!("the agent of {} has gone; waiting for it", agent.name));
        events = loop {
            std::thread::sleep(AGAIN);
            match Events::open(&agent.socket, command.clone()) {
                Ok(events) => break events,
                Err(_) if agent.socket.parent().is_some_and(Path::exists) => {}
                // Its folder is gone, and with it its node.
                Err(_) => return,
            }
        };
    }
}
