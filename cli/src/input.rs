//! The objects that a question is about: of manifests, or of a cluster.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use clap::ValueEnum;
use moat_manifests::Manifests;
use moat_policies::{Evaluator, Objects};

use crate::cluster::{Cluster, objects};
use crate::output;

/// How many objects a note names by kind.
const NAMED_KINDS: usize = 6;

/// Who decides what a pod may send to its own node: as the nodes' agents are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum PodToNode {
    /// Nobody: all of it passes, as the API of NetworkPolicy says
    #[default]
    Allow,
    /// The pod's egress policies, as for every other address that is no pod's
    Policy,
}

impl PodToNode {
    /// Who answers by that.
    pub(crate) fn evaluator(self, objects: &Objects) -> Evaluator<'_> {
        let evaluator = Evaluator::new(objects);
        match self {
            PodToNode::Allow => evaluator,
            PodToNode::Policy => evaluator.judging_pods_to_their_node(),
        }
    }
}

/// `-f`, or which cluster.
#[derive(clap::Args)]
pub(crate) struct Input {
    /// Manifests: a file, a folder with its sub-folders (.yaml, .yml, .json), or - for standard input; may be given
    /// more than once. Without: the cluster that the kubeconfig names
    #[arg(short = 'f', long = "filename", value_name = "PATH", conflicts_with_all = ["kubeconfig", "context"])]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    cluster: Cluster,
}

/// What was read.
pub(crate) struct Loaded {
    /// The objects.
    pub(crate) manifests: Manifests,
    /// The namespace of what is written without one, unless somebody says another.
    pub(crate) namespace: String,
}

impl Input {
    /// Reads them all. What is odd goes to standard error.
    pub(crate) fn load(&self) -> Result<Loaded> {
        if !self.paths.is_empty() {
            return Ok(Loaded { manifests: self.manifests()?, namespace: "default".to_owned() });
        }
        if !self.cluster.is_there() {
            bail!(
                "nothing to ask: give manifests with -f (--filename <PATH>), or a cluster with --kubeconfig; there is none in \
                 $KUBECONFIG or ~/.kube/config"
            );
        }
        let (manifests, namespace) = objects::load(&self.cluster)?;
        Ok(Loaded { manifests, namespace })
    }

    fn manifests(&self) -> Result<Manifests> {
        let manifests = moat_manifests::load(&self.paths)?;
        for warning in &manifests.warnings {
            output::warn(format_args!("{warning}"));
        }
        if !manifests.skipped.is_empty() {
            let kinds: Vec<String> =
                manifests.skipped.iter().take(NAMED_KINDS).map(|(kind, n)| format!("{n} {kind}")).collect();
            let more = if manifests.skipped.len() > NAMED_KINDS { " and other kinds" } else { "" };
            output::note(format_args!("passed over {}{more}: they decide no verdict", kinds.join(", ")));
        }
        let paths: Vec<String> = self.paths.iter().map(|p| p.display().to_string()).collect();
        ensure!(
            !manifests.objects.is_empty() || !manifests.workloads.is_empty(),
            "no objects in {}; -f takes files, or folders that hold .yaml, .yml or .json files",
            paths.join(", ")
        );
        Ok(manifests)
    }
}

/// Warns of addresses that several pods claim, and whose they are.
pub(crate) fn warn_of_contested(evaluator: &Evaluator<'_>, objects: &Objects) {
    for address in evaluator.contested() {
        let claims = objects.pods().iter().filter(|p| !p.host_network && p.addresses.contains(&address));
        let names: Vec<String> = claims.map(|p| p.name.to_string()).collect();
        output::warn(format_args!(
            "{} all claim {address}; no selector finds any of them by it",
            names.join(", ")
        ));
    }
}
