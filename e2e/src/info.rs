//! Where everything of a running lab is, for whoever wants to look around in it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where everything of a lab is. Process and thread numbers are as the reader's process namespace has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// The folder that the agents watch.
    pub folder: PathBuf,
    /// Whether the lab made the nodes up.
    pub made_nodes: bool,
    /// The nodes.
    pub nodes: Vec<NodeInfo>,
    /// The pods.
    pub pods: Vec<PodInfo>,
}

/// A node of a lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its name.
    pub name: String,
    /// Its addresses on the fabric.
    pub addresses: Vec<String>,
    /// What `nsenter --target` takes.
    pub target: i32,
    /// Its agent's process number.
    pub agent: i32,
    /// Its agent's log.
    pub log: PathBuf,
}

/// A pod of a lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodInfo {
    /// `namespace/name`.
    pub name: String,
    /// Its node.
    pub node: String,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// What `nsenter --target` takes.
    pub target: i32,
}
