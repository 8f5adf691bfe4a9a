//! What can go wrong with an API server.

use std::path::PathBuf;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A kubeconfig that cannot be used.
    #[error("kubeconfig {}: give another one with --kubeconfig, or name a context that it has", file.display())]
    Kubeconfig {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    /// A file that is no kubeconfig. The parser's words are left out: with what is in the file they would show keys and tokens.
    #[error("{} is no kubeconfig: it cannot be read as YAML of that kind", .0.as_deref().map_or("what KUBECONFIG names".into(), |file| file.display().to_string()))]
    NotAKubeconfig(Option<PathBuf>),
    /// No kubeconfig where one is looked for.
    #[error("no kubeconfig: set KUBECONFIG, or name a file with --kubeconfig")]
    NoKubeconfig(#[source] Box<kube::config::KubeconfigError>),
    /// This process is not in a pod with a ServiceAccount.
    #[error("not in a cluster: this is for a pod with a ServiceAccount; elsewhere use --kubeconfig")]
    NotInCluster(#[source] Box<kube::config::InClusterError>),
    /// The API server cannot be talked to as the configuration says.
    #[error("cannot talk to the API server")]
    Client(#[source] Box<kube::Error>),
    /// Some kind cannot be listed.
    #[error("cannot list {kind}; does whoever asks have the right to (kubectl auth can-i list {kind})?")]
    List {
        /// The kind, in the plural.
        kind: &'static str,
        /// What the API server, or the way to it, says.
        #[source]
        source: Box<kube::Error>,
    },
}
