//! The controller's command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, Parser};
use moat_apiserver::Access;
use moat_controller::authority::Lifetimes;
use moat_controller::authority::files::Files;
use moat_controller::entrance::{self, Entrance};
use moat_controller::listen::Listen;
use moat_controller::run::{self, Options};
use moat_controller::source::Source;
use moat_controller::tokens::Account;
use moat_daemon::process::{self, LogFormat};
use moat_manifests::Folders;
use moat_policies::Limits;

/// Compiles NetworkPolicy, and tells each node's agent what its pods need.
///
/// Objects come from the API server, as the ServiceAccount of this pod or by a kubeconfig; or from folders of manifests. With an API
/// server, agents that connect to a port are served by TLS, as the nodes of their tokens.
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
    #[command(flatten)]
    entrance: EntranceArgs,
    /// Where another replica of this controller is, as agents are to connect to it: they say to each which addresses their pods
    /// have. Without it, and with an API server, those behind the Service are; may be given more than once
    #[arg(long, value_name = "URL")]
    replica: Vec<String>,
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

/// How agents are let in.
#[derive(Args)]
struct EntranceArgs {
    /// Where agents connect: unix:PATH, or an address and a port. With an API server a port takes TLS, and agents' tokens
    #[arg(long, value_name = "ADDRESS", default_value = "unix:/run/moat/controller.sock")]
    listen: Listen,
    /// File of the certificate that agents are shown, PEM, in place of one of the controllers' own CA; read again when it changes
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// File of its key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Namespace of the controllers' Service, and of the Secret and the ConfigMap of their CA
    #[arg(long, value_name = "NAMESPACE", default_value = entrance::NAMESPACE)]
    namespace: String,
    /// The ServiceAccount whose tokens agents show
    #[arg(long, value_name = "NAMESPACE/NAME", default_value_t = Account::default())]
    agent_account: Account,
    /// Serve in clear text at any address. Whoever reaches it can then read every node's policy and speak for every node
    #[arg(long)]
    insecure_plaintext: bool,
    /// Let anybody speak for any node at any address
    #[arg(long)]
    insecure_any_agent: bool,
    /// How long a stream goes on before its token is looked at again, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = entrance::RECHECK.as_secs(), hide = true, value_parser = clap::value_parser!(u64).range(1..))]
    token_recheck: u64,
    /// How long a CA is valid, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = Lifetimes::default().ca.as_secs(), hide = true)]
    ca_lifetime: u64,
    /// How long a CA is published before it signs, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = Lifetimes::default().settle.as_secs(), hide = true)]
    ca_settle: u64,
    /// How long a certificate of the CA is valid, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = Lifetimes::default().leaf.as_secs(), hide = true)]
    leaf_lifetime: u64,
}

impl EntranceArgs {
    fn entrance(self) -> anyhow::Result<Entrance> {
        let lifetimes = Lifetimes {
            ca: Duration::from_secs(self.ca_lifetime),
            settle: Duration::from_secs(self.ca_settle),
            leaf: Duration::from_secs(self.leaf_lifetime),
        };
        Ok(Entrance {
            listen: self.listen,
            insecure_plaintext: self.insecure_plaintext,
            insecure_any_agent: self.insecure_any_agent,
            files: self.tls_cert.zip(self.tls_key).map(|(certificate, key)| Files { certificate, key }),
            namespace: self.namespace,
            account: self.agent_account,
            token_recheck: Duration::from_secs(self.token_recheck),
            lifetimes: lifetimes.check()?,
        })
    }
}

/// What the log leaves out that kube says of every request that fails: we say once what that means, and again when it is over.
const QUIET: &str = "kube_client::client=off,kube_client::client::tls=warn";

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
    cli.log_format.begin(QUIET);
    process::run(|stop| async move {
        let options = Options {
            source: source(cli.in_cluster, cli.kubeconfig, cli.context, cli.manifests, cli.pod_status)
                .await?,
            entrance: cli.entrance.entrance()?,
            replicas: cli.replica,
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
