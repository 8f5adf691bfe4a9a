//! The controller's command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::Parser;
use moat_apiserver::Access;
use moat_controller::listen::Listen;
use moat_controller::run::{self, Options};
use moat_controller::source::Source;
use moat_daemon::process::{self, LogFormat};
use moat_manifests::Folders;
use moat_policies::Limits;

/// Compiles NetworkPolicy, and tells each node's agent what its pods need.
///
/// Objects come from the API server, as the ServiceAccount of this pod or by a kubeconfig; or from folders of manifests. Agents are
/// served without TLS and without a check of who they are: so only over a Unix socket of this user, or on a loopback address.
#[derive(Parser)]
#[command(name = "moat-controller", version)]
struct Cli {
    /// Take objects from the API server as the ServiceAccount of this pod: what is done where no other source is given
    #[arg(long, conflicts_with_all = ["kubeconfig", "manifests"])]
    in_cluster: bool,
    /// Take objects from the API server that this kubeconfig names
    #[arg(long, value_name = "FILE", conflicts_with = "manifests")]
    kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig, in place of its current one
    #[arg(long, value_name = "NAME", requires = "kubeconfig")]
    context: Option<String>,
    /// Take objects from this folder of manifests, watched; may be given more than once
    #[arg(long, value_name = "DIR")]
    manifests: Vec<PathBuf>,
    /// Folder of Pods with metadata, spec.nodeName and status only, put over the pods of the same name; watched
    #[arg(long, value_name = "DIR", requires = "manifests")]
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
    process::run(|stop| async move {
        let options = Options {
            source: source(cli.in_cluster, cli.kubeconfig, cli.context, cli.manifests, cli.pod_status)
                .await?,
            listen: cli.listen,
            insecure: cli.insecure_plaintext,
            http: cli.http,
            limits: Limits::of_classes(cli.max_classes_per_pod),
        };
        run::run(options, stop).await
    })
}

async fn source(
    in_cluster: bool,
    kubeconfig: Option<PathBuf>,
    context: Option<String>,
    manifests: Vec<PathBuf>,
    pod_status: Vec<PathBuf>,
) -> anyhow::Result<Source> {
    let access = match kubeconfig {
        _ if !manifests.is_empty() => return Ok(Source::Folders(Folders { manifests, pod_status })),
        Some(file) => Access::Kubeconfig { file: Some(file), context },
        None if in_cluster || Access::is_in_cluster() => Access::InCluster,
        None => {
            bail!("nothing to serve: not in a pod with a ServiceAccount; give --kubeconfig or --manifests")
        }
    };
    Ok(Source::Api(access.client().await?))
}
