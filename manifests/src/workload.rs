//! Workloads, and the pods that they stand for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use moat_policies::{Labels, NamespacedName, Pod};

use crate::decode::Identity;
use crate::fields::{Context, Path, shared};
use crate::meta::{Meta, Naming, metadata, selector, template_labels};
use crate::names::{dns_label, dns_subdomain};
use crate::pod::{PodSpec, RestartPolicy, pod_spec};
use crate::tree::Node;

/// The most pods that a workload's replicas stand for: two show what they can do to each other.
const MOST_PODS: u64 = 2;

/// A kind of workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WorkloadKind {
    /// apps/v1 Deployment.
    Deployment,
    /// apps/v1 StatefulSet.
    StatefulSet,
    /// apps/v1 DaemonSet.
    DaemonSet,
    /// apps/v1 ReplicaSet.
    ReplicaSet,
    /// batch/v1 Job.
    Job,
    /// batch/v1 CronJob.
    CronJob,
}

impl WorkloadKind {
    /// All of them.
    pub const ALL: [WorkloadKind; 6] = [
        WorkloadKind::Deployment,
        WorkloadKind::StatefulSet,
        WorkloadKind::DaemonSet,
        WorkloadKind::ReplicaSet,
        WorkloadKind::Job,
        WorkloadKind::CronJob,
    ];

    /// `kind`.
    pub const fn as_str(self) -> &'static str {
        match self {
            WorkloadKind::Deployment => "Deployment",
            WorkloadKind::StatefulSet => "StatefulSet",
            WorkloadKind::DaemonSet => "DaemonSet",
            WorkloadKind::ReplicaSet => "ReplicaSet",
            WorkloadKind::Job => "Job",
            WorkloadKind::CronJob => "CronJob",
        }
    }

    /// The kind by a name that kubectl takes: `deployment`, `deployments`, `deploy`, in any case.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        Self::ALL.into_iter().find(|kind| {
            let name = kind.as_str().to_ascii_lowercase();
            let short = match kind {
                WorkloadKind::Deployment => "deploy",
                WorkloadKind::StatefulSet => "sts",
                WorkloadKind::DaemonSet => "ds",
                WorkloadKind::ReplicaSet => "rs",
                WorkloadKind::Job => "job",
                WorkloadKind::CronJob => "cj",
            };
            text == name || text == format!("{name}s") || text == short
        })
    }
}

impl std::fmt::Display for WorkloadKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A workload and the pods that it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// `kind`.
    pub kind: WorkloadKind,
    /// `metadata.namespace` and `metadata.name`.
    pub name: NamespacedName,
    /// The pods: those of the input that it owns; else `name-0`, `name-1`, as many as it has replicas, at most two
    /// (a Job or CronJob: one; a DaemonSet: one a node).
    pub pods: Vec<NamespacedName>,
}

/// A workload as it was read; its pods are made when all documents are.
pub(crate) struct Template {
    pub kind: WorkloadKind,
    pub meta: Meta,
    labels: Labels,
    spec: PodSpec,
    replicas: u64,
}

/// A workload of this kind. `None` only where something was refused.
pub(crate) fn workload(c: &mut Context<'_>, object: &Node, kind: WorkloadKind) -> Option<Template> {
    let root = Path::ROOT;
    c.object(object, &root, &["apiVersion", "kind", "metadata", "spec", "status"])?;
    let rule = match kind {
        WorkloadKind::StatefulSet => dns_label,
        WorkloadKind::CronJob => cron_job_name,
        WorkloadKind::Job => job_name,
        _ => dns_subdomain,
    };
    let meta = metadata(c, object, Naming { namespaced: true, rule });
    let path = root.field("spec");
    let spec = c.require(object, &root, "spec")?;
    let replicas = replicas(c, spec, &path, kind);
    let (labels, pods) = if kind == WorkloadKind::CronJob {
        let job = c.require(spec, &path, "jobTemplate")?;
        let path = path.field("jobTemplate");
        let spec = c.require(job, &path, "spec")?;
        template(c, spec, &path.field("spec"), kind)?
    } else {
        template(c, spec, &path, kind)?
    };
    Some(Template { kind, meta: meta?, labels, spec: pods, replicas })
}

/// A CronJob's name leaves room for the 11 characters that its Jobs' names add.
fn cron_job_name(text: &str) -> Result<(), String> {
    match text.len() {
        0..=52 => dns_subdomain(text),
        long => Err(format!("{long} characters long; at most 52 are allowed")),
    }
}

/// A Job's name becomes a label of its pods.
fn job_name(text: &str) -> Result<(), String> {
    match text.len() {
        0..=63 => dns_subdomain(text),
        long => Err(format!("{long} characters long; at most 63 are allowed")),
    }
}

fn replicas(c: &mut Context<'_>, spec: &Node, path: &Path<'_>, kind: WorkloadKind) -> u64 {
    match kind {
        WorkloadKind::Deployment | WorkloadKind::StatefulSet | WorkloadKind::ReplicaSet => {
            let number = c.number(spec, path, "replicas").unwrap_or(1);
            u64::try_from(number).unwrap_or_else(|_| {
                let node = spec.get("replicas").unwrap_or(spec);
                c.refuse(node, &path.field("replicas"), format!("{number} must not be negative"));
                0
            })
        }
        WorkloadKind::Job | WorkloadKind::CronJob | WorkloadKind::DaemonSet => 1,
    }
}

/// `template` of a workload's spec: its pods' labels and spec. The workload's selector must select them.
fn template(
    c: &mut Context<'_>,
    spec: &Node,
    path: &Path<'_>,
    kind: WorkloadKind,
) -> Option<(Labels, PodSpec)> {
    let template = c.require(spec, path, "template");
    let needs_selector = !matches!(kind, WorkloadKind::Job | WorkloadKind::CronJob);
    let selects = match spec.get("selector") {
        Some(node) if needs_selector => Some(selector(c, node, &path.field("selector"))),
        None if needs_selector => {
            c.require(spec, path, "selector");
            None
        }
        _ => None,
    };
    let template = template?;
    let path_template = path.field("template");
    c.object(template, &path_template, &["metadata", "spec"])?;
    let labels = template_labels(c, template, &path_template);
    if let Some(selector) = selects.filter(|s| s.is_everything() || !s.matches(&labels)) {
        let node = spec.get("selector").unwrap_or(spec);
        let reason = match selector.is_everything() {
            true => "must not be empty".to_string(),
            false => format!("does not select the pods of the template: {selector}"),
        };
        c.refuse(node, &path.field("selector"), reason);
    }
    let path_spec = path_template.field("spec");
    let node = c.require(template, &path_template, "spec")?;
    let pods = pod_spec(c, node, &path_spec)?;
    let restarts = pods.restart_policy == RestartPolicy::Always;
    if restarts != needs_selector {
        let (kind, words) = match needs_selector {
            true => (kind, "Always"),
            false => (WorkloadKind::Job, "OnFailure or Never"),
        };
        let at = node.get("restartPolicy").unwrap_or(node);
        c.refuse(at, &path_spec.field("restartPolicy"), format!("must be {words} in a {kind}"));
    }
    Some((labels, pods))
}

/// A workload's identity, as owner references have it.
pub(crate) type Owner = (Arc<str>, NamespacedName);

/// What the input's workloads stand for.
pub(crate) struct Expansion {
    pub workloads: Vec<Workload>,
    /// The pods that no document describes, and which template each is of.
    pub pods: Vec<(usize, Pod)>,
}

/// Makes the pods of all workloads.
///
/// `nodes` are the names of all Nodes, sorted. `owned` are the input's own pods by the workload that controls them:
/// a workload that has some stands for those, as in a dump of a cluster. A ReplicaSet or Job that another workload
/// of the input controls stands for nothing by itself.
pub(crate) fn expand(
    templates: &[&Template],
    nodes: &BTreeSet<Arc<str>>,
    owned: &BTreeMap<Owner, Vec<NamespacedName>>,
) -> Expansion {
    let owner = |t: &Template| -> Owner { (shared(t.kind.as_str()), t.meta.namespaced_name()) };
    let known: BTreeSet<Owner> = templates.iter().copied().map(owner).collect();
    let controller = |t: &Template| -> Option<Owner> {
        let (kind, name) = t.meta.controller.clone()?;
        let owner = (kind, NamespacedName::new(t.meta.namespace.clone(), name));
        known.contains(&owner).then_some(owner)
    };
    // What a controlled workload owns, its controller owns.
    let mut all_owned = owned.clone();
    for &template in templates {
        if let (Some(above), Some(pods)) = (controller(template), owned.get(&owner(template))) {
            all_owned.entry(above).or_default().extend(pods.iter().cloned());
        }
    }
    let mut expansion = Expansion { workloads: Vec::new(), pods: Vec::new() };
    for (index, &template) in templates.iter().enumerate() {
        let mut pods = all_owned.get(&owner(template)).cloned().unwrap_or_default();
        pods.sort();
        if pods.is_empty() && controller(template).is_none() {
            for pod in template.pods(nodes) {
                pods.push(pod.name.clone());
                expansion.pods.push((index, pod));
            }
        }
        expansion.workloads.push(Workload {
            kind: template.kind,
            name: template.meta.namespaced_name(),
            pods,
        });
    }
    expansion
}

impl Template {
    pub(crate) fn identity(&self) -> Identity {
        Identity::Workload(self.kind, self.meta.namespaced_name())
    }

    fn pods(&self, nodes: &BTreeSet<Arc<str>>) -> Vec<Pod> {
        let pod = |index: usize| {
            let name = format!("{}-{index}", self.meta.name);
            let labels = self.labels_of(&name, index);
            self.spec.pod(NamespacedName::new(self.meta.namespace.clone(), name), labels)
        };
        match self.kind {
            WorkloadKind::DaemonSet if !nodes.is_empty() => nodes
                .iter()
                .enumerate()
                .map(|(index, node)| Pod { node: Some(node.clone()), ..pod(index) })
                .collect(),
            _ => (0..self.replicas.min(MOST_PODS) as usize).map(pod).collect(),
        }
    }

    /// The template's labels, and those that the workload's controller adds with a value that can be known.
    fn labels_of(&self, pod: &str, index: usize) -> Labels {
        let mut labels = self.labels.clone();
        let mut add = |key: &str, value: &str| {
            labels.insert(shared(key), shared(value));
        };
        match self.kind {
            WorkloadKind::StatefulSet => {
                add("statefulset.kubernetes.io/pod-name", pod);
                add("apps.kubernetes.io/pod-index", &index.to_string());
            }
            WorkloadKind::Job => {
                add("batch.kubernetes.io/job-name", &self.meta.name);
                add("job-name", &self.meta.name);
            }
            _ => {}
        }
        labels
    }
}
