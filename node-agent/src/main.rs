//! The node agent's command line.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;
use moat_agent::check::{self, CheckArgs};
use moat_agent::cni_files::CniFolders;
use moat_agent::dataplane::{Limits, PodToNode};
use moat_agent::doctor::{self, DoctorArgs};
use moat_agent::guard;
use moat_agent::network::Network;
use moat_agent::podnet::Mode;
use moat_agent::run::{self, Options};
use moat_agent::source::{Controllers, Endpoint, Source, Trust};
use moat_agent::uninstall::{self, UninstallArgs};
use moat_daemon::process::{self, LogFormat};
use moat_manifests::Folders;

/// Enforces NetworkPolicy for the pods of one node, and makes their network.
#[derive(Parser)]
#[command(name = "moat-agent", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent in this network namespace until SIGTERM or SIGINT
    ///
    /// What is in the kernel stays in force when the agent stops, however it stops; the next one adopts it.
    Run(Box<RunArgs>),
    /// Compare what the kernel's table does, as nft lists it, with what the policies say
    ///
    /// Walks the table for every pod of this node, both directions, a sample of peers and every port at an edge.
    /// Exit status: 0 no difference, 1 differences, 2 could not compare.
    Check(CheckArgs),
    /// Say what on this host keeps moat from doing its work, and what to do about it
    ///
    /// Changes nothing. Exit status: 0 nothing to do, 1 a warning or a refusal, 2 could not look.
    Doctor(DoctorArgs),
    /// Take moat off this node: its tables, links, routes, rules and files
    ///
    /// Refuses while an agent runs, and while pods are here whose network moat made, unless --force. Can be run again.
    /// Exit status: 0 nothing of moat is left, 1 refused and nothing changed, 2 something could not be removed.
    Uninstall(UninstallArgs),
    /// Keep the owner of moat's tables alive while no agent runs, so that nobody else can change them
    ///
    /// An agent starts one in its --run-dir where there is none. It needs to be started by hand only where what the agent
    /// starts would end with it, as in a container: then in a container of its own that shares the folder, and the agent with
    /// --guarded-elsewhere.
    #[command(hide = true)]
    Guard(GuardArgs),
}

#[derive(Args)]
struct GuardArgs {
    /// Folder of the socket that agents find it by (guard.sock)
    #[arg(long, value_name = "DIR", default_value = "/run/moat")]
    run_dir: PathBuf,
    /// End the guard of that folder. Tables whose agent has ended can then be changed by everybody
    #[arg(long)]
    stop: bool,
}

#[derive(Args)]
struct RunArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// Folder for what must survive a restart: which pod has which address
    #[arg(long, value_name = "DIR", default_value = "/var/lib/moat")]
    state_dir: PathBuf,
    /// Folder of the socket that moat-cni connects to (agent.sock)
    #[arg(long, value_name = "DIR", default_value = "/run/moat")]
    run_dir: PathBuf,
    #[command(flatten)]
    cni: CniArgs,
    /// Where /healthz, /readyz and /metrics are served
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9469")]
    listen: SocketAddr,
    /// Do not let the kernel guard the tables, as on kernels before 6.9: watch them, and restore what others change
    #[arg(long)]
    no_owner: bool,
    /// Start no guard: one is run beside this agent, with the same --run-dir, as is needed where all that the agent starts ends
    /// with it
    #[arg(long)]
    guarded_elsewhere: bool,
    /// How the agent's log is written, the drop log with it
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// How long an address rests between two pods, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    address_rest: u64,
    #[command(flatten)]
    network: NetworkArgs,
    /// Who decides what a pod may send to its own node
    #[arg(long, value_enum, default_value_t)]
    pod_to_node: PodToNode,
    #[command(flatten)]
    limits: LimitArgs,
}

/// What the node's runtime finds, once this agent can give pods a network.
#[derive(Args)]
struct CniArgs {
    /// Folder in which the node's runtime looks for network configurations, as a rule /etc/cni/net.d: 05-moat.conflist is
    /// written there, and stays
    #[arg(long, value_name = "DIR")]
    cni_conf_dir: Option<PathBuf>,
    /// Folder in which it looks for plugins, as a rule /opt/cni/bin: moat-cni is put there, from beside this program
    #[arg(long, value_name = "DIR")]
    cni_bin_dir: Option<PathBuf>,
}

/// How pods are reached.
#[derive(Args)]
struct NetworkArgs {
    /// How packets get to the pods of other nodes: auto (by routes to nodes on a shared link, through a VXLAN tunnel to the
    /// others), routed, or vxlan
    #[arg(long, value_name = "MODE", default_value_t = Mode::Auto)]
    mode: Mode,
    /// MTU of the pods' links [default: that of the link with the node's address, less what the tunnel needs of it while there
    /// is one]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1280..=65535))]
    mtu: Option<u32>,
    /// Let pods' packets leave the cluster with the pods' own addresses. Without it, what goes to no node and no pod is sent in the
    /// node's name
    #[arg(long)]
    no_masquerade: bool,
    /// Prefix that pods' packets reach with the pods' own addresses, as they do other pods and nodes: another part of the cluster,
    /// or a network that knows the way back; may be given more than once
    #[arg(long, value_name = "CIDR")]
    masquerade_except: Vec<IpNet>,
}

/// What pods, policies and the node may ask of the kernel. Above a limit the pods that it is about are closed, and /readyz
/// says so.
#[derive(Args)]
struct LimitArgs {
    /// Most classes of ports that policies may distinguish for a pod, in one direction
    #[arg(long, value_name = "NUMBER", default_value_t = Limits::default().classes)]
    max_classes_per_pod: usize,
    /// Most prefixes, CIDRs less their excepts, that policies may allow a pod on one class of ports
    #[arg(long, value_name = "NUMBER", default_value_t = Limits::default().prefixes)]
    max_prefixes: usize,
    /// Most addresses and prefixes in all allow sets of this node; the largest sets are left out first
    #[arg(long, value_name = "NUMBER", default_value_t = Limits::default().elements)]
    max_elements: usize,
}

/// Where policy comes from.
#[derive(Args)]
struct SourceArgs {
    /// Name of this node's Node object, whose podCIDRs its pods get their addresses from
    #[arg(long, value_name = "NAME")]
    node: Arc<str>,
    /// Folder of manifests, watched; may be given more than once
    #[arg(long, value_name = "DIR", required_unless_present = "controller")]
    manifests: Vec<PathBuf>,
    /// Folder of Pods with metadata, spec.nodeName and status only, put over the pods of the same name; watched
    #[arg(long, value_name = "DIR")]
    pod_status: Vec<PathBuf>,
    /// Follow a controller in place of folders: https://HOST:PORT, unix:PATH, or http:// with a loopback address and port; may be
    /// given more than once, for controllers of which any will do. What it tells is kept in --state-dir, and enforced where there
    /// is none
    #[arg(long, value_name = "URL", conflicts_with_all = ["manifests", "pod_status"])]
    controller: Vec<Endpoint>,
    /// With https://: file of the CAs of which one must have signed the controller's certificate, PEM; read at every connection
    #[arg(long, value_name = "FILE", requires = "controller")]
    controller_ca: Option<PathBuf>,
    /// With https://: name that the controller's certificate must be for, whatever its address
    #[arg(long, value_name = "NAME", default_value = "moat-controller.moat-system.svc")]
    controller_name: String,
    /// With https://: file of the ServiceAccount token that is shown to the controller; read at every connection
    #[arg(long, value_name = "FILE", requires = "controller")]
    token_file: Option<PathBuf>,
    /// With --controller: how long ADD waits until other nodes have said that they know the pod's address, in milliseconds
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 500)]
    announce_wait: u64,
}

impl SourceArgs {
    fn source(&self) -> Source {
        if self.controller.is_empty() {
            let (manifests, pod_status) = (self.manifests.clone(), self.pod_status.clone());
            return Source::Folders(Folders { manifests, pod_status });
        }
        let trust = Trust {
            ca: self.controller_ca.clone(),
            token: self.token_file.clone(),
            name: self.controller_name.clone(),
        };
        Source::Controller(Controllers { endpoints: self.controller.clone(), trust })
    }
}

fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    let result = match command {
        Command::Run(args) => run_agent(*args),
        Command::Check(args) => return check::run(&args),
        Command::Doctor(args) => return doctor::run(&args),
        Command::Uninstall(args) => return uninstall::run(&args),
        Command::Guard(args) if args.stop => stop_guard(&args.run_dir),
        Command::Guard(args) => guard::run(&args.run_dir).map_err(Into::into),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("moat-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn stop_guard(run_dir: &Path) -> anyhow::Result<()> {
    if !guard::stop(run_dir)? {
        println!("no guard listens in {}", run_dir.display());
    }
    Ok(())
}

fn run_agent(args: RunArgs) -> anyhow::Result<()> {
    args.log_format.begin("");
    let options = Options {
        node: args.source.node.clone(),
        source: args.source.source(),
        announce_wait: Duration::from_millis(args.source.announce_wait),
        state_dir: args.state_dir,
        run_dir: args.run_dir,
        cni: CniFolders { conf: args.cni.cni_conf_dir, bin: args.cni.cni_bin_dir },
        listen: args.listen,
        owner: !args.no_owner,
        starts_guard: !args.guarded_elsewhere,
        address_rest: Duration::from_secs(args.address_rest),
        network: Network {
            mode: args.network.mode,
            mtu: args.network.mtu,
            masquerade: !args.network.no_masquerade,
            inside: args.network.masquerade_except,
            ..Network::default()
        },
        pod_to_node: args.pod_to_node,
        limits: Limits {
            classes: args.limits.max_classes_per_pod,
            prefixes: args.limits.max_prefixes,
            elements: args.limits.max_elements,
        },
    };
    process::run(|stop| run::run(options, stop))
}
