//! The command: collects its three inputs, compares, prints.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use moat_manifests::Changes;

use super::compare::{CompareError, Report, Veth, compare};
use super::host_ports;
use super::reader::{ReadError, read};
use super::sample::Limits;
use crate::dataplane::PodToNode;
use crate::desired::Desired;
use crate::podnet;

const FAMILY: &str = "inet";
const TABLE: &str = "moat";
const NET_TABLE: &str = "moat-net";

/// Compares what the kernel's table does with what the policies say.
///
/// Exit status: 0 no difference, 1 differences, 2 could not compare.
#[derive(Debug, Clone, clap::Args)]
pub struct CheckArgs {
    /// This node's name, as in the manifests
    #[arg(long, value_name = "NAME")]
    pub node: String,
    /// A file or folder of Kubernetes manifests; may be given more than once
    #[arg(long, value_name = "PATH", required = true)]
    pub manifests: Vec<PathBuf>,
    /// A file or folder with the pods' addresses (status.podIPs); may be given more than once
    #[arg(long, value_name = "PATH")]
    pub pod_status: Vec<PathBuf>,
    /// Where the agent keeps which interface is which pod's
    #[arg(long, value_name = "DIR", default_value = "/var/lib/moat")]
    pub state_dir: PathBuf,
    /// As the agent's option of this name
    #[arg(long, value_enum, default_value_t)]
    pub pod_to_node: PodToNode,
    /// Judge this output of `nft -j list table inet moat` instead of the kernel's table
    #[arg(long, value_name = "FILE")]
    pub dump: Option<PathBuf>,
}

/// Why nothing was compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// The manifests cannot be read.
    #[error("{0}")]
    Manifests(moat_manifests::Errors),
    /// The agent's record of interfaces cannot be read.
    #[error("cannot read which interface is which pod's from {}", .0.display())]
    Attachments(PathBuf, #[source] podnet::JournalError),
    /// The dump cannot be read.
    #[error("cannot read {}", .0.display())]
    Dump(PathBuf, #[source] io::Error),
    /// `nft` cannot be run.
    #[error("cannot run `nft`; install nftables, or give a dump with --dump")]
    NoNft(#[source] io::Error),
    /// `nft` failed.
    #[error("`nft -j list table {FAMILY} {table}` failed: {error}")]
    Nft {
        /// The table.
        table: &'static str,
        /// What it said.
        error: String,
    },
    /// The listing cannot be judged.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The table cannot be judged.
    #[error(transparent)]
    Compare(#[from] CompareError),
}

/// Compares, and says what was found.
pub fn check(args: &CheckArgs) -> Result<Report, CheckError> {
    let mut manifests = moat_manifests::load(&args.manifests).map_err(CheckError::Manifests)?;
    let states = moat_manifests::load_pod_status(&args.pod_status).map_err(CheckError::Manifests)?;
    manifests.overlay(&states);
    let attachments = podnet::read_attachments(&args.state_dir)
        .map_err(|e| CheckError::Attachments(args.state_dir.clone(), e))?;
    let veths: Vec<Veth> = attachments
        .iter()
        .map(|a| Veth {
            pod: a.pod(),
            ifname: a.host_ifname.clone(),
            pod_mac: a.pod_mac,
            addresses: a.addresses().collect(),
        })
        .collect();
    // Where the node's own pods are, and with which addresses, is what the pod network did, whatever a manifest says.
    let mut desired = Desired::new(args.node.as_str().into(), attachments.clone());
    desired.start(Changes { apply: manifests.objects, ..Changes::default() });
    let listing = match &args.dump {
        Some(path) => std::fs::read_to_string(path).map_err(|e| CheckError::Dump(path.clone(), e))?,
        None => list(TABLE)?,
    };
    let ruleset = read(&listing, FAMILY, TABLE)?;
    let mut report =
        compare(&ruleset, desired.objects(), &args.node, &veths, Limits::default(), args.pod_to_node)?;
    if args.dump.is_none() {
        report.host_ports = match list(NET_TABLE) {
            Ok(listing) => host_ports::compare(&listing, &attachments)?,
            // Where nobody has asked for a port, none need lead anywhere.
            Err(CheckError::Nft { .. }) if attachments.iter().all(|a| a.host_ports.is_empty()) => Vec::new(),
            Err(error) => return Err(error),
        };
    }
    Ok(report)
}

fn list(table: &'static str) -> Result<String, CheckError> {
    let output = Command::new("nft")
        .args(["-j", "list", "table", FAMILY, table])
        .output()
        .map_err(CheckError::NoNft)?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(CheckError::Nft { table, error });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Compares, prints what was found, and turns it into the exit status.
pub fn run(args: &CheckArgs) -> ExitCode {
    match check(args) {
        Ok(report) => {
            // Who closed the pipe has read enough.
            let _ = print(&report, &mut io::stdout().lock());
            let equal = report.differences.is_empty() && report.host_ports.is_empty();
            if equal { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(inner) = source {
                text.push_str(&format!(": {inner}"));
                source = inner.source();
            }
            let _ = writeln!(io::stderr().lock(), "error: {text}");
            ExitCode::from(2)
        }
    }
}

fn print(report: &Report, out: &mut impl Write) -> io::Result<()> {
    for difference in &report.differences {
        writeln!(out, "{difference}")?;
    }
    for port in &report.host_ports {
        writeln!(out, "{port}")?;
    }
    let differences = report.differences.len() + report.host_ports.len();
    let (pods, packets) = (report.pods, report.packets);
    writeln!(out, "{pods} pods, {packets} packets walked, {differences} differences")
}
