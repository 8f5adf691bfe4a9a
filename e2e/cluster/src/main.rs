//! `moat-cluster`: a real Kubernetes cluster on one machine, for moat's end-to-end suites. Called through `cargo xtask cluster`,
//! which builds Kubernetes and says where it is.
//!
//! ```text
//!   up ── front: arguments, progress, Ctrl-C                                host's namespaces
//!          └─ keeper ── process 1 of the cluster; own mounts, own network: the fabric
//!               ├─ etcd, kube-apiserver, kube-controller-manager, kube-scheduler
//!               └─ node1 ── process 1 of the node; own network, mounts, processes, name
//!                    ├─ containerd ── pods
//!                    └─ kubelet, kube-proxy
//! ```
//!
//! moat itself runs in it as on any cluster, as pods that `kubectl apply -k` makes.
//!
//! Nothing of it outlives the keeper: when that is killed, the kernel ends all processes of its process namespace, the nodes' and the
//! pods' among them, and with the last process of a namespace goes the namespace. What is left is a folder, empty control groups and
//! a raised limit, which `down` and the next `up` put right.
//!
//! What it does not do: build anything, or know what a policy means.

mod api;
mod bench;
mod cgroups;
mod config;
mod control_plane;
mod daemon;
mod deploy;
mod front;
mod keeper;
mod kubectl;
mod network;
mod node;
mod pki;
mod plan;
mod spaces;
mod state;
mod status;
mod suite;
mod suites;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use crate::plan::{MOST_NODES, Plan, PodNetwork, ProxyMode};
use crate::state::State;

/// A real Kubernetes cluster on this machine, its nodes in namespaces.
#[derive(Parser)]
#[command(bin_name = "cargo xtask cluster")]
struct Cli {
    /// The cluster's name: several may be up at once
    #[arg(long, global = true, default_value = "moat")]
    name: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the cluster, and print where its kubeconfig is
    Up(UpArgs),
    /// Remove the cluster and everything of it
    Down,
    /// Say what runs, and how much memory it takes
    Status,
    /// Run kubectl against the cluster
    Kubectl {
        /// Handed to kubectl as they are
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        args: Vec<OsString>,
    },
    /// Run a program on a node, in all of the node's namespaces
    Exec {
        /// node1, node2, …
        node: String,
        /// The program and its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// Run the upstream NetworkPolicy suite, and say which specs passed
    E2e(suite::Options),
    /// Run moat's own suites, and say of each check whether it passed
    Suite(suites::Options),
    /// Measure moat on the cluster: policies, starts, ADD, memory
    Bench(bench::Options),
    #[command(hide = true)]
    Keeper { plan: PathBuf },
    #[command(hide = true)]
    Node { plan: PathBuf, node: String },
}

#[derive(Args)]
struct UpArgs {
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=i64::from(MOST_NODES)))]
    nodes: u8,
    /// Where pods get their network from
    #[arg(long, value_enum, default_value_t = PodNetwork::Moat)]
    network: PodNetwork,
    /// How kube-proxy writes its rules
    #[arg(long, value_enum, default_value_t = ProxyMode::Nftables)]
    proxy: ProxyMode,
    /// Give nodes, pods and Services IPv6 addresses as well
    #[arg(long)]
    dual_stack: bool,
    /// Folder of Kubernetes' programs, as `cargo xtask cluster` builds it
    #[arg(long, env = "MOAT_KUBERNETES", value_name = "DIR")]
    kubernetes: PathBuf,
    /// Archives of the images that pods are made of, separated by colons
    #[arg(long, env = "MOAT_IMAGES", value_name = "FILES", value_delimiter = ':')]
    images: Vec<PathBuf>,
    /// Archive of moat's image, as `cargo xtask image` writes it [default: one that is built for this, as tests are]
    #[arg(long, env = "MOAT_IMAGE", value_name = "FILE", required_if_eq("network", "moat"))]
    image: Option<PathBuf>,
    /// Folder that moat is deployed from, as by kubectl apply -k
    #[arg(long, env = "MOAT_DEPLOY", value_name = "DIR", required_if_eq("network", "moat"))]
    deploy: Option<PathBuf>,
}

impl UpArgs {
    fn plan(self, name: &str, state: &State) -> Plan {
        let with_moat = self.network == PodNetwork::Moat;
        let mut images = self.images;
        images.extend(self.image.filter(|_| with_moat));
        Plan {
            name: name.to_owned(),
            nodes: self.nodes,
            state: state.path().to_owned(),
            kubernetes: self.kubernetes,
            images,
            moat: self.deploy.filter(|_| with_moat),
            proxy: self.proxy,
            dual_stack: self.dual_stack,
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli.name, cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(name: &str, command: Command) -> Result<ExitCode> {
    let state = State::named(name)?;
    let read = |plan: PathBuf| -> Result<Plan> {
        let text = std::fs::read(&plan).with_context(|| format!("cannot read {}", plan.display()))?;
        Ok(serde_json::from_slice(&text)?)
    };
    let done = match command {
        Command::Up(args) => {
            let plan = args.plan(name, &state);
            front::up(&state, &plan)
        }
        Command::Down => front::down(&state, name),
        Command::Status => status::print(&state),
        Command::Kubectl { args } => return front::kubectl(&state.plan()?, &args),
        Command::Exec { node, command } => return front::exec(&state, &node, &command),
        Command::E2e(options) => return suite::run(&state.plan()?, &options),
        Command::Suite(options) => return suites::run(&state, &options),
        Command::Bench(options) => return bench::run(&state, &options),
        Command::Keeper { plan } => keeper::run(&read(plan)?),
        Command::Node { plan, node } => node::run(&read(plan)?, &node),
    };
    done.map(|()| ExitCode::SUCCESS)
}
