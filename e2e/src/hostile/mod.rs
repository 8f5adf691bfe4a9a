//! A pod that means harm: raw frames from pods that may do nothing or little, and from the uplink, and where each of them was seen.
//!
//! ```text
//!   rows (what is sent, by whom, where it must be seen) ──▶ run: writer ──▶ the lab ──▶ watchers ──▶ sights
//!                                                            │                              │
//!                                                            └── marks, behind each row ────┴──▶ report: expected, seen
//! ```
//!
//! Pure: [`frame`], [`rows`], [`sight`], [`report`]. Nothing waits for time to pass: behind each row go *marks*, frames that must
//! arrive everywhere, and what has not been seen when they have is not coming. That holds because all that sends is kept
//! on one processor, where the kernel's queue between two ends of a cable is first in, first out.

mod cast;
mod flood;
mod frame;
mod report;
mod rows;
mod run;
mod sight;
mod state_of;
mod wire;

use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use report::{HostileReport, HostileRow};
pub(crate) use run::run;

use crate::error::{LabError, Trying as _};
use crate::state::StateDir;
use crate::world::WORLD_FILE;

/// What of the table is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostileOptions {
    /// Only rows whose group or name contains this.
    pub only: Option<String>,
    /// Without the rows about a full connection table, which take memory and some seconds.
    pub no_flood: bool,
    /// Without the agents and their tables: to see that the watchers see.
    pub unprotected: bool,
}

/// Makes the folder that the lab is built from.
pub(crate) fn prepare(state: &StateDir) -> Result<PathBuf, LabError> {
    let folder = state.join("hostile");
    let write = || {
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("cast.yaml"), cast::MANIFESTS)?;
        fs::write(folder.join(WORLD_FILE), cast::WORLD)
    };
    write().trying(|| format!("cannot write {}", folder.display()))?;
    Ok(folder)
}
