//! Who keeps the tables' owner alive while the agent is not.
//!
//! ```text
//!   agent ──hold──▶ guard ──held──▶ the next agent
//!     │   socket's    │   the same     │
//!     │  descriptor   │   socket       │
//!     └───────────────┴────────────────┴──▶ one netlink socket, the owner of moat's tables
//! ```
//!
//! The kernel lets nobody but their owner change our tables, and their owner is a *socket*: it is one as long as somebody
//! has its descriptor open. An agent that is killed would leave its tables to everybody until the next one
//! starts. So a second small process, the guard, keeps a copy of the descriptor, and does nothing else.
//!
//! The guard listens on [`SOCKET`] in the agent's run folder. Whoever takes the descriptor, or hands one over, has the
//! *lease* as long as his connection is open: so two agents never write through one socket, and one that is killed gives
//! it back. The agent starts a guard where there is none ([`Keeper`]), and another when it goes; in a container, where all that
//! it starts ends with it, the guard is started beside it. It outlives the agent, and ends when it is told to ([`stop`]) or when its
//! socket's file is gone: a guard that nobody can reach would keep every later agent from its tables.
//!
//! What the guard does not do: write, look into what it keeps, or know nftables. What agent and guard say to each other
//! (`wire.rs`) stays as it is from version to version: a new agent meets an old guard.

mod holder;
mod keeper;
mod lease;
mod wire;

use std::path::{Path, PathBuf};

pub use holder::run;
pub use keeper::Keeper;
pub use lease::{Launch, Lease, Taken, stop};

/// The name of the guard's socket in the run folder. Nobody but its owner may connect to it (mode 0600).
pub const SOCKET: &str = "guard.sock";

/// Locked by a guard as long as it lives, so that there is one.
const LOCK: &str = "guard.lock";

/// All that it leaves in the run folder.
pub(crate) const FILES: [&str; 2] = [SOCKET, LOCK];

/// Why there is no guard, or why it does not give what it keeps.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuardError {
    /// Another agent has the lease.
    #[error(
        "another moat-agent (process {pid}) runs with this --run-dir; stop it first, or give this one another --run-dir"
    )]
    Busy {
        /// Its process number.
        pid: i32,
    },
    /// Another guard listens there.
    #[error("another guard keeps {0}")]
    Running(PathBuf),
    /// Nobody listens there, and it is somebody else who starts it.
    #[error(
        "no guard listens at {0}: run `moat-agent guard` with the agent's --run-dir, where it outlives the agent"
    )]
    Absent(PathBuf),
    /// The guard could not be started.
    #[error("cannot start {program}{said}")]
    Start {
        /// The program.
        program: PathBuf,
        /// What it said before it ended, after a colon.
        said: String,
        /// Why not.
        source: std::io::Error,
    },
    /// It answered something that is no answer.
    #[error("the guard answered {0:?}: is it another program's socket?")]
    Answer(String),
    /// A system call failed.
    #[error("cannot {doing} {path}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
}

impl GuardError {
    fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| GuardError::Io { doing, path, source }
    }

    /// Whether the same may go well a moment later: an agent that was told to end may not be quite gone.
    pub fn is_busy(&self) -> bool {
        matches!(self, GuardError::Busy { .. })
    }
}
