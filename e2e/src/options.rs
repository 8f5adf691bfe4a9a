//! What a lab is made from, and with what.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{LabError, Trying as _};
use crate::topology::Families;

/// What a lab is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// The folder of manifests; absolute.
    pub folder: PathBuf,
    /// How many nodes, where the manifests hold no Node objects.
    pub nodes: usize,
    /// Of which families, likewise.
    pub families: Families,
    /// Whether agents that end are started again.
    pub restart: bool,
    /// Whether the kernel is to guard the agents' tables, where it can.
    pub owner: bool,
    /// The binaries.
    pub programs: Programs,
}

impl Options {
    /// What agents are told besides what every lab tells them.
    pub(crate) fn agent_arguments(&self) -> Vec<String> {
        let no_owner = (!self.owner).then(|| "--no-owner".to_owned());
        no_owner.into_iter().collect()
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
