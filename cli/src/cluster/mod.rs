//! A live cluster: how it is found, and what is asked of its API server.
//!
//! ```text
//!   kubeconfig, or a pod's ServiceAccount ─▶ client ─▶ objects    what reach and matrix are about
//!                                                  ├─▶ agents     what a node's agent says, by an exec into its pod
//!                                                  └─▶ status's own lists
//! ```

pub(crate) mod agents;
pub(crate) mod objects;
mod teach;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use kube::Client;
use moat_apiserver::Access;
use tokio::runtime::{Builder, Runtime};

pub(crate) use teach::explain;

/// Where moat's own pods are.
pub(crate) const NAMESPACE: &str = "moat-system";

/// Which cluster is asked.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Cluster {
    /// Kubeconfig of the cluster to ask [default: $KUBECONFIG, or ~/.kube/config; in a pod its ServiceAccount]
    #[arg(long, value_name = "FILE", help_heading = "Which cluster")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME", help_heading = "Which cluster")]
    context: Option<String>,
}

impl Cluster {
    /// Whether somebody has said which.
    pub(crate) fn is_named(&self) -> bool {
        self.kubeconfig.is_some() || self.context.is_some()
    }

    /// Whether there is one to ask without anybody having said which.
    pub(crate) fn is_there(&self) -> bool {
        self.is_named() || has_kubeconfig() || Access::is_in_cluster()
    }

    /// A client, on a runtime of its own.
    pub(crate) fn connect(&self) -> Result<(Runtime, Client)> {
        let runtime = Builder::new_current_thread().enable_all().build().context("cannot start a runtime")?;
        let access = match !self.is_named() && !has_kubeconfig() && Access::is_in_cluster() {
            true => Access::InCluster,
            false => Access::Kubeconfig { file: self.kubeconfig.clone(), context: self.context.clone() },
        };
        let client = runtime.block_on(access.client()).map_err(teach::access)?;
        Ok((runtime, client))
    }
}

/// Whether there is a kubeconfig where one is looked for.
fn has_kubeconfig() -> bool {
    let at = |path: &Path| path.exists();
    match std::env::var_os("KUBECONFIG").filter(|paths| !paths.is_empty()) {
        Some(paths) => std::env::split_paths(&paths).any(|path| at(&path)),
        None => std::env::home_dir().is_some_and(|home| at(&home.join(".kube/config"))),
    }
}
