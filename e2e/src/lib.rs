//! The lab: Kubernetes nodes as network namespaces, real agents, real packets, and the matrix of what they did beside
//! what the engine said they would.
//!
//! ```text
//!   folder ──▶ topology: nodes, places ──▶ fabric, agents, moat-cni ADD ──▶ probe ─▶ observed ─┐
//!     │                                                                                        ├─▶ Report ─▶ text, JSON
//!     ├──────▶ cells: every ordered pair, port, family ──▶ predict (the engine) ─▶ predicted ──┤
//!     └──────▶ expected.txt, written by a person ────────────────────────────────▶ expected ───┘
//! ```
//!
//! The words: a *host* is whoever sends and answers, a pod or an address of the *world* outside; a *cell* is one question
//! (source, destination, traffic, family); a *space* is a network namespace and the thread that lives in it; the *keeper*
//! is the process that holds a running lab, the *front* a person's command that talks to it; the *baseline* is the
//! same lab before its policies.
//!
//! Pure: [`cells()`], [`Expected`], [`topology`], [`Report`], [`text`]. What touches the kernel stays in namespaces of the
//! lab's own; see `gate.rs` for why nothing can be left behind.
//!
//! What it does not do: judge how verdicts come about. It knows the engine as a function, the agent and the plugin as
//! processes, and believes packets.

mod agent;
mod cells;
mod chaos;
mod cni;
mod dry;
mod error;
mod expected;
mod fabric;
mod folder;
mod front;
mod gate;
mod glob;
mod hostile;
mod info;
mod keeper;
mod lab;
mod link;
mod options;
mod outer;
mod policy_text;
mod predict;
mod probe;
mod render;
mod report;
mod rooms;
mod sockets;
mod space;
mod state;
mod supervise;
mod textfile;
pub mod topology;
mod world;
mod write;

pub use cells::{Cell, Host, Named, cells, undeclared_port};
pub use chaos::{ChaosOptions, ChaosReport, FaultKind, Finding, Restarts};
pub use dry::dry_run;
pub use error::LabError;
pub use expected::{EXPECTED_FILE, Expected};
pub use front::{Progress, chaos, down, hostile, probe, run, up};
pub use gate::gate;
pub use hostile::{HostileOptions, HostileReport, HostileRow};
pub use info::{Info, NodeInfo, PodInfo};
pub use keeper::keep;
pub use options::{Options, Programs, Purpose};
pub use render::{Colour, text};
pub use report::{Observed, Report, ReportCell, ReportHost};
pub use sockets::sockets;
pub use state::{Process, StateDir};
pub use textfile::LineError;
pub use topology::{Families, Joined};
pub use world::{WORLD_FILE, WorldHost};
