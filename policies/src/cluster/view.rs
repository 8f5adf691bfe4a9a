//! What one node has been told, asked piece by piece.

use std::sync::Arc;

use super::Cluster;
use super::compiler::Compiler;
use super::nodes::NodeIx;
use crate::{AllowSet, NamespacedName, Objects, PodPrograms, Program, ProgramId, SetId};

/// What a node has been told by the commits so far: of its own span everything, of the rest of the cluster nothing.
///
/// For whoever keeps only the names of what a node has still to be told. To be asked after a commit, before anything is applied,
/// as [`Cluster::state`] is.
pub struct NodeView<'c> {
    compiler: &'c Compiler,
    objects: &'c Objects,
    node: Option<NodeIx>,
}

impl Cluster {
    /// What the node with this name has been told.
    pub fn node(&self, name: &str) -> NodeView<'_> {
        NodeView { compiler: &self.compiler, objects: &self.objects, node: self.compiler.nodes.find(name) }
    }
}

impl NodeView<'_> {
    /// What policy says of a pod, if it is on the node and not in the node's network.
    pub fn pod(&self, name: &NamespacedName) -> Option<PodPrograms> {
        let pod = self.compiler.pods.get(self.objects.pods().find(name)?)?;
        if pod.node != Some(self.node?) {
            return None;
        }
        Some(self.compiler.pod_programs(pod.told?))
    }

    /// A program, if pods of the node have it.
    pub fn program(&self, id: &ProgramId) -> Option<Arc<Program>> {
        let program = &self.compiler.programs.entries[*self.compiler.programs.by_id.get(id)?];
        program.span.contains_key(&self.node?).then(|| program.program.clone())
    }

    /// A set, whole, if programs of the node look into it.
    pub fn set(&self, id: &SetId) -> Option<Arc<AllowSet>> {
        let Compiler { sets, members, claims, .. } = self.compiler;
        let ix = *sets.by_id.get(id)?;
        let here = sets.entries[ix].span.contains_key(&self.node?);
        here.then(|| sets.whole(ix, members, self.objects.pods(), claims))
    }
}
