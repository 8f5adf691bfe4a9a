//! What can go wrong with a lab, and what to do about it.

use std::io;
use std::path::PathBuf;

use crate::textfile::LineError;
use crate::topology::TopologyError;

/// Why there is no lab, or no answer from it.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A binary that the lab runs is not there.
    #[error(
        "{} is not there; the lab runs it as a real process: build it into the folder of the moat binary, with \
         `cargo build --bin moat --bin moat-agent --bin moat-cni`", .0.display()
    )]
    MissingProgram(PathBuf),
    /// The folder is none.
    #[error("{} is not a folder of manifests", .0.display())]
    NotAFolder(PathBuf),
    /// A lab's name that is none.
    #[error("`{0}` is no name for a lab: lower-case letters, digits and dashes, at most 24")]
    Name(String),
    /// A lab of that name is up.
    #[error(
        "the lab `{0}` is up already: look at it with `moat lab probe`, or remove it with `moat lab down`"
    )]
    AlreadyUp(String),
    /// No lab of that name.
    #[error("no lab `{0}` is up: make one with `moat lab up -f DIR`")]
    NotUp(String),
    /// The kernel does not let us.
    #[error(
        "cannot make namespaces: {0}. Run it as root, or let users make them: \
         `sysctl -w user.max_user_namespaces=10000` and, where the kernel has them, \
         `kernel.unprivileged_userns_clone=1` and `kernel.apparmor_restrict_unprivileged_userns=0`"
    )]
    NoNamespaces(io::Error),
    /// The manifests are not good.
    #[error("{0}")]
    Manifests(String),
    /// They cannot be laid out.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// `world.txt` or `expected.txt` is not good.
    #[error("{}: {error}", file.display())]
    TextFile {
        /// Which.
        file: PathBuf,
        /// What is wrong with it.
        error: LineError,
    },
    /// `expected.txt` says nothing about a cell.
    #[error("{}: no line says what is expected of {cell}{}", file.display(), and_more(*more))]
    Unspoken {
        /// Which file.
        file: PathBuf,
        /// The first such cell.
        cell: String,
        /// How many others.
        more: usize,
    },
    /// The engine does not know a pod.
    #[error(transparent)]
    Engine(#[from] moat_policies::UnknownEndpoint),
    /// An agent does not run, or does not get ready.
    #[error("the agent of {node} {what}; its log ends with:\n{log_end}")]
    Agent {
        /// Its node.
        node: String,
        /// What is wrong.
        what: String,
        /// The log's last lines.
        log_end: String,
    },
    /// The CNI plugin refuses.
    #[error("moat-cni {command} for {pod} failed: {what}")]
    Cni {
        /// ADD or DEL.
        command: &'static str,
        /// For whom.
        pod: String,
        /// What it said.
        what: String,
    },
    /// Without any policy, not all packets pass.
    #[error(
        "the network is broken: with no policy in force, {broken} of {cells} cells do not pass, among them:\n{examples}"
    )]
    DeadNetwork {
        /// How many do not.
        broken: usize,
        /// Of how many.
        cells: usize,
        /// Some of them, one a line.
        examples: String,
    },
    /// No socket there.
    #[error(
        "{} is too long for a socket's path (107 bytes): set XDG_RUNTIME_DIR to a shorter folder, or use shorter names",
        .0.display()
    )]
    LongPath(PathBuf),
    /// The Node objects are not those of the running lab.
    #[error(
        "the nodes are no longer those that the lab was built with: `moat lab down`, then `moat lab up` again"
    )]
    NodesChanged,
    /// The process that holds the lab ended.
    #[error("the lab ended by itself; its log ends with:\n{log_end}")]
    Ended {
        /// The log's last lines.
        log_end: String,
    },
    /// What the lab said of itself.
    #[error("{0}")]
    Told(String),
    /// Ctrl-C, or a request to end.
    #[error("interrupted")]
    Interrupted,
    /// The operating system refuses.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What it said.
        source: io::Error,
    },
}

fn and_more(more: usize) -> String {
    if more == 0 { String::new() } else { format!(" (nor of {more} other cells)") }
}

/// Says what was tried when it failed.
pub(crate) trait Trying<T> {
    /// `what` in the infinitive's place: "cannot …".
    fn trying(self, what: impl FnOnce() -> String) -> Result<T, LabError>;
}

impl<T, E: Into<io::Error>> Trying<T> for Result<T, E> {
    fn trying(self, what: impl FnOnce() -> String) -> Result<T, LabError> {
        self.map_err(|e| LabError::Io { what: what(), source: e.into() })
    }
}
