//! What a lab is made from, and with what.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{LabError, Trying as _};
use crate::topology::{Families, Joined};

/// What a lab is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// The folder of manifests; absolute.
    pub folder: PathBuf,
    /// How many nodes, where the manifests hold no Node objects.
    pub nodes: usize,
    /// Of which families, likewise.
    pub families: Families,
    /// How the nodes are joined.
    pub joined: Joined,
    /// Whether agents that end are started again.
    pub restart: bool,
    /// Whether the kernel is to guard the agents' tables, where it can.
    pub owner: bool,
    /// What it is for.
    pub purpose: Purpose,
    /// The binaries.
    pub programs: Programs,
}

/// What a lab is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// To be probed.
    #[default]
    Probe,
    /// A run of faults: a copy of the folder, on nodes with no address to spare.
    Chaos,
    /// Pods that mean harm: a folder of the lab's own.
    Hostile,
}

impl Options {
    /// What agents are told besides what every lab tells them.
    pub(crate) fn agent_arguments(&self) -> Vec<String> {
        let no_owner: &[&str] = if self.owner { &[] } else { &["--no-owner"] };
        // The sooner an address has a new owner, the better for whoever looks for flows that outlive the old one.
        let no_rest: &[&str] = if self.purpose == Purpose::Chaos { &["--address-rest", "0"] } else { &[] };
        no_owner.iter().chain(no_rest).map(|s| (*s).to_owned()).collect()
    }
}

/// The real processes of a lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Programs {
    /// `moat-agent`.
    pub agent: PathBuf,
    /// `moat-cni`.
    pub cni: PathBuf,
}

impl Programs {
    /// Those beside the running binary.
    pub fn beside_this_one() -> Result<Self, LabError> {
        let own = std::env::current_exe().trying(|| "cannot find the running program's folder".into())?;
        let beside = |name: &str| {
            let path = own.with_file_name(name);
            if path.is_file() { Ok(path) } else { Err(LabError::MissingProgram(path)) }
        };
        Ok(Self { agent: beside("moat-agent")?, cni: beside("moat-cni")? })
    }
}
