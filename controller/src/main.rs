//! The controller's command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use moat_controller::listen::Listen;
use moat_controller::run::{self, Options};
use moat_daemon::process::{self, LogFormat};
use moat_manifests::Folders;
use moat_policies::Limits;

/// Compiles NetworkPolicy, and tells each node's agent what its pods need.
///
/// Objects come from folders of manifests. Agents are served without TLS and without a check of who they are: so only over a Unix
/// socket of this user, or on a loopback address.
#[derive(Parser)]
#[command(name = "moat-controller", version)]
struct Cli {
    /// Folder of manifests, watched; may be given more than once
    #[arg(long, value_name = "DIR", required = true)]
    manifests: Vec<PathBuf>,
    /// Folder of Pods with metadata, spec.nodeName and status only, put over the pods of the same name; watched
    #[arg(long, value_name = "DIR")]
    pod_status: Vec<PathBuf>,
    /// Where agents connect: unix:PATH, or a loopback address and port
    #[arg(long, value_name = "ADDRESS", default_value = "unix:/run/moat/controller.sock")]
    listen: Listen,
    /// Let --listen be any address. Whoever reaches it can then read every node's policy and speak for every node
    #[arg(long)]
    insecure_plaintext: bool,
    /// Where /healthz, /readyz and /metrics are served
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9470")]
    http: SocketAddr,
    /// Most classes of ports that policies may distinguish for a pod, in one direction. Above it the pod is closed
    #[arg(long, value_name = "NUMBER", default_value_t = Limits::CLASSES)]
    max_classes_per_pod: usize,
    /// How the log is written
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

fn main() -> ExitCode {
    match start(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("moat-controller: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> anyhow::Result<()> {
    cli.log_format.begin();
    let options = Options {
        folders: Folders { manifests: cli.manifests, pod_status: cli.pod_status },
        listen: cli.listen,
        insecure: cli.insecure_plaintext,
        http: cli.http,
        limits: Limits::of_classes(cli.max_classes_per_pod),
    };
    process::run(|stop| run::run(options, stop))
}
