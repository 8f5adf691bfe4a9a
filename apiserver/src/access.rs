//! Where the API server is, and who asks it.

use std::path::PathBuf;

use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

use crate::Error;

/// How the API server is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// As the ServiceAccount of the pod that this process is in.
    InCluster,
    /// As a kubeconfig says.
    Kubeconfig {
        /// The file; `None`: those that `KUBECONFIG` names, or `~/.kube/config`.
        file: Option<PathBuf>,
        /// A context of it; `None`: its current one.
        context: Option<String>,
    },
}

impl Access {
    /// Whether this process has the ServiceAccount of a pod.
    pub fn is_in_cluster() -> bool {
        Config::incluster().is_ok()
    }

    /// A client of that API server. Nothing is asked yet.
    pub async fn client(&self) -> Result<Client, Error> {
        let config = match self {
            Self::InCluster => Config::incluster().map_err(|e| Error::NotInCluster(Box::new(e)))?,
            Self::Kubeconfig { file, context } => {
                let failed = |source| match file.clone() {
                    file if matches!(source, KubeconfigError::Parse(_)) => Error::NotAKubeconfig(file),
                    Some(file) => Error::Kubeconfig { file, source: Box::new(source) },
                    None => Error::NoKubeconfig(Box::new(source)),
                };
                let read = match file {
                    Some(file) => Kubeconfig::read_from(file),
                    None => Kubeconfig::read(),
                };
                let options = KubeConfigOptions { context: context.clone(), ..KubeConfigOptions::default() };
                let config = match read {
                    Ok(kubeconfig) => Config::from_custom_kubeconfig(kubeconfig, &options).await,
                    Err(error) => Err(error),
                };
                config.map_err(failed)?
            }
        };
        Client::try_from(config).map_err(|e| Error::Client(Box::new(e)))
    }
}
