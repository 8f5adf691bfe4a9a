//! The sockets of a running lab's agents, for whoever has a question for them.

use std::fs;
use std::path::PathBuf;

use crate::agent::Agent;
use crate::error::{LabError, Trying as _};
use crate::state::StateDir;

/// The nodes of a lab that is up, and where the agent of each listens.
pub fn sockets(name: &str) -> Result<Vec<(String, PathBuf)>, LabError> {
    let state = StateDir::named(name)?;
    if !state.keeper().is_some_and(|keeper| keeper.is_alive()) {
        return Err(LabError::NotUp(name.to_owned()));
    }
    let nodes = state.join("node");
    let entries = fs::read_dir(&nodes).trying(|| format!("cannot read {}", nodes.display()))?;
    let node = |entry: fs::DirEntry| {
        (entry.file_name().to_string_lossy().into_owned(), Agent::socket_in(&entry.path()))
    };
    let mut all: Vec<(String, PathBuf)> = entries.flatten().map(node).collect();
    all.sort();
    Ok(all)
}
