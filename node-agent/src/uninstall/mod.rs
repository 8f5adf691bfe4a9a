//! Taking moat off a node.
//!
//! ```text
//!   no agent runs, no pods are here (or --force)
//!     ─▶ CNI configuration      no pod begins with moat's network any more
//!     ─▶ pods' links, tunnel, routes, rules
//!     ─▶ guard, then tables     behind the links: what is left of a pod's network is never without policy
//!     ─▶ plugin, state and run folders
//! ```
//!
//! Each step goes on where an earlier one could not, and all that could not be done is told at the end; it can be run again. What is not
//! moat's alone stays: forwarding is not turned off, since others need it as well, and connection tracking forgets by itself.

mod files;

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

pub use files::FileError;
use moat_daemon::process;

use crate::dataplane;
use crate::guard;
use crate::podnet::{self, PodNetError};

/// How many pods a refusal names.
const NAMED: usize = 5;

/// Takes moat off this node: its tables, links, routes and rules in this network namespace, and its files.
///
/// Refuses while an agent runs, and while pods are here whose network moat made. Can be run again. Exit status: 0 nothing of moat is
/// left, 1 refused, nothing was changed, 2 something could not be removed.
#[derive(Debug, Clone, clap::Args)]
pub struct UninstallArgs {
    /// Also when pods are here whose network moat made: they have none after that, until they are deleted and made again
    #[arg(long)]
    pub force: bool,
    /// When all is done, wait to be ended: for a DaemonSet, whose pods are to go on
    #[arg(long)]
    pub stay: bool,
    /// The agent's --state-dir
    #[arg(long, value_name = "DIR", default_value = "/var/lib/moat")]
    pub state_dir: PathBuf,
    /// The agent's --run-dir
    #[arg(long, value_name = "DIR", default_value = "/run/moat")]
    pub run_dir: PathBuf,
    /// The agent's --cni-conf-dir
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// The agent's --cni-bin-dir
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,
}

/// Why nothing was removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It would make everything again.
    #[error(
        "an agent runs here ({} answers), and would make everything again: end it first (kubectl delete -n moat-system \
         daemonset/moat-agent)",
        .0.display()
    )]
    AgentRuns(PathBuf),
    /// They would lose their network.
    #[error(
        "pods here have moat's network ({count}: {named}): drain the node first (kubectl drain), or take their network away with \
         --force"
    )]
    PodsAreHere {
        /// How many.
        count: usize,
        /// Some of them.
        named: String,
    },
    /// It is not known whether there are pods.
    #[error("cannot read this node's links; run it as root, in the node's network namespace")]
    CannotLook(#[from] PodNetError),
}

/// Does it, prints what was done, and turns it into the exit status.
pub fn run(args: &UninstallArgs) -> ExitCode {
    if let Err(refusal) = permitted(args) {
        let _ = writeln!(io::stderr().lock(), "moat-agent: {:#}", anyhow::Error::new(refusal));
        return ExitCode::FAILURE;
    }
    let (removed, errors) = uninstall(args);
    let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
    // Who reads no more has read enough: it is done all the same.
    for what in &removed {
        let _ = writeln!(out, "removed {what}");
    }
    for error in &errors {
        let _ = writeln!(err, "moat-agent: {error:#}");
    }
    if !errors.is_empty() {
        let _ = writeln!(err, "moat-agent: not all could be removed; mend that, and run it again");
        return ExitCode::from(2);
    }
    let _ = match removed.is_empty() {
        true => writeln!(out, "nothing of moat is here"),
        false => writeln!(out, "nothing of moat is left; forwarding (net.ipv4.ip_forward) stays as it is"),
    };
    drop((out, err));
    if args.stay
        && let Err(error) = process::run(async |stop| {
            stop.cancelled().await;
            Ok(())
        })
    {
        let _ = writeln!(io::stderr().lock(), "moat-agent: {error:#}");
        return ExitCode::from(2);
    }
    ExitCode::SUCCESS
}

fn permitted(args: &UninstallArgs) -> Result<(), Refusal> {
    let socket = args.run_dir.join(files::AGENT_SOCKET);
    if UnixStream::connect(&socket).is_ok() {
        return Err(Refusal::AgentRuns(socket));
    }
    let pods = podnet::leave::remaining()?;
    if pods.is_empty() || args.force {
        return Ok(());
    }
    let mut named: Vec<String> = pods.iter().take(NAMED).map(ToString::to_string).collect();
    named.extend((pods.len() > NAMED).then(|| "...".to_owned()));
    Err(Refusal::PodsAreHere { count: pods.len(), named: named.join(", ") })
}

fn uninstall(args: &UninstallArgs) -> (Vec<String>, Vec<anyhow::Error>) {
    let mut files = files::Swept::default();
    files.configuration(&args.cni_conf_dir);
    let (links, errors) = podnet::leave::leave();
    let mut removed = links;
    let mut errors: Vec<anyhow::Error> = errors.into_iter().map(Into::into).collect();
    match guard::stop(&args.run_dir) {
        Ok(stopped) => removed.extend(stopped.then(|| "the guard of the tables".to_owned())),
        Err(error) => errors.push(error.into()),
    }
    match dataplane::leave() {
        Ok(tables) => removed.extend(tables),
        Err(error) => errors.push(error.into()),
    }
    // What is needed to try again stays until the kernel has nothing of ours.
    if errors.is_empty() {
        files.rest(&args.cni_bin_dir, &args.state_dir, &args.run_dir);
    }
    removed.extend(files.removed);
    errors.extend(files.errors.into_iter().map(Into::into));
    (removed, errors)
}
